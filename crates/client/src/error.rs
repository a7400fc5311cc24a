//! Why a call failed, and the two questions every caller has then.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{RequestError, SubscribeError};
use dormouse_protocol::codec::DecodeError;
use dormouse_protocol::subject::InvalidSubject;
use dormouse_protocol::{ErrorCode, ErrorReply, Happened, MessageId, Retry, ServerName};

/// Why a call failed.
///
/// Two questions are answered for every error: [`happened`](Self::happened) tells whether the call could have taken
/// effect all the same, and [`retry`](Self::retry) whether the same call may succeed later. Everything that could be
/// retried safely within the call's deadline has been.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a subject.
    #[error(transparent)]
    InvalidSubject(#[from] InvalidSubject),
    /// The caller may not do this: refused by the messaging system or by a server. Reported at once, never retried.
    #[error("not permitted: {what}")]
    PermissionDenied {
        /// What was refused.
        what: String,
    },
    /// The deadline passed without success, and nothing has happened.
    #[error("no success within {} ms", deadline.as_millis())]
    Deadline {
        /// The deadline of the call.
        deadline: Duration,
        /// Why the last try failed.
        #[source]
        last: Option<Box<Error>>,
    },
    /// Whether the change took effect is not known: it was sent again until the deadline, where that does no harm, and no
    /// answer said. Read what is there and decide.
    #[error("whether the change took effect is not known")]
    Indeterminate {
        /// Why it is not known.
        #[source]
        cause: IndeterminateCause,
    },
    /// The expectation did not hold; nothing was changed.
    #[error("not what was expected: {}", Actual(*actual))]
    WrongLast {
        /// The message that is there, if any.
        actual: Option<MessageId>,
    },
    /// The key was expected to be absent; nothing was changed.
    #[error("the key exists: {}", Actual(*actual))]
    KeyExists {
        /// The message that holds the key.
        actual: Option<MessageId>,
    },
    /// A message or request is larger than allowed; nothing was changed.
    #[error("too large: {text}")]
    TooLarge {
        /// The limit that was met.
        limit: String,
        /// The same for people.
        text: String,
    },
    /// More sets are on their way already than the client holds, see
    /// [`queue_bytes`](crate::ClientBuilder::queue_bytes); this one was not sent. Await acknowledgements before you send
    /// more.
    #[error("too many sets are on their way: they may have {limit_bytes} bytes together")]
    QueueFull {
        /// How many bytes may be on their way.
        limit_bytes: usize,
    },
    /// The source of a value cannot be read; nothing was written.
    #[error("the source of the value cannot be read")]
    Source {
        /// Why.
        #[source]
        cause: Arc<io::Error>,
    },
    /// The value has to be brought again from its first byte, to another server or because the server has lost it, and
    /// its source can be read once only; nothing was written. See [`ValueSource::seekable`](crate::ValueSource::seekable).
    #[error("the upload has to begin again, and its source cannot; nothing was written")]
    UploadLost,
    /// An earlier part of the same batch failed, so this part was not sent.
    #[error("not sent, because an earlier part of the batch failed")]
    NotSent,
    /// The server or the coordinator answered with an error that has no variant of its own here.
    #[error(transparent)]
    Service(Box<ErrorReply>),
    /// The coordinator failed in a way that does not say what became of its question, or with a code that this version
    /// does not know. Asking it changes no data, and the call went to no server: nothing has happened.
    #[error("the coordinator failed")]
    Coordinator(#[source] Box<ErrorReply>),
    /// The answer to a read is not what the protocol says.
    #[error("the answer cannot be understood")]
    Malformed {
        /// What is wrong with it.
        #[source]
        cause: MalformedCause,
    },
    /// Nobody answers on the route. Seen as the last try of a [`Deadline`](Self::Deadline), and from calls that are
    /// not about a subject.
    #[error(transparent)]
    Unreachable(RequestError),
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

/// Why it is not known whether a change took effect.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum IndeterminateCause {
    /// The request was sent, and no answer came before the deadline.
    #[error(transparent)]
    Unanswered(RequestError),
    /// The server that had the request is gone.
    #[error("the server {0} is gone")]
    ServerGone(ServerName),
    /// The server said that it does not know.
    #[error(transparent)]
    Reported(Box<ErrorReply>),
    /// An answer came that cannot be understood.
    #[error(transparent)]
    Malformed(MalformedCause),
}

/// What is wrong with an answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedCause {
    /// It is not the message it should be.
    #[error(transparent)]
    Decode(Arc<DecodeError>),
    /// It has other than one result for each item that was asked about.
    #[error("{got} results for {asked} items")]
    WrongCount {
        /// How many items were asked about.
        asked: usize,
        /// How many results came.
        got: usize,
    },
    /// The next page it announces does not lie ahead.
    #[error("the cursor of a page does not move forward")]
    StuckCursor,
    /// It holds a message that was not asked for, or not in this place.
    #[error("a message came that was not asked for in its place")]
    NotAsked,
}

/// Says what is there in place of what was expected.
struct Actual(Option<MessageId>);

impl std::fmt::Display for Actual {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(id) => write!(f, "{id} is there"),
            None => f.write_str("nothing is there"),
        }
    }
}

impl Error {
    /// May the same call succeed later?
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::InvalidSubject(_)
            | Self::PermissionDenied { .. }
            | Self::Indeterminate { .. }
            | Self::WrongLast { .. }
            | Self::KeyExists { .. }
            | Self::TooLarge { .. }
            | Self::Source { .. }
            | Self::Malformed { .. }
            | Self::Closed => Retry::Never,
            Self::Deadline { .. }
            | Self::QueueFull { .. }
            | Self::NotSent
            | Self::UploadLost
            | Self::Unreachable(_) => Retry::AfterBackoff,
            Self::Service(reply) | Self::Coordinator(reply) => reply.retry(),
        }
    }

    /// Could the call have taken effect all the same?
    #[must_use]
    pub fn happened(&self) -> Happened {
        match self {
            Self::Indeterminate { .. } => Happened::Unknown,
            Self::Service(reply) => reply.happened(),
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
            | Self::Closed => Happened::No,
        }
    }

    /// Whether a request was refused as a whole, before anything was done, for what may be the fault of one of its items:
    /// then the others go without it.
    pub(crate) fn may_be_of_one_item(&self) -> bool {
        match self {
            Self::TooLarge { .. } => true,
            Self::Service(reply) => matches!(reply.code, ErrorCode::Corrupt | ErrorCode::BadRequest),
            _ => false,
        }
    }

    /// The same, told to a caller who waits as long as `deadline`.
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

    #[test]
    fn only_what_may_have_happened_says_so() {
        for code in ErrorCode::KNOWN {
            let error = Error::from_reply(ErrorReply::new(code.clone(), "why"));
            assert_eq!(error.happened(), code.happened(), "{code}");
            assert_eq!(error.retry(), code.retry(), "{code}");
        }
    }

    #[test]
    fn errors_are_small_enough_to_return() {
        assert!(size_of::<Error>() <= 128, "{}", size_of::<Error>());
    }
}
