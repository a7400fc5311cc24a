//! Errors of calls: the cause, whether the call was executed, and whether a retry may succeed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{RequestError, SubscribeError};
use dormouse_protocol::codec::DecodeError;
use dormouse_protocol::subject::InvalidSubject;
use dormouse_protocol::{ErrorCode, ErrorReply, Executed, MessageId, RetryAdvice, ServerName};

/// Why a call failed.
///
/// [`executed`](Self::executed) tells whether the call could have been executed all the same, and
/// [`retry`](Self::retry) whether the same call may succeed later. The client has already retried everything
/// that it could retry safely within the call's deadline.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a subject.
    #[error(transparent)]
    InvalidSubject(#[from] InvalidSubject),
    /// The caller lacks the permission: the messaging system or a server rejected the call. Reported at once,
    /// never retried.
    #[error("permission denied: {what}")]
    PermissionDenied {
        /// The action that was rejected.
        what: String,
    },
    /// The deadline passed without success. The call was not executed.
    #[error("deadline of {} ms exceeded", deadline.as_millis())]
    Deadline {
        /// The deadline of the call.
        deadline: Duration,
        /// Why the last attempt failed.
        #[source]
        last: Option<Box<Error>>,
    },
    /// It is unknown whether the change took effect. The client sent it again until the deadline, if that is
    /// safe, and got no conclusive reply. Read the current state and decide.
    #[error("outcome of the change unknown")]
    Indeterminate {
        /// Why the outcome is unknown.
        #[source]
        cause: IndeterminateCause,
    },
    /// The subject no longer remembers requests of this age. It is unknown whether the change took effect, and a
    /// further attempt could not find out. A change meets it only if the subject was destroyed meanwhile by
    /// another client, or if the client was suspended for more than an hour.
    #[error("request forgotten, outcome of the change unknown")]
    Forgotten(#[source] Box<ErrorReply>),
    /// The expectation did not hold; nothing was changed.
    #[error("expectation failed: {}", Actual(*actual))]
    WrongLast {
        /// The current message, if any.
        actual: Option<MessageId>,
    },
    /// The key was expected to be absent; nothing was changed.
    #[error("key exists: {}", Actual(*actual))]
    KeyExists {
        /// The current message of the key.
        actual: Option<MessageId>,
    },
    /// A message or request is larger than allowed; nothing was changed.
    #[error("too large: {text}")]
    TooLarge {
        /// The name of the limit that was exceeded.
        limit: String,
        /// A description for people.
        text: String,
    },
    /// The set would exceed the limit on queued and sent sets, see
    /// [`queue_bytes`](crate::ClientBuilder::queue_bytes). It was not sent. Await acknowledgements before you
    /// send more.
    #[error("set queue full: at most {limit_bytes} bytes")]
    QueueFull {
        /// The limit on bytes of sets that are queued or in flight.
        limit_bytes: usize,
    },
    /// The source of a value cannot be read; nothing was written.
    #[error("value source unreadable")]
    Source {
        /// The error of the source.
        #[source]
        cause: Arc<io::Error>,
    },
    /// The value must be uploaded again from its first byte, to another server or because the server has lost
    /// it, and its source can be read only once. Nothing was written. See
    /// [`ValueSource::seekable`](crate::ValueSource::seekable).
    #[error("upload lost and source not seekable; nothing was written")]
    UploadLost,
    /// An earlier part of the same batch failed, so this part was not sent.
    #[error("not sent: an earlier part of the batch failed")]
    NotSent,
    /// The server or the coordinator replied with an error that has no variant of its own here.
    #[error(transparent)]
    Service(Box<ErrorReply>),
    /// The coordinator failed in a way that leaves the outcome of the look-up open, or with a code that this
    /// version does not know. A look-up changes no data, and the call was sent to no server: nothing was
    /// executed.
    #[error("coordinator failed")]
    Coordinator(#[source] Box<ErrorReply>),
    /// The reply to a read violates the protocol.
    #[error("malformed reply")]
    Malformed {
        /// What is wrong with the reply.
        #[source]
        cause: MalformedCause,
    },
    /// No service listens on the route. Seen as the last attempt of a [`Deadline`](Self::Deadline), and from
    /// calls that are not about a subject.
    #[error(transparent)]
    Unreachable(RequestError),
    /// The client was closed.
    #[error("client closed")]
    Closed,
}

/// Why it is unknown whether a change took effect.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum IndeterminateCause {
    /// The request was sent, and no reply came before the deadline.
    #[error(transparent)]
    Unanswered(RequestError),
    /// The server of the request is gone.
    #[error("server {0} is gone")]
    ServerGone(ServerName),
    /// The server replied that the outcome is unknown.
    #[error(transparent)]
    Reported(Box<ErrorReply>),
    /// The reply is malformed.
    #[error(transparent)]
    Malformed(MalformedCause),
}

/// What is wrong with a reply.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedCause {
    /// It cannot be decoded as the expected message.
    #[error(transparent)]
    Decode(Arc<DecodeError>),
    /// The number of results differs from the number of requested items.
    #[error("{got} results for {asked} items")]
    WrongCount {
        /// How many items were requested.
        asked: usize,
        /// How many results the reply has.
        got: usize,
    },
    /// The cursor for the next page does not advance.
    #[error("page cursor does not advance")]
    StuckCursor,
    /// It contains a message that was not requested, or not at this position.
    #[error("unexpected message in reply")]
    UnexpectedMessage,
}

/// Formats the current message of a failed expectation.
struct Actual(Option<MessageId>);

impl std::fmt::Display for Actual {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(id) => write!(f, "found {id}"),
            None => f.write_str("found no message"),
        }
    }
}

impl Error {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn retry(&self) -> RetryAdvice {
        match self {
            Self::InvalidSubject(_)
            | Self::PermissionDenied { .. }
            | Self::Indeterminate { .. }
            | Self::Forgotten(_)
            | Self::WrongLast { .. }
            | Self::KeyExists { .. }
            | Self::TooLarge { .. }
            | Self::Source { .. }
            | Self::Malformed { .. }
            | Self::Closed => RetryAdvice::Never,
            Self::Deadline { .. }
            | Self::QueueFull { .. }
            | Self::NotSent
            | Self::UploadLost
            | Self::Unreachable(_) => RetryAdvice::AfterBackoff,
            Self::Service(reply) | Self::Coordinator(reply) => reply.retry(),
        }
    }

    /// Whether the call could have been executed all the same.
    #[must_use]
    pub fn executed(&self) -> Executed {
        match self {
            Self::Indeterminate { .. } | Self::Forgotten(_) => Executed::Unknown,
            Self::Service(reply) => reply.executed(),
            Self::InvalidSubject(_)
            | Self::PermissionDenied { .. }
            | Self::Deadline { .. }
            | Self::WrongLast { .. }
            | Self::KeyExists { .. }
            | Self::TooLarge { .. }
            | Self::QueueFull { .. }
            | Self::Source { .. }
            | Self::UploadLost
            | Self::NotSent
            | Self::Coordinator(_)
            | Self::Malformed { .. }
            | Self::Unreachable(_)
            | Self::Closed => Executed::No,
        }
    }

    /// Whether the server rejected a request as a whole, before any execution, and one of its items may be
    /// the cause. The client then sends the other items without it.
    pub(crate) fn may_be_of_one_item(&self) -> bool {
        match self {
            Self::TooLarge { .. } => true,
            Self::Service(reply) => matches!(reply.code, ErrorCode::Corrupt | ErrorCode::BadRequest),
            _ => false,
        }
    }

    /// The same error for a caller with this `deadline`.
    pub(crate) fn to_caller(&self, deadline: Duration) -> Self {
        match self {
            Self::Deadline { last, .. } => Self::Deadline { deadline, last: last.clone() },
            error => error.clone(),
        }
    }

    pub(crate) fn from_reply(reply: ErrorReply) -> Self {
        match reply.code {
            ErrorCode::PermissionDenied => Self::PermissionDenied { what: reply.message },
            ErrorCode::WrongLast => Self::WrongLast { actual: reply.actual },
            ErrorCode::KeyExists => Self::KeyExists { actual: reply.actual },
            ErrorCode::TooLarge => {
                Self::TooLarge { limit: reply.limit.unwrap_or_default(), text: reply.message }
            }
            ErrorCode::Indeterminate => {
                Self::Indeterminate { cause: IndeterminateCause::Reported(Box::new(reply)) }
            }
            ErrorCode::Forgotten => Self::Forgotten(Box::new(reply)),
            _ => Self::Service(Box::new(reply)),
        }
    }

    pub(crate) fn from_request(error: RequestError) -> Self {
        match error {
            RequestError::PermissionDenied(route) => {
                Self::PermissionDenied { what: format!("publishing to {route}") }
            }
            RequestError::TooLarge { .. } => {
                Self::TooLarge { limit: "max_payload".to_owned(), text: error.to_string() }
            }
            RequestError::Closed { .. } => Self::Closed,
            other => Self::Unreachable(other),
        }
    }

    pub(crate) fn from_subscribe(error: SubscribeError) -> Self {
        match error {
            SubscribeError::Closed => Self::Closed,
            refused => Self::PermissionDenied { what: refused.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client error made from a reply has the execution state and the retry advice of the reply's code.
    #[test]
    fn error_keeps_execution_state_and_retry_advice_of_code() {
        for code in ErrorCode::KNOWN {
            let error = Error::from_reply(ErrorReply::new(code.clone(), "why"));
            assert_eq!(error.executed(), code.executed(), "{code}");
            assert_eq!(error.retry(), code.retry(), "{code}");
        }
    }

    /// The client error type takes at most 128 bytes.
    #[test]
    fn error_type_is_at_most_128_bytes() {
        assert!(size_of::<Error>() <= 128, "{}", size_of::<Error>());
    }
}
