//! What waits to be sent to one subject, in the order in which it came. A pure machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_protocol::Level;
use dormouse_protocol::data::SetItem;
use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;

use crate::mutations::{Mutation, is_there};

/// With whom sets may share a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// One set, with any others of its level.
    Shared,
    /// One set that does not fit in a request: its value goes up piece by piece.
    Large,
    /// Independent sets that were put together by the caller.
    Alone,
    /// All or none of them.
    Atomic,
}

/// Sets that were asked for by one call, and who waits for what becomes of them.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) sets: Vec<SetItem>,
    pub(crate) company: Company,
    pub(crate) level: Option<Level>,
    /// How long the caller waits, and until when.
    pub(crate) deadline: Duration,
    pub(crate) expires_at: Duration,
    pub(crate) size_bytes: usize,
    pub(crate) ticket: T,
}

/// The place of an entry in the order in which entries came.
pub(crate) type Place = u64;

/// No request holds more entries than this, up to and including an entry. It follows a request that was refused as a
/// whole for what only one of its sets may be to blame for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cap {
    entries: usize,
    until: Place,
}

/// What waits to be sent to one subject.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiting: BTreeMap<Place, Entry<T>>,
    expiries: BTreeSet<(Duration, Place)>,
    next_place: Place,
    cap: Option<Cap>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), expiries: BTreeSet::new(), next_place: 0, cap: None }
    }
}

impl<T> Queue<T> {
    /// Comes last.
    pub(crate) fn push(&mut self, entry: Entry<T>) {
        let place = self.next_place;
        self.next_place += 1;
        self.insert(place, entry);
    }

    /// What was sent and certainly not carried out comes again, where it was; no more than `at_most` of it at once.
    pub(crate) fn put_back(&mut self, entries: Vec<(Place, Entry<T>)>, at_most: usize) {
        if let Some((last, _)) = entries.last() {
            self.cap = Some(Cap { entries: at_most.max(1), until: *last });
        }
        for (place, entry) in entries {
            self.insert(place, entry);
        }
    }

    fn insert(&mut self, place: Place, entry: Entry<T>) {
        self.expiries.insert((entry.expires_at, place));
        self.waiting.insert(place, entry);
    }

    fn remove(&mut self, place: Place) -> Option<Entry<T>> {
        let entry = self.waiting.remove(&place)?;
        self.expiries.remove(&(entry.expires_at, place));
        Some(entry)
    }

    /// When the first of those who wait has waited long enough.
    pub(crate) fn next_expiry(&self) -> Option<Duration> {
        self.expiries.first().map(|(expires_at, _)| *expires_at)
    }

    /// Takes out those who have waited long enough.
    pub(crate) fn expire(&mut self, now: Duration) -> Vec<Entry<T>> {
        let mut expired = Vec::new();
        while let Some((expires_at, place)) = self.expiries.first().copied()
            && expires_at <= now
        {
            expired.extend(self.remove(place));
        }
        expired
    }

    /// Takes what goes with the next request, which holds `budget_bytes`, and at least one entry: those that came
    /// first, without passing anybody over.
    pub(crate) fn take(&mut self, budget_bytes: usize) -> Vec<(Place, Entry<T>)> {
        let Some((&first, entry)) = self.waiting.first_key_value() else { return Vec::new() };
        let (company, level) = (entry.company, entry.level);
        let at_most = self.at_most(first);
        let mut taken = Vec::new();
        let mut used_bytes = 0;
        while let Some((&place, next)) = self.waiting.first_key_value() {
            let fits = next.company == Company::Shared
                && company == Company::Shared
                && next.level == level
                && taken.len() < at_most
                && used_bytes + next.size_bytes <= budget_bytes;
            if !taken.is_empty() && !fits {
                break;
            }
            used_bytes += next.size_bytes;
            taken.extend(self.remove(place).map(|entry| (place, entry)));
        }
        if is_there(Mutation::SetsOvertake) {
            taken.reverse();
        }
        taken
    }

    /// After a refusal requests grow again, twice as large each time.
    fn at_most(&mut self, first: Place) -> usize {
        match &mut self.cap {
            Some(cap) if first <= cap.until => {
                let entries = cap.entries;
                cap.entries = entries.saturating_mul(2);
                entries.min(MAX_ITEMS_PER_REQUEST)
            }
            _ => {
                self.cap = None;
                MAX_ITEMS_PER_REQUEST
            }
        }
    }
}
