//! Which subjects to compact, so that the log can give up its oldest slots: state of the log and a time in, subjects out.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_commit_log::log::SubjectTail;
use dormouse_protocol::{Slot, Subject};

/// Compactions that may begin per check.
const PER_CHECK: usize = 50;

/// Compactions at the same time, those not counted that run for longer than [`SLOW`].
const AT_ONCE: usize = 8;

/// A compaction that runs for longer, such as a large upload, no longer blocks others.
const SLOW: Duration = Duration::from_secs(30);

/// All compactions at the same time.
const MAX_RUNNING: usize = 64;

/// A subject with entries older than this is compacted.
const OLD: Duration = Duration::from_secs(3_600);

/// A log with more retained slots than this is too long.
const LONG: u64 = 10_000;

/// Number of the oldest tails to look at, beside those of subjects that are running or skipped.
const LOOKED_AT: usize = 250;

/// How long a subject is skipped after a failed compaction, so that it does not block the others.
const RETRY_DELAY: Duration = Duration::from_secs(120);

/// How long a subject is skipped after a successful one: if its tail is still due, asking at once would not help.
const PAUSE: Duration = Duration::from_secs(5);

/// Maximum number of skipped subjects.
const MAX_SKIPPED: usize = 1_000;

/// A log that exceeds its limit of bytes for longer is a problem.
const OVER_LIMIT: Duration = Duration::from_secs(60);

/// What the choice depends on.
#[derive(Debug, Clone)]
pub(super) struct LogView {
    /// The log's next slot.
    pub(super) next: Slot,
    /// If the slots have too many bytes: the lowest slot that may stay.
    pub(super) lowest_within_limit: Option<Slot>,
    /// There are so many tails that all are due.
    pub(super) has_many_tails: bool,
    /// The [first](CompactionChoice::look_at) tails, from the one that needs the lowest slot.
    pub(super) oldest: Vec<(Subject, SubjectTail)>,
}

/// The running and the recent compactions.
#[derive(Debug, Default)]
pub(super) struct CompactionChoice {
    /// When each began.
    running: BTreeMap<Subject, Duration>,
    /// Until when each is not chosen.
    skipped: BTreeMap<Subject, Duration>,
    /// Compactions that may begin before the next check.
    allowed: usize,
    over_limit_since: Option<Duration>,
}

impl CompactionChoice {
    /// A check begins. Returns whether the log, with these bytes retained, has exceeded its limit for too long.
    pub(super) fn begin_check(&mut self, retained_bytes: u64, limit: u64, now: Duration) -> bool {
        self.allowed = PER_CHECK;
        self.skipped.retain(|_, until| *until > now);
        if retained_bytes <= limit {
            self.over_limit_since = None;
            return false;
        }
        now.saturating_sub(*self.over_limit_since.get_or_insert(now)) >= OVER_LIMIT
    }

    /// The number of tails that [`LogView::oldest`] should have.
    pub(super) fn look_at(&self) -> usize {
        LOOKED_AT + self.running.len() + self.skipped.len()
    }

    /// Chooses the subjects to compact now, those with the oldest slots first. They are running from here on.
    pub(super) fn begin(&mut self, view: LogView, now: Duration) -> Vec<Subject> {
        let recent = self.running.values().filter(|began| now.saturating_sub(**began) < SLOW).count();
        let room = (AT_ONCE.saturating_sub(recent))
            .min(MAX_RUNNING.saturating_sub(self.running.len()))
            .min(self.allowed);
        let LogView { next, lowest_within_limit, has_many_tails, oldest } = view;
        let chosen: Vec<Subject> = oldest
            .into_iter()
            .filter(|(subject, tail)| {
                let is_too_low = lowest_within_limit.is_some_and(|lowest| tail.first_slot < lowest);
                (has_many_tails || is_too_low || is_due(tail, next, now))
                    && !self.running.contains_key(subject)
                    && !self.skipped.contains_key(subject)
            })
            .map(|(subject, _)| subject)
            .take(room)
            .collect();
        self.allowed -= chosen.len();
        self.running.extend(chosen.iter().map(|subject| (subject.clone(), now)));
        chosen
    }

    /// A compaction has ended.
    pub(super) fn ended(&mut self, subject: Subject, is_compacted: bool, now: Duration) {
        self.running.remove(&subject);
        if self.skipped.len() < MAX_SKIPPED {
            self.skipped.insert(subject, now + if is_compacted { PAUSE } else { RETRY_DELAY });
        }
    }
}

/// Whether a tail is too old or has too many slots, or its first slot is too far from the end of the log.
fn is_due(tail: &SubjectTail, next: Slot, now: Duration) -> bool {
    now.saturating_sub(tail.since) > OLD
        || tail.slots >= SubjectTail::DUE_SLOTS
        || next.get().saturating_sub(tail.first_slot.get()) > LONG
}
