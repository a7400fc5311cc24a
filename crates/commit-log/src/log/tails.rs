//! The needed part of a log: the shipped entries of each subject that no verified manifest covers yet.
//!
//! Each subject has a list of the slots with its entries. It is exact up to `MAX_RUNS` slots, and up to `MAX_ALL_RUNS`
//! slots of all subjects. Compaction starts far below these limits. Beyond them, adjacent slots are merged to runs, and
//! the slots between count as needed, too. The error is always on that side.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_protocol::{Rev, Slot};

/// Maximum runs of a subject's tail: compaction is due at [`SubjectTail::DUE_SLOTS`], and may be slow or fail.
const MAX_RUNS: usize = 4_096;

/// Above this number of runs of all subjects, a new one takes the place of another run of its subject.
const MAX_ALL_RUNS: usize = 2_000_000;

/// Runs of a subject that are kept above [`MAX_ALL_RUNS`].
const MIN_RUNS: usize = 8;

/// The shipped entries of a subject that no base covers yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubjectTail {
    /// The lowest slot that may hold one of them.
    pub first_slot: Slot,
    /// Their size in bytes, at most.
    pub bytes: u64,
    /// Their number, at most.
    pub entries: u64,
    /// The number of slots that hold them, at most.
    pub slots: u64,
    /// When the oldest of them was shipped, on the boot clock.
    pub since: Duration,
}

impl SubjectTail {
    /// At this number of slots, compaction is due: each slot costs memory, and one to three requests when the subject
    /// is opened without a local file.
    pub const DUE_SLOTS: u64 = 1_024;
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

/// One slot of a subject's entries, or several, combined: `first_slot..=last.slot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct SlotRun {
    first_slot: Slot,
    /// The number of slots that hold entries of the subject.
    slots: u64,
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
        self.slots += u64::from(self.last.slot != next.last.slot) * next.slots;
        self.last = ShippedEntries { bytes, entries, at: self.last.at, ..next.last };
    }
}

/// The runs of one subject, with their sums.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct SubjectRuns {
    runs: Vec<SlotRun>,
    bytes: u64,
    entries: u64,
    slots: u64,
    /// The local file holds every entry in the slots below this one.
    in_file_below: Slot,
}

impl SubjectRuns {
    fn push(&mut self, run: SlotRun) {
        self.bytes += run.last.bytes;
        self.entries += run.last.entries;
        match self.runs.last_mut() {
            Some(last) if last.last.slot == run.last.slot => last.absorb(&run),
            _ => {
                self.slots += 1;
                self.runs.push(run);
            }
        }
    }

    fn remove_first(&mut self, count: usize) {
        for run in self.runs.drain(..count) {
            self.bytes -= run.last.bytes;
            self.entries -= run.last.entries;
            self.slots -= run.slots;
        }
    }

    /// Merges the two adjacent runs with the smallest total size.
    fn merge_smallest(&mut self) {
        let pairs = self.runs.windows(2).map(|pair| pair[0].last.bytes + pair[1].last.bytes);
        let Some((position, _)) = pairs.enumerate().min_by_key(|(_, bytes)| *bytes) else { return };
        let next = self.runs.remove(position + 1);
        self.runs[position].absorb(&next);
    }
}

/// The tails of all subjects of one log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tails<S> {
    runs: BTreeMap<S, SubjectRuns>,
    /// The number of runs of all subjects.
    all_runs: usize,
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
        Self { runs: BTreeMap::new(), all_runs: 0, by_slot: BTreeSet::new() }
    }

    /// Adds shipped entries of a subject. Slots come in order, and so do the entries of a slot.
    pub fn shipped(&mut self, subject: &S, shipped: ShippedEntries) {
        let run = SlotRun { first_slot: shipped.slot, slots: 1, last: shipped };
        let Some(tail) = self.runs.get_mut(subject) else {
            let mut tail = SubjectRuns::default();
            tail.push(run);
            self.runs.insert(subject.clone(), tail);
            self.by_slot.insert((run.first_slot, subject.clone()));
            self.all_runs += 1;
            return;
        };
        let before = tail.runs.len();
        tail.push(run);
        let max = if self.all_runs < MAX_ALL_RUNS { MAX_RUNS } else { MIN_RUNS };
        if tail.runs.len() > before && tail.runs.len() > max {
            tail.merge_smallest();
        }
        self.all_runs += tail.runs.len() - before;
    }

    /// A verified manifest with this base and first slot is the subject's newest.
    pub fn base_published(&mut self, subject: &S, base: Rev, first_slot: Slot) {
        let Some(tail) = self.runs.get_mut(subject) else { return };
        let before = tail.runs.first().map(|run| run.first_slot);
        // A subject's revs and slots grow together, so the covered runs are always the first ones.
        let covered = tail.runs.iter().take_while(|run| run.is_covered(base, first_slot)).count();
        tail.remove_first(covered);
        self.all_runs -= covered;
        if let Some(first) = tail.runs.first_mut() {
            first.first_slot = first.first_slot.max(first_slot);
        }
        let after = tail.runs.first().map(|run| run.first_slot);
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
        let tail = self.runs.get(subject)?;
        let first = tail.runs.first()?;
        Some(SubjectTail {
            first_slot: first.first_slot,
            bytes: tail.bytes,
            entries: tail.entries,
            slots: tail.slots,
            since: first.last.at,
        })
    }

    /// The rev after the last shipped entry of the subject that no base covers; `None`: a base covers all.
    #[must_use]
    pub fn last_rev(&self, subject: &S) -> Option<Rev> {
        Some(self.runs.get(subject)?.runs.last()?.last.last_rev)
    }

    /// The subject's local file, which this process has served, holds every entry in the slots below `slot`. This stays
    /// true: the file is only replaced by one that a later open has restored from all slots.
    pub fn file_complete(&mut self, subject: &S, slot: Slot) {
        if let Some(tail) = self.runs.get_mut(subject) {
            tail.in_file_below = slot;
        }
    }

    /// As [`Tails::slots_above`], for a local file at `rev` that this process has served: without the slots that the
    /// file [is known to hold](Tails::file_complete).
    #[must_use]
    pub fn slots_above_file(&self, subject: &S, rev: Rev) -> Vec<Slot> {
        let below = self.runs.get(subject).map_or_else(Slot::default, |tail| tail.in_file_below);
        self.slots_above(subject, rev).into_iter().filter(|slot| *slot >= below).collect()
    }

    /// The slots that hold entries of the subject above `rev`, ascending. Above the limit, it may hold more slots, and it
    /// never omits one.
    #[must_use]
    pub fn slots_above(&self, subject: &S, rev: Rev) -> Vec<Slot> {
        let runs = self
            .runs
            .get(subject)
            .into_iter()
            .flat_map(|tail| &tail.runs)
            .filter(|run| run.may_be_above(rev));
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

    /// Number of pairs of a subject and a slot with entries of it, with one pair for a run of merged slots.
    #[must_use]
    pub const fn all_runs(&self) -> usize {
        self.all_runs
    }

    /// Whether no subject needs any slot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}
