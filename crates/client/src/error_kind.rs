//! What an error comes to, for a `match`.

use dormouse_protocol::ErrorCode;

use crate::error::Error;

/// What an [`Error`] comes to, in the words of async-nats' key-value store where it has them.
///
/// Kinds are for a `match`; [`Error::retry`] and [`Error::happened`] answer the two questions that most callers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The key was to be created and exists; nothing was changed.
    AlreadyExists,
    /// Another message is there than was expected; nothing was changed.
    WrongLastRevision,
    /// The deadline has passed, and nothing has happened.
    TimedOut,
    /// Whether it has happened is not known. In JetStream this is a timeout as well.
    Indeterminate,
    /// Not permitted.
    PermissionDenied,
    /// A name that is none, or a request that contradicts itself.
    InvalidRequest,
    /// A message or a request is larger than allowed.
    TooLarge,
    /// The limits of the subject leave no room.
    LimitExceeded,
    /// This client, or the server, has more to do than it takes on.
    Overloaded,
    /// The server does not offer it.
    Unsupported,
    /// Something in the bucket is damaged, and nothing was guessed.
    Corrupt,
    /// The client was closed.
    Closed,
    /// An earlier part of the same call failed, so this part was not sent.
    NotSent,
    /// Anything else; the error itself tells.
    Other,
}

impl Error {
    /// What it comes to.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidSubject(_) => ErrorKind::InvalidRequest,
            Self::PermissionDenied { .. } => ErrorKind::PermissionDenied,
            Self::Deadline { .. } => ErrorKind::TimedOut,
            Self::Indeterminate { .. } => ErrorKind::Indeterminate,
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

    #[test]
    fn every_code_that_means_something_to_an_application_has_a_kind() {
        let kind = |code: ErrorCode| Error::from_reply(ErrorReply::new(code, "why")).kind();
        assert_eq!(kind(ErrorCode::WrongLast), ErrorKind::WrongLastRevision);
        assert_eq!(kind(ErrorCode::KeyExists), ErrorKind::AlreadyExists);
        assert_eq!(kind(ErrorCode::LimitExceeded), ErrorKind::LimitExceeded);
        assert_eq!(kind(ErrorCode::TooLarge), ErrorKind::TooLarge);
        assert_eq!(kind(ErrorCode::BadRequest), ErrorKind::InvalidRequest);
        assert_eq!(kind(ErrorCode::PermissionDenied), ErrorKind::PermissionDenied);
        assert_eq!(kind(ErrorCode::Indeterminate), ErrorKind::Indeterminate);
        assert_eq!(kind(ErrorCode::Unsupported), ErrorKind::Unsupported);
        assert_eq!(kind(ErrorCode::Corrupt), ErrorKind::Corrupt);
        assert_eq!(kind(ErrorCode::Internal), ErrorKind::Other);
    }
}
