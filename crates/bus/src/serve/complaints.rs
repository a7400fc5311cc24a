//! What is said of requests whose reply address is no inbox.

use std::time::Duration;

use dormouse_protocol::Route;

/// Least time between two complaints about reply addresses.
const BETWEEN_COMPLAINTS: Duration = Duration::from_secs(10);

/// Says that requests were refused, but not for every one: whoever sends them could flood the log.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    last: Option<Duration>,
    kept_back: u64,
}

impl Complaints {
    pub(super) fn about(&mut self, route: &Route, reply_to: &Route, now: Duration) {
        if self.last.is_some_and(|last| now.saturating_sub(last) < BETWEEN_COMPLAINTS) {
            self.kept_back += 1;
            return;
        }
        self.last = Some(now);
        let more = std::mem::take(&mut self.kept_back);
        tracing::warn!(%route, %reply_to, more, "refused a request whose reply address is not an inbox");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_few_and_say_how_many_they_stand_for() {
        let mut complaints = Complaints::default();
        let (route, reply_to) = (Route::new("a"), Route::new("b"));
        for second in 0..=9 {
            complaints.about(&route, &reply_to, Duration::from_secs(second));
        }
        assert_eq!((complaints.last, complaints.kept_back), (Some(Duration::ZERO), 9));
        complaints.about(&route, &reply_to, Duration::from_secs(10));
        assert_eq!((complaints.last, complaints.kept_back), (Some(Duration::from_secs(10)), 0));
    }
}
