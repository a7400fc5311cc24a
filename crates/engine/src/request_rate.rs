//! Request rate of an open subject: recent requests per second.

use std::time::Duration;

/// Time constant of the decay: without requests, the rate falls to 1/e in this time.
const DECAY: Duration = Duration::from_secs(10);

/// A request rate with exponential decay. Costs a few operations per request, and nothing without requests.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RequestRate {
    /// Requests, weighted by their age.
    weight: f64,
    at: Duration,
}

impl RequestRate {
    /// Counts a request that arrived at `now`.
    pub(crate) fn count(&mut self, now: Duration) {
        self.weight = self.weight_at(now) + 1.0;
        self.at = now;
    }

    /// Requests per second at `now`.
    pub(crate) fn per_second(&self, now: Duration) -> f64 {
        self.weight_at(now) / DECAY.as_secs_f64()
    }

    fn weight_at(&self, now: Duration) -> f64 {
        let past = now.saturating_sub(self.at).as_secs_f64();
        self.weight * (-past / DECAY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request rate approximates the real load and decays almost to zero when no requests arrive.
    #[test]
    fn request_rate_tracks_load_and_decays_when_idle() {
        let mut rate = RequestRate::default();
        for request in 0..5_000 {
            rate.count(Duration::from_millis(10 * request));
        }
        let now = Duration::from_secs(50);
        assert!((95.0..105.0).contains(&rate.per_second(now)), "{rate:?}");
        assert!(rate.per_second(now + DECAY) < 50.0);
        assert!(rate.per_second(now + 10 * DECAY) < 0.1);
    }
}
