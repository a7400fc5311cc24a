//! The bytes of a log's slots in the bucket, and which slots are too old for a log of limited size.
//!
//! Slots are released in order, each once all slots below it are. So the log fits its limit only after every subject has
//! given up the slots below a [cut](SlotSizes::cut).

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use dormouse_protocol::Slot;

/// Maximum number of sizes in memory. Above it, each two adjacent slots share a size, which counts with the first.
const MAX_SIZES: usize = 65_536;

/// The sizes of a log's slots that are not deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotSizes {
    /// By the first slot that a size covers.
    sizes: BTreeMap<Slot, u64>,
    /// Every slot below this one was released for deletion.
    released: Slot,
    /// Bytes of the slots from there on.
    retained: u64,
    /// Bytes of the slots below, as far as they are not deleted.
    deleting: u64,
}

impl SlotSizes {
    /// No slot.
    pub(super) const fn new() -> Self {
        Self { sizes: BTreeMap::new(), released: Slot::new(0), retained: 0, deleting: 0 }
    }

    /// A slot was created. Slots come in order.
    pub(super) fn created(&mut self, slot: Slot, bytes: u64) {
        self.sizes.insert(slot, bytes);
        self.retained += bytes;
        if self.sizes.len() > MAX_SIZES {
            self.merge_pairs();
        }
    }

    /// The slots below `to` are released for deletion.
    pub(super) fn released(&mut self, to: Slot) {
        let bytes: u64 = self.sizes.range(self.released..to.max(self.released)).map(|(_, bytes)| bytes).sum();
        self.retained -= bytes;
        self.deleting += bytes;
        self.released = self.released.max(to);
    }

    /// A released slot was deleted.
    pub(super) fn deleted(&mut self, slot: Slot) {
        if slot < self.released
            && let Some(bytes) = self.sizes.remove(&slot)
        {
            self.deleting -= bytes;
        }
    }

    /// Bytes of the slots that are not deleted.
    pub(super) const fn total(&self) -> u64 {
        self.retained + self.deleting
    }

    /// Bytes of the slots that are not released for deletion.
    pub(super) const fn retained(&self) -> u64 {
        self.retained
    }

    /// If the retained slots are near `limit`, the lowest slot that may stay: the slots from it on have at most half
    /// of the limit. Compaction begins at three quarters, because the log grows while it runs, and reaches a half, so
    /// that it does not run for each segment.
    pub(super) fn cut(&self, limit: u64) -> Option<Slot> {
        if self.retained <= limit - limit / 4 {
            return None;
        }
        let mut left = self.retained;
        let mut cut = self.released;
        for (slot, bytes) in self.sizes.range(self.released..) {
            if left <= limit / 2 {
                return Some(*slot);
            }
            left -= bytes;
            cut = slot.next();
        }
        Some(cut)
    }

    /// Merges each two adjacent sizes, except a released with a retained one.
    fn merge_pairs(&mut self) {
        let mut merged: Vec<(Slot, u64)> = Vec::with_capacity(self.sizes.len() / 2 + 1);
        let mut is_single = false;
        for (slot, bytes) in std::mem::take(&mut self.sizes) {
            match merged.last_mut() {
                Some(last) if is_single && (last.0 < self.released) == (slot < self.released) => {
                    last.1 += bytes;
                    is_single = false;
                }
                _ => {
                    merged.push((slot, bytes));
                    is_single = true;
                }
            }
        }
        self.sizes = merged.into_iter().collect();
    }
}
