//! When a subject does something by itself: beacons, snapshots, closing. Times go in, what is due comes out.

use std::time::Duration;

use crate::settings::EngineSettings;

/// How long after the last change watchers are told once more where the subject is.
const BEACONS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Tell watchers where the subject is.
    Beacon,
    /// Bring the changes to the bucket; ends with [`Schedule::published`] or [`Schedule::failed`].
    Publish,
    /// Close the subject: nobody asks for it, and everything is in the bucket.
    Close,
}

/// The clockwork of one open subject. All times are on one clock that never goes back.
#[derive(Debug)]
pub(super) struct Schedule {
    snapshot_interval: Duration,
    idle_close: Duration,
    used_at: Duration,
    close_asked: bool,
    publish_asked: bool,
    /// When the oldest change was made that no snapshot under way or done holds.
    dirty_since: Option<Duration>,
    /// The same for the snapshot under way.
    publishing: Option<Option<Duration>>,
    failures: u32,
    retry_at: Duration,
    changed_at: Duration,
    beacons_sent: usize,
}

impl Schedule {
    /// A subject opened at `now`, with changes that are not in the bucket or without.
    pub(super) const fn new(settings: &EngineSettings, now: Duration, dirty: bool) -> Self {
        Self {
            snapshot_interval: settings.snapshot_interval,
            idle_close: settings.idle_close,
            used_at: now,
            close_asked: false,
            publish_asked: false,
            dirty_since: if dirty { Some(now) } else { None },
            publishing: None,
            failures: 0,
            retry_at: Duration::ZERO,
            changed_at: now,
            beacons_sent: BEACONS.len(),
        }
    }

    /// Somebody asked for the subject. Whoever wanted it closed must look for an idler one: to bring each change to the
    /// bucket at once, in the hope of a pause, would cost more than an open file.
    pub(super) const fn used(&mut self, now: Duration) {
        self.used_at = now;
        self.close_asked = false;
    }

    /// The subject has changed.
    pub(super) fn changed(&mut self, now: Duration) {
        self.dirty_since.get_or_insert(now);
        self.changed_at = now;
        self.beacons_sent = 0;
    }

    /// Publish as soon as possible, without waiting for the interval or the end of a back-off.
    pub(super) const fn ask_publish(&mut self) {
        self.publish_asked = true;
    }

    /// Close as soon as everything is in the bucket.
    pub(super) const fn ask_close(&mut self) {
        self.close_asked = true;
    }

    /// A publication has succeeded, and the subject has changes beyond it or not.
    pub(super) fn published(&mut self, now: Duration, dirty: bool) {
        let under_way = self.publishing.take().flatten();
        // What was published may have been an older state, of an attempt that took long to become known.
        self.dirty_since = if dirty { self.dirty_since.or(under_way).or(Some(now)) } else { None };
        self.failures = 0;
        self.retry_at = Duration::ZERO;
    }

    /// The publication under way has failed, or has no known outcome: its changes still wait.
    pub(super) fn failed(&mut self, now: Duration) {
        if let Some(since) = self.publishing.take() {
            self.dirty_since = since.or(self.dirty_since);
        }
        self.retry_at = now + FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(LONGEST_RETRY);
        self.failures += 1;
    }

    /// Whether the last attempt to publish failed.
    pub(super) const fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Takes the next thing that is due, if any.
    pub(super) fn due(&mut self, now: Duration) -> Option<Due> {
        let reached = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        if reached(self.beacon_at()) {
            // After a stall several are due at once; one says it all.
            while reached(self.beacon_at()) {
                self.beacons_sent += 1;
            }
            return Some(Due::Beacon);
        }
        if reached(self.publish_at()) {
            self.publishing = Some(self.dirty_since.take());
            self.publish_asked = false;
            return Some(Due::Publish);
        }
        reached(self.close_at()).then_some(Due::Close)
    }

    /// When to look again; `None`: not before something else happens.
    pub(super) fn next(&self) -> Option<Duration> {
        [self.beacon_at(), self.publish_at(), self.close_at()].into_iter().flatten().min()
    }

    fn beacon_at(&self) -> Option<Duration> {
        BEACONS.get(self.beacons_sent).map(|&after| self.changed_at + after)
    }

    fn publish_at(&self) -> Option<Duration> {
        if self.publishing.is_some() {
            return None;
        }
        if self.publish_asked {
            return Some(Duration::ZERO);
        }
        let since = self.dirty_since?;
        let wanted = if self.close_asked { since } else { since + self.snapshot_interval };
        Some(wanted.min(self.idle_at()).max(self.retry_at))
    }

    fn close_at(&self) -> Option<Duration> {
        let clean = self.dirty_since.is_none() && self.publishing.is_none() && !self.publish_asked;
        clean.then(|| if self.close_asked { Duration::ZERO } else { self.idle_at() })
    }

    fn idle_at(&self) -> Duration {
        self.used_at + self.idle_close
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn schedule(dirty: bool) -> Schedule {
        let mut settings = EngineSettings::new("", "a".parse().unwrap());
        settings.snapshot_interval = s(10);
        settings.idle_close = s(60);
        Schedule::new(&settings, s(100), dirty)
    }

    /// Everything that happens up to `until`, each with its second; publications succeed at once.
    fn run(schedule: &mut Schedule, until: Duration) -> Vec<(u64, Due)> {
        let mut happened = Vec::new();
        while let Some(next) = schedule.next().filter(|&next| next <= until) {
            let now = next.max(s(100));
            let due = schedule.due(now).expect("what is announced is due");
            happened.push((now.as_secs(), due));
            match due {
                Due::Publish => schedule.published(now, false),
                Due::Close => break,
                Due::Beacon => {}
            }
        }
        happened
    }

    #[test]
    fn a_quiet_subject_does_nothing_but_close() {
        assert_eq!(run(&mut schedule(false), s(1_000)), [(160, Due::Close)]);
    }

    #[test]
    fn a_change_is_announced_three_times_and_published_once() {
        let mut schedule = schedule(false);
        schedule.changed(s(100));
        assert_eq!(
            run(&mut schedule, s(1_000)),
            [
                (101, Due::Beacon),
                (105, Due::Beacon),
                (110, Due::Publish),
                (130, Due::Beacon),
                (160, Due::Close)
            ]
        );
    }

    #[test]
    fn a_change_during_a_publication_waits_for_the_next() {
        let mut schedule = schedule(true);
        assert_eq!(schedule.due(s(110)), Some(Due::Publish));
        schedule.used(s(111));
        schedule.changed(s(111));
        assert_eq!(schedule.publish_at(), None);
        schedule.published(s(112), true);
        assert_eq!(schedule.publish_at(), Some(s(121)));
    }

    #[test]
    fn when_an_older_state_is_published_the_rest_still_waits() {
        let mut schedule = schedule(true);
        assert_eq!(schedule.due(s(110)), Some(Due::Publish));
        schedule.published(s(112), true);
        assert_eq!(schedule.due(s(112)), Some(Due::Publish));
    }

    #[test]
    fn failures_back_off_and_an_open_change_keeps_the_subject_open() {
        let mut schedule = schedule(true);
        let mut attempts = Vec::new();
        let mut now = s(100);
        while attempts.len() < 8 {
            now = schedule.next().unwrap().max(now);
            match schedule.due(now) {
                Some(Due::Publish) => {
                    attempts.push(now.as_secs());
                    schedule.failed(now);
                }
                other => assert_eq!(other, None),
            }
        }
        assert_eq!(attempts, [110, 111, 113, 117, 125, 141, 171, 201]);
        schedule.ask_publish();
        assert_eq!(schedule.due(s(202)), Some(Due::Publish), "a flush does not wait for the back-off");
        schedule.published(s(202), false);
        assert_eq!(schedule.due(s(202)), Some(Due::Close));
    }

    #[test]
    fn to_close_it_publishes_first() {
        let mut schedule = schedule(true);
        schedule.ask_close();
        assert_eq!(run(&mut schedule, s(1_000)), [(100, Due::Publish), (100, Due::Close)]);
    }

    #[test]
    fn a_subject_in_use_forgets_that_it_was_to_close() {
        let mut schedule = schedule(true);
        schedule.ask_close();
        schedule.used(s(101));
        assert_eq!(run(&mut schedule, s(1_000)), [(110, Due::Publish), (161, Due::Close)]);
    }
}
