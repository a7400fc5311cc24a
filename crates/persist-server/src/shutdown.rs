//! The end of a server: a shutdown, or a restart with a new log. Each function shows its steps in order. Each step has
//! a share of the deadline, and a log line names a step that exceeds its share.

use std::time::Duration;

use dormouse_engine::{Engine, PreparedEngine, ShutdownReport};
use dormouse_runtime::Env;

use crate::health::ServerPhase;
use crate::server::{Server, ServerTasks};

/// Time reserved for the steps after the release of the subjects.
const FINAL_STEPS: Duration = Duration::from_secs(5);

impl Server {
    /// Ends a server whose log was taken over, and prepares an engine with a new log. The process continues under a new
    /// identity, and claims subjects on request. `deadline` bounds the waits for running work.
    ///
    /// If the call is cancelled, the server serves nothing.
    pub async fn restart_after_takeover(self, deadline: Duration) -> Option<PreparedEngine> {
        tracing::warn!(
            log = %self.log,
            "log fenced, restarting with new log"
        );
        self.restart_with_new_log(deadline, Engine::restart_after_takeover).await
    }

    /// Ends a server that has handed over all open subjects, and prepares an engine with a new log that owns nothing.
    /// Then any server can claim the dormant subjects of the old log. `deadline` bounds the waits for running work.
    ///
    /// If the call is cancelled, the server serves nothing.
    pub async fn restart_after_drain(self, deadline: Duration) -> Option<PreparedEngine> {
        self.restart_with_new_log(deadline, Engine::restart_after_drain).await
    }

    async fn restart_with_new_log<F>(
        self,
        deadline: Duration,
        end: impl FnOnce(Engine) -> F,
    ) -> Option<PreparedEngine>
    where
        F: Future<Output = PreparedEngine>,
    {
        let Self { prepared, data, health: vitals, closed, tasks, .. } = self;
        let clock = DeadlineBudget { ends_at: data.env.boot() + deadline, env: data.env };
        vitals.phase.set(ServerPhase::Starting);
        tasks.handovers.stop().request();
        closed.request();
        let prepared = match vitals.engine.get() {
            Some(engine) => tokio::time::timeout(clock.left(), end(engine.clone())).await.ok(),
            None => prepared,
        };
        // No leave: the join of the new log names this log as its predecessor.
        finish(&tasks, &clock).await;
        prepared
    }

    /// Releases all subjects and ends the server, in these steps. Each step has a share of `deadline`, and a log line
    /// names a step that exceeds it:
    ///
    /// 1. The server reports to the coordinator that it is draining. The coordinator then redirects clients to other
    ///    servers.
    /// 2. The server hands subjects over one by one, and serves the others meanwhile. While another server can take
    ///    them, no call fails.
    /// 3. New requests are rejected with a reply.
    /// 4. Every remaining subject ships its changes to the bucket and is released.
    /// 5. The server sends a leave to the coordinator.
    /// 6. The subscriptions end, and the queued replies and events are sent.
    /// 7. The connections are closed.
    ///
    /// Returns whether all subjects were released. If the call is cancelled, the remaining steps do not happen; other
    /// servers claim unreleased subjects after the lease has expired.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        let Self { data, control, health: vitals, membership, handover: mover, closed, tasks, log, .. } =
            self;
        let clock = DeadlineBudget { ends_at: data.env.boot() + deadline, env: data.env };
        vitals.phase.set(ServerPhase::Stopping);
        tracing::info!(%log, open_subjects = vitals.engine_metrics().open_subjects, "shutdown started");

        let step = clock.at_most(Duration::from_secs(1));
        let is_acknowledged = vitals.lease.generation().is_some()
            && tokio::time::timeout(step, membership.drain()).await.is_ok();
        if !is_acknowledged {
            tracing::info!("draining not acknowledged by coordinator");
        }

        if let Some(mover) = mover.filter(|_| is_acknowledged) {
            // The other half is for the remaining subjects.
            let share = clock.all_but(FINAL_STEPS) / 2;
            if tokio::time::timeout(share, mover.hand_over_all()).await.is_err() {
                let open_subjects = vitals.engine_metrics().open_subjects;
                tracing::info!(open_subjects, "handover timed out, releasing remaining subjects");
            }
        }
        tasks.handovers.stop().request();

        closed.request();

        let released_all = match vitals.engine.get() {
            Some(engine) => release_all(engine, clock.all_but(FINAL_STEPS)).await,
            None => true,
        };

        if let Err(error) = membership.leave(clock.at_most(Duration::from_secs(1))).await {
            tracing::info!(%error, "leave not acknowledged by coordinator");
        }

        finish(&tasks, &clock).await;

        let close = async { tokio::join!(data.bus.close(), control.bus.close()) };
        if tokio::time::timeout(clock.at_most(Duration::from_secs(4)), close).await.is_err() {
            tracing::warn!("bus close timed out");
        }
        released_all
    }
}

/// Ends the tasks in their order.
async fn finish(tasks: &ServerTasks, clock: &DeadlineBudget) {
    for (name, tasks) in [
        ("handovers", &tasks.handovers),
        ("subjects", &tasks.engine),
        ("membership", &tasks.membership),
        ("pulse", &tasks.pulse),
        ("requests", &tasks.intake),
        ("replies", &tasks.replies),
        ("events", &tasks.events),
        ("discovery and health", &tasks.fixed_replies),
    ] {
        if let Err(unfinished) = tasks.finish(clock.at_most(Duration::from_secs(1))).await {
            tracing::warn!(group = name, %unfinished, "tasks not ended before deadline");
        }
    }
}

/// Ships the changes of every open subject to the bucket and releases it. Returns whether this worked for all.
async fn release_all(engine: &Engine, deadline: Duration) -> bool {
    const LOGGED: usize = 20;
    let handed_over = engine.metrics().handed_over;
    let ShutdownReport { released, unreleased } = engine.shutdown(deadline).await;
    for (subject, why) in unreleased.iter().take(LOGGED) {
        tracing::warn!(
            %subject,
            why,
            impact = "its file stays in the data directory",
            "subject not released"
        );
    }
    if unreleased.len() > LOGGED {
        tracing::warn!(subjects = unreleased.len() - LOGGED, "more subjects not released");
    }
    tracing::info!(handed_over, released, unreleased = unreleased.len(), "subjects released");
    unreleased.is_empty()
}

/// The time until a deadline, shared by the steps.
struct DeadlineBudget {
    env: Env,
    ends_at: Duration,
}

impl DeadlineBudget {
    fn left(&self) -> Duration {
        self.ends_at.saturating_sub(self.env.boot())
    }

    /// The remaining time, at most `share`.
    fn at_most(&self, share: Duration) -> Duration {
        self.left().min(share)
    }

    /// The remaining time without `reserve`, or half of it if that is more.
    fn all_but(&self, reserve: Duration) -> Duration {
        let left = self.left();
        left.saturating_sub(reserve).max(left / 2)
    }
}
