//! Errors of the bucket.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_protocol::ErrorReply;

/// The operation of a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BucketOperation {
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

impl fmt::Display for BucketOperation {
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
    /// The store could not be reached, or had an internal error. The operation may have taken effect.
    #[error("cannot {operation} {name:?} in the bucket: the store is unreachable or failed")]
    Unreachable {
        /// The operation.
        operation: BucketOperation,
        /// The key or prefix.
        name: String,
        /// The error of the store or the network.
        source: Box<dyn Error + Send + Sync>,
    },
    /// No answer came in time. The operation may have taken effect, or may still do so.
    #[error("cannot {operation} {name:?} in the bucket: no answer within {timeout:?}")]
    Timeout {
        /// The operation.
        operation: BucketOperation,
        /// The key or prefix.
        name: String,
        /// The time limit.
        timeout: Duration,
    },
    /// The caller stopped waiting before a definite answer came. The operation may have taken effect, or may still do
    /// so.
    #[error("cannot {operation} {name:?} in the bucket: no definite answer before the caller gave up")]
    Interrupted {
        /// The operation.
        operation: BucketOperation,
        /// The key or prefix.
        name: String,
    },
    /// The store refuses these credentials. The operation had no effect.
    #[error("cannot {operation} {name:?} in the bucket: permission denied")]
    Denied {
        /// The operation.
        operation: BucketOperation,
        /// The key or prefix.
        name: String,
        /// The store's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The store does not support the operation. It had no effect.
    #[error("cannot {operation} {name:?} in the bucket: the store does not support this")]
    Unsupported {
        /// The operation.
        operation: BucketOperation,
        /// The key or prefix.
        name: String,
        /// The store's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// An object is damaged. Nothing was changed.
    #[error("{object}: {what}")]
    Corrupt {
        /// The key of the object, or the path of the local file of an upload.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// A local file could not be read or written.
    #[error("cannot access the local file {}", path.display())]
    LocalFile {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

impl BucketError {
    /// Whether the operation may have taken effect, or may still do so.
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

/// The error reply to a caller of the engine: the request was not executed, because the bucket failed.
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

/// An error with all of its causes, on one line.
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
