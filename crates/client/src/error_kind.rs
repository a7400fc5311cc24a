//! The kinds of errors, for a `match`.

use dormouse_protocol::ErrorCode;

use crate::error::Error;

/// The kind of an [`Error`], with the names of async-nats' key-value store if it has one.
///
/// Kinds are for a `match`. [`Error::retry`] and [`Error::executed`] tell whether a retry may succeed and
/// whether the call could have been executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The key was to be created and exists; nothing was changed.
    AlreadyExists,
    /// The current message is not the expected one; nothing was changed.
    WrongLastRevision,
    /// The deadline passed. The call was not executed.
    TimedOut,
    /// It is unknown whether the call was executed. JetStream reports this as a timeout, too.
    Indeterminate,
    /// It is unknown whether the call was executed, and the subject no longer remembers it.
    Forgotten,
    /// Permission denied.
    PermissionDenied,
    /// An invalid name, or a request that contradicts itself.
    InvalidRequest,
    /// A message or a request is larger than allowed.
    TooLarge,
    /// The limits of the subject leave no room.
    LimitExceeded,
    /// The client or the server has reached the limit of its queue.
    Overloaded,
    /// The server does not support the operation.
    Unsupported,
    /// An object in the bucket is damaged; no data was guessed.
    Corrupt,
    /// The client was closed.
    Closed,
    /// An earlier part of the same call failed, so this part was not sent.
    NotSent,
    /// Any other error; see the error itself.
    Other,
}

impl Error {
    /// The kind of this error.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidSubject(_) => ErrorKind::InvalidRequest,
            Self::PermissionDenied { .. } => ErrorKind::PermissionDenied,
            Self::Deadline { .. } => ErrorKind::TimedOut,
            Self::Indeterminate { .. } => ErrorKind::Indeterminate,
            Self::Forgotten(_) => ErrorKind::Forgotten,
            Self::WrongLast { .. } => ErrorKind::WrongLastRevision,
            Self::KeyExists { .. } => ErrorKind::AlreadyExists,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::QueueFull { .. } => ErrorKind::Overloaded,
            Self::NotSent => ErrorKind::NotSent,
            Self::Service(reply) => match reply.code {
                ErrorCode::BadRequest => ErrorKind::InvalidRequest,
                ErrorCode::LimitExceeded => ErrorKind::LimitExceeded,
                ErrorCode::Overloaded => ErrorKind::Overloaded,
                ErrorCode::Unsupported | ErrorCode::UnsupportedVersion => ErrorKind::Unsupported,
                ErrorCode::Corrupt => ErrorKind::Corrupt,
                _ => ErrorKind::Other,
            },
            Self::Closed => ErrorKind::Closed,
            Self::Source { .. }
            | Self::UploadLost
            | Self::Coordinator(_)
            | Self::Malformed { .. }
            | Self::Unreachable(_) => ErrorKind::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use dormouse_protocol::ErrorReply;

    use super::*;

    /// Error codes that matter to applications have a kind of their own, and `internal` maps to `Other`.
    #[test]
    fn error_kind_matches_error_code() {
        let kind = |code: ErrorCode| Error::from_reply(ErrorReply::new(code, "why")).kind();
        assert_eq!(kind(ErrorCode::WrongLast), ErrorKind::WrongLastRevision);
        assert_eq!(kind(ErrorCode::KeyExists), ErrorKind::AlreadyExists);
        assert_eq!(kind(ErrorCode::LimitExceeded), ErrorKind::LimitExceeded);
        assert_eq!(kind(ErrorCode::TooLarge), ErrorKind::TooLarge);
        assert_eq!(kind(ErrorCode::BadRequest), ErrorKind::InvalidRequest);
        assert_eq!(kind(ErrorCode::PermissionDenied), ErrorKind::PermissionDenied);
        assert_eq!(kind(ErrorCode::Indeterminate), ErrorKind::Indeterminate);
        assert_eq!(kind(ErrorCode::Forgotten), ErrorKind::Forgotten);
        assert_eq!(kind(ErrorCode::Unsupported), ErrorKind::Unsupported);
        assert_eq!(kind(ErrorCode::Corrupt), ErrorKind::Corrupt);
        assert_eq!(kind(ErrorCode::Internal), ErrorKind::Other);
    }
}
