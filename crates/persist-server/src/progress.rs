//! What the control side knows about the data side: signs of life, and a copy of the figures.
//!
//! The data side writes, the control side reads. Neither waits for the other: times are atomics, and the lock of the
//! copy is held only while the copy is replaced or taken.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dormouse_engine::{Engine, EngineMetrics};
use dormouse_protocol::fleet::BusySubject;
use dormouse_protocol::tenant::BusyTenant;
use dormouse_runtime::{Env, Lock, Observable, fail_point};
use tokio::sync::Notify;

use crate::lease::LONGEST_TTL;
use crate::liveness::{LivenessSample, StallCause};

/// Figures of the data side, up to one second old.
#[derive(Debug, Clone, Default)]
pub(crate) struct DataFigures {
    /// Figures of the engine.
    pub(crate) engine: EngineMetrics,
    /// The subjects with the most load, the busiest first.
    pub(crate) busiest: Vec<BusySubject>,
    /// The tenants with the most requests, the busiest first.
    pub(crate) tenants: Vec<BusyTenant>,
}

/// The progress of the data side.
pub struct DataProgress {
    env: Env,
    advanced_at: TimeCell,
    round_trip_at: TimeCell,
    control_round_trip_at: TimeCell,
    engine: Arc<OnceLock<Engine>>,
    /// The TTL of the lease, by which all of this is judged.
    ttl: Observable<Duration>,
    /// A pass of the intake is due.
    pass_due: Notify,
    /// The intake runs, so its passes are the passes of the data side.
    has_intake: AtomicBool,
    figures: Lock<Arc<DataFigures>>,
}

impl DataProgress {
    /// A data side that has just advanced. `engine` is empty until there is a lease.
    #[must_use]
    pub fn new(env: &Env, engine: Arc<OnceLock<Engine>>) -> Arc<Self> {
        let now = env.boot();
        Arc::new(Self {
            env: env.clone(),
            advanced_at: TimeCell::new(now),
            round_trip_at: TimeCell::new(now),
            control_round_trip_at: TimeCell::new(now),
            engine,
            ttl: Observable::new(LONGEST_TTL),
            pass_due: Notify::new(),
            has_intake: AtomicBool::new(false),
            figures: Lock::default(),
        })
    }

    /// The data side has ended a pass.
    pub fn advance(&self) {
        self.advance_at(self.env.boot());
    }

    /// The data side has ended a pass at `now`.
    pub(crate) fn advance_at(&self, now: Duration) {
        fail_point!(DataPass);
        self.advanced_at.raise(now);
    }

    /// Makes a pass due: the intake runs one, and without an intake the caller's step is one.
    pub(crate) fn run_pass(&self) {
        if self.has_intake.load(Ordering::Relaxed) {
            self.pass_due.notify_one();
        } else {
            self.advance();
        }
    }

    /// Waits until a pass without requests is due. Cancelling the wait has no effect.
    pub async fn pass_due(&self) {
        self.pass_due.notified().await;
    }

    /// From now until the guard is dropped, only the intake's passes count.
    pub fn attach_intake(self: &Arc<Self>) -> IntakeGuard {
        self.has_intake.store(true, Ordering::Relaxed);
        IntakeGuard(Arc::clone(self))
    }

    /// A message that the data connection sent to itself at `sent_at` has arrived.
    pub(crate) fn round_trip(&self, sent_at: Duration) {
        self.round_trip_at.raise(sent_at);
    }

    /// The same for the control connection.
    pub(crate) fn control_round_trip(&self, sent_at: Duration) {
        self.control_round_trip_at.raise(sent_at);
    }

    /// The engine, for the data side only: its calls may wait for locks.
    pub(crate) fn engine(&self) -> Option<&Engine> {
        self.engine.get()
    }

    /// The last signs of life. Takes no lock.
    pub(crate) fn sample(&self) -> LivenessSample {
        LivenessSample {
            advanced_at: self.advanced_at.get(),
            round_trip_at: self.round_trip_at.get(),
            control_round_trip_at: self.control_round_trip_at.get(),
            wal_busy_since: self.engine.get().and_then(Engine::wal_busy_since),
        }
    }

    /// What does not advance now, if anything.
    pub(crate) fn stall(&self) -> Option<StallCause> {
        self.sample().stall(self.ttl(), self.env.boot())
    }

    /// The TTL of the lease.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl.get()
    }

    /// Sets the TTL of the lease.
    pub(crate) fn set_ttl(&self, ttl: Duration) {
        self.ttl.change(|current| std::mem::replace(current, ttl) != ttl);
    }

    /// Waits until the TTL is not `known`, and returns it. Cancelling the wait has no effect.
    pub(crate) async fn ttl_changed(&self, known: Duration) -> Duration {
        self.ttl.wait_for(|ttl| *ttl != known).await
    }

    /// The copy of the figures.
    pub(crate) fn figures(&self) -> Arc<DataFigures> {
        Arc::clone(&self.figures.lock())
    }

    /// Replaces the copy of the figures.
    pub(crate) fn set_figures(&self, figures: DataFigures) {
        let figures = Arc::new(figures);
        // The old copy is dropped after the lock.
        let _old = std::mem::replace(&mut *self.figures.lock(), figures);
    }
}

impl std::fmt::Debug for DataProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataProgress").field("sample", &self.sample()).finish_non_exhaustive()
    }
}

/// The intake runs until this is dropped.
#[derive(Debug)]
pub struct IntakeGuard(Arc<DataProgress>);

impl Drop for IntakeGuard {
    fn drop(&mut self) {
        self.0.has_intake.store(false, Ordering::Relaxed);
    }
}

/// A time in microseconds that only grows, and that several threads may raise.
#[derive(Debug)]
struct TimeCell(AtomicU64);

impl TimeCell {
    fn new(time: Duration) -> Self {
        Self(AtomicU64::new(micros(time)))
    }

    fn raise(&self, time: Duration) {
        self.0.fetch_max(micros(time), Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
