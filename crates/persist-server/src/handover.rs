//! Decides which subjects are handed over, and when: a pure machine without clock, randomness or I/O.
//!
//! A handover has one of three reasons: an order of the coordinator for one subject, a drain, or a shutdown. In each
//! case the server serves the other subjects meanwhile, so only a few handovers run at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use dormouse_protocol::Subject;

/// Maximum number of concurrent handovers.
const MAX_CONCURRENT: usize = 8;
/// The same during a shutdown.
const MAX_CONCURRENT_AT_SHUTDOWN: usize = 16;
/// Pause between the starts of two handovers: it leaves bucket capacity to served subjects. A shutdown has no pauses.
const START_PAUSE: Duration = Duration::from_millis(10);
/// How often the machine lists the open subjects during a drain or shutdown.
const LIST_INTERVAL: Duration = Duration::from_millis(200);
/// How long no subject must be open before a drained server counts as empty.
const QUIET_TIME: Duration = Duration::from_secs(1);
/// Delay before a failed handover is retried.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Maximum number of queued orders. The coordinator repeats dropped orders.
const MAX_ORDERS: usize = 1_024;

/// The goal of the server as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HandoverGoal {
    /// Serve.
    #[default]
    Serve,
    /// Hand over all open subjects, and every subject that opens from now on.
    Drain,
    /// Hand over all open subjects, each once, because the process ends. If a subject opens again after that, no other
    /// server can take it.
    Shutdown,
}

/// An input of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandoverInput {
    /// Time has passed.
    Tick,
    /// The goal changes.
    SetGoal(HandoverGoal),
    /// The coordinator orders this subject to be handed over.
    Order(Subject),
    /// The reply to [`HandoverEffect::ListOpen`]: the open subjects.
    Open(Vec<Subject>),
    /// The result of [`HandoverEffect::HandOver`].
    Done {
        /// The subject.
        subject: Subject,
        /// Whether this server no longer owns it.
        gone: bool,
    },
}

/// An effect that the task performs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandoverEffect {
    /// List the open subjects.
    ListOpen,
    /// Hand this subject over.
    HandOver(Subject),
    /// No subject is left to hand over. Repeated only if a subject was open meanwhile.
    Empty,
}

/// The machine. Times are those of [`Env::boot`](dormouse_runtime::Env::boot).
#[derive(Debug, Default)]
pub struct HandoverMachine {
    goal: HandoverGoal,
    in_progress: BTreeSet<Subject>,
    ordered: VecDeque<Subject>,
    /// Open subjects by the last list, not yet handed over.
    open: VecDeque<Subject>,
    /// Subjects whose handover failed, and when the machine retries them.
    retry_at: BTreeMap<Subject, Duration>,
    /// Handed over since the shutdown started.
    done: BTreeSet<Subject>,
    list_at: Duration,
    start_at: Duration,
    quiet_since: Option<Duration>,
    is_empty: bool,
}

impl HandoverMachine {
    /// When the machine needs its next [`HandoverInput::Tick`], if it waits for a time.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let starts = (self.queued() > 0 && self.has_room()).then_some(self.start_at);
        let lists = (self.goal != HandoverGoal::Serve && self.open.is_empty()).then_some(self.list_at);
        starts.into_iter().chain(lists).min()
    }

    /// Applies one input at time `now` and returns the effects in order. Starts no handover unless `may_begin`: without
    /// the coordinator no other server could claim the subject.
    pub fn apply(&mut self, input: HandoverInput, now: Duration, may_begin: bool) -> Vec<HandoverEffect> {
        let mut effects = Vec::new();
        match input {
            HandoverInput::Tick => {}
            HandoverInput::SetGoal(goal) => self.set_goal(goal, now),
            HandoverInput::Order(subject) => {
                let known = self.in_progress.contains(&subject) || self.ordered.contains(&subject);
                // The machine drops an order that it cannot start soon: the coordinator repeats orders that still
                // apply.
                if may_begin && !known && self.ordered.len() < MAX_ORDERS {
                    self.ordered.push_back(subject);
                }
            }
            HandoverInput::Open(open) => self.on_open(open, now, &mut effects),
            HandoverInput::Done { subject, gone } => self.on_done(subject, gone, now),
        }
        self.start_eligible(now, may_begin, &mut effects);
        if self.goal != HandoverGoal::Serve && self.open.is_empty() && self.list_at <= now {
            self.list_at = now + LIST_INTERVAL;
            effects.push(HandoverEffect::ListOpen);
        }
        effects
    }

    fn set_goal(&mut self, goal: HandoverGoal, now: Duration) {
        // A shutdown is final.
        if self.goal == HandoverGoal::Shutdown || self.goal == goal {
            return;
        }
        self.goal = goal;
        self.open.clear();
        self.retry_at.clear();
        self.quiet_since = None;
        self.is_empty = false;
        self.list_at = now;
    }

    fn on_open(&mut self, open: Vec<Subject>, now: Duration, effects: &mut Vec<HandoverEffect>) {
        if self.goal == HandoverGoal::Serve {
            return;
        }
        self.retry_at.retain(|_, until| *until > now);
        let needs_handover =
            |subject: &Subject| self.goal != HandoverGoal::Shutdown || !self.done.contains(subject);
        let remaining: Vec<_> = open.into_iter().filter(needs_handover).collect();
        let is_quiet = remaining.is_empty() && self.in_progress.is_empty() && self.ordered.is_empty();
        let is_free = |subject: &Subject| {
            !self.in_progress.contains(subject)
                && !self.retry_at.contains_key(subject)
                && !self.ordered.contains(subject)
        };
        self.open = remaining.into_iter().filter(is_free).collect();
        if !is_quiet {
            self.quiet_since = None;
            self.is_empty = false;
            return;
        }
        let since = *self.quiet_since.get_or_insert(now);
        // A shutdown does not wait for further opens.
        let is_empty = self.goal == HandoverGoal::Shutdown || now.saturating_sub(since) >= QUIET_TIME;
        if is_empty && !std::mem::replace(&mut self.is_empty, true) {
            effects.push(HandoverEffect::Empty);
        }
    }

    fn on_done(&mut self, subject: Subject, gone: bool, now: Duration) {
        self.in_progress.remove(&subject);
        if self.goal == HandoverGoal::Serve {
            return;
        }
        if !gone {
            self.retry_at.insert(subject, now + RETRY_DELAY);
        } else if self.goal == HandoverGoal::Shutdown {
            self.done.insert(subject);
        }
        if self.queued() == 0 && self.in_progress.is_empty() {
            self.list_at = now;
        }
    }

    fn start_eligible(&mut self, now: Duration, may_begin: bool, effects: &mut Vec<HandoverEffect>) {
        while self.queued() > 0 && self.has_room() && self.start_at <= now {
            if !may_begin {
                self.start_at = now + LIST_INTERVAL;
                return;
            }
            let Some(subject) = self.ordered.pop_front().or_else(|| self.open.pop_front()) else { return };
            self.in_progress.insert(subject.clone());
            effects.push(HandoverEffect::HandOver(subject));
            if self.goal != HandoverGoal::Shutdown {
                self.start_at = now + START_PAUSE;
            }
        }
    }

    fn queued(&self) -> usize {
        self.ordered.len() + self.open.len()
    }

    fn has_room(&self) -> bool {
        self.in_progress.len()
            < if self.goal == HandoverGoal::Shutdown { MAX_CONCURRENT_AT_SHUTDOWN } else { MAX_CONCURRENT }
    }
}

#[cfg(test)]
mod tests;
