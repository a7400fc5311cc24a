//! Errors on the wire: a code with retry advice and execution state, and the data that belongs to it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{LogId, MessageId, ServerName};
use crate::version::ProtocolVersion;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $http:literal, $retry:ident, $executed:ident;)*) => {
        /// The kind of an error. Codes never change their meaning; texts may.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
            /// A code of a newer version that this version does not know.
            Other(String),
        }

        impl ErrorCode {
            /// The code on the wire.
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

            /// Whether and how the caller may retry.
            #[must_use]
            pub fn retry(&self) -> RetryAdvice {
                match self {
                    $(Self::$variant => RetryAdvice::$retry,)*
                    Self::Other(_) => RetryAdvice::Never,
                }
            }

            /// Whether the failed request may have been executed.
            #[must_use]
            pub fn executed(&self) -> Executed {
                match self {
                    $(Self::$variant => Executed::$executed,)*
                    Self::Other(_) => Executed::Unknown,
                }
            }

            /// All codes that this version knows, in the order of `PROTOCOL.md`.
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
    /// The request is invalid: malformed, an illegal name, contradictory fields, an unknown operation.
    BadRequest = "bad_request", 400, Never, No;
    /// The request has a newer protocol version; `supported_version` is the newest supported one.
    UnsupportedVersion = "unsupported_version", 400, Never, No;
    /// This server does not offer the requested function.
    Unsupported = "unsupported", 501, Never, No;
    /// The caller lacks the permission.
    PermissionDenied = "permission_denied", 403, Never, No;
    /// The request, or a message in it, is larger than allowed; `limit` names the limit.
    TooLarge = "too_large", 413, Never, No;
    /// A configured limit of the subject is reached; `limit` names the limit.
    LimitExceeded = "limit_exceeded", 422, Never, No;
    /// The expectation does not hold; `actual` is the existing message, if any.
    WrongLast = "wrong_last", 409, Never, No;
    /// The key was expected to be absent; `actual` is the message that holds it.
    KeyExists = "key_exists", 409, Never, No;
    /// Another live process has this server name; `holder` is its log.
    NameInUse = "name_in_use", 409, AfterBackoff, No;
    /// The coordinator does not know this process; the process must join again.
    UnknownServer = "unknown_server", 410, AskCoordinator, No;
    /// Another server serves the subject; `owner` names it, if known.
    NotOwner = "not_owner", 421, AskCoordinator, No;
    /// The request cannot be served now: no live server, no lease, or the bucket does not reply.
    Unavailable = "unavailable", 503, AfterBackoff, No;
    /// The server is over its load limit; retry after `retry_after_ms`.
    Overloaded = "overloaded", 429, AfterBackoff, No;
    /// It is unknown whether the request was executed, and the server cannot find out.
    Indeterminate = "indeterminate", 504, Never, Unknown;
    /// The subject no longer remembers the session's requests of this age: whether this one was executed is unknown,
    /// and this copy of it was not executed.
    Forgotten = "forgotten", 409, Never, Unknown;
    /// An object in the bucket or on disk is damaged; `object` names it. The server made no assumption about its content.
    Corrupt = "corrupt", 500, Never, No;
    /// This server does not have the upload, or not all of it: the client asks for its progress, and begins again.
    UnknownUpload = "unknown_upload", 410, Never, No;
    /// The server failed, and no other code applies.
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

/// Whether and how a caller may retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryAdvice {
    /// The same request will fail the same way.
    Never,
    /// Retry at once, at the same server.
    SameServer,
    /// Retry after asking the coordinator for the current server of the subject.
    AskCoordinator,
    /// Retry after a pause.
    AfterBackoff,
}

/// Whether a failed request was executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Executed {
    /// It was not executed.
    No,
    /// It may have been executed.
    Unknown,
    /// It was executed.
    Yes,
}

/// An error on the wire: the body of a reply with the header `Nats-Service-Error-Code`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ErrorReply {
    /// The kind of the error.
    pub code: ErrorCode,
    /// A human-readable text. It may change at any time.
    #[serde(default)]
    pub message: String,
    /// The server of the subject, if known, with [`ErrorCode::NotOwner`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ServerName>,
    /// The existing message, with [`ErrorCode::WrongLast`] and [`ErrorCode::KeyExists`]; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<MessageId>,
    /// The log of the process that holds the name, with [`ErrorCode::NameInUse`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<LogId>,
    /// The retry delay in milliseconds, with [`ErrorCode::Overloaded`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The limit that was exceeded, with [`ErrorCode::TooLarge`] and [`ErrorCode::LimitExceeded`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// The damaged object, with [`ErrorCode::Corrupt`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The newest supported version, with [`ErrorCode::UnsupportedVersion`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supported_version: Option<ProtocolVersion>,
}

impl ErrorReply {
    /// The header that marks a reply as an error and contains [`ErrorCode::status`].
    pub const STATUS_HEADER: &'static str = "Nats-Service-Error-Code";
    /// The header that contains the error as text.
    pub const TEXT_HEADER: &'static str = "Nats-Service-Error";

    /// An error with a code and a text only.
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

    /// [`ErrorCode::TooLarge`]: `size_bytes` exceeds `limit`, which allows `limit_bytes`.
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

    /// [`ErrorCode::LimitExceeded`]: the subject's configured `limit` is reached.
    #[must_use]
    pub fn limit_exceeded(limit: &str, why: impl Into<String>) -> Self {
        Self { limit: Some(limit.to_owned()), ..Self::new(ErrorCode::LimitExceeded, why) }
    }

    /// [`ErrorCode::WrongLast`]: `actual` is the existing message.
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

    /// [`ErrorCode::NotOwner`]: `owner` serves the subject, if known.
    #[must_use]
    pub fn not_owner(owner: Option<ServerName>) -> Self {
        let text = match &owner {
            Some(owner) => format!("the subject is served by {owner}"),
            None => "this server does not serve the subject".to_owned(),
        };
        Self { owner, ..Self::new(ErrorCode::NotOwner, text) }
    }

    /// [`ErrorCode::Unavailable`] with the reason.
    #[must_use]
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unavailable, why)
    }

    /// [`ErrorCode::Overloaded`] with the reason; the caller may retry after `retry_after_ms`.
    #[must_use]
    pub fn overloaded(why: impl Into<String>, retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(ErrorCode::Overloaded, why) }
    }

    /// [`ErrorCode::Forgotten`]: the request is older than what the subject remembers of its session.
    #[must_use]
    pub fn forgotten() -> Self {
        Self::new(ErrorCode::Forgotten, "the request is older than its session's dedup window")
    }

    /// [`ErrorCode::Corrupt`]: `object` is damaged.
    #[must_use]
    pub fn corrupt(object: impl Into<String>, what: impl fmt::Display) -> Self {
        let object = object.into();
        Self {
            message: format!("{object}: {what}"),
            object: Some(object),
            ..Self::new(ErrorCode::Corrupt, "")
        }
    }

    /// [`ErrorCode::UnknownUpload`] with the missing part.
    #[must_use]
    pub fn unknown_upload(what: impl Into<String>) -> Self {
        Self::new(ErrorCode::UnknownUpload, what)
    }

    /// [`ErrorCode::Internal`] with the failure.
    #[must_use]
    pub fn internal(what: impl fmt::Display) -> Self {
        Self::new(ErrorCode::Internal, what.to_string())
    }

    /// Whether and how the caller may retry. See [`ErrorCode::retry`].
    #[must_use]
    pub fn retry(&self) -> RetryAdvice {
        self.code.retry()
    }

    /// Whether the failed request may have been executed. See [`ErrorCode::executed`].
    #[must_use]
    pub fn executed(&self) -> Executed {
        self.code.executed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};

    /// Each error code is encoded under its own name and decodes to the same code.
    #[test]
    fn error_codes_round_trip_by_name() {
        for code in ErrorCode::KNOWN {
            let text = String::from(code.clone());
            assert_eq!(&ErrorCode::from(text), code);
            let reply = ErrorReply::new(code.clone(), "why");
            assert_eq!(decode::<ErrorReply>(&encode(&reply).unwrap()).unwrap(), reply);
        }
    }

    /// If a request with this error code may have been executed, the advice is never to retry.
    #[test]
    fn error_codes_of_possible_execution_advise_no_retry() {
        for code in ErrorCode::KNOWN {
            if code.executed() != Executed::No {
                assert_eq!(code.retry(), RetryAdvice::Never, "{code}");
            }
        }
    }

    /// An unknown error code advises no retry and means unknown execution.
    #[test]
    fn error_code_unknown_is_not_retried_and_indeterminate() {
        let code = ErrorCode::from("quota_exhausted".to_owned());
        assert_eq!(code, ErrorCode::Other("quota_exhausted".to_owned()));
        assert_eq!((code.retry(), code.executed()), (RetryAdvice::Never, Executed::Unknown));
    }
}
