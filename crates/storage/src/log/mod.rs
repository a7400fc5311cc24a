//! The commit log: what makes an acknowledged write outlive every machine and disk.
//!
//! A [`Log`] belongs to one run of the engine. Writes of all subjects are put together: into groups for the local
//! write-ahead log, and into segments for the bucket, one in flight at a time. Each write has a [`Ticket`] that says how
//! far it has come.
//!
//! | module | decides or does |
//! |---|---|
//! | [`owner`] | slots, barriers, trimming: the rules that make it safe (pure, model-checked) |
//! | [`seal`] | how a log is ended that is not one's own (pure, model-checked) |
//! | [`pace`] | when to ship (pure) |
//! | [`tails`] | which slots somebody needs (pure, model-checked) |
//! | `state` | what is accepted, written, in flight and still needed |
//! | `disk`, `ship`, `look`, `trim` | the tasks: local log, segments, barriers, deletions |
//! | `watch` | what becomes of the log when a task panics |
//! | [`sealed`] | reading logs that have ended, and one's own |

mod disk;
mod handle;
mod look;
pub mod owner;
pub mod pace;
pub mod seal;
pub mod sealed;
mod settings;
mod ship;
mod state;
pub mod tails;
#[cfg(test)]
mod tests;
mod ticket;
mod trim;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::{Level, LogId, Rev, Subject};
use tokio::sync::Notify;

use crate::bucket::BucketError;

pub use handle::Log;
pub use sealed::{SealedLog, SealedLogs, TailError, read_own_tail, read_tail};
pub use settings::LogSettings;
pub use tails::Tail;
pub use ticket::{Stage, Ticket};

/// Entries of one subject, on their way into the log.
#[derive(Debug, Clone)]
pub struct Append {
    /// The subject.
    pub subject: Subject,
    /// The entries' frames, one behind the other.
    pub frames: Bytes,
    /// The rev before the first of them: the last rev of the subject's append before.
    pub first_after: Rev,
    /// The rev after the last of them.
    pub last_rev: Rev,
    /// How many there are; not 0.
    pub entries: u32,
    /// The level that they have to reach.
    pub level: Level,
    /// Is woken whenever the ticket's stage has changed.
    pub waker: Arc<Notify>,
}

/// How a log came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogEnd {
    /// Somebody else has ended it: there is a seal, or something else that is not ours, in its next slot.
    Sealed,
    /// The local disk, or what this process knows of the log, cannot be trusted any more: the process has to be restarted.
    Poisoned,
    /// It was asked to.
    Stopped,
}

/// Why a log could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum StartLogError {
    /// Its first slot is taken: another process has the same log id, or somebody has sealed it already.
    #[error("the log {0} exists already")]
    Taken(LogId),
    /// The bucket refused.
    #[error("the log {log} could not be begun")]
    Bucket {
        /// The log.
        log: LogId,
        /// What the bucket said.
        source: BucketError,
    },
}

/// The log in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogFigures {
    /// Segments shipped since the start.
    pub segments: u64,
    /// Bytes of the segments shipped since the start.
    pub segment_bytes: u64,
    /// Entries shipped since the start.
    pub entries: u64,
    /// Syncs of the local disk since the start.
    pub syncs: u64,
    /// Looks at the next slot, for reads, since the start.
    pub probes: u64,
    /// Bytes that wait to be shipped.
    pub unshipped_bytes: u64,
    /// How long the oldest of them has waited.
    pub unshipped_age: Duration,
    /// Slots that are not deleted.
    pub slots: u64,
    /// Subjects that need some of them.
    pub tails: u64,
}
