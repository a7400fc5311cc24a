//! Hands subjects over: the [moving machine](crate::moving) with the engine, the bus and a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dormouse_bus::{Delivery, Subscription};
use dormouse_protocol::admin::HandOverOrder;
use dormouse_protocol::{LogId, Subject, decode};
use dormouse_runtime::{Env, Tasks, Watched};
use dormouse_storage::Engine;
use dormouse_storage::api::HandedOver;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::authority::LeaseView;
use crate::lease::Order;
use crate::membership::Standing;
use crate::moving::{Moving, MovingEffect, MovingInput, Wish};

/// Orders that wait to be looked at. The coordinator repeats what is dropped.
pub(crate) const ORDERS: usize = 1_024;

/// How far it has come, for health.
#[derive(Debug, Default)]
pub(crate) struct MovingFigures {
    /// An operator wants the server empty.
    pub(crate) is_ordered: AtomicBool,
    /// It is.
    pub(crate) is_empty: AtomicBool,
    pub(crate) failures: AtomicU64,
}

/// What the mover works with.
pub(crate) struct MoverParts {
    pub(crate) env: Env,
    pub(crate) log: LogId,
    pub(crate) engine: Engine,
    pub(crate) lease: LeaseView,
    pub(crate) standing: Arc<Watched<Standing>>,
    pub(crate) orders: Subscription,
    pub(crate) figures: Arc<MovingFigures>,
}

/// The running mover.
pub(crate) struct Mover {
    state: Arc<Watched<State>>,
}

/// What the mover is told, and what it says.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// The process is about to end.
    ends: bool,
    /// Everything is handed over, as this wish wanted.
    empty: Option<Wish>,
    /// A fresh log is needed.
    renewal: bool,
    /// Nothing is handed over any more: the task has ended.
    over: bool,
}

impl Mover {
    /// Carries out orders until the stop signal of `tasks` is given.
    pub(crate) fn start(parts: MoverParts, tasks: &Tasks) -> Self {
        let state = Arc::new(Watched::new(State::default()));
        let stop = tasks.stop().clone();
        let task = Task {
            machine: Moving::default(),
            order: Order::Serve,
            wish: Wish::Serve,
            under_way: FuturesUnordered::new(),
            released: 0,
            began_at: Duration::ZERO,
            parts,
            state: Arc::clone(&state),
            ends: false,
        };
        tasks.spawn("hand-overs", async move {
            tokio::select! {
                biased;
                () = stop.given() => {}
                () = task.run() => {}
            }
        });
        Self { state }
    }

    /// Hands over everything that is open, and returns when that is done as far as it can be. Cancelling the call leaves it
    /// going on.
    pub(crate) async fn end(&self) {
        self.state.change(|state| !std::mem::replace(&mut state.ends, true));
        self.state.wait_for(|state| state.over || state.empty == Some(Wish::End)).await;
    }

    /// Waits until the server is empty by an operator's order and needs a fresh log to be so entirely. Cancelling the
    /// wait changes nothing.
    pub(crate) async fn needs_fresh_log(&self) {
        self.state.wait_for(|state| state.renewal).await;
    }
}

/// The task that hands over.
struct Task {
    parts: MoverParts,
    machine: Moving,
    order: Order,
    wish: Wish,
    under_way: FuturesUnordered<BoxFuture<'static, MovingInput>>,
    /// Since the last change of the wish.
    released: u64,
    began_at: Duration,
    state: Arc<Watched<State>>,
    /// What was heard last of the process's end.
    ends: bool,
}

impl Task {
    async fn run(mut self) {
        let mut heard = true;
        loop {
            let due = self.machine.wake_at().map(|due| due.saturating_sub(self.parts.env.boot()));
            let input = tokio::select! {
                biased;
                state = self.state.wait_for(|state| state.ends != self.ends) => {
                    self.ends = state.ends;
                    self.wished()
                }
                standing = self.parts.standing.wait_for(|standing| standing.order != self.order) => {
                    self.order = standing.order;
                    self.wished()
                }
                Some(done) = self.under_way.next() => self.done(done),
                order = self.parts.orders.next(), if heard => match order {
                    Some(order) => self.ordered(&order),
                    None => {
                        heard = false;
                        MovingInput::Tick
                    }
                },
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => MovingInput::Tick,
                // Nobody is left who could want anything.
                else => return,
            };
            self.drive(input);
        }
    }

    fn drive(&mut self, input: MovingInput) {
        let mut input = Some(input);
        while let Some(next) = input.take() {
            let may_begin = self.parts.lease.generation().is_some();
            for effect in self.machine.apply(next, self.parts.env.boot(), may_begin) {
                match effect {
                    MovingEffect::Look => input = Some(MovingInput::Open(self.parts.engine.open_subjects())),
                    MovingEffect::HandOver(subject) => self.hand_over(subject),
                    MovingEffect::Empty => self.empty(),
                }
            }
        }
    }

    /// What is wanted now: the process's own end comes before an operator's order.
    fn wished(&mut self) -> MovingInput {
        let wish = match (self.ends, self.order.is_to_empty()) {
            (true, _) => Wish::End,
            (false, true) => Wish::Empty,
            (false, false) => Wish::Serve,
        };
        if wish == self.wish {
            return MovingInput::Tick;
        }
        let open_subjects = self.parts.engine.figures().open_subjects;
        let log = &self.parts.log;
        match (self.wish, wish) {
            (_, Wish::Empty) if self.order == Order::StayEmpty => {
                tracing::info!(%log, "a fresh log, to be empty as an operator wants");
            }
            (_, Wish::Empty) => {
                tracing::info!(%log, open_subjects, "draining, as an operator wants: handing over every subject");
            }
            (Wish::Empty, Wish::Serve) => {
                let handed_over = self.released;
                tracing::info!(%log, handed_over, open_subjects, "draining no more: taking subjects again");
            }
            _ => {}
        }
        self.wish = wish;
        self.released = 0;
        self.began_at = self.parts.env.boot();
        self.parts.figures.is_ordered.store(self.order.is_to_empty(), Ordering::Relaxed);
        self.parts.figures.is_empty.store(false, Ordering::Relaxed);
        MovingInput::Wish(wish)
    }

    /// Orders for earlier processes of the server are of the past.
    fn ordered(&self, order: &Delivery) -> MovingInput {
        match decode::<HandOverOrder>(&order.payload) {
            Ok(order) if order.log == self.parts.log => MovingInput::Order(order.subject),
            Ok(_) => MovingInput::Tick,
            Err(error) => {
                tracing::debug!(%error, "an order cannot be understood");
                MovingInput::Tick
            }
        }
    }

    fn hand_over(&mut self, subject: Subject) {
        let engine = self.parts.engine.clone();
        self.parts.figures.is_empty.store(false, Ordering::Relaxed);
        let figures = Arc::clone(&self.parts.figures);
        self.under_way.push(Box::pin(async move {
            let gone = match engine.hand_over(&subject).await {
                Ok(HandedOver::Released | HandedOver::NotHeld) => true,
                Err(error) => {
                    figures.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(%subject, %error, "the subject could not be handed over yet, and is served");
                    false
                }
            };
            MovingInput::Done { subject, gone }
        }));
    }

    fn done(&mut self, done: MovingInput) -> MovingInput {
        if matches!(done, MovingInput::Done { gone: true, .. }) {
            self.released += 1;
        }
        done
    }

    fn empty(&mut self) {
        let took = self.parts.env.boot().saturating_sub(self.began_at);
        let (log, handed_over, seconds) = (&self.parts.log, self.released, took.as_secs());
        let wish = self.wish;
        self.state.change(|state| state.empty.replace(wish) != Some(wish));
        if self.wish != Wish::Empty {
            return;
        }
        // What sleeps here belongs to this log, and can be claimed by others once the log is over.
        let owns = self.parts.engine.figures().claims > 0;
        if owns || self.order == Order::BecomeEmpty {
            tracing::info!(%log, handed_over, seconds, "everything is handed over: going on with a fresh log");
            self.state.change(|state| !std::mem::replace(&mut state.renewal, true));
        } else {
            tracing::info!(%log, handed_over, seconds, "drained: nothing is served here until that is taken back");
            self.parts.figures.is_empty.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.state.change(|state| !std::mem::replace(&mut state.over, true));
    }
}
