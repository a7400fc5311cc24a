//! Rate-limited log of requests whose reply address is no inbox.

use std::time::Duration;

use dormouse_protocol::Route;

/// Minimum time between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Logs rejected requests, but not each of them: their sender could flood the log.
#[derive(Debug, Default)]
pub(super) struct RejectLog {
    last: Option<Duration>,
    suppressed: u64,
}

impl RejectLog {
    pub(super) fn record(&mut self, route: &Route, reply_to: &Route, now: Duration) {
        if self.last.is_some_and(|last| now.saturating_sub(last) < LOG_INTERVAL) {
            self.suppressed += 1;
            return;
        }
        self.last = Some(now);
        let more = std::mem::take(&mut self.suppressed);
        tracing::warn!(%route, %reply_to, more, "request rejected: reply address is not an inbox");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reject log writes at most one line in ten seconds and counts the suppressed ones.
    #[test]
    fn reject_log_limits_rate_and_counts_suppressed() {
        let mut log = RejectLog::default();
        let (route, reply_to) = (Route::new("a"), Route::new("b"));
        for second in 0..=9 {
            log.record(&route, &reply_to, Duration::from_secs(second));
        }
        assert_eq!((log.last, log.suppressed), (Some(Duration::ZERO), 9));
        log.record(&route, &reply_to, Duration::from_secs(10));
        assert_eq!((log.last, log.suppressed), (Some(Duration::from_secs(10)), 0));
    }
}
