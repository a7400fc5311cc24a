//! After a restart: what the processes before left on the local disk goes into their logs, and these end.
//!
//! For each earlier log that still has a [write-ahead log](crate::wal): what is neither known as shipped nor answered
//! as failed is looked for in the log's highest slot, what is not there goes into the next one, and then the log is
//! sealed. If somebody else sealed it first, what remains is [`Surplus`]: acknowledged at a level below `bucket`, and in
//! no log. The next claim of each subject takes it along, unless another claimed before; then it goes to `lost/`.
//!
//! Nothing here depends on how many subjects there are, only on how much was not shipped.

pub mod machine;
#[cfg(test)]
mod random_tests;
mod segments;
mod shell;
mod surplus;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use async_trait::async_trait;
use dormouse_protocol::{ErrorReply, LogId};

use crate::bucket::BucketError;
use crate::format::FormatError;
use crate::wal::WalError;

pub use shell::{RecoverySettings, recover};
pub use surplus::Surplus;

/// Ends logs.
#[async_trait]
pub trait SealLog: Send + Sync {
    /// Sees to it that a log is sealed, by whomever.
    ///
    /// Cancelling the call leaves open whether it is.
    ///
    /// # Errors
    /// The answer to whoever needs it to be.
    async fn seal(&self, log: &LogId) -> Result<(), ErrorReply>;
}

/// Why what earlier processes left cannot be brought into the bucket. It stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The write-ahead log cannot be read or removed.
    #[error("the write-ahead log of an earlier process cannot be brought into the bucket")]
    Wal(#[from] WalError),
    /// The bucket refuses.
    #[error("what an earlier process left cannot be brought into the bucket")]
    Bucket(#[from] BucketError),
    /// A slot of the earlier log, or an entry, is not what was written.
    #[error("what an earlier process left cannot be read")]
    Format(#[from] FormatError),
    /// The log cannot be sealed.
    #[error("the log {log} of an earlier process cannot be sealed: {}", reply.message)]
    Seal {
        /// The log.
        log: LogId,
        /// Why not.
        reply: ErrorReply,
    },
    /// The bucket is not the one that the earlier process wrote to, or not as it left it.
    #[error(
        "{} holds what the log {log} needs, and the bucket lacks slots that this log had: is it the right bucket?",
        wal.display()
    )]
    BucketLacks {
        /// The log.
        log: LogId,
        /// Its write-ahead log.
        wal: PathBuf,
    },
}
