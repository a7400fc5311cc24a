//! Whose subjects a request may be about.
//!
//! Within one account of NATS the routes say it, and the permissions of NATS hold it: nothing has to be checked here. Where
//! every tenant has an account of its own and comes through an import, nats-server writes into each request from which
//! account it is, over whatever the sender had put there. Then a subject's first token must be that account.

use dormouse_protocol::{ErrorCode, ErrorReply, Headers, Subject};

/// What nats-server writes who it lets through an account's import. Within one account anybody can write it.
const IDENTITY: &str = "Nats-Request-Info";

/// Who may ask about which subjects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Callers {
    /// Whoever the messaging system lets through, about what it lets through.
    #[default]
    AsPermitted,
    /// Accounts, each about the subjects that begin with its name. Only for services that nobody reaches but through an
    /// account's import: anybody else could write the header that is believed here.
    Accounts,
}

/// Who made a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Somebody who was permitted to.
    Permitted,
    /// An account, as nats-server says.
    Account(String),
    /// Should be an account, and nobody says which.
    Unknown,
}

#[derive(serde::Deserialize)]
struct Identity {
    #[serde(rename = "acc")]
    account: String,
}

impl Callers {
    /// Who made the request with these headers.
    pub(crate) fn identify(self, headers: &Headers) -> Caller {
        if self == Self::AsPermitted {
            return Caller::Permitted;
        }
        let mut told = headers.0.iter().filter(|(name, _)| name.eq_ignore_ascii_case(IDENTITY));
        // nats-server writes one. Where there are more, somebody else wrote the others.
        let (Some((name, text)), None) = (told.next(), told.next()) else { return Caller::Unknown };
        if name != IDENTITY {
            return Caller::Unknown;
        }
        match serde_json::from_str::<Identity>(text) {
            Ok(identity) if !identity.account.is_empty() => Caller::Account(identity.account),
            Ok(_) | Err(_) => Caller::Unknown,
        }
    }
}

impl Caller {
    /// Whether this caller may ask about `subject`.
    ///
    /// # Errors
    /// `permission_denied`, which names the account.
    pub fn may_use(&self, subject: &Subject) -> Result<(), ErrorReply> {
        let refusal = match self {
            Self::Permitted => return Ok(()),
            Self::Account(account) if begins_with(subject, account) => return Ok(()),
            Self::Account(account) => {
                format!("account {account} may use subjects that begin with its name, and this one does not")
            }
            Self::Unknown => "requests are taken only through the import of an account".to_owned(),
        };
        Err(ErrorReply::new(ErrorCode::PermissionDenied, refusal))
    }
}

/// Whether `account` and at least one more token stand in `subject`, in this order.
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

    #[test]
    fn an_account_uses_what_begins_with_its_name() {
        assert!(may(Callers::Accounts, &[ACME], "acme.orders"));
        assert!(may(Callers::Accounts, &[("other", "x"), ACME], "acme.orders.eu"));
        for foreign in ["umbrella.orders", "acme", "acmes.orders", "ACME.orders", "x.acme.orders"] {
            assert!(!may(Callers::Accounts, &[ACME], foreign), "{foreign}");
        }
    }

    #[test]
    fn who_does_not_come_through_an_import_is_refused() {
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

    #[test]
    fn within_one_account_the_header_means_nothing() {
        assert!(may(Callers::AsPermitted, &[ACME], "umbrella.orders"));
        assert!(may(Callers::AsPermitted, &[], "umbrella.orders"));
    }

    #[test]
    fn a_refusal_names_the_account() {
        let caller = Callers::Accounts.identify(&headers(&[ACME]));
        let error = caller.may_use(&Subject::new("umbrella.orders").unwrap()).unwrap_err();
        assert_eq!(error.code, ErrorCode::PermissionDenied);
        assert!(error.message.contains("account acme"), "{error}");
    }
}
