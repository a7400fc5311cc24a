//! The decisions of the link between a client and an S3 server: when bytes have passed, and which requests are refused.
//! Pure machines without a clock.

use std::time::Duration;

/// The properties of a link and of the store behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkProfile {
    /// Delay of each request, before the server gets it.
    pub latency: Duration,
    /// Bandwidth to the server, shared by all connections; `None`: unlimited.
    pub upload_bytes_per_second: Option<u64>,
    /// Bandwidth to the client, shared by all connections; `None`: unlimited.
    pub download_bytes_per_second: Option<u64>,
    /// Number of requests per second above which the store answers `503 SlowDown`; `None`: unlimited. At most this many
    /// requests are accepted at once.
    pub requests_per_second: Option<u32>,
}

/// One direction of a link, on which bytes pass one after the other.
#[derive(Debug, Default)]
pub(super) struct LinkDirection {
    /// When the bytes sent so far have passed.
    free_at: Duration,
}

impl LinkDirection {
    /// Bytes are sent at `now`. Returns how long they take, including the bytes ahead of them.
    pub(super) fn send(&mut self, now: Duration, bytes: u64, bytes_per_second: Option<u64>) -> Duration {
        let Some(rate) = bytes_per_second else { return Duration::ZERO };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let duration = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.free_at = self.free_at.max(now).saturating_add(duration);
        self.free_at - now
    }
}

/// The rate limit of a store: a token bucket that holds the requests of one second.
#[derive(Debug, Default)]
pub(super) struct RequestRate {
    /// When the accepted requests are used up.
    used_until: Duration,
}

impl RequestRate {
    /// Returns whether the store accepts a request at `now`.
    pub(super) fn accepts(&mut self, now: Duration, requests_per_second: Option<u32>) -> bool {
        let Some(rate) = requests_per_second else { return true };
        let used_until = self.used_until.max(now) + Duration::from_secs(1) / rate.max(1);
        let accepted = used_until <= now + Duration::from_secs(1);
        if accepted {
            self.used_until = used_until;
        }
        accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1_024 * 1_024;

    /// Bytes take their size divided by the bandwidth, after the bytes ahead of them.
    #[test]
    fn link_bytes_pass_one_after_the_other() {
        let mut direction = LinkDirection::default();
        let now = Duration::from_secs(7);
        assert_eq!(direction.send(now, 4 * MIB, Some(2 * MIB)), Duration::from_secs(2));
        assert_eq!(direction.send(now, MIB, Some(2 * MIB)), Duration::from_millis(2_500));
        // After a pause, nothing is ahead.
        assert_eq!(direction.send(now + Duration::from_secs(9), MIB, Some(MIB)), Duration::from_secs(1));
        assert_eq!(direction.send(now + Duration::from_secs(20), MIB, None), Duration::ZERO);
    }

    /// A rate limit accepts the requests of one second at once, and later one request per interval.
    #[test]
    fn request_rate_refuses_above_limit() {
        let mut rate = RequestRate::default();
        let now = Duration::from_secs(100);
        let accepted = (0..10).filter(|_| rate.accepts(now, Some(4))).count();
        assert_eq!(accepted, 4);
        assert!(rate.accepts(now + Duration::from_millis(250), Some(4)));
        assert!(!rate.accepts(now + Duration::from_millis(250), Some(4)));
        assert!(rate.accepts(now, None));
    }
}
