//! How a server ends: for good, or to go on under a fresh log. Each way is readable from top to bottom, each step has a
//! share of the time there is, and a line says who held it up.

use std::time::Duration;

use dormouse_runtime::Env;
use dormouse_storage::{Engine, Prepared, ShutdownReport};

use crate::health::Phase;
use crate::server::{Server, ServerTasks};

/// What is kept of the time for the steps after the subjects are handed back.
const FAREWELL: Duration = Duration::from_secs(5);

impl Server {
    /// Ends a server whose log was taken over, and prepares an engine with a fresh log: the process goes on under a new
    /// identity, and claims what it is asked for. `deadline` bounds the waits for what is under way.
    ///
    /// Cancelling the call leaves a server that serves nothing.
    pub async fn succeed(self, deadline: Duration) -> Option<Prepared> {
        tracing::warn!(
            log = %self.log,
            "this process was taken for dead and its log was taken over: going on with a fresh one"
        );
        self.go_on(deadline, Engine::succeed).await
    }

    /// Ends a server that has handed over everything that was open, and prepares an engine with a fresh log, to which
    /// nothing belongs: what sleeps here can be claimed by anybody then. `deadline` bounds the waits for what is under way.
    ///
    /// Cancelling the call leaves a server that serves nothing.
    pub async fn begin_anew(self, deadline: Duration) -> Option<Prepared> {
        self.go_on(deadline, Engine::begin_anew).await
    }

    async fn go_on<F>(self, deadline: Duration, end: impl FnOnce(Engine) -> F) -> Option<Prepared>
    where
        F: Future<Output = Prepared>,
    {
        let Self { prepared, env, vitals, closed, tasks, .. } = self;
        let clock = Countdown { ends_at: env.boot() + deadline, env };
        vitals.phase.set(Phase::Starting);
        tasks.mover.stop().give();
        closed.give();
        let prepared = match vitals.engine.get() {
            Some(engine) => tokio::time::timeout(clock.left(), end(engine.clone())).await.ok(),
            None => prepared,
        };
        // No goodbye: the coordinator hears of the successor, which names this log as its predecessor.
        finish(&tasks, &clock).await;
        prepared
    }

    /// Hands everything over and goes, in this order; each step has a share of `deadline` and says who held it up:
    ///
    /// 1. The coordinator hears that this process is draining, so that clients who ask are sent elsewhere.
    /// 2. Subjects are handed over one by one, while the others are served: as long as there is another server to take
    ///    them, nobody notices.
    /// 3. New requests are turned away, with an answer.
    /// 4. Every subject that is left brings its changes to the bucket and is released.
    /// 5. The coordinator hears that this process is gone.
    /// 6. Listening ends, and what is queued of answers and events is sent.
    /// 7. The bus is closed.
    ///
    /// Returns whether everything was handed back. Cancelling the call leaves the rest undone; subjects that were not
    /// released are claimed by others once the lease has run out.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        let Self { bus, env, vitals, membership, mover, closed, tasks, log, .. } = self;
        let clock = Countdown { env, ends_at: vitals.env.boot() + deadline };
        vitals.phase.set(Phase::Stopping);
        tracing::info!(%log, open_subjects = vitals.engine_figures().open_subjects, "shutting down");

        let step = clock.at_most(Duration::from_secs(1));
        let is_heard = vitals.lease.generation().is_some()
            && tokio::time::timeout(step, membership.drain()).await.is_ok();
        if !is_heard {
            tracing::info!("the coordinator has not heard that this process is draining");
        }

        if let Some(mover) = mover.filter(|_| is_heard) {
            // The same time again is for those that are left.
            let share = clock.all_but(FAREWELL) / 2;
            if tokio::time::timeout(share, mover.end()).await.is_err() {
                let open_subjects = vitals.engine_figures().open_subjects;
                tracing::info!(open_subjects, "subjects are left to be handed back together");
            }
        }
        tasks.mover.stop().give();

        closed.give();

        let handed_back = match vitals.engine.get() {
            Some(engine) => hand_back(engine, clock.all_but(FAREWELL)).await,
            None => true,
        };

        if let Err(error) = membership.leave(clock.at_most(Duration::from_secs(1))).await {
            tracing::info!(%error, "the coordinator has not heard that this process is gone");
        }

        finish(&tasks, &clock).await;

        if tokio::time::timeout(clock.at_most(Duration::from_secs(4)), bus.close()).await.is_err() {
            tracing::warn!("the bus: stopped waiting for it to close");
        }
        handed_back
    }
}

/// Ends the tasks in their order.
async fn finish(tasks: &ServerTasks, clock: &Countdown) {
    for (name, tasks) in [
        ("hand-overs", &tasks.mover),
        ("subjects", &tasks.engine),
        ("membership", &tasks.membership),
        ("requests", &tasks.intake),
        ("answers", &tasks.replies),
        ("events", &tasks.events),
        ("discovery and health", &tasks.answers),
    ] {
        if let Err(unfinished) = tasks.finish(clock.at_most(Duration::from_secs(1))).await {
            tracing::warn!(%unfinished, "{name}: stopped waiting");
        }
    }
}

/// Brings every subject that is open to the bucket and releases it. Whether that worked for all.
async fn hand_back(engine: &Engine, deadline: Duration) -> bool {
    const NAMED: usize = 20;
    let handed_over = engine.figures().handed_over;
    let ShutdownReport { released, unreleased } = engine.shutdown(deadline).await;
    for (subject, why) in unreleased.iter().take(NAMED) {
        tracing::warn!(%subject, why, "the subject was not handed back; its file stays in the data directory");
    }
    if unreleased.len() > NAMED {
        tracing::warn!(subjects = unreleased.len() - NAMED, "more subjects were not handed back");
    }
    tracing::info!(handed_over, released, unreleased = unreleased.len(), "handed subjects back");
    unreleased.is_empty()
}

/// Time until a deadline, dealt out in steps.
struct Countdown {
    env: Env,
    ends_at: Duration,
}

impl Countdown {
    fn left(&self) -> Duration {
        self.ends_at.saturating_sub(self.env.boot())
    }

    /// What is left, but at most `share`.
    fn at_most(&self, share: Duration) -> Duration {
        self.left().min(share)
    }

    /// What is left but for `reserve`, or half of it where that is more.
    fn all_but(&self, reserve: Duration) -> Duration {
        let left = self.left();
        left.saturating_sub(reserve).max(left / 2)
    }
}
