//! What may go wrong with the bucket.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_protocol::ErrorReply;

/// What was being done when a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Creating an object that must not exist.
    Create,
    /// Reading an object.
    Get,
    /// Writing an object from a file.
    PutFile,
    /// Reading an object into a file.
    GetFile,
    /// Listing.
    List,
    /// Deleting an object.
    Delete,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Get => "read",
            Self::PutFile => "upload",
            Self::GetFile => "download",
            Self::List => "list",
            Self::Delete => "delete",
        })
    }
}

/// Why a call to the bucket failed.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The store could not be reached, or failed on its side. What was asked may have happened all the same.
    #[error("cannot {operation} {name:?} in the bucket: the store does not answer as it should")]
    Unreachable {
        /// What was asked.
        operation: Operation,
        /// The key or prefix.
        name: String,
        /// What the store or the network said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// No answer came in time. What was asked may have happened all the same, or may still happen.
    #[error("cannot {operation} {name:?} in the bucket: no answer within {timeout:?}")]
    Timeout {
        /// What was asked.
        operation: Operation,
        /// The key or prefix.
        name: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The caller stopped waiting before a definite answer came. What was asked may have happened all the same, or
    /// may still happen.
    #[error("cannot {operation} {name:?} in the bucket: no definite answer before the caller gave up")]
    Interrupted {
        /// What was asked.
        operation: Operation,
        /// The key or prefix.
        name: String,
    },
    /// The store refuses these credentials. Nothing happened.
    #[error("cannot {operation} {name:?} in the bucket: permission denied")]
    Denied {
        /// What was asked.
        operation: Operation,
        /// The key or prefix.
        name: String,
        /// What the store said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The store does not offer what was asked. Nothing happened.
    #[error("cannot {operation} {name:?} in the bucket: the store does not offer this")]
    Unsupported {
        /// What was asked.
        operation: Operation,
        /// The key or prefix.
        name: String,
        /// What the store said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// An object is not what it should be. Nothing was guessed and nothing was changed.
    #[error("{object}: {what}")]
    Corrupt {
        /// The key of the object, or the path of the file that should have become one.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// A local file could not be read or written.
    #[error("cannot access the local file {}", path.display())]
    LocalFile {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl BucketError {
    /// May what was asked have happened all the same, now or later?
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Interrupted { .. } => true,
            Self::Denied { .. }
            | Self::Unsupported { .. }
            | Self::Corrupt { .. }
            | Self::LocalFile { .. } => false,
        }
    }
}

/// What a caller of the engine is told: the request was not done, because the bucket failed.
impl From<&BucketError> for ErrorReply {
    fn from(error: &BucketError) -> Self {
        match error {
            BucketError::Corrupt { object, what } => Self::corrupt(object.clone(), what),
            BucketError::Unreachable { .. }
            | BucketError::Timeout { .. }
            | BucketError::Interrupted { .. }
            | BucketError::Denied { .. }
            | BucketError::Unsupported { .. }
            | BucketError::LocalFile { .. } => Self::unavailable(with_sources(error)),
        }
    }
}

/// An error with everything that caused it, on one line.
fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
