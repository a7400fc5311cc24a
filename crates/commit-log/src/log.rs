//! The commit log: it keeps acknowledged writes after the loss of a machine or disk.
//!
//! A [`Log`] belongs to one run of the engine. It combines the writes of all subjects: into groups for the local
//! write-ahead log, and into segments for the bucket, one in flight at a time. Each write has an [`AppendProgress`]
//! that shows its durability stage.
//!
//! | module | decides or does |
//! |---|---|
//! | [`owner`] | slots, read barriers, trimming: the safety rules (pure, model-checked) |
//! | [`seal`] | how another process's log is sealed (pure, model-checked) |
//! | `ship_schedule` | when to ship (pure) |
//! | `upload_rate` | size and time limit of a segment, from measured uploads (pure) |
//! | `slot_sizes` | the bytes of the slots, and which slots a limit of bytes makes too old (pure) |
//! | [`tails`] | which slots are still needed (pure, model-checked) |
//! | `state` | accepted, written, in-flight and still needed entries |
//! | `disk`, `ship`, `probe`, `trim` | the tasks: WAL, segments, read barriers, slot deletes |
//! | `watch` | the end of the log when a task panics |
//! | `sealed` | reading sealed logs and the own log |
//!
//! [`owner`], [`seal`] and [`tails`] are public for the model checker, which explores the code that runs in production.

mod append_progress;
mod disk;
mod handle;
mod instruments;
pub mod owner;
mod probe;
pub mod seal;
mod sealed;
mod settings;
mod ship;
mod ship_schedule;
mod slot_sizes;
mod state;
pub mod tails;
#[cfg(test)]
mod tests;
mod trim;
mod upload_rate;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::{Level, LogId, Rev, Subject};
use tokio::sync::Notify;

use dormouse_bucket::BucketError;

pub use append_progress::{AppendProgress, DurabilityStage};
pub use handle::Log;
pub use instruments::LogInstruments;
pub use sealed::{
    SealedLog, SealedLogs, SlotUse, TailError, TailReader, read_own_tail, read_own_tail_above_file, read_tail,
};
pub use settings::LogSettings;
pub use tails::SubjectTail;

/// Entries of one subject, to be appended to the log.
#[derive(Debug, Clone)]
pub struct Append {
    /// The subject.
    pub subject: Subject,
    /// The encoded entries, concatenated.
    pub frames: Bytes,
    /// The rev before the first entry: the last rev of the subject's previous append.
    pub first_after: Rev,
    /// The rev after the last entry.
    pub last_rev: Rev,
    /// Number of entries; not 0.
    pub entries: u32,
    /// The level that they must reach.
    pub level: Level,
    /// Notified at each change of the [`DurabilityStage`].
    pub waker: Arc<Notify>,
}

/// Why a log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogEnd {
    /// Another process sealed it: its next slot holds a seal or another foreign object.
    Sealed,
    /// The local disk failed, or the state of the log in this process is unreliable: the process must be restarted.
    Poisoned,
    /// A stop was requested.
    Stopped,
}

/// Why a log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartLogError {
    /// Its first slot exists: another process has the same log id, or another process has sealed it already.
    #[error("log {0} already exists")]
    AlreadyExists(LogId),
    /// The bucket failed.
    #[error("log {log} not started")]
    Bucket {
        /// The log.
        log: LogId,
        /// The bucket's error.
        source: BucketError,
    },
}

/// Metrics of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogMetrics {
    /// Segments shipped since the start.
    pub segments: u64,
    /// Bytes of the segments shipped since the start.
    pub segment_bytes: u64,
    /// Entries shipped since the start.
    pub entries: u64,
    /// Syncs of the local disk since the start.
    pub wal_syncs: u64,
    /// Probes of the next slot, for read barriers, since the start.
    pub read_barriers: u64,
    /// Bytes that are not shipped yet.
    pub unshipped_bytes: u64,
    /// Age of the oldest unshipped write.
    pub unshipped_age: Duration,
    /// Slots that are not deleted.
    pub retained_slots: u64,
    /// Bytes of the slots in the bucket that are not deleted.
    pub slot_bytes: u64,
    /// Bytes of the slots that are still needed, those below a needed one included.
    pub retained_bytes: u64,
    /// Subjects that need at least one slot.
    pub subjects_with_tail: u64,
    /// The sum over these subjects of the slots that each needs.
    pub tail_slots: u64,
}
