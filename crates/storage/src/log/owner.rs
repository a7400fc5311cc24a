//! The owner's side of its log: which slot is written, what the answer means, when a read is safe, what may go.
//!
//! The order of things is the whole of it:
//!
//! - Slots are created one at a time, in order; the next one only after the last is a definite success.
//! - Anything under the next slot that is not ours ends the log at once. Nothing of it may be used any more.
//! - A read is proved by one of two things that *began after it arrived*: a look at the next slot that finds nothing,
//!   begun while no create was in flight; or a create that succeeds. A create already in flight proves nothing: it
//!   may have landed before somebody sealed the log above it.
//! - The highest slot is never deleted, so that the end of the log is always known.
//!
//! No payload, no clock: a model checker explores this very machine.

#[cfg(test)]
mod tests;

use dormouse_protocol::Slot;

/// What the owner of a log knows about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The lowest slot that is not yet ours for certain.
    next: Slot,
    /// A create of `next` is in flight; its success proves the reads up to this one.
    put: Option<ReadNumber>,
    /// A look at a slot is in flight.
    probe: Option<Probe>,
    /// The last read that arrived.
    arrived: ReadNumber,
    /// The last read that is proved.
    proven: ReadNumber,
    /// No newest manifest needs a slot below this one.
    unneeded: Slot,
    /// Every slot below this one was given up for deletion.
    trimmed: Slot,
    ended: bool,
}

/// Position of a read among all that needed a barrier, in order of arrival. 0 stands for "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReadNumber(pub u64);

/// A look at a slot that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Probe {
    slot: Slot,
    /// The last read that had arrived when it began.
    covers: ReadNumber,
}

/// What the owner is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OwnerInput {
    /// A batch waits to be shipped now. Told again by the `ready` of [`OwnerInput::Put`] when one is in flight.
    Ready,
    /// The definite answer to [`OwnerEffect::Put`].
    Put {
        /// Whose object lies in the slot.
        outcome: PutOutcome,
        /// The next batch waits already: reads ride on it, no look of their own is paid for.
        ready: bool,
    },
    /// A read arrived that needs proof that nobody has taken over. Its number is [`Owner::arrived`] from here on.
    Read,
    /// The answer to [`OwnerEffect::Probe`].
    Probed(Probed),
    /// Verified manifests say that no slot below this one is needed.
    Unneeded {
        /// The lowest slot that is.
        below: Slot,
    },
}

/// How a create of a slot ended. There is no third way: until one of these is known the create goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PutOutcome {
    /// What lies in the slot is what was sent.
    Ours,
    /// Something else lies in it: a seal, whatever else it may look like.
    Anothers,
}

/// What a look at a slot found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Probed {
    /// No object.
    Absent,
    /// An object.
    Present,
    /// Nothing: the look failed. The shell has paused.
    Failed,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OwnerEffect {
    /// Create this slot, from all that waits; the same bytes until the answer is definite.
    Put {
        /// The slot.
        slot: Slot,
    },
    /// The batch in flight is in the bucket, in this slot: everything in it is durable.
    Landed {
        /// The slot.
        slot: Slot,
    },
    /// See whether there is an object in this slot.
    Probe {
        /// The slot.
        slot: Slot,
    },
    /// Reads up to this one: at their arrival nobody had taken over.
    Proven {
        /// The last of them.
        through: ReadNumber,
    },
    /// These slots are needed by nobody: delete them, at leisure and in any order.
    Delete {
        /// The first.
        from: Slot,
        /// The one after the last.
        to: Slot,
    },
    /// Somebody else has ended the log. Every write that is not acknowledged fails, every read that waits fails, every
    /// claim and publication in progress is abandoned. Comes once; there are no effects after it.
    End,
}

impl Owner {
    /// The owner of a log whose slots below `next` are ours and all still there, with nothing in flight.
    #[must_use]
    pub const fn new(next: Slot) -> Self {
        Self {
            next,
            put: None,
            probe: None,
            arrived: ReadNumber(0),
            proven: ReadNumber(0),
            unneeded: Slot::new(0),
            trimmed: Slot::new(0),
            ended: false,
        }
    }

    /// The slot that is written next, or is in flight. Nothing unshipped will ever lie below it.
    #[must_use]
    pub const fn next_slot(&self) -> Slot {
        self.next
    }

    /// Whether a create is in flight.
    #[must_use]
    pub const fn is_putting(&self) -> bool {
        self.put.is_some()
    }

    /// The number of the read that arrived last.
    #[must_use]
    pub const fn arrived(&self) -> ReadNumber {
        self.arrived
    }

    /// The lowest slot that was not given up for deletion.
    #[must_use]
    pub const fn trimmed(&self) -> Slot {
        self.trimmed
    }

    /// Whether the log is at its end.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes an input and says what to do.
    pub fn apply(&mut self, input: OwnerInput) -> Vec<OwnerEffect> {
        let mut effects = Vec::new();
        if self.ended {
            return effects;
        }
        match input {
            OwnerInput::Ready => self.put_next(&mut effects),
            OwnerInput::Put { outcome, ready } => self.definite(outcome, ready, &mut effects),
            OwnerInput::Read => self.arrived.0 += 1,
            OwnerInput::Probed(probed) => self.probed(probed, &mut effects),
            OwnerInput::Unneeded { below } => {
                self.unneeded = self.unneeded.max(below);
                self.trim(&mut effects);
            }
        }
        self.probe_if_needed(&mut effects);
        effects
    }

    fn put_next(&mut self, effects: &mut Vec<OwnerEffect>) {
        if self.put.is_none() {
            self.put = Some(self.arrived);
            effects.push(OwnerEffect::Put { slot: self.next });
        }
    }

    fn definite(&mut self, outcome: PutOutcome, ready: bool, effects: &mut Vec<OwnerEffect>) {
        let Some(covers) = self.put.take() else { return };
        if outcome == PutOutcome::Anothers {
            return self.end(effects);
        }
        effects.push(OwnerEffect::Landed { slot: self.next });
        self.next = self.next.next();
        self.prove(covers, effects);
        self.trim(effects);
        if ready {
            self.put_next(effects);
        }
    }

    fn probed(&mut self, probed: Probed, effects: &mut Vec<OwnerEffect>) {
        let Some(probe) = self.probe.take() else { return };
        // A create that began after the look may be what it found. That create began after the look's reads arrived, too:
        // its own answer proves them or ends the log.
        let may_be_ours = self.put.is_some() || probe.slot < self.next;
        match probed {
            Probed::Absent => self.prove(probe.covers, effects),
            Probed::Present if !may_be_ours => self.end(effects),
            Probed::Present | Probed::Failed => {}
        }
    }

    fn prove(&mut self, through: ReadNumber, effects: &mut Vec<OwnerEffect>) {
        if through > self.proven {
            self.proven = through;
            effects.push(OwnerEffect::Proven { through });
        }
    }

    /// Only with no create in flight: one that has landed unnoticed may have been sealed over, and drained away.
    fn probe_if_needed(&mut self, effects: &mut Vec<OwnerEffect>) {
        let waits = self.arrived > self.proven;
        if waits && self.put.is_none() && self.probe.is_none() && !self.ended {
            self.probe = Some(Probe { slot: self.next, covers: self.arrived });
            effects.push(OwnerEffect::Probe { slot: self.next });
        }
    }

    /// The slot before the next one is the highest for certain: it stays, needed or not.
    fn trim(&mut self, effects: &mut Vec<OwnerEffect>) {
        let highest = Slot::new(self.next.get().saturating_sub(1));
        let to = self.unneeded.min(highest);
        if to > self.trimmed {
            effects.push(OwnerEffect::Delete { from: self.trimmed, to });
            self.trimmed = to;
        }
    }

    fn end(&mut self, effects: &mut Vec<OwnerEffect>) {
        self.ended = true;
        effects.push(OwnerEffect::End);
    }
}
