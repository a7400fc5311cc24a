//! Recovery after a restart: ships the unshipped writes in the local WALs of earlier processes into their logs, and
//! seals these logs.
//!
//! Recovery handles each earlier log that still has a [write-ahead log](crate::wal). It looks in the log's highest slot
//! for the appends that are neither known as shipped nor reported as failed. It ships the missing ones into the next
//! slot, and then seals the log. If another process sealed the log first, the remaining appends are [`StrandedWrites`]:
//! acknowledged at a level below `bucket`, and in no log. The next claim of each subject includes them, unless another
//! process has claimed the subject before; then they move to `lost/`.
//!
//! The cost depends on the amount of unshipped data, and is independent of the number of subjects.

mod machine;
mod segments;
mod shell;
mod stranded;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use async_trait::async_trait;
use dormouse_bucket::BucketError;
use dormouse_format::FormatError;
use dormouse_protocol::{ErrorReply, LogId};

use crate::wal::WalError;

pub use shell::{RecoverySettings, recover};
pub use stranded::StrandedWrites;

/// Seals logs.
#[async_trait]
pub trait SealLog: Send + Sync {
    /// Ensures that a log is sealed, by any process.
    ///
    /// If the call is cancelled, the log may or may not be sealed.
    ///
    /// # Errors
    /// The error for a caller that needs the seal.
    async fn seal(&self, log: &LogId) -> Result<(), ErrorReply>;
}

/// Why the unshipped writes of earlier processes cannot be shipped. They stay on the local disk.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The write-ahead log cannot be read or removed.
    #[error("recovery failed: WAL of an earlier process not readable or removable")]
    Wal(#[from] WalError),
    /// The bucket returned an error.
    #[error("recovery failed: unshipped writes not stored in the bucket")]
    Bucket(#[from] BucketError),
    /// A slot of the earlier log, or an entry, is damaged.
    #[error("recovery failed: unreadable slot or entry")]
    Format(#[from] FormatError),
    /// The log cannot be sealed.
    #[error("orphaned log {log} cannot be sealed: {}", reply.message)]
    Seal {
        /// The log.
        log: LogId,
        /// The reason.
        reply: ErrorReply,
    },
    /// The bucket is not the one that the earlier process wrote to, or it was changed since.
    #[error(
        "{} holds unshipped writes of log {log}, and the bucket lacks slots that this log had: is it the right bucket?",
        wal.display()
    )]
    SlotsMissing {
        /// The log.
        log: LogId,
        /// Its write-ahead log.
        wal: PathBuf,
    },
}
