//! The needed part of a log: the shipped entries of each subject that no verified manifest covers yet.
//!
//! The accuracy is coarse by design. A subject keeps at most `MAX_RUNS` runs of slots, however many slots it writes.
//! Where runs are merged, slots count as needed that are not. The error is always on that side.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_protocol::{Rev, Slot};

/// Maximum runs of a subject's tail.
const MAX_RUNS: usize = 8;

/// The shipped entries of a subject that no base covers yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubjectTail {
    /// The lowest slot that may hold one of them.
    pub first_slot: Slot,
    /// Their size in bytes, at most.
    pub bytes: u64,
    /// Their number, at most.
    pub entries: u64,
    /// When the oldest of them was shipped, on the boot clock.
    pub since: Duration,
}

/// Entries of one subject in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShippedEntries {
    /// The slot.
    pub slot: Slot,
    /// The rev after the last of them.
    pub last_rev: Rev,
    /// The last entry may have no operations: a base at `last_rev` may lack it.
    pub ends_in_dedup_record: bool,
    /// Their size in bytes.
    pub bytes: u64,
    /// Their number.
    pub entries: u64,
    /// When they were shipped, on the boot clock.
    pub at: Duration,
}

/// Slots of one subject's entries, combined: `first_slot..=last.slot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct SlotRun {
    first_slot: Slot,
    /// The last slot's position; bytes, entries and time are those of the whole run.
    last: ShippedEntries,
}

impl SlotRun {
    /// Whether a manifest with this base and first slot needs nothing of it.
    fn is_covered(&self, base: Rev, first_slot: Slot) -> bool {
        self.last.slot < first_slot || !self.may_be_above(base)
    }

    fn may_be_above(&self, rev: Rev) -> bool {
        self.last.last_rev > rev || (self.last.last_rev == rev && self.last.ends_in_dedup_record)
    }

    fn absorb(&mut self, next: &Self) {
        let (bytes, entries) = (self.last.bytes + next.last.bytes, self.last.entries + next.last.entries);
        self.last = ShippedEntries { bytes, entries, at: self.last.at, ..next.last };
    }
}

/// The tails of all subjects of one log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tails<S> {
    runs: BTreeMap<S, Vec<SlotRun>>,
    /// The subjects by first slot, to find the oldest tails.
    by_slot: BTreeSet<(Slot, S)>,
}

impl<S: Ord + Clone> Default for Tails<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Ord + Clone> Tails<S> {
    /// No tail.
    #[must_use]
    pub const fn new() -> Self {
        Self { runs: BTreeMap::new(), by_slot: BTreeSet::new() }
    }

    /// Adds shipped entries of a subject. Slots come in order, and so do the entries of a slot.
    pub fn shipped(&mut self, subject: &S, shipped: ShippedEntries) {
        let run = SlotRun { first_slot: shipped.slot, last: shipped };
        match self.runs.get_mut(subject) {
            Some(runs) => {
                match runs.last_mut() {
                    Some(last) if last.last.slot == shipped.slot => last.absorb(&run),
                    _ => runs.push(run),
                }
                if runs.len() > MAX_RUNS {
                    merge_smallest(runs);
                }
            }
            None => {
                self.runs.insert(subject.clone(), vec![run]);
                self.by_slot.insert((run.first_slot, subject.clone()));
            }
        }
    }

    /// A verified manifest with this base and first slot is the subject's newest.
    pub fn base_published(&mut self, subject: &S, base: Rev, first_slot: Slot) {
        let Some(runs) = self.runs.get_mut(subject) else { return };
        let before = runs.first().map(|run| run.first_slot);
        // A subject's revs and slots grow together, so the covered runs are always the first ones.
        let covered = runs.iter().take_while(|run| run.is_covered(base, first_slot)).count();
        runs.drain(..covered);
        if let Some(first) = runs.first_mut() {
            first.first_slot = first.first_slot.max(first_slot);
        }
        let after = runs.first().map(|run| run.first_slot);
        if let Some(before) = before.filter(|_| before != after) {
            self.by_slot.remove(&(before, subject.clone()));
            if let Some(after) = after {
                self.by_slot.insert((after, subject.clone()));
            }
        }
        if after.is_none() {
            self.runs.remove(subject);
        }
    }

    /// The subject's tail; `None`: no slot is needed.
    #[must_use]
    pub fn tail(&self, subject: &S) -> Option<SubjectTail> {
        let runs = self.runs.get(subject)?;
        let first = runs.first()?;
        Some(SubjectTail {
            first_slot: first.first_slot,
            bytes: runs.iter().map(|run| run.last.bytes).sum(),
            entries: runs.iter().map(|run| run.last.entries).sum(),
            since: first.last.at,
        })
    }

    /// The slots that may hold entries of the subject above `rev`, ascending.
    #[must_use]
    pub fn slots_above(&self, subject: &S, rev: Rev) -> Vec<Slot> {
        let runs = self.runs.get(subject).into_iter().flatten().filter(|run| run.may_be_above(rev));
        runs.flat_map(|run| run.first_slot.get()..=run.last.slot.get()).map(Slot::new).collect()
    }

    /// The lowest slot that any subject needs.
    #[must_use]
    pub fn lowest_needed(&self) -> Option<Slot> {
        self.by_slot.first().map(|(slot, _)| *slot)
    }

    /// Subjects with their tails, from the one that needs the lowest slot.
    #[must_use]
    pub fn oldest(&self, limit: usize) -> Vec<(S, SubjectTail)> {
        let subjects = self.by_slot.iter().take(limit);
        subjects.filter_map(|(_, subject)| Some((subject.clone(), self.tail(subject)?))).collect()
    }

    /// Number of subjects that need some slot.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether no subject needs any slot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

/// Merges the two adjacent runs with the smallest total size.
fn merge_smallest(runs: &mut Vec<SlotRun>) {
    let pairs = runs.windows(2).map(|pair| pair[0].last.bytes + pair[1].last.bytes);
    let Some((position, _)) = pairs.enumerate().min_by_key(|(_, bytes)| *bytes) else { return };
    let next = runs.remove(position + 1);
    runs[position].absorb(&next);
}
