//! The timers of a subject: beacons, compaction, closing. Times are the input, due actions the output.

use std::time::Duration;

use crate::settings::EngineSettings;

/// Delays after the last change at which a beacon repeats the subject's position to watchers.
const BEACONS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// An idle subject stays open if a message expires this soon after its idle close, so that watchers get the
/// removal.
const OPEN_FOR_EXPIRY: Duration = Duration::from_secs(600);

/// How long the subject then stays open after the message is due.
const AFTER_EXPIRY: Duration = Duration::from_secs(1);

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// An action that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DueTimers {
    /// Publish the subject's position to watchers.
    Beacon,
    /// Publish a newer base; ends with [`SubjectTimers::compacted`] or [`SubjectTimers::failed`].
    Compact,
    /// Close the subject: it is idle or asked to close, and everything is in the bucket.
    Close,
}

/// The timers of one open subject. All times are on one monotonic clock.
#[derive(Debug)]
pub(super) struct SubjectTimers {
    idle_close: Duration,
    used_at: Duration,
    close_asked: bool,
    compact_asked: bool,
    compacting: bool,
    failures: u32,
    retry_at: Duration,
    changed_at: Duration,
    beacons_sent: usize,
    expires_at: Option<Duration>,
    deleting_rows: bool,
}

impl SubjectTimers {
    /// A subject opened at `now`.
    pub(super) const fn new(settings: &EngineSettings, now: Duration) -> Self {
        Self {
            idle_close: settings.idle_close,
            used_at: now,
            close_asked: false,
            compact_asked: false,
            compacting: false,
            failures: 0,
            retry_at: Duration::ZERO,
            changed_at: now,
            beacons_sent: BEACONS.len(),
            expires_at: None,
            deleting_rows: false,
        }
    }

    /// A request uses the subject. It cancels a close request: the eviction must choose another subject.
    pub(super) const fn used(&mut self, now: Duration) {
        self.used_at = now;
        self.close_asked = false;
    }

    /// The subject has changed.
    pub(super) const fn changed(&mut self, now: Duration) {
        self.changed_at = now;
        self.beacons_sent = 0;
    }

    /// Sets when a message expires next, as far as it can be predicted.
    pub(super) const fn set_next_expiry(&mut self, expires_at: Option<Duration>) {
        self.expires_at = expires_at;
    }

    /// Sets whether rows of removed messages are being deleted: a snapshot must have none, so a compaction waits for it.
    pub(super) const fn set_deleting_rows(&mut self, deleting: bool) {
        self.deleting_rows = deleting;
    }

    /// Compact as soon as the back-off after a failure allows.
    pub(super) const fn ask_compact(&mut self) {
        self.compact_asked = true;
    }

    /// Whether a compaction is running.
    pub(super) const fn is_compacting(&self) -> bool {
        self.compacting
    }

    /// Close as soon as everything is in the bucket.
    pub(super) const fn ask_close(&mut self) {
        self.close_asked = true;
    }

    /// A compaction has succeeded.
    pub(super) const fn compacted(&mut self) {
        self.compacting = false;
        self.failures = 0;
        self.retry_at = Duration::ZERO;
    }

    /// The running compaction has failed or is indeterminate: it is retried later.
    pub(super) fn failed(&mut self, now: Duration) {
        self.compact_asked |= self.compacting;
        self.compacting = false;
        self.retry_at = now + FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(LONGEST_RETRY);
        self.failures += 1;
    }

    /// Whether the last attempt to compact failed.
    pub(super) const fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Takes the next due action, if any. A `busy` subject has unshipped changes and is not closed.
    pub(super) fn due(&mut self, now: Duration, busy: bool) -> Option<DueTimers> {
        let reached = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        if reached(self.beacon_at()) {
            // After a stall several beacons are due at once; one is enough.
            while reached(self.beacon_at()) {
                self.beacons_sent += 1;
            }
            return Some(DueTimers::Beacon);
        }
        if reached(self.compact_at()) {
            self.compacting = true;
            self.compact_asked = false;
            return Some(DueTimers::Compact);
        }
        reached(self.close_at(busy)).then_some(DueTimers::Close)
    }

    /// When the next action is due; `None` if no action is due without another event.
    pub(super) fn next(&self, busy: bool) -> Option<Duration> {
        [self.beacon_at(), self.compact_at(), self.close_at(busy)].into_iter().flatten().min()
    }

    fn beacon_at(&self) -> Option<Duration> {
        BEACONS.get(self.beacons_sent).map(|&after| self.changed_at + after)
    }

    fn compact_at(&self) -> Option<Duration> {
        (self.compact_asked && !self.compacting && !self.deleting_rows).then_some(self.retry_at)
    }

    fn close_at(&self, busy: bool) -> Option<Duration> {
        let may = !busy && !self.compacting;
        let idle = self.used_at + self.idle_close;
        let awaited = self.expires_at.filter(|&at| at > idle && at <= idle + OPEN_FOR_EXPIRY);
        // The removal starts once the message is due; until it is complete, the subject is busy.
        let idle = awaited.map_or(idle, |at| at + AFTER_EXPIRY);
        may.then_some(if self.close_asked { Duration::ZERO } else { idle })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn schedule() -> SubjectTimers {
        let mut settings = EngineSettings::new("", "a".parse().unwrap());
        settings.idle_close = s(60);
        SubjectTimers::new(&settings, s(100))
    }

    /// All actions up to `until`, each with its second; compactions succeed at once.
    fn run(schedule: &mut SubjectTimers, until: Duration) -> Vec<(u64, DueTimers)> {
        let mut actions = Vec::new();
        while let Some(next) = schedule.next(false).filter(|&next| next <= until) {
            let now = next.max(s(100));
            let due = schedule.due(now, false).expect("an action is due at the announced time");
            actions.push((now.as_secs(), due));
            match due {
                DueTimers::Compact => schedule.compacted(),
                DueTimers::Close => break,
                DueTimers::Beacon => {}
            }
        }
        actions
    }

    /// The timers of an idle subject cause only its close.
    #[test]
    fn subject_without_requests_only_closes() {
        assert_eq!(run(&mut schedule(), s(1_000)), [(160, DueTimers::Close)]);
    }

    /// After a change, three beacons announce the subject at growing intervals.
    #[test]
    fn beacon_is_sent_three_times_after_change() {
        let mut schedule = schedule();
        schedule.changed(s(100));
        let expected = [
            (101, DueTimers::Beacon),
            (105, DueTimers::Beacon),
            (130, DueTimers::Beacon),
            (160, DueTimers::Close),
        ];
        assert_eq!(run(&mut schedule, s(1_000)), expected);
    }

    /// A subject with work that is not yet in the bucket does not close; it closes as soon as the work is done.
    #[test]
    fn subject_with_pending_work_does_not_close() {
        let mut schedule = schedule();
        schedule.ask_close();
        assert_eq!((schedule.next(true), schedule.due(s(1_000), true)), (None, None));
        assert_eq!(schedule.due(s(1_000), false), Some(DueTimers::Close));
    }

    /// A failed compaction is retried with growing pauses, and the subject stays open while one runs.
    #[test]
    fn compaction_failure_is_retried_with_backoff() {
        let mut schedule = schedule();
        schedule.ask_compact();
        let mut attempts = Vec::new();
        let mut now = s(100);
        while attempts.len() < 8 {
            now = schedule.next(true).unwrap().max(now);
            assert_eq!(schedule.due(now, true), Some(DueTimers::Compact));
            attempts.push(now.as_secs());
            assert_eq!(
                schedule.due(now, false),
                None,
                "one compaction at a time, and no close while it runs"
            );
            schedule.failed(now);
        }
        assert_eq!(attempts, [100, 101, 103, 107, 115, 131, 161, 191]);
    }

    /// A compaction waits until the rows of removed messages are deleted, and is due then.
    #[test]
    fn compaction_waits_for_deletion_of_rows() {
        let mut schedule = schedule();
        schedule.ask_compact();
        schedule.set_deleting_rows(true);
        assert_eq!(schedule.due(s(100), true), None);
        schedule.set_deleting_rows(false);
        assert_eq!(schedule.due(s(100), true), Some(DueTimers::Compact));
    }

    /// An idle subject stays open until a message that expires soon has expired, unless it is asked to close.
    #[test]
    fn subject_stays_open_for_messages_that_expire_soon() {
        for (expires_at, closed_at) in [(130, 160), (161, 162), (400, 401), (760, 761), (761, 160)] {
            let mut schedule = schedule();
            schedule.set_next_expiry(Some(s(expires_at)));
            assert_eq!(run(&mut schedule, s(1_000)), [(closed_at, DueTimers::Close)], "{expires_at}");
        }
        let mut schedule = schedule();
        schedule.set_next_expiry(Some(s(400)));
        schedule.ask_close();
        assert_eq!(
            schedule.due(s(100), false),
            Some(DueTimers::Close),
            "a close request does not wait for expiry"
        );
    }

    /// A request cancels an earlier close request, and the subject closes after the next idle time.
    #[test]
    fn subject_use_cancels_close_request() {
        let mut schedule = schedule();
        schedule.ask_close();
        schedule.used(s(101));
        assert_eq!(run(&mut schedule, s(1_000)), [(161, DueTimers::Close)]);
    }
}
