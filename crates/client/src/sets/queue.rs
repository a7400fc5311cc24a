//! The queue of sets to one subject, in call order. A pure machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_protocol::Level;
use dormouse_protocol::data::SetItem;
use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;
use dormouse_runtime::injected_bug;

use crate::sizes::RequestSpace;

/// Which sets may share a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Batching {
    /// One set, with any others of its level.
    Shared,
    /// One set that does not fit in a request: its value is uploaded in chunks.
    Large,
    /// Independent sets that the caller has put together.
    Alone,
    /// Sets that are written atomically.
    Atomic,
}

/// The sets of one call, and the ticket of its caller.
#[derive(Debug)]
pub(crate) struct QueuedSet<T> {
    pub(crate) sets: Vec<SetItem>,
    pub(crate) batching: Batching,
    pub(crate) level: Option<Level>,
    /// How long the caller waits (`deadline`), and until when (`expires_at`).
    pub(crate) deadline: Duration,
    pub(crate) expires_at: Duration,
    pub(crate) size_bytes: usize,
    pub(crate) ticket: T,
}

/// The position of an entry in call order.
pub(crate) type QueuePosition = u64;

/// No request holds more entries than this, up to and including the entry `until`. Set after a request was
/// rejected as a whole although only one of its sets may be the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BatchLimit {
    entries: usize,
    until: QueuePosition,
}

/// The queue of sets to one subject.
#[derive(Debug)]
pub(crate) struct SetQueue<T> {
    waiting: BTreeMap<QueuePosition, QueuedSet<T>>,
    expiries: BTreeSet<(Duration, QueuePosition)>,
    next_position: QueuePosition,
    cap: Option<BatchLimit>,
}

impl<T> Default for SetQueue<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), expiries: BTreeSet::new(), next_position: 0, cap: None }
    }
}

impl<T> SetQueue<T> {
    /// Appends an entry.
    pub(crate) fn push(&mut self, entry: QueuedSet<T>) {
        let position = self.next_position;
        self.next_position += 1;
        self.insert(position, entry);
    }

    /// Puts entries that were sent and certainly not executed back at their positions; at most `at_most` of
    /// them are sent at once.
    pub(crate) fn put_back(&mut self, entries: Vec<(QueuePosition, QueuedSet<T>)>, at_most: usize) {
        if let Some((last, _)) = entries.last() {
            self.cap = Some(BatchLimit { entries: at_most.max(1), until: *last });
        }
        for (position, entry) in entries {
            self.insert(position, entry);
        }
    }

    fn insert(&mut self, position: QueuePosition, entry: QueuedSet<T>) {
        self.expiries.insert((entry.expires_at, position));
        self.waiting.insert(position, entry);
    }

    fn remove(&mut self, position: QueuePosition) -> Option<QueuedSet<T>> {
        let entry = self.waiting.remove(&position)?;
        self.expiries.remove(&(entry.expires_at, position));
        Some(entry)
    }

    /// When the first of the queued entries expires.
    pub(crate) fn next_expiry(&self) -> Option<Duration> {
        self.expiries.first().map(|(expires_at, _)| *expires_at)
    }

    /// Removes the expired entries.
    pub(crate) fn expire(&mut self, now: Duration) -> Vec<QueuedSet<T>> {
        let mut expired = Vec::new();
        while let Some((expires_at, position)) = self.expiries.first().copied()
            && expires_at <= now
        {
            expired.extend(self.remove(position));
        }
        expired
    }

    /// Takes the entries of the next request, which holds `budget_bytes`: the first entries in order, without
    /// skipping any, and at least one.
    pub(crate) fn take(&mut self, budget_bytes: usize) -> Vec<(QueuePosition, QueuedSet<T>)> {
        let Some((&first, entry)) = self.waiting.first_key_value() else { return Vec::new() };
        let (batching, level) = (entry.batching, entry.level);
        let at_most = self.at_most(first);
        let mut taken = Vec::new();
        let mut space = RequestSpace::new(at_most, budget_bytes);
        while let Some((&position, next)) = self.waiting.first_key_value() {
            let may_share =
                next.batching == Batching::Shared && batching == Batching::Shared && next.level == level;
            if !(space.is_empty() || may_share) || !space.add(next.size_bytes) {
                break;
            }
            taken.extend(self.remove(position).map(|entry| (position, entry)));
        }
        if injected_bug!(SetsReordered) {
            taken.reverse();
        }
        taken
    }

    /// After a rejection, requests grow again, twice as large each time.
    fn at_most(&mut self, first: QueuePosition) -> usize {
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
