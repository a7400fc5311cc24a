//! How long something that fails is tried again, and after which pauses: a pure machine without a clock.

use std::time::Duration;

/// After this time no further attempt is begun.
const LIMIT: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// See the [module](self).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    since: Duration,
    pause: Duration,
}

impl Patience {
    /// What is tried has begun, or begun to fail, at `now`.
    pub(crate) const fn from(now: Duration) -> Self {
        Self { since: now, pause: FIRST_PAUSE }
    }

    /// An attempt has failed at `now`: the pause before the next, or `None` when it was the last.
    pub(crate) fn pause(&mut self, now: Duration) -> Option<Duration> {
        let pause = self.pause;
        if now.saturating_sub(self.since) + pause > LIMIT {
            return None;
        }
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_with_the_time_that_there_is() {
        let (mut now, mut pauses) = (Duration::from_secs(100), Vec::new());
        let mut patience = Patience::from(now);
        while let Some(pause) = patience.pause(now) {
            now += pause;
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_600, 2_000, 2_000, 2_000]);
        // An attempt that took all of it is the last.
        assert_eq!(Patience::from(now).pause(now + LIMIT), None);
    }
}
