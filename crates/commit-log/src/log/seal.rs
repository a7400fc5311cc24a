//! Sealing another process's log, so that its owner can write no more entries.
//!
//! A log is sealed if and only if its *highest existing* slot is a seal. A listing shows the highest slot but not its
//! content, so the content is read, and *then* the log is listed again. If a seal was seen before a listing in which it
//! is the highest slot, it is valid. Its author does not matter, because the owner never deletes its highest slot.
//! Without the second listing, a seal in a gap left by trimming would count as the end of a log whose owner continues
//! to write.
//!
//! The machine has no payload and no clock: a model checker explores exactly this code.

#[cfg(test)]
mod tests;

use dormouse_protocol::Slot;

use dormouse_runtime::injected_bug;

/// One attempt to confirm that a log is sealed, by this process or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SealMachine(SealState);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum SealState {
    /// Waiting for the first listing.
    #[default]
    Listing,
    /// This slot was the highest; its content is being read.
    Reading(Slot),
    /// A seal is being created in this slot.
    Creating(Slot),
    /// This slot holds a seal; a listing checks whether it is the highest slot.
    Confirming(Slot),
    Ended,
}

/// Input of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SealInput {
    /// The result of [`SealEffect::List`]: the highest existing slot.
    Listed(Option<Slot>),
    /// The result of [`SealEffect::ReadSlot`].
    SlotRead(SealedSlotRead),
    /// The definite result of [`SealEffect::Create`].
    Created {
        /// Whether the slot holds the seal that was sent.
        ours: bool,
    },
}

/// Content of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SealedSlotRead {
    /// A seal.
    Seal,
    /// A segment, or the first object of the log.
    Other,
    /// Nothing: it was trimmed after the listing.
    Gone,
}

/// Effect that the shell must carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SealEffect {
    /// List the log's slots.
    List,
    /// Read the kind of the object in this slot.
    ReadSlot(Slot),
    /// Create a seal in this slot, with its own nonce; send the same bytes until the result is definite.
    Create(Slot),
    /// The seal in this slot seals the log: everything below it is final, and no write above it is ever acknowledged.
    /// The last listing is complete. This is the last effect.
    Sealed(Slot),
    /// The log has no slot: it never existed. This is the last effect.
    Absent,
}

impl SealMachine {
    /// Starts an attempt. The first effect is [`SealEffect::List`].
    #[must_use]
    pub const fn begin() -> (Self, SealEffect) {
        (Self(SealState::Listing), SealEffect::List)
    }

    /// Applies an input and returns the next effect; `None` for an unexpected input.
    pub fn apply(&mut self, input: SealInput) -> Option<SealEffect> {
        let (state, effect) = match (self.0, input) {
            (SealState::Confirming(seal), SealInput::Listed(Some(highest))) if highest == seal => {
                (SealState::Ended, SealEffect::Sealed(seal))
            }
            // Not confirmed: the seal is in a gap and void. This listing serves as a new first listing.
            (SealState::Listing | SealState::Confirming(_), SealInput::Listed(Some(highest))) => {
                (SealState::Reading(highest), SealEffect::ReadSlot(highest))
            }
            (SealState::Listing | SealState::Confirming(_), SealInput::Listed(None)) => {
                (SealState::Ended, SealEffect::Absent)
            }
            (SealState::Reading(slot), SealInput::SlotRead(SealedSlotRead::Seal)) => {
                (SealState::Confirming(slot), SealEffect::List)
            }
            (SealState::Reading(slot), SealInput::SlotRead(SealedSlotRead::Other)) => {
                (SealState::Creating(slot.next()), SealEffect::Create(slot.next()))
            }
            // The owner has written and trimmed since the listing.
            (SealState::Reading(_), SealInput::SlotRead(SealedSlotRead::Gone)) => {
                (SealState::Listing, SealEffect::List)
            }
            (SealState::Creating(slot), SealInput::Created { ours: true })
                if injected_bug!(NoListAfterSeal) =>
            {
                (SealState::Ended, SealEffect::Sealed(slot))
            }
            (SealState::Creating(slot), SealInput::Created { ours: true }) => {
                (SealState::Confirming(slot), SealEffect::List)
            }
            // The owner's next segment, or another process's seal.
            (SealState::Creating(_), SealInput::Created { ours: false }) => {
                (SealState::Listing, SealEffect::List)
            }
            _ => return None,
        };
        self.0 = state;
        Some(effect)
    }
}
