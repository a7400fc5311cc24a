//! Backoff: how long a failing operation is retried, and the pauses between attempts. A pure machine without a clock.

use std::time::Duration;

/// After this time no further attempt begins, unless the caller sets another limit.
const LIMIT: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Decides how long a failing operation is retried, and the pauses between attempts.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    since: Duration,
    limit: Duration,
    pause: Duration,
    longest_pause: Duration,
}

impl Backoff {
    /// The operation began, or failed first, at `now`.
    #[must_use]
    pub const fn from(now: Duration) -> Self {
        Self { since: now, limit: LIMIT, pause: FIRST_PAUSE, longest_pause: LONGEST_PAUSE }
    }

    /// As [`from`](Self::from), for an operation that is retried for `limit`, with pauses of up to `longest_pause`.
    #[must_use]
    pub const fn lasting(now: Duration, limit: Duration, longest_pause: Duration) -> Self {
        Self { since: now, limit, pause: FIRST_PAUSE, longest_pause }
    }

    /// An attempt failed at `now`: returns the pause before the next, or `None` if it was the last.
    pub fn pause(&mut self, now: Duration) -> Option<Duration> {
        let pause = self.pause;
        if now.saturating_sub(self.since) + pause > self.limit {
            return None;
        }
        self.pause = (pause * 2).min(self.longest_pause);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Backoff pauses grow up to a maximum and end when the time limit is used up.
    #[test]
    fn backoff_pauses_grow_and_end_at_time_limit() {
        let (mut now, mut pauses) = (Duration::from_secs(100), Vec::new());
        let mut backoff = Backoff::from(now);
        while let Some(pause) = backoff.pause(now) {
            now += pause;
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_600, 2_000, 2_000, 2_000]);
        // An attempt that took the whole limit is the last.
        assert_eq!(Backoff::from(now).pause(now + LIMIT), None);
    }
}
