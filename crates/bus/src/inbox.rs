//! What reply addresses begin with.

use std::fmt;
use std::str::FromStr;

use dormouse_protocol::{Prefix, Route};

use crate::validate;

/// A text that reply addresses cannot begin with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot begin a reply address: {reason}")]
pub struct InvalidInboxPrefix {
    text: String,
    reason: &'static str,
}

/// The first tokens of reply addresses: a route without wildcards that is not one of the messaging system's own. Kept
/// without the dot that may end its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxPrefix(String);

impl InboxPrefix {
    /// The prefix without a dot at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `address` lies under the prefix.
    fn holds(&self, address: &str) -> bool {
        address.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('.'))
    }

    /// Refuses a prefix under which routes of the fleet lie, or which lies among them: an answer could pass for a
    /// message of the fleet.
    fn apart_from(self, fleet: &Prefix) -> Result<Self, InvalidInboxPrefix> {
        let fleet = fleet.as_str();
        if self.0 == fleet || self.holds(fleet) || Self(fleet.to_owned()).holds(&self.0) {
            return Err(InvalidInboxPrefix { text: self.0, reason: "the routes of the fleet are there" });
        }
        Ok(self)
    }
}

impl Default for InboxPrefix {
    /// `_INBOX`, what NATS clients use unless configured otherwise.
    fn default() -> Self {
        Self("_INBOX".to_owned())
    }
}

impl FromStr for InboxPrefix {
    type Err = InvalidInboxPrefix;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |reason| Err(InvalidInboxPrefix { text: text.to_owned(), reason });
        let prefix = text.strip_suffix('.').unwrap_or(text);
        if !validate::is_address(prefix) {
            return invalid("it must be tokens joined by dots, without wildcards or white space");
        }
        if prefix.starts_with('$') {
            return invalid("what begins with $ belongs to the messaging system");
        }
        Ok(Self(prefix.to_owned()))
    }
}

impl fmt::Display for InboxPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The addresses to which a service sends answers: what lies under one of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxPrefixes(Vec<InboxPrefix>);

impl InboxPrefixes {
    /// Reads prefixes separated by commas, none of them where the routes of `fleet` are.
    ///
    /// # Errors
    /// [`InvalidInboxPrefix`] for the first that cannot be used.
    pub fn parse(text: &str, fleet: &Prefix) -> Result<Self, InvalidInboxPrefix> {
        let prefixes = text.split(',').map(|prefix| prefix.trim().parse::<InboxPrefix>()?.apart_from(fleet));
        prefixes.collect::<Result<_, _>>().map(Self)
    }

    /// Whether an answer may be sent to `address`.
    pub(crate) fn allow(&self, address: &Route) -> bool {
        let address = address.as_str();
        self.0.iter().any(|prefix| prefix.holds(address)) && validate::is_address(address)
    }
}

impl Default for InboxPrefixes {
    fn default() -> Self {
        Self(vec![InboxPrefix::default()])
    }
}

impl fmt::Display for InboxPrefixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, prefix) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{prefix}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<InboxPrefixes, InvalidInboxPrefix> {
        InboxPrefixes::parse(text, &Prefix::new("my.fleet").unwrap())
    }

    #[test]
    fn a_prefix_is_neither_the_systems_nor_the_fleets() {
        for good in
            ["_INBOX", "_INBOX.", "_INBOX.,_INBOX_app", "app.inbox, _INBOX", "my.fleets", "my.other", "fleet"]
        {
            assert!(parse(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            ".",
            ",",
            "_INBOX,",
            "_INBOX..",
            "a..b",
            ".a",
            "a b",
            "*",
            ">",
            "a.*",
            "a.>",
            "$JS",
            "$JS.",
            "$SYS.a",
            "$",
            "my.fleet",
            "my.fleet.",
            "my.fleet.inbox",
            "my",
            "_INBOX,my.fleet",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(InboxPrefixes::parse("persist", &Prefix::default()).is_err());
    }

    #[test]
    fn a_dot_at_the_end_makes_no_difference() {
        assert_eq!(parse("_INBOX.,app.").unwrap(), parse("_INBOX, app").unwrap());
        assert_eq!(parse("_INBOX.,app.").unwrap().to_string(), "_INBOX,app");
        assert_eq!(parse("_INBOX.").unwrap(), InboxPrefixes::default());
    }

    #[test]
    fn answers_go_to_inboxes_only() {
        let prefixes = parse("_INBOX.,_INBOX_alice").unwrap();
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
            assert_eq!(prefixes.allow(&Route::new(address)), allowed, "{address}");
        }
    }
}
