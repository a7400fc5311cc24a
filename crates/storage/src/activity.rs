//! How much an open subject has to do: requests per second, lately.

use std::time::Duration;

/// In this time a subject that nobody asks for any more loses most of its rate.
const MEMORY: Duration = Duration::from_secs(10);

/// A rate of requests that forgets. Costs a few operations per request, and nothing while none comes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rate {
    /// Requests, each of them worth less the longer ago it came.
    weight: f64,
    at: Duration,
}

impl Rate {
    /// A request came at `now`.
    pub(crate) fn count(&mut self, now: Duration) {
        self.weight = self.weight_at(now) + 1.0;
        self.at = now;
    }

    /// Requests per second at `now`.
    pub(crate) fn per_second(&self, now: Duration) -> f64 {
        self.weight_at(now) / MEMORY.as_secs_f64()
    }

    fn weight_at(&self, now: Duration) -> f64 {
        let past = now.saturating_sub(self.at).as_secs_f64();
        self.weight * (-past / MEMORY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_comes_near_what_is_asked_and_fades_when_nothing_is() {
        let mut rate = Rate::default();
        for request in 0..5_000 {
            rate.count(Duration::from_millis(10 * request));
        }
        let now = Duration::from_secs(50);
        assert!((95.0..105.0).contains(&rate.per_second(now)), "{rate:?}");
        assert!(rate.per_second(now + MEMORY) < 50.0);
        assert!(rate.per_second(now + 10 * MEMORY) < 0.1);
    }
}
