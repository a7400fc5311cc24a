//! Recovery of an orphaned log of this server, whose write-ahead log may hold more than the bucket.
//!
//! The ended process shipped its appends in order, so its highest slot shows its shipped position: no other slot has to
//! be read. Its last create may still succeed, in the one slot above. The first create there wins, and a slot that
//! exists already is read like any other.

use dormouse_protocol::Slot;

use crate::wal::{Lsn, WalContents};

/// The recovery of one log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Recovery {
    state: RecoveryState,
    /// The last append in the write-ahead log.
    last: Lsn,
    /// The last slot recorded in the WAL.
    last_slot: Option<Slot>,
    /// Everything up to here is in slots below any seal.
    shipped: Lsn,
    /// The last slot that this recovery created, and its last append. The next listing shows whether it is valid.
    put: Option<(Slot, Lsn)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RecoveryState {
    Listing,
    Reading(Slot),
    /// This slot holds a seal; a listing checks whether it is the highest. Every process uses this rule to find the end
    /// of a log. The owner of this log has ended and trims no more, so here the check only confirms.
    Confirming(Slot),
    Putting(Slot),
    Sealing,
    Ended,
}

/// Input of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecoveryInput {
    /// The result of [`RecoveryEffect::List`]: the highest existing slot.
    Listed(Option<Slot>),
    /// The result of [`RecoveryEffect::ReadSlot`].
    SlotRead(RecoverySlotRead),
    /// The definite result of [`RecoveryEffect::Put`].
    Put {
        /// Whether the slot holds the object that was sent.
        ours: bool,
        /// The last append in the object that was sent.
        through: Lsn,
    },
    /// The log is sealed, by any process.
    Sealed,
}

/// Content of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecoverySlotRead {
    /// No object, or no longer.
    Gone,
    /// The first object of a log.
    Birth,
    /// A seal.
    Seal,
    /// A segment.
    Data(WalMatch),
}

/// The relation of a segment to the write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WalMatch {
    /// The last append of the WAL that the segment holds too.
    Through(Lsn),
    /// It holds an append later than all that the WAL still has.
    Beyond,
}

/// Effect that the shell must carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecoveryEffect {
    /// List the log's slots.
    List,
    /// Read this slot.
    ReadSlot(Slot),
    /// Create a segment in this slot, of appends after `after`, in order; send the same bytes until the result is
    /// definite.
    Put {
        /// The slot.
        slot: Slot,
        /// The append before the first.
        after: Lsn,
    },
    /// Everything is in the bucket: seal the log.
    Seal,
    /// Recovery is complete. This is the last effect.
    Done(Recovered),
}

/// Result of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recovered {
    /// Everything is in the bucket, in a sealed log.
    Complete,
    /// The log was never created, and no write was acknowledged.
    Nothing,
    /// Another process sealed the log first: appends after this one may be in it or not.
    Stranded {
        /// The last append that is certainly in it.
        after: Lsn,
    },
    /// The bucket lacks slots that the ended process created. It is another bucket, or an older state of it.
    SlotsMissing,
}

impl Recovery {
    /// Starts a recovery.
    #[must_use]
    pub fn begin(wal: &WalContents) -> (Self, RecoveryEffect) {
        let last = wal.appends.last().map_or(wal.shipped_through, |append| append.lsn);
        let recovery = Self {
            state: RecoveryState::Listing,
            last,
            last_slot: wal.last_slot,
            shipped: wal.shipped_through,
            put: None,
        };
        (recovery, RecoveryEffect::List)
    }

    /// Applies an input and returns the next effect; `None` for an unexpected input.
    pub fn apply(&mut self, input: RecoveryInput) -> Option<RecoveryEffect> {
        let (state, effect) = match (self.state, input) {
            (RecoveryState::Listing, RecoveryInput::Listed(highest)) => self.listed(highest),
            (RecoveryState::Reading(slot), RecoveryInput::SlotRead(slot_read)) => {
                self.slot_read(slot, slot_read)
            }
            (RecoveryState::Confirming(seal), RecoveryInput::Listed(highest)) => {
                self.confirmed(seal, highest)
            }
            (RecoveryState::Putting(slot), RecoveryInput::Put { ours, through }) => {
                self.put(slot, ours, through)
            }
            (RecoveryState::Sealing, RecoveryInput::Sealed) => done(Recovered::Complete),
            _ => return None,
        };
        self.state = state;
        Some(effect)
    }

    fn listed(&mut self, highest: Option<Slot>) -> (RecoveryState, RecoveryEffect) {
        match (highest, self.put) {
            (None, _) if self.last_slot.is_none() && self.last == Lsn::ZERO => done(Recovered::Nothing),
            (highest, _) if highest.is_none() || highest < self.last_slot => done(Recovered::SlotsMissing),
            (Some(highest), Some((last, through))) if last == highest => {
                self.shipped = self.shipped.max(through);
                self.put_or_seal(highest.next())
            }
            (Some(highest), _) => (RecoveryState::Reading(highest), RecoveryEffect::ReadSlot(highest)),
            (None, _) => done(Recovered::SlotsMissing),
        }
    }

    fn slot_read(&mut self, slot: Slot, slot_read: RecoverySlotRead) -> (RecoveryState, RecoveryEffect) {
        match slot_read {
            RecoverySlotRead::Gone => list(),
            RecoverySlotRead::Seal => (RecoveryState::Confirming(slot), RecoveryEffect::List),
            RecoverySlotRead::Birth => self.put_or_seal(slot.next()),
            RecoverySlotRead::Data(segment) => {
                self.update_shipped(slot, segment);
                self.put_or_seal(slot.next())
            }
        }
    }

    /// The slot holds a segment of the ended process, which shipped its appends in order.
    fn update_shipped(&mut self, slot: Slot, segment: WalMatch) {
        if self.last_slot.is_some_and(|last| slot <= last) {
            return;
        }
        let through = match segment {
            WalMatch::Through(lsn) => lsn,
            WalMatch::Beyond => self.last,
        };
        self.shipped = self.shipped.max(through);
    }

    /// `next` is free as far as is known, and no slot above it exists.
    fn put_or_seal(&self, next: Slot) -> (RecoveryState, RecoveryEffect) {
        if self.shipped < self.last {
            (RecoveryState::Putting(next), RecoveryEffect::Put { slot: next, after: self.shipped })
        } else {
            (RecoveryState::Sealing, RecoveryEffect::Seal)
        }
    }

    fn put(&mut self, slot: Slot, ours: bool, through: Lsn) -> (RecoveryState, RecoveryEffect) {
        if !ours {
            return list();
        }
        self.put = Some((slot, through));
        if through < self.last {
            let next = slot.next();
            return (RecoveryState::Putting(next), RecoveryEffect::Put { slot: next, after: through });
        }
        // If another process had sealed the log above and deleted this slot, our object would be in a gap.
        list()
    }

    /// Slots below a foreign seal are not read. One of them may be ours, in a gap left by deletes after the seal; those
    /// of the ended process may be deleted already. Each subject's state shows which of the appends it has.
    fn confirmed(&mut self, seal: Slot, highest: Option<Slot>) -> (RecoveryState, RecoveryEffect) {
        if highest != Some(seal) {
            self.listed(highest)
        } else if self.shipped < self.last {
            done(Recovered::Stranded { after: self.shipped })
        } else {
            done(Recovered::Complete)
        }
    }
}

const fn list() -> (RecoveryState, RecoveryEffect) {
    (RecoveryState::Listing, RecoveryEffect::List)
}

const fn done(recovered: Recovered) -> (RecoveryState, RecoveryEffect) {
    (RecoveryState::Ended, RecoveryEffect::Done(recovered))
}
