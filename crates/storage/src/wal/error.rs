//! What may go wrong with the write-ahead log.

use std::io;
use std::path::{Path, PathBuf};

use dormouse_protocol::ErrorReply;

/// Why the write-ahead log did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// There is no room. Nothing of the group was written, and later calls may succeed.
    #[error("the disk of the write-ahead log is full ({})", path.display())]
    DiskFull {
        /// The part.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A write or a sync failed in a way that leaves unknown what is on the disk. Every later call says the same.
    #[error("the write-ahead log cannot be trusted any more: {what}")]
    Poisoned {
        /// What happened first.
        what: String,
    },
    /// The caller asked for something that the format cannot hold. Nothing was written.
    #[error("the write-ahead log refuses this: {what}")]
    Refused {
        /// What was wrong.
        what: String,
    },
    /// A file or folder could not be created, read or removed.
    #[error("cannot access {}", path.display())]
    Access {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
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

/// Is there just no room?
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// What the writer is told. Where the server keeps its files is not the writer's business; the server's log says it.
impl From<&WalError> for ErrorReply {
    fn from(error: &WalError) -> Self {
        let what = match error {
            WalError::DiskFull { .. } => "the disk of the write-ahead log is full".to_owned(),
            WalError::Poisoned { .. } | WalError::Refused { .. } => error.to_string(),
            WalError::Access { .. } | WalError::NewerVersion { .. } => {
                "the local disk takes no writes".to_owned()
            }
        };
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        Self::unavailable(format!("{what}{source}"))
    }
}
