//! Prefixes of reply addresses.

use std::fmt;
use std::str::FromStr;

use dormouse_protocol::{Prefix, Route};

use crate::validate;

/// A text that is no valid prefix of reply addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no valid inbox prefix: {reason}")]
pub struct InvalidInboxPrefix {
    text: String,
    reason: &'static str,
}

/// The first tokens of reply addresses: a route without wildcards, and not one of the messaging system. Stored without
/// a trailing dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxPrefix(String);

impl InboxPrefix {
    /// The prefix without a trailing dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `address` is below the prefix.
    fn holds(&self, address: &str) -> bool {
        address.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('.'))
    }

    /// Rejects a prefix that overlaps the routes of the fleet: a reply could look like a message of the fleet.
    fn check_outside(self, fleet: &Prefix) -> Result<Self, InvalidInboxPrefix> {
        let fleet = fleet.as_str();
        if self.0 == fleet || self.holds(fleet) || Self(fleet.to_owned()).holds(&self.0) {
            return Err(InvalidInboxPrefix { text: self.0, reason: "it overlaps the routes of the fleet" });
        }
        Ok(self)
    }
}

impl Default for InboxPrefix {
    /// `_INBOX`, the default of NATS clients.
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
            return invalid("routes that begin with $ belong to the messaging system");
        }
        Ok(Self(prefix.to_owned()))
    }
}

impl fmt::Display for InboxPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The prefixes below which a service sends replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxPrefixes(Vec<InboxPrefix>);

impl InboxPrefixes {
    /// Parses prefixes separated by commas. None may overlap the routes of `fleet`.
    ///
    /// # Errors
    /// [`InvalidInboxPrefix`] for the first invalid prefix.
    pub fn parse(text: &str, fleet: &Prefix) -> Result<Self, InvalidInboxPrefix> {
        let prefixes =
            text.split(',').map(|prefix| prefix.trim().parse::<InboxPrefix>()?.check_outside(fleet));
        prefixes.collect::<Result<_, _>>().map(Self)
    }

    /// Whether a reply may be sent to `address`.
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

    /// An inbox prefix is rejected if it is malformed or overlaps the routes of the system or the fleet.
    #[test]
    fn inbox_prefix_of_system_or_fleet_is_rejected() {
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

    /// A trailing dot of an inbox prefix has no effect.
    #[test]
    fn inbox_prefix_ignores_trailing_dot() {
        assert_eq!(parse("_INBOX.,app.").unwrap(), parse("_INBOX, app").unwrap());
        assert_eq!(parse("_INBOX.,app.").unwrap().to_string(), "_INBOX,app");
        assert_eq!(parse("_INBOX.").unwrap(), InboxPrefixes::default());
    }

    /// Only a valid route below an inbox prefix is allowed for replies.
    #[test]
    fn inbox_prefixes_allow_only_inbox_routes() {
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
