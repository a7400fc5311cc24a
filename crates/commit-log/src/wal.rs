//! The write-ahead log: entries that a process has accepted and not yet shipped, on its own disk.
//!
//! ```text
//! <data-dir>/wal/<log id>/00000001.wal   a part: a header, then records; the next part begins at 64 MiB
//! <data-dir>/wal/<log id>/settled-….wal  subjects of an orphaned log that are resolved
//! ```
//!
//! Each log of the bucket has one folder here. A group of appends is one write; one sync covers every earlier group.
//! Parts are deleted, oldest first, once everything in them is shipped. Bytes after the last whole record were never
//! synced and are ignored. A bad record *within* the synced bytes is damage, and nothing after it is used.

mod error;
mod read;
mod record;
mod resolved;
#[cfg(test)]
mod tests;
mod write;

use bytes::Bytes;
use dormouse_protocol::{Rev, Slot, Subject, number_newtype};

pub use error::WalError;
pub use read::list_logs;
pub(crate) use read::{WalContents, keep_damaged, read_wal, remove_wal};
pub use record::{PartEnd, PartRecord, WalPart, decode_part};
pub(crate) use resolved::ResolvedSubjects;
pub use write::Wal;

number_newtype! {
    /// Log sequence number: counts the appends of one log, from 1.
    #[derive(Default)]
    Lsn, "lsn"
}

impl Lsn {
    /// Before the first append.
    pub const ZERO: Self = Self::new(0);
}

/// Some entries of one subject, accepted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalAppend {
    /// Its number among all appends of the log. Numbers may be skipped, never repeated.
    pub lsn: Lsn,
    /// The subject of the entries.
    pub subject: Subject,
    /// The rev before the first of them.
    pub first_after: Rev,
    /// The rev after the last of them.
    pub last_rev: Rev,
    /// Number of entries.
    pub entries: u32,
    /// The encoded entries, concatenated.
    pub frames: Bytes,
}

/// The shipped position of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShippedUpTo {
    /// Every append up to this one is in a slot, or was reported as failed.
    pub through: Lsn,
    /// The last slot known to be in the bucket.
    pub slot: Slot,
}
