//! The owner's side of its log: which slot is written, the meaning of each result, when a read is safe, which slots are
//! trimmed.
//!
//! Safety rests on the order of operations:
//!
//! - The owner creates one slot at a time, in order. It creates the next slot only after a definite success.
//! - A foreign object in the next slot ends the log at once. No state of the log may be used afterwards.
//! - One of two things confirms a read, and it must *begin after the read arrived*: a probe of the next slot that finds
//!   no object and began while no create was in flight, or a create that succeeds. A create already in flight confirms
//!   nothing: it may have succeeded before another process sealed the log above it.
//! - The owner never deletes the highest slot, so the end of the log is always known.
//!
//! The machine has no payload and no clock: a model checker explores exactly this code.

#[cfg(test)]
mod tests;

use dormouse_protocol::Slot;

/// The owner's knowledge of its log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogOwner {
    /// The lowest slot that is not yet confirmed as ours.
    next: Slot,
    /// A create of `next` is in flight; its success confirms reads up to this number.
    put: Option<ReadNumber>,
    /// A probe of a slot is in flight.
    probe: Option<SlotProbe>,
    /// The last read that arrived.
    arrived: ReadNumber,
    /// The last read that is confirmed.
    confirmed: ReadNumber,
    /// No newest manifest needs a slot below this one.
    unneeded: Slot,
    /// Every slot below this one was released for deletion.
    trimmed: Slot,
    ended: bool,
}

/// Position of a read among all reads that needed a barrier, in order of arrival. 0 means "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReadNumber(pub u64);

/// A probe in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct SlotProbe {
    slot: Slot,
    /// The last read that had arrived when the probe began.
    covers: ReadNumber,
}

/// Input of the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OwnerInput {
    /// A segment is ready to be shipped. If a create is in flight, the `ready` of [`OwnerInput::Put`] repeats this input.
    Ready,
    /// The definite result of [`OwnerEffect::Put`].
    Put {
        /// Whether the object in the slot is ours.
        outcome: PutOutcome,
        /// The next segment is ready: its create confirms the waiting reads, so they need no probe.
        ready: bool,
    },
    /// A read arrived that needs proof that no takeover happened. [`LogOwner::arrived`] is its number from here on.
    Read,
    /// The result of [`OwnerEffect::Probe`].
    Probed(Probed),
    /// Verified manifests need no slot below this one.
    Unneeded {
        /// The lowest needed slot.
        below: Slot,
    },
}

/// Result of a slot create. There is no third result: until one of these is known, the create continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PutOutcome {
    /// The slot holds the object that was sent.
    Ours,
    /// The slot holds a foreign object. It counts as a seal, regardless of its content.
    Foreign,
}

/// Result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Probed {
    /// No object.
    Absent,
    /// An object.
    Present,
    /// Unknown: the probe failed. The shell has paused.
    Failed,
}

/// Effect that the shell must carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OwnerEffect {
    /// Create this slot from all waiting writes; send the same bytes until the result is definite.
    Put {
        /// The slot.
        slot: Slot,
    },
    /// The segment in flight is in the bucket, in this slot: all its writes are durable.
    Created {
        /// The slot.
        slot: Slot,
    },
    /// Check whether this slot holds an object.
    Probe {
        /// The slot.
        slot: Slot,
    },
    /// Reads up to this one are confirmed: no takeover had happened when they arrived.
    ReadsConfirmed {
        /// The last confirmed read.
        through: ReadNumber,
    },
    /// No manifest needs these slots: delete them, with low priority and in any order.
    Delete {
        /// The first.
        from: Slot,
        /// The one after the last.
        to: Slot,
    },
    /// Another process has sealed the log. Every unacknowledged write fails, every waiting read fails, and every claim
    /// and manifest publish in progress is abandoned. This effect occurs once and is the last one.
    End,
}

impl LogOwner {
    /// The owner of a log whose slots below `next` are ours and all still exist, with nothing in flight.
    #[must_use]
    pub const fn new(next: Slot) -> Self {
        Self {
            next,
            put: None,
            probe: None,
            arrived: ReadNumber(0),
            confirmed: ReadNumber(0),
            unneeded: Slot::new(0),
            trimmed: Slot::new(0),
            ended: false,
        }
    }

    /// The next slot to write, or the slot in flight. Unshipped entries are never below it.
    #[must_use]
    pub const fn next_slot(&self) -> Slot {
        self.next
    }

    /// Whether a create is in flight.
    #[must_use]
    pub const fn has_put_in_flight(&self) -> bool {
        self.put.is_some()
    }

    /// The number of the read that arrived last.
    #[must_use]
    pub const fn arrived(&self) -> ReadNumber {
        self.arrived
    }

    /// The lowest slot that was not released for deletion.
    #[must_use]
    pub const fn trimmed(&self) -> Slot {
        self.trimmed
    }

    /// Whether the log has ended.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Applies an input and returns the effects.
    pub fn apply(&mut self, input: OwnerInput) -> Vec<OwnerEffect> {
        let mut effects = Vec::new();
        if self.ended {
            return effects;
        }
        match input {
            OwnerInput::Ready => self.put_next(&mut effects),
            OwnerInput::Put { outcome, ready } => self.put_completed(outcome, ready, &mut effects),
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

    fn put_completed(&mut self, outcome: PutOutcome, ready: bool, effects: &mut Vec<OwnerEffect>) {
        let Some(covers) = self.put.take() else { return };
        if outcome == PutOutcome::Foreign {
            return self.end(effects);
        }
        effects.push(OwnerEffect::Created { slot: self.next });
        self.next = self.next.next();
        self.confirm_reads(covers, effects);
        self.trim(effects);
        if ready {
            self.put_next(effects);
        }
    }

    fn probed(&mut self, probed: Probed, effects: &mut Vec<OwnerEffect>) {
        let Some(probe) = self.probe.take() else { return };
        // The probe may have found an object whose create began after the probe. That create also began after the
        // probe's reads arrived, so its own result confirms them or ends the log.
        let may_be_ours = self.put.is_some() || probe.slot < self.next;
        match probed {
            Probed::Absent => self.confirm_reads(probe.covers, effects),
            Probed::Present if !may_be_ours => self.end(effects),
            Probed::Present | Probed::Failed => {}
        }
    }

    fn confirm_reads(&mut self, through: ReadNumber, effects: &mut Vec<OwnerEffect>) {
        if through > self.confirmed {
            self.confirmed = through;
            effects.push(OwnerEffect::ReadsConfirmed { through });
        }
    }

    /// Only while no create is in flight: a create may have succeeded unnoticed, and then been sealed over and
    /// reclaimed.
    fn probe_if_needed(&mut self, effects: &mut Vec<OwnerEffect>) {
        let read_waits = self.arrived > self.confirmed;
        if read_waits && self.put.is_none() && self.probe.is_none() && !self.ended {
            self.probe = Some(SlotProbe { slot: self.next, covers: self.arrived });
            effects.push(OwnerEffect::Probe { slot: self.next });
        }
    }

    /// The slot before the next one is certainly the highest existing slot: it stays, needed or not.
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
