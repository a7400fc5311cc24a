//! What to do about the log of a dead process of one's own, whose write-ahead log may hold more than the bucket.
//!
//! The dead process shipped its appends in order, so its highest slot tells how far it came: nothing else has to be
//! read. Its last create may still land, in the one slot above; whoever creates there before it wins, and a slot that
//! turns out to be taken is read like any other.

use dormouse_protocol::Slot;

use crate::wal::{Lsn, WalContents};

/// The recovery of one log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Recovery {
    state: State,
    /// The last append in the write-ahead log.
    last: Lsn,
    /// The last slot that the dead process knew.
    last_slot: Option<Slot>,
    /// Everything up to here is in slots that count.
    shipped: Lsn,
    /// The last slot of our own and how far it leads. Whether it counts is seen by the next listing.
    put: Option<(Slot, Lsn)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Listing,
    Looking(Slot),
    /// There is a seal in this slot: is it the highest? The rule by which everybody tells the end of a log; whoever owned
    /// this one is dead and trims no more, so that here it only confirms.
    Confirming(Slot),
    Putting(Slot),
    Sealing,
    Ended,
}

/// What the machine is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecoveryInput {
    /// The answer to [`RecoveryEffect::List`]: the highest slot there is.
    Listed(Option<Slot>),
    /// The answer to [`RecoveryEffect::Look`].
    Looked(Looked),
    /// The definite answer to [`RecoveryEffect::Put`].
    Put {
        /// What lies in the slot is what was sent.
        ours: bool,
        /// What was sent leads so far.
        through: Lsn,
    },
    /// The log is sealed, by whomever.
    Sealed,
}

/// What lies in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Looked {
    /// Nothing (any more).
    Gone,
    /// The header with which a log is born.
    Birth,
    /// A seal.
    Seal,
    /// A segment.
    Data(Found),
}

/// What a segment holds of a write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// Its last append that is in the segment too.
    Through(Lsn),
    /// Something that came after all that the write-ahead log still holds.
    Beyond,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecoveryEffect {
    /// List the log's slots.
    List,
    /// Read this slot.
    Look(Slot),
    /// Create a segment in this slot, of appends after that one, in order; the same bytes until the answer is definite.
    Put {
        /// The slot.
        slot: Slot,
        /// The append before the first.
        after: Lsn,
    },
    /// Everything is in the bucket: seal the log.
    Seal,
    /// It is over. There are no effects after it.
    Done(Recovered),
}

/// How a recovery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recovered {
    /// Everything is in the bucket, in a log that is sealed.
    Complete,
    /// The log was never born, and nobody was promised anything.
    Nothing,
    /// Somebody else sealed the log first: what comes after this append may be in it or not.
    Surplus {
        /// The last append that is in it.
        after: Lsn,
    },
    /// The bucket lacks what the dead process put there. It is another bucket, or it went back in time.
    BucketLacks,
}

impl Recovery {
    /// Begins.
    #[must_use]
    pub fn begin(wal: &WalContents) -> (Self, RecoveryEffect) {
        let last = wal.appends.last().map_or(wal.shipped_through, |append| append.lsn);
        let recovery = Self {
            state: State::Listing,
            last,
            last_slot: wal.last_slot,
            shipped: wal.shipped_through,
            put: None,
        };
        (recovery, RecoveryEffect::List)
    }

    /// Takes an answer and says what to do next; `None` for an answer to a question that was not asked.
    pub fn apply(&mut self, input: RecoveryInput) -> Option<RecoveryEffect> {
        let (state, effect) = match (self.state, input) {
            (State::Listing, RecoveryInput::Listed(highest)) => self.listed(highest),
            (State::Looking(slot), RecoveryInput::Looked(looked)) => self.looked(slot, looked),
            (State::Confirming(seal), RecoveryInput::Listed(highest)) => self.confirmed(seal, highest),
            (State::Putting(slot), RecoveryInput::Put { ours, through }) => self.put(slot, ours, through),
            (State::Sealing, RecoveryInput::Sealed) => done(Recovered::Complete),
            _ => return None,
        };
        self.state = state;
        Some(effect)
    }

    fn listed(&mut self, highest: Option<Slot>) -> (State, RecoveryEffect) {
        match (highest, self.put) {
            (None, _) if self.last_slot.is_none() && self.last == Lsn::ZERO => done(Recovered::Nothing),
            (highest, _) if highest.is_none() || highest < self.last_slot => done(Recovered::BucketLacks),
            (Some(highest), Some((last, through))) if last == highest => {
                self.shipped = self.shipped.max(through);
                self.go_on(highest.next())
            }
            (Some(highest), _) => (State::Looking(highest), RecoveryEffect::Look(highest)),
            (None, _) => done(Recovered::BucketLacks),
        }
    }

    fn looked(&mut self, slot: Slot, looked: Looked) -> (State, RecoveryEffect) {
        match looked {
            Looked::Gone => list(),
            Looked::Seal => (State::Confirming(slot), RecoveryEffect::List),
            Looked::Birth => self.go_on(slot.next()),
            Looked::Data(found) => {
                self.found(slot, found);
                self.go_on(slot.next())
            }
        }
    }

    /// The slot holds a segment of the dead process; what it shipped, it shipped in order.
    fn found(&mut self, slot: Slot, found: Found) {
        if self.last_slot.is_some_and(|last| slot <= last) {
            return;
        }
        let through = match found {
            Found::Through(lsn) => lsn,
            Found::Beyond => self.last,
        };
        self.shipped = self.shipped.max(through);
    }

    /// `next` is free as far as we know, and nothing above it exists.
    fn go_on(&self, next: Slot) -> (State, RecoveryEffect) {
        if self.shipped < self.last {
            (State::Putting(next), RecoveryEffect::Put { slot: next, after: self.shipped })
        } else {
            (State::Sealing, RecoveryEffect::Seal)
        }
    }

    fn put(&mut self, slot: Slot, ours: bool, through: Lsn) -> (State, RecoveryEffect) {
        if !ours {
            return list();
        }
        self.put = Some((slot, through));
        if through < self.last {
            let next = slot.next();
            return (State::Putting(next), RecoveryEffect::Put { slot: next, after: through });
        }
        // Had somebody sealed the log above and cleared what lay here, ours would stand in a hole.
        list()
    }

    /// What lies below another's seal may be ours, in a hole that was cleared after the sealing; the dead process's own
    /// may be cleared already. So nothing is read there: to whom it matters, the subject's state tells what it has.
    fn confirmed(&mut self, seal: Slot, highest: Option<Slot>) -> (State, RecoveryEffect) {
        if highest != Some(seal) {
            self.listed(highest)
        } else if self.shipped < self.last {
            done(Recovered::Surplus { after: self.shipped })
        } else {
            done(Recovered::Complete)
        }
    }
}

const fn list() -> (State, RecoveryEffect) {
    (State::Listing, RecoveryEffect::List)
}

const fn done(recovered: Recovered) -> (State, RecoveryEffect) {
    (State::Ended, RecoveryEffect::Done(recovered))
}
