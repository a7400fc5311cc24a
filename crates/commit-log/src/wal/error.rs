//! Errors of the write-ahead log.

use std::io;
use std::path::{Path, PathBuf};

use dormouse_protocol::ErrorReply;

/// Why an operation of the write-ahead log failed.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The disk is full. Nothing of the group was written, and later calls may succeed.
    #[error("WAL disk full ({})", path.display())]
    DiskFull {
        /// The part.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// After a failed write or sync, the disk's content is unknown. Every later call returns this error.
    #[error("WAL failed, restart required: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// The format cannot hold the request. Nothing was written.
    #[error("WAL rejected the request: {reason}")]
    Refused {
        /// The invalid part of the request.
        reason: String,
    },
    /// A file or folder could not be created, read or removed.
    #[error("cannot access {}", path.display())]
    Access {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A newer version of this software wrote it.
    #[error("{} was written by a newer version: its format is {found}, this version reads up to {supported}", path.display())]
    NewerVersion {
        /// The part.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that this version reads.
        supported: u32,
    },
}

impl WalError {
    pub(crate) fn access(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Access { path, source }
    }
}

/// Whether the error means that the disk is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// The error for the writer. It omits the server's file paths; the server's own log has them.
impl From<&WalError> for ErrorReply {
    fn from(error: &WalError) -> Self {
        let text = match error {
            WalError::DiskFull { .. } => "WAL disk full".to_owned(),
            WalError::Poisoned { .. } | WalError::Refused { .. } => error.to_string(),
            WalError::Access { .. } | WalError::NewerVersion { .. } => {
                "local disk accepts no writes".to_owned()
            }
        };
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        Self::unavailable(format!("{text}{source}"))
    }
}
