//! Errors on the wire: a code that answers the caller's two questions, and what belongs to it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codec::ProtocolVersion;
use crate::ids::{LogId, MessageId, ServerName};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $http:literal, $retry:ident, $happened:ident;)*) => {
        /// What went wrong. Codes never change their meaning; texts may.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
            /// A code that a newer party uses and this one does not know.
            Other(String),
        }

        impl ErrorCode {
            /// The code as it travels.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Other(code) => code,
                }
            }

            /// The number in the `Nats-Service-Error-Code` header, chosen after HTTP's status codes.
            #[must_use]
            pub fn status(&self) -> u16 {
                match self {
                    $(Self::$variant => $http,)*
                    Self::Other(_) => 500,
                }
            }

            /// May the caller try again, and how?
            #[must_use]
            pub fn retry(&self) -> Retry {
                match self {
                    $(Self::$variant => Retry::$retry,)*
                    Self::Other(_) => Retry::Never,
                }
            }

            /// Could the request have taken effect all the same?
            #[must_use]
            pub fn happened(&self) -> Happened {
                match self {
                    $(Self::$variant => Happened::$happened,)*
                    Self::Other(_) => Happened::Unknown,
                }
            }

            /// Every code that this version knows, in the order of `PROTOCOL.md`.
            pub const KNOWN: &'static [Self] = &[$(Self::$variant,)*];
        }

        impl From<String> for ErrorCode {
            fn from(code: String) -> Self {
                match code.as_str() {
                    $($name => Self::$variant,)*
                    _ => Self::Other(code),
                }
            }
        }
    };
}

codes! {
    /// The request itself is wrong: garbage, an illegal name, contradictory fields, an unknown operation.
    BadRequest = "bad_request", 400, Never, No;
    /// The request is written in a newer protocol version; `supported_version` tells the newest one understood.
    UnsupportedVersion = "unsupported_version", 400, Never, No;
    /// This server does not offer what was asked for.
    Unsupported = "unsupported", 501, Never, No;
    /// The caller may not do this.
    PermissionDenied = "permission_denied", 403, Never, No;
    /// The request or a message in it is larger than allowed; `limit` names the limit.
    TooLarge = "too_large", 413, Never, No;
    /// The subject's configured limits leave no room; `limit` names the limit.
    LimitExceeded = "limit_exceeded", 422, Never, No;
    /// The expectation does not hold; `actual` is the message that is there, if any.
    WrongLast = "wrong_last", 409, Never, No;
    /// The key was expected to be absent; `actual` is the message that holds it.
    KeyExists = "key_exists", 409, Never, No;
    /// Another live process has this server name; `holder` is its log.
    NameInUse = "name_in_use", 409, AfterBackoff, No;
    /// The coordinator does not know this process: join again.
    UnknownServer = "unknown_server", 410, AskCoordinator, No;
    /// This server does not serve the subject; `owner` does, as far as is known.
    NotOwner = "not_owner", 421, AskCoordinator, No;
    /// Nobody can serve this now: no live server, no lease, a bucket that does not answer.
    Unavailable = "unavailable", 503, AfterBackoff, No;
    /// More work than the server takes on; try again after `retry_after_ms`.
    Overloaded = "overloaded", 429, AfterBackoff, No;
    /// Whether the request took effect is not known, and the server will not find out.
    Indeterminate = "indeterminate", 504, Never, Unknown;
    /// An object in the bucket or on disk is not what it should be; `object` names it. Nothing was guessed.
    Corrupt = "corrupt", 500, Never, No;
    /// This server does not have the upload, or not all of it: ask how far it is, and begin again.
    UnknownUpload = "unknown_upload", 410, Never, No;
    /// The server failed in a way that has no code of its own.
    Internal = "internal", 500, Never, Unknown;
}

impl From<ErrorCode> for String {
    fn from(code: ErrorCode) -> Self {
        code.as_str().to_owned()
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// May a caller try again?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The same request will fail the same way.
    Never,
    /// At once, at the same server.
    SameServer,
    /// After asking the coordinator where the subject is now.
    AskCoordinator,
    /// After a pause.
    AfterBackoff,
}

/// Could a request that failed have taken effect all the same?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Happened {
    /// It did not.
    No,
    /// Nobody knows.
    Unknown,
    /// It did.
    Yes,
}

/// An error as it travels: the body of a reply whose header `Nats-Service-Error-Code` is set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ErrorReply {
    /// What went wrong.
    pub code: ErrorCode,
    /// The same for people. May change at any time.
    #[serde(default)]
    pub message: String,
    /// Who serves the subject, with [`ErrorCode::NotOwner`], where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ServerName>,
    /// The message that is there, with [`ErrorCode::WrongLast`] and [`ErrorCode::KeyExists`]; absent if none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<MessageId>,
    /// The log of the process that holds the name, with [`ErrorCode::NameInUse`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<LogId>,
    /// When to try again, in milliseconds from now, with [`ErrorCode::Overloaded`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The limit that was met, with [`ErrorCode::TooLarge`] and [`ErrorCode::LimitExceeded`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// The object that is damaged, with [`ErrorCode::Corrupt`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The newest version understood, with [`ErrorCode::UnsupportedVersion`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supported_version: Option<ProtocolVersion>,
}

impl ErrorReply {
    /// The header that marks a reply as an error and holds [`ErrorCode::status`].
    pub const STATUS_HEADER: &'static str = "Nats-Service-Error-Code";
    /// The header that holds the error as text.
    pub const TEXT_HEADER: &'static str = "Nats-Service-Error";

    /// An error with a code and a text, and nothing else.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            owner: None,
            actual: None,
            holder: None,
            retry_after_ms: None,
            limit: None,
            object: None,
            supported_version: None,
        }
    }

    /// [`ErrorCode::BadRequest`].
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    /// [`ErrorCode::UnsupportedVersion`] for a request of version `got`.
    #[must_use]
    pub fn unsupported_version(got: ProtocolVersion) -> Self {
        let text = format!(
            "the request is of protocol version {}, the newest understood is {}",
            got.get(),
            ProtocolVersion::CURRENT.get()
        );
        Self {
            supported_version: Some(ProtocolVersion::CURRENT),
            ..Self::new(ErrorCode::UnsupportedVersion, text)
        }
    }

    /// [`ErrorCode::Unsupported`]: `what` is not offered by this server.
    #[must_use]
    pub fn unsupported(what: impl fmt::Display) -> Self {
        Self::new(ErrorCode::Unsupported, format!("this server does not offer {what}"))
    }

    /// [`ErrorCode::TooLarge`]: something of `size_bytes` met `limit`, which allows `limit_bytes`.
    #[must_use]
    pub fn too_large(limit: &str, size_bytes: usize, limit_bytes: usize) -> Self {
        Self {
            limit: Some(limit.to_owned()),
            ..Self::new(
                ErrorCode::TooLarge,
                format!("{limit}: {size_bytes} where at most {limit_bytes} is allowed"),
            )
        }
    }

    /// [`ErrorCode::LimitExceeded`]: the subject's configured `limit` leaves no room.
    #[must_use]
    pub fn limit_exceeded(limit: &str, why: impl Into<String>) -> Self {
        Self { limit: Some(limit.to_owned()), ..Self::new(ErrorCode::LimitExceeded, why) }
    }

    /// [`ErrorCode::WrongLast`]: `actual` is what is there.
    #[must_use]
    pub fn wrong_last(actual: Option<MessageId>) -> Self {
        let text = match actual {
            Some(id) => format!("the last message is {id}"),
            None => "there is no message".to_owned(),
        };
        Self { actual, ..Self::new(ErrorCode::WrongLast, text) }
    }

    /// [`ErrorCode::KeyExists`]: `actual` holds the key.
    #[must_use]
    pub fn key_exists(actual: MessageId) -> Self {
        Self {
            actual: Some(actual),
            ..Self::new(ErrorCode::KeyExists, format!("the key is held by {actual}"))
        }
    }

    /// [`ErrorCode::NameInUse`]: `holder` is alive and has the name.
    #[must_use]
    pub fn name_in_use(holder: LogId) -> Self {
        let text = format!("the name {} is in use by the live process {holder}", holder.server());
        Self { holder: Some(holder), ..Self::new(ErrorCode::NameInUse, text) }
    }

    /// [`ErrorCode::UnknownServer`]: the coordinator does not know `log`.
    #[must_use]
    pub fn unknown_server(log: &LogId) -> Self {
        Self::new(ErrorCode::UnknownServer, format!("{log} is not a member; join again"))
    }

    /// [`ErrorCode::NotOwner`]: `owner` serves the subject, if anybody is known to.
    #[must_use]
    pub fn not_owner(owner: Option<ServerName>) -> Self {
        let text = match &owner {
            Some(owner) => format!("the subject is served by {owner}"),
            None => "this server does not serve the subject".to_owned(),
        };
        Self { owner, ..Self::new(ErrorCode::NotOwner, text) }
    }

    /// [`ErrorCode::Unavailable`], and why.
    #[must_use]
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unavailable, why)
    }

    /// [`ErrorCode::Overloaded`]: try again after `retry_after_ms`.
    #[must_use]
    pub fn overloaded(why: impl Into<String>, retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(ErrorCode::Overloaded, why) }
    }

    /// [`ErrorCode::Corrupt`]: `object` is not what it should be.
    #[must_use]
    pub fn corrupt(object: impl Into<String>, what: impl fmt::Display) -> Self {
        let object = object.into();
        Self {
            message: format!("{object}: {what}"),
            object: Some(object),
            ..Self::new(ErrorCode::Corrupt, "")
        }
    }

    /// [`ErrorCode::UnknownUpload`], and what is missing.
    #[must_use]
    pub fn unknown_upload(what: impl Into<String>) -> Self {
        Self::new(ErrorCode::UnknownUpload, what)
    }

    /// [`ErrorCode::Internal`], and what failed.
    #[must_use]
    pub fn internal(what: impl fmt::Display) -> Self {
        Self::new(ErrorCode::Internal, what.to_string())
    }

    /// May the caller try again, and how? See [`ErrorCode::retry`].
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.code.retry()
    }

    /// Could the request have taken effect all the same? See [`ErrorCode::happened`].
    #[must_use]
    pub fn happened(&self) -> Happened {
        self.code.happened()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};

    #[test]
    fn every_code_travels_under_its_own_name() {
        for code in ErrorCode::KNOWN {
            let text = String::from(code.clone());
            assert_eq!(&ErrorCode::from(text), code);
            let reply = ErrorReply::new(code.clone(), "why");
            assert_eq!(decode::<ErrorReply>(&encode(&reply).unwrap()).unwrap(), reply);
        }
    }

    #[test]
    fn nothing_that_may_have_happened_is_retried_blindly() {
        for code in ErrorCode::KNOWN {
            if code.happened() != Happened::No {
                assert_eq!(code.retry(), Retry::Never, "{code}");
            }
        }
    }

    #[test]
    fn a_code_of_the_future_is_neither_retried_nor_taken_for_a_refusal() {
        let code = ErrorCode::from("quota_exhausted".to_owned());
        assert_eq!(code, ErrorCode::Other("quota_exhausted".to_owned()));
        assert_eq!((code.retry(), code.happened()), (Retry::Never, Happened::Unknown));
    }
}
