//! The longest step per kind.
//!
//! A *step* is work that its thread does without a break: the execution model in `docs/adr/0016` bounds each of them.
//! A histogram would hide one long step among many short ones, so the metric is the longest step of the last one to
//! two minutes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_runtime::Env;

use crate::{Label, MetricsRegistry};

/// Length of a window. A scrape shows the longest step of the current window and the one before, so a step is visible
/// for at least this long, to every scraper.
const WINDOW: Duration = Duration::from_secs(60);

/// The low bits of a slot hold the longest step in microseconds, up to 12 days; the bits above hold the window.
const MICROS_BITS: u32 = 40;

crate::labels! {
    /// The kinds of steps.
    pub enum StepKind as "step" {
        /// The intake takes a burst of requests: it decodes them and passes them on.
        Intake = "intake",
        /// A subject's task plans and appends one slice of its changes.
        Plan = "plan",
        /// An entry larger than a slice is encoded.
        Encode = "encode",
        /// A subject's task publishes events and replies to changes that have reached their level.
        Acknowledge = "acknowledge",
        /// A read of messages by seq or key.
        Get = "get",
        /// A page of `get_all`, `keys` or `changes`.
        Page = "page",
        /// Acknowledged changes are written to the subject's file.
        Apply = "apply",
        /// Rows of removed messages are deleted from a subject's file.
        Delete = "delete",
        /// The content of a subject's file is copied from its sidecar into the main file.
        Checkpoint = "checkpoint",
        /// A local file is opened or restored, and entries are replayed into it.
        Restore = "restore",
        /// One write to the WAL.
        WalWrite = "wal_write",
        /// One sync of the WAL.
        WalSync = "wal_sync",
        /// A segment is encoded.
        EncodeSegment = "encode_segment",
        /// The coordinator decides a batch of requests.
        Decide = "decide",
    }
}

/// The longest step per kind. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct LongestSteps {
    slots: Arc<[StepSlots; StepKind::COUNT]>,
}

/// Two windows take turns. A later window is a larger number, so one `fetch_max` both starts a window and keeps its
/// maximum.
#[derive(Debug, Default)]
struct StepSlots([AtomicU64; 2]);

impl StepKind {
    const COUNT: usize = <Self as Label>::ALL.len();
}

impl LongestSteps {
    /// Measures a step from now on.
    #[must_use = "the step ends when the timer is dropped"]
    pub fn start<'s>(&'s self, env: &'s Env, kind: StepKind) -> StepTimer<'s> {
        self.start_at(env, kind, env.boot())
    }

    /// Measures a step that began at `started`, on the clock of [`Env::boot`]: the caller has read it already.
    #[must_use = "the step ends when the timer is dropped"]
    pub const fn start_at<'s>(&'s self, env: &'s Env, kind: StepKind, started: Duration) -> StepTimer<'s> {
        StepTimer { steps: self, env, kind, started, is_ended: false }
    }

    /// Counts a step that ended at `now`, on the clock of [`Env::boot`].
    pub fn observe(&self, kind: StepKind, took: Duration, now: Duration) {
        let window = window(now);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min((1 << MICROS_BITS) - 1);
        let slot = &self.slots[kind.index()].0[(window % 2) as usize];
        slot.fetch_max(window << MICROS_BITS | micros, Ordering::Relaxed);
    }

    /// The longest step of `kind` in the current window and the one before.
    #[must_use]
    pub fn longest(&self, kind: StepKind, now: Duration) -> Duration {
        let window = window(now);
        let slots = self.slots[kind.index()].0.iter().map(|slot| slot.load(Ordering::Relaxed));
        let recent = slots.filter(|slot| window.saturating_sub(slot >> MICROS_BITS) <= 1);
        Duration::from_micros(recent.map(|slot| slot & ((1 << MICROS_BITS) - 1)).max().unwrap_or(0))
    }

    /// Adds the metric to a registry.
    pub fn register(&self, registry: &mut MetricsRegistry, env: &Env) {
        let (steps, env) = (self.clone(), env.clone());
        registry.collect(move |scrape| {
            let now = env.boot();
            scrape.gauge_by(
                "dormouse_longest_step_seconds",
                "Longest step of the last one to two minutes",
                |kind| steps.longest(kind, now).as_secs_f64(),
            );
        });
    }
}

/// The number of the window. It starts at 1, because an unused slot is 0.
fn window(now: Duration) -> u64 {
    now.as_secs() / WINDOW.as_secs() + 1
}

/// Measures one step, from its creation to its drop.
#[derive(Debug)]
pub struct StepTimer<'s> {
    steps: &'s LongestSteps,
    env: &'s Env,
    kind: StepKind,
    started: Duration,
    is_ended: bool,
}

impl StepTimer<'_> {
    /// When the step began.
    #[must_use]
    pub const fn started(&self) -> Duration {
        self.started
    }

    /// Ends the step, and returns the time.
    pub fn end(mut self) -> Duration {
        self.is_ended = true;
        self.observe()
    }

    fn observe(&self) -> Duration {
        let now = self.env.boot();
        self.steps.observe(self.kind, now.saturating_sub(self.started), now);
        now
    }
}

impl Drop for StepTimer<'_> {
    fn drop(&mut self) {
        if !self.is_ended {
            self.observe();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A scrape shows the longest step for at least a minute, and after two minutes no more.
    #[test]
    fn longest_step_is_visible_for_a_minute() {
        let steps = LongestSteps::default();
        steps.observe(StepKind::Page, Duration::from_millis(700), at(59));
        steps.observe(StepKind::Page, Duration::from_millis(3), at(61));
        assert_eq!(steps.longest(StepKind::Page, at(61)), Duration::from_millis(700));
        assert_eq!(steps.longest(StepKind::Page, at(119)), Duration::from_millis(700));
        assert_eq!(steps.longest(StepKind::Page, at(120)), Duration::from_millis(3));
        assert_eq!(steps.longest(StepKind::Page, at(181)), Duration::ZERO);
        assert_eq!(steps.longest(StepKind::Get, at(61)), Duration::ZERO);
    }

    /// A timer counts its step once, from the reading that its caller had, and returns the time at the end.
    #[test]
    fn step_timer_counts_from_given_start() {
        let (steps, env) = (LongestSteps::default(), Env::system());
        let started = env.boot().saturating_sub(Duration::from_millis(700));
        let timer = steps.start_at(&env, StepKind::Intake, started);
        assert_eq!(timer.started(), started);
        let ended = timer.end();
        let took = Duration::from_micros((ended - started).as_micros() as u64);
        assert_eq!(steps.longest(StepKind::Intake, ended), took);
    }

    /// A window that follows on the same slot replaces the older one, although its steps are shorter.
    #[test]
    fn longest_step_of_new_window_replaces_old() {
        let steps = LongestSteps::default();
        steps.observe(StepKind::Apply, Duration::from_secs(1), at(10));
        steps.observe(StepKind::Apply, Duration::from_micros(5), at(130));
        assert_eq!(steps.longest(StepKind::Apply, at(130)), Duration::from_micros(5));
    }
}
