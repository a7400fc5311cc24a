//! An append on its way, and what it becomes.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{Level, Slot};

use crate::log::tails::Shipped;
use crate::log::{Append, Ticket};
use crate::wal::{Lsn, WalAppend};

/// What an append costs beyond its frames and its subject's name: its line in the index, its place in our books.
const APPEND_OVERHEAD_BYTES: u64 = 128;

/// An append that is not shipped.
pub(super) struct Pending {
    pub(super) lsn: Lsn,
    pub(super) append: Append,
    pub(super) ticket: Arc<Ticket>,
    pub(super) at: Duration,
    pub(super) cost: u64,
    pub(super) on_disk: bool,
}

impl Pending {
    pub(super) fn is_wanted(&self) -> bool {
        self.append.level == Level::Bucket
    }

    pub(super) fn shipped_in(&self, slot: Slot, at: Duration) -> Shipped {
        let append = &self.append;
        Shipped {
            slot,
            last_rev: append.last_rev,
            // The revs of several entries do not tell what the last of them is.
            ends_in_memory: append.entries > 1 || append.first_after == append.last_rev,
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

/// What an append takes of the budget.
pub(super) fn cost_of(append: &Append) -> u64 {
    append.frames.len() as u64 + append.subject.as_str().len() as u64 + APPEND_OVERHEAD_BYTES
}
