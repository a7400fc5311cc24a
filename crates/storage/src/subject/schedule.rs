//! When a subject does something by itself: beacons, compaction, closing. Times go in, what is due comes out.

use std::time::Duration;

use crate::settings::EngineSettings;

/// How long after the last change watchers are told once more where the subject is.
const BEACONS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// An idle subject stays open for what expires so soon after it would have been closed: whoever watches it shall hear.
const OPEN_FOR_EXPIRY: Duration = Duration::from_secs(600);

/// How long after it is due that is looked for.
const AFTER_EXPIRY: Duration = Duration::from_secs(1);

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Tell watchers where the subject is.
    Beacon,
    /// Give the subject a newer base; ends with [`Schedule::compacted`] or [`Schedule::failed`].
    Compact,
    /// Close the subject: nobody asks for it, and everything is in the bucket.
    Close,
}

/// The clockwork of one open subject. All times are on one clock that never goes back.
#[derive(Debug)]
pub(super) struct Schedule {
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
}

impl Schedule {
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
        }
    }

    /// Somebody asked for the subject. Whoever wanted it closed must look for an idler one.
    pub(super) const fn used(&mut self, now: Duration) {
        self.used_at = now;
        self.close_asked = false;
    }

    /// The subject has changed.
    pub(super) const fn changed(&mut self, now: Duration) {
        self.changed_at = now;
        self.beacons_sent = 0;
    }

    /// When a message expires next, as far as that can be foreseen.
    pub(super) const fn awaits(&mut self, expires_at: Option<Duration>) {
        self.expires_at = expires_at;
    }

    /// Compact as soon as the back-off after a failure allows.
    pub(super) const fn ask_compact(&mut self) {
        self.compact_asked = true;
    }

    /// Whether a compaction is under way.
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

    /// The compaction under way has failed, or has no known outcome: it is tried again later.
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

    /// Takes the next thing that is due, if any. A `busy` subject has changes on their way to the bucket: it is not
    /// closed.
    pub(super) fn due(&mut self, now: Duration, busy: bool) -> Option<Due> {
        let reached = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        if reached(self.beacon_at()) {
            // After a stall several are due at once; one says it all.
            while reached(self.beacon_at()) {
                self.beacons_sent += 1;
            }
            return Some(Due::Beacon);
        }
        if reached(self.compact_at()) {
            self.compacting = true;
            self.compact_asked = false;
            return Some(Due::Compact);
        }
        reached(self.close_at(busy)).then_some(Due::Close)
    }

    /// When to look again; `None`: not before something else happens.
    pub(super) fn next(&self, busy: bool) -> Option<Duration> {
        [self.beacon_at(), self.compact_at(), self.close_at(busy)].into_iter().flatten().min()
    }

    fn beacon_at(&self) -> Option<Duration> {
        BEACONS.get(self.beacons_sent).map(|&after| self.changed_at + after)
    }

    fn compact_at(&self) -> Option<Duration> {
        (self.compact_asked && !self.compacting).then_some(self.retry_at)
    }

    fn close_at(&self, busy: bool) -> Option<Duration> {
        let may = !busy && !self.compacting;
        let idle = self.used_at + self.idle_close;
        let awaited = self.expires_at.filter(|&at| at > idle && at <= idle + OPEN_FOR_EXPIRY);
        // What expires is on its way once it is due; until it is gone, the subject is busy.
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

    fn schedule() -> Schedule {
        let mut settings = EngineSettings::new("", "a".parse().unwrap());
        settings.idle_close = s(60);
        Schedule::new(&settings, s(100))
    }

    /// Everything that happens up to `until`, each with its second; compactions succeed at once.
    fn run(schedule: &mut Schedule, until: Duration) -> Vec<(u64, Due)> {
        let mut happened = Vec::new();
        while let Some(next) = schedule.next(false).filter(|&next| next <= until) {
            let now = next.max(s(100));
            let due = schedule.due(now, false).expect("what is announced is due");
            happened.push((now.as_secs(), due));
            match due {
                Due::Compact => schedule.compacted(),
                Due::Close => break,
                Due::Beacon => {}
            }
        }
        happened
    }

    #[test]
    fn a_quiet_subject_does_nothing_but_close() {
        assert_eq!(run(&mut schedule(), s(1_000)), [(160, Due::Close)]);
    }

    #[test]
    fn a_change_is_announced_three_times() {
        let mut schedule = schedule();
        schedule.changed(s(100));
        let expected = [(101, Due::Beacon), (105, Due::Beacon), (130, Due::Beacon), (160, Due::Close)];
        assert_eq!(run(&mut schedule, s(1_000)), expected);
    }

    #[test]
    fn nothing_on_its_way_to_the_bucket_is_closed() {
        let mut schedule = schedule();
        schedule.ask_close();
        assert_eq!((schedule.next(true), schedule.due(s(1_000), true)), (None, None));
        assert_eq!(schedule.due(s(1_000), false), Some(Due::Close));
    }

    #[test]
    fn compactions_that_fail_back_off_and_keep_being_wanted() {
        let mut schedule = schedule();
        schedule.ask_compact();
        let mut attempts = Vec::new();
        let mut now = s(100);
        while attempts.len() < 8 {
            now = schedule.next(true).unwrap().max(now);
            assert_eq!(schedule.due(now, true), Some(Due::Compact));
            attempts.push(now.as_secs());
            assert_eq!(schedule.due(now, false), None, "one at a time, and open as long as it runs");
            schedule.failed(now);
        }
        assert_eq!(attempts, [100, 101, 103, 107, 115, 131, 161, 191]);
    }

    #[test]
    fn an_idle_subject_stays_open_for_what_expires_soon() {
        for (expires_at, closed_at) in [(130, 160), (161, 162), (400, 401), (760, 761), (761, 160)] {
            let mut schedule = schedule();
            schedule.awaits(Some(s(expires_at)));
            assert_eq!(run(&mut schedule, s(1_000)), [(closed_at, Due::Close)], "{expires_at}");
        }
        let mut schedule = schedule();
        schedule.awaits(Some(s(400)));
        schedule.ask_close();
        assert_eq!(schedule.due(s(100), false), Some(Due::Close), "whoever needs the room does not wait");
    }

    #[test]
    fn a_subject_in_use_forgets_that_it_was_to_close() {
        let mut schedule = schedule();
        schedule.ask_close();
        schedule.used(s(101));
        assert_eq!(run(&mut schedule, s(1_000)), [(161, Due::Close)]);
    }
}
