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

use std::fmt;

use bytes::Bytes;
use dormouse_protocol::{Rev, Slot, Subject};

pub use error::WalError;
pub use read::list_logs;
pub(crate) use read::{WalContents, keep_damaged, read_wal, remove_wal};
pub use record::{PartEnd, PartRecord, WalPart, decode_part};
pub(crate) use resolved::ResolvedSubjects;
pub use write::Wal;

/// Log sequence number: counts the appends of one log, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// Before the first append.
    pub const ZERO: Self = Self(0);

    /// Wraps the number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The bare number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lsn {}", self.0)
    }
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
