//! Checks which subjects the caller of a request may use.
//!
//! Within one NATS account, NATS permissions on the routes decide, and this module checks nothing. If each tenant has
//! its own account and uses an import, nats-server writes the account into each request and overwrites the sender's
//! header. Then the first token of the subject must be that account.

use dormouse_protocol::{ErrorCode, ErrorReply, Headers, Subject};

/// The header in which nats-server names the account of an import. Within one account any client can write it.
const IDENTITY: &str = "Nats-Request-Info";

/// The rule for callers and subjects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Callers {
    /// NATS permissions decide; no further check.
    #[default]
    AsPermitted,
    /// Each account may use the subjects that begin with its name. Only for services that clients reach only through an
    /// account's import: any other client could forge the header.
    Accounts,
}

/// The caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A client that NATS permissions let through.
    Permitted,
    /// An account, as named by nats-server.
    Account(String),
    /// A caller without a valid account header.
    Unknown,
}

#[derive(serde::Deserialize)]
struct CallerIdentity {
    #[serde(rename = "acc")]
    account: String,
}

impl Callers {
    /// The caller of a request with these headers.
    pub(crate) fn identify(self, headers: &Headers) -> Caller {
        if self == Self::AsPermitted {
            return Caller::Permitted;
        }
        let mut found = headers.0.iter().filter(|(name, _)| name.eq_ignore_ascii_case(IDENTITY));
        // nats-server writes one such header. With more of them, a client has written the others.
        let (Some((name, text)), None) = (found.next(), found.next()) else { return Caller::Unknown };
        if name != IDENTITY {
            return Caller::Unknown;
        }
        match serde_json::from_str::<CallerIdentity>(text) {
            Ok(identity) if !identity.account.is_empty() => Caller::Account(identity.account),
            Ok(_) | Err(_) => Caller::Unknown,
        }
    }
}

impl Caller {
    /// The account, if nats-server has named one.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        match self {
            Self::Account(account) => Some(account),
            Self::Permitted | Self::Unknown => None,
        }
    }

    /// Checks whether this caller may use `subject`.
    ///
    /// # Errors
    /// `permission_denied`, which names the account.
    pub fn may_use(&self, subject: &Subject) -> Result<(), ErrorReply> {
        let refusal = match self {
            Self::Permitted => return Ok(()),
            Self::Account(account) if begins_with(subject, account) => return Ok(()),
            Self::Account(account) => {
                format!(
                    "account {account} may use subjects that begin with its name, and this subject does not"
                )
            }
            Self::Unknown => "requests are accepted only through the import of an account".to_owned(),
        };
        Err(ErrorReply::new(ErrorCode::PermissionDenied, refusal))
    }
}

/// Whether `subject` consists of `account` and at least one more token.
fn begins_with(subject: &Subject, account: &str) -> bool {
    subject.as_str().strip_prefix(account).is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    fn may(callers: Callers, pairs: &[(&str, &str)], subject: &str) -> bool {
        callers.identify(&headers(pairs)).may_use(&Subject::new(subject).unwrap()).is_ok()
    }

    const ACME: (&str, &str) = (IDENTITY, r#"{"acc":"acme","rtt":12,"user":"ann"}"#);

    /// An account may use only subjects whose first token is the account name.
    #[test]
    fn account_may_use_only_subjects_under_account_name() {
        assert!(may(Callers::Accounts, &[ACME], "acme.orders"));
        assert!(may(Callers::Accounts, &[("other", "x"), ACME], "acme.orders.eu"));
        for foreign in ["umbrella.orders", "acme", "acmes.orders", "ACME.orders", "x.acme.orders"] {
            assert!(!may(Callers::Accounts, &[ACME], foreign), "{foreign}");
        }
    }

    /// A caller without exactly one valid account header is rejected.
    #[test]
    fn caller_without_valid_account_header_is_rejected() {
        let forged = (IDENTITY, r#"{"acc":"umbrella"}"#);
        let strange = ("nats-request-info", r#"{"acc":"acme"}"#);
        for (name, pairs) in [
            ("no header", &[][..]),
            ("two headers", &[ACME, forged]),
            ("two headers, the other way round", &[forged, ACME]),
            ("twice the same", &[ACME, ACME]),
            ("another spelling besides", &[ACME, strange]),
            ("another spelling", &[strange]),
            ("no JSON", &[(IDENTITY, "acme")]),
            ("no account", &[(IDENTITY, r#"{"user":"acme"}"#)]),
            ("an account without a name", &[(IDENTITY, r#"{"acc":""}"#)]),
        ] {
            assert!(!may(Callers::Accounts, pairs, "acme.orders"), "{name}");
            assert!(!may(Callers::Accounts, pairs, "umbrella.orders"), "{name}");
        }
    }

    /// Within one account, the account header has no effect.
    #[test]
    fn caller_header_is_ignored_within_one_account() {
        assert!(may(Callers::AsPermitted, &[ACME], "umbrella.orders"));
        assert!(may(Callers::AsPermitted, &[], "umbrella.orders"));
    }

    /// The error for a rejected caller names the account.
    #[test]
    fn caller_rejection_names_account() {
        let caller = Callers::Accounts.identify(&headers(&[ACME]));
        let error = caller.may_use(&Subject::new("umbrella.orders").unwrap()).unwrap_err();
        assert_eq!(error.code, ErrorCode::PermissionDenied);
        assert!(error.message.contains("account acme"), "{error}");
    }
}
