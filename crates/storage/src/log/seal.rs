//! Ending a log that is not one's own, so that its owner cannot write another word.
//!
//! A log is sealed if and only if its *highest existing* slot is a seal. A listing tells the highest slot and not what
//! is in it, so what is in it is read, and *then* the log is listed again: a seal that was seen before a listing in
//! which it is the highest is valid, whoever put it there, because the owner never deletes its highest slot. Without
//! that second listing a seal that somebody put into a hole left by trimming would be taken for the end of a log whose
//! owner writes on.
//!
//! No payload, no clock: a model checker explores this very machine.

#[cfg(test)]
mod tests;

use dormouse_protocol::Slot;

use crate::mutations::{Mutation, is_there};

/// One attempt to see a log sealed, by oneself or by anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seal(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum State {
    /// Nothing is known.
    #[default]
    Listing,
    /// This slot was the highest; what is in it?
    Looking(Slot),
    /// A seal is being created in this slot.
    Creating(Slot),
    /// There is a seal in this slot; is it the highest?
    Confirming(Slot),
    Ended,
}

/// What the machine is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SealInput {
    /// The answer to [`SealEffect::List`]: the highest slot there is.
    Listed(Option<Slot>),
    /// The answer to [`SealEffect::Look`].
    Looked(Looked),
    /// The definite answer to [`SealEffect::Create`]: whether what lies in the slot is the seal that was sent.
    Created {
        /// It is.
        ours: bool,
    },
}

/// What lies in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Looked {
    /// A seal.
    Seal,
    /// A segment, or the header that a log is born with.
    Other,
    /// Nothing: it was trimmed since.
    Gone,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SealEffect {
    /// List the log's slots.
    List,
    /// Read what kind of object lies in this slot.
    Look(Slot),
    /// Create a seal in this slot, with a nonce of its own; the same bytes until the answer is definite.
    Create(Slot),
    /// The log is sealed, by the seal in this slot: everything below is final, and nothing will be acknowledged above.
    /// The last listing shows all there is. There are no effects after it.
    Sealed(Slot),
    /// The log has no slot: it was never born. There are no effects after it.
    Absent,
}

impl Seal {
    /// Begins. The first effect is [`SealEffect::List`].
    #[must_use]
    pub const fn begin() -> (Self, SealEffect) {
        (Self(State::Listing), SealEffect::List)
    }

    /// Takes an answer and says what to do next; `None` for an answer to a question that was not asked.
    pub fn apply(&mut self, input: SealInput) -> Option<SealEffect> {
        let (state, effect) = match (self.0, input) {
            (State::Confirming(seal), SealInput::Listed(Some(highest))) if highest == seal => {
                (State::Ended, SealEffect::Sealed(seal))
            }
            // Not confirmed: the seal fell into a hole and is void. This listing is as good a start as the first.
            (State::Listing | State::Confirming(_), SealInput::Listed(Some(highest))) => {
                (State::Looking(highest), SealEffect::Look(highest))
            }
            (State::Listing | State::Confirming(_), SealInput::Listed(None)) => {
                (State::Ended, SealEffect::Absent)
            }
            (State::Looking(slot), SealInput::Looked(Looked::Seal)) => {
                (State::Confirming(slot), SealEffect::List)
            }
            (State::Looking(slot), SealInput::Looked(Looked::Other)) => {
                (State::Creating(slot.next()), SealEffect::Create(slot.next()))
            }
            // The owner has gone on since the listing.
            (State::Looking(_), SealInput::Looked(Looked::Gone)) => (State::Listing, SealEffect::List),
            (State::Creating(slot), SealInput::Created { ours: true })
                if is_there(Mutation::NoListAfterSeal) =>
            {
                (State::Ended, SealEffect::Sealed(slot))
            }
            (State::Creating(slot), SealInput::Created { ours: true }) => {
                (State::Confirming(slot), SealEffect::List)
            }
            // The owner's next segment, or another's seal.
            (State::Creating(_), SealInput::Created { ours: false }) => (State::Listing, SealEffect::List),
            _ => return None,
        };
        self.0 = state;
        Some(effect)
    }
}
