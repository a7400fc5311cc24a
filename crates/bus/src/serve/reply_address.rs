//! Where answers may go.

use std::time::Duration;

use dormouse_protocol::Route;

use crate::validate;

/// The prefix of reply addresses unless a client chose another.
pub const DEFAULT_INBOX_PREFIX: &str = "_INBOX.";

/// Least time between two complaints about reply addresses.
const BETWEEN_COMPLAINTS: Duration = Duration::from_secs(10);

/// The addresses to which answers are sent.
#[derive(Debug, Clone)]
pub(crate) struct ReplyAddresses {
    prefixes: Vec<String>,
}

impl ReplyAddresses {
    pub(crate) fn new(prefixes: &[String]) -> Self {
        let dotted = |prefix: &String| format!("{}.", prefix.trim_end_matches('.'));
        Self { prefixes: prefixes.iter().map(dotted).collect() }
    }

    pub(crate) fn allow(&self, address: &Route) -> bool {
        let address = address.as_str();
        self.prefixes.iter().any(|prefix| address.starts_with(prefix.as_str()))
            && validate::is_address(address)
    }
}

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
    fn answers_go_to_inboxes_only() {
        let addresses = ReplyAddresses::new(&["_INBOX.".to_owned(), "_INBOX_alice".to_owned()]);
        for (address, allowed) in [
            ("_INBOX.a.b", true),
            ("_INBOX_alice.a", true),
            ("_INBOX_alice_too.a", false),
            ("_INBOX.", false),
            ("_INBOX", false),
            ("persist.events.orders", false),
            ("_INBOX.*", false),
            ("_INBOX.>", false),
            ("_INBOX..a", false),
            ("_INBOX.a b", false),
        ] {
            assert_eq!(addresses.allow(&Route::new(address)), allowed, "{address}");
        }
    }

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
