//! Hands subjects over: the [handover machine](crate::handover) with the engine, the bus and a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dormouse_bus::{Delivery, Subscription};
use dormouse_engine::Engine;
use dormouse_engine::api::HandoverOutcome;
use dormouse_protocol::admin::HandOverOrder;
use dormouse_protocol::{LogId, Subject, decode};
use dormouse_runtime::{Env, Observable, Tasks};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::authority::LeaseView;
use crate::handover::{HandoverEffect, HandoverGoal, HandoverInput, HandoverMachine};
use crate::lease::DrainOrder;
use crate::membership::MembershipState;

/// Maximum number of queued orders. The coordinator repeats dropped orders.
pub(crate) const ORDERS: usize = 1_024;

/// Progress of drains and handovers, for health.
#[derive(Debug, Default)]
pub(crate) struct HandoverMetrics {
    /// A drain order is active.
    pub(crate) drain_ordered: AtomicBool,
    /// The drain is complete.
    pub(crate) drained: AtomicBool,
    pub(crate) failures: AtomicU64,
}

/// Dependencies of the handover task.
pub(crate) struct HandoverDeps {
    pub(crate) env: Env,
    pub(crate) log: LogId,
    pub(crate) engine: Engine,
    pub(crate) lease: LeaseView,
    pub(crate) membership: Arc<Observable<MembershipState>>,
    pub(crate) orders: Subscription,
    pub(crate) metrics: Arc<HandoverMetrics>,
}

/// Handle of the running handover task.
pub(crate) struct Handover {
    state: Arc<Observable<HandoverShared>>,
}

/// State shared between the handle and the task.
#[derive(Debug, Clone, Copy, Default)]
struct HandoverShared {
    /// The process shuts down.
    shutdown: bool,
    /// The goal for which all subjects are handed over.
    empty: Option<HandoverGoal>,
    /// The drain needs a new log.
    needs_new_log: bool,
    /// The task has ended.
    ended: bool,
}

impl Handover {
    /// Runs handovers until the stop signal of `tasks` is given.
    pub(crate) fn start(deps: HandoverDeps, tasks: &Tasks) -> Self {
        let state = Arc::new(Observable::new(HandoverShared::default()));
        let stop = tasks.stop().clone();
        let task = HandoverTask {
            machine: HandoverMachine::default(),
            order: DrainOrder::Serve,
            goal: HandoverGoal::Serve,
            in_progress: FuturesUnordered::new(),
            released: 0,
            began_at: Duration::ZERO,
            deps,
            state: Arc::clone(&state),
            shutdown: false,
        };
        tasks.spawn("handovers", async move {
            tokio::select! {
                biased;
                () = stop.requested() => {}
                () = task.run() => {}
            }
        });
        Self { state }
    }

    /// Hands over all open subjects, and returns when every possible handover is done. If the call is cancelled, the
    /// handovers continue.
    pub(crate) async fn hand_over_all(&self) {
        self.state.change(|state| !std::mem::replace(&mut state.shutdown, true));
        self.state.wait_for(|state| state.ended || state.empty == Some(HandoverGoal::Shutdown)).await;
    }

    /// Waits until the server has handed over all open subjects for a drain and needs a new log to own none. Cancelling
    /// the wait changes nothing.
    pub(crate) async fn new_log_needed(&self) {
        self.state.wait_for(|state| state.needs_new_log).await;
    }
}

/// The task that hands over.
struct HandoverTask {
    deps: HandoverDeps,
    machine: HandoverMachine,
    order: DrainOrder,
    goal: HandoverGoal,
    in_progress: FuturesUnordered<BoxFuture<'static, HandoverInput>>,
    /// Subjects released since the last change of the goal.
    released: u64,
    began_at: Duration,
    state: Arc<Observable<HandoverShared>>,
    /// The last seen [`HandoverShared::shutdown`].
    shutdown: bool,
}

impl HandoverTask {
    async fn run(mut self) {
        let mut has_orders = true;
        loop {
            let due = self.machine.wake_at().map(|due| due.saturating_sub(self.deps.env.boot()));
            let input = tokio::select! {
                biased;
                state = self.state.wait_for(|state| state.shutdown != self.shutdown) => {
                    self.shutdown = state.shutdown;
                    self.update_goal()
                }
                membership = self.deps.membership.wait_for(|membership| membership.order != self.order) => {
                    self.order = membership.order;
                    self.update_goal()
                }
                Some(done) = self.in_progress.next() => self.count_released(done),
                order = self.deps.orders.next(), if has_orders => match order {
                    Some(order) => self.on_order(&order),
                    None => {
                        has_orders = false;
                        HandoverInput::Tick
                    }
                },
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => HandoverInput::Tick,
                // No source of inputs is left.
                else => return,
            };
            self.drive(input);
        }
    }

    fn drive(&mut self, input: HandoverInput) {
        let mut input = Some(input);
        while let Some(next) = input.take() {
            let may_begin = self.deps.lease.generation().is_some();
            for effect in self.machine.apply(next, self.deps.env.boot(), may_begin) {
                match effect {
                    HandoverEffect::ListOpen => {
                        input = Some(HandoverInput::Open(self.deps.engine.open_subjects()));
                    }
                    HandoverEffect::HandOver(subject) => self.hand_over(subject),
                    HandoverEffect::Empty => self.on_empty(),
                }
            }
        }
    }

    /// Computes the current goal: a shutdown takes precedence over a drain order.
    fn update_goal(&mut self) -> HandoverInput {
        let goal = match (self.shutdown, self.order.requires_drain()) {
            (true, _) => HandoverGoal::Shutdown,
            (false, true) => HandoverGoal::Drain,
            (false, false) => HandoverGoal::Serve,
        };
        if goal == self.goal {
            return HandoverInput::Tick;
        }
        let open_subjects = self.deps.engine.metrics().open_subjects;
        let log = &self.deps.log;
        match (self.goal, goal) {
            (_, HandoverGoal::Drain) if self.order == DrainOrder::StayDrained => {
                tracing::info!(%log, "new log started under drain order");
            }
            (_, HandoverGoal::Drain) => {
                tracing::info!(%log, open_subjects, "drain started");
            }
            (HandoverGoal::Drain, HandoverGoal::Serve) => {
                let handed_over = self.released;
                tracing::info!(%log, handed_over, open_subjects, "drain cancelled");
            }
            _ => {}
        }
        self.goal = goal;
        self.released = 0;
        self.began_at = self.deps.env.boot();
        self.deps.metrics.drain_ordered.store(self.order.requires_drain(), Ordering::Relaxed);
        self.deps.metrics.drained.store(false, Ordering::Relaxed);
        HandoverInput::SetGoal(goal)
    }

    /// Ignores orders for earlier processes of the server.
    fn on_order(&self, order: &Delivery) -> HandoverInput {
        match decode::<HandOverOrder>(&order.payload) {
            Ok(order) if order.log == self.deps.log => HandoverInput::Order(order.subject),
            Ok(_) => HandoverInput::Tick,
            Err(error) => {
                tracing::debug!(%error, "handover order undecodable");
                HandoverInput::Tick
            }
        }
    }

    fn hand_over(&mut self, subject: Subject) {
        let engine = self.deps.engine.clone();
        self.deps.metrics.drained.store(false, Ordering::Relaxed);
        let figures = Arc::clone(&self.deps.metrics);
        self.in_progress.push(Box::pin(async move {
            let gone = match engine.hand_over(&subject).await {
                Ok(HandoverOutcome::Released | HandoverOutcome::NotHeld) => true,
                Err(error) => {
                    figures.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(%subject, %error, impact = "still served here", "handover failed");
                    false
                }
            };
            HandoverInput::Done { subject, gone }
        }));
    }

    fn count_released(&mut self, done: HandoverInput) -> HandoverInput {
        if matches!(done, HandoverInput::Done { gone: true, .. }) {
            self.released += 1;
        }
        done
    }

    fn on_empty(&mut self) {
        let took = self.deps.env.boot().saturating_sub(self.began_at);
        let (log, handed_over, seconds) = (&self.deps.log, self.released, took.as_secs());
        let goal = self.goal;
        self.state.change(|state| state.empty.replace(goal) != Some(goal));
        if self.goal != HandoverGoal::Drain {
            return;
        }
        // Dormant subjects still belong to this log. Other servers can claim them when the log has ended.
        let owns = self.deps.engine.metrics().claims > 0;
        if owns || self.order == DrainOrder::Drain {
            tracing::info!(%log, handed_over, seconds, "drain complete, new log started");
            self.state.change(|state| !std::mem::replace(&mut state.needs_new_log, true));
        } else {
            tracing::info!(
                %log,
                handed_over,
                seconds,
                impact = "serves nothing until undrain",
                "server drained"
            );
            self.deps.metrics.drained.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for HandoverTask {
    fn drop(&mut self) {
        self.state.change(|state| !std::mem::replace(&mut state.ended, true));
    }
}
