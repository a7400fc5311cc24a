//! An unshipped append, and its conversions.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{Level, Slot};

use crate::log::tails::ShippedEntries;
use crate::log::{Append, AppendProgress};
use crate::wal::{Lsn, WalAppend};

/// Cost of an append beyond its frames and its subject's name: its index line and its bookkeeping here.
const APPEND_OVERHEAD_BYTES: u64 = 128;

/// An append that is not shipped.
pub(super) struct PendingAppend {
    pub(super) lsn: Lsn,
    pub(super) append: Append,
    pub(super) progress: Arc<AppendProgress>,
    pub(super) at: Duration,
    pub(super) cost: u64,
    pub(super) on_disk: bool,
}

impl PendingAppend {
    pub(super) fn is_awaited(&self) -> bool {
        self.append.level == Level::Bucket
    }

    pub(super) fn shipped_in(&self, slot: Slot, at: Duration) -> ShippedEntries {
        let append = &self.append;
        ShippedEntries {
            slot,
            last_rev: append.last_rev,
            // If there are several entries, the revs do not show the type of the last one.
            ends_in_dedup_record: append.entries > 1 || append.first_after == append.last_rev,
            bytes: append.frames.len() as u64,
            entries: append.entries.into(),
            at,
        }
    }

    pub(super) fn for_wal(&self) -> WalAppend {
        WalAppend {
            lsn: self.lsn,
            subject: self.append.subject.clone(),
            first_after: self.append.first_after,
            last_rev: self.append.last_rev,
            entries: self.append.entries,
            frames: self.append.frames.clone(),
        }
    }
}

/// The share of the unshipped limit that an append uses.
pub(super) fn cost_of(append: &Append) -> u64 {
    append.frames.len() as u64 + append.subject.as_str().len() as u64 + APPEND_OVERHEAD_BYTES
}
