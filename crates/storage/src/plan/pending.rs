//! Entries that are planned and not yet applied, as a layer over the subject as it is applied.

use std::collections::HashMap;
use std::hash::Hash;

use dormouse_protocol::data::SetResult;
use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorReply, MessageId, RequestId, Seq, Timestamp};

use super::record::{Operation, Record, SetOperation};
use super::view::{Held, Memory, SubjectState, SubjectView};
use crate::entry::{Entry, Outcome};

/// Above so many places, a map that has become empty gives its memory back.
const KEPT_PLACES: usize = 1_024;

/// What is decided and waits to be applied. A request is planned against the [view](Pending::view) of it, so that
/// writes follow each other without waiting for each other's durability.
///
/// Entries join in the order of the log and leave in the same order. Between the application of an entry and
/// [`Pending::applied`] nothing may be planned.
#[derive(Debug, Default)]
pub struct Pending {
    /// Number of the oldest entry, and of the next to join.
    oldest: u64,
    next: u64,
    /// The figures after the newest entry; `None` when nothing is pending.
    state: Option<SubjectState>,
    by_seq: Touched<Seq, Option<Held>>,
    by_key: Touched<String, Option<MessageId>>,
    /// What is applied goes up to and including this seq, by the entry with the number beside it.
    cleared: Option<(u64, Seq)>,
    requests: HashMap<RequestId, Outcome>,
    msg_ids: Touched<String, (SetResult, Timestamp)>,
}

/// Things that pending entries touch: as the last of them leaves it, and the number of that one.
#[derive(Debug)]
struct Touched<K, V>(HashMap<K, (u64, V)>);

impl<K, V> Default for Touched<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V> Touched<K, V> {
    fn touch(&mut self, entry: u64, key: K, value: V) {
        self.0.insert(key, (entry, value));
    }

    fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.get(key).map(|(_, value)| value)
    }

    /// What this entry left is applied; what a later one left stays.
    fn settle<Q: Eq + Hash + ?Sized>(&mut self, entry: u64, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
    {
        if self.0.get(key).is_some_and(|&(by, _)| by == entry) {
            self.0.remove(key);
        }
    }

    fn clear(&mut self) {
        clear(&mut self.0);
    }
}

fn clear<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    map.clear();
    if map.capacity() > KEPT_PLACES {
        map.shrink_to(0);
    }
}

impl Pending {
    /// Nothing is pending.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is pending.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.oldest == self.next
    }

    /// How many entries are pending.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.next - self.oldest
    }

    /// The subject as it will be once everything pending is applied to `applied`.
    pub const fn view<'a, V: SubjectView>(&'a self, applied: &'a V) -> PendingView<'a, V> {
        PendingView { pending: self, applied }
    }

    /// An entry joins that was planned against the present [view](Pending::view). `applied` are the figures of the
    /// subject as it is applied.
    pub fn push(&mut self, entry: &Entry, applied: &SubjectState) {
        let number = self.next;
        self.next += 1;
        let mut state = self.state.take().unwrap_or_else(|| applied.clone());
        debug_assert_eq!(entry.after, state.rev, "an entry was not planned against what is pending");
        state.accept_time = state.accept_time.max(entry.accept_time);
        for record in entry.records() {
            self.push_record(number, &record, &mut state);
        }
        if let Some(remembered) = &entry.request {
            self.requests.insert(remembered.id, remembered.outcome.clone());
        }
        self.state = Some(state);
    }

    fn push_record(&mut self, number: u64, record: &Record, state: &mut SubjectState) {
        state.rev = record.rev;
        match &record.operation {
            Operation::Set(set) => self.push_set(number, record, set, state),
            Operation::Batch { sets } => {
                for set in sets {
                    self.push_set(number, record, set, state);
                }
            }
            Operation::Delete { removed, .. } => {
                for Removed { seq, key } in removed {
                    self.by_seq.touch(number, *seq, None);
                    if let Some(key) = key {
                        self.by_key.touch(number, key.clone(), None);
                    }
                }
                state.count = state.count.saturating_sub(removed.len() as u64);
            }
            Operation::DeleteAll { end_seq, count } => {
                self.push_delete_all(number, *end_seq);
                state.count = state.count.saturating_sub(*count);
            }
            Operation::Configure { config } => state.config = config.clone(),
        }
    }

    fn push_set(&mut self, number: u64, record: &Record, set: &SetOperation, state: &mut SubjectState) {
        let id = MessageId { term: record.term, seq: set.seq };
        if let Some(gone) = set.replaces {
            self.by_seq.touch(number, gone, None);
        } else {
            state.count += 1;
        }
        self.by_seq.touch(number, set.seq, Some(Held { id, key: set.key.clone() }));
        if let Some(key) = &set.key {
            self.by_key.touch(number, key.clone(), Some(id));
        }
        if let Some(msg_id) = &set.msg_id {
            let result = result_of(record, set);
            self.msg_ids.touch(number, msg_id.clone(), (result, record.accept_time));
        }
        if state.last.is_none_or(|last| id.seq >= last.seq) {
            state.last = Some(id);
        }
        state.next_seq = state.next_seq.max(set.seq.next());
    }

    fn push_delete_all(&mut self, number: u64, end_seq: Seq) {
        // In whatever order: each on its own.
        let held = self.by_seq.0.iter_mut().filter(|(seq, _)| **seq <= end_seq);
        held.for_each(|(_, touched)| *touched = (number, None));
        let cleared = |(_, id): &&mut (u64, Option<MessageId>)| id.is_some_and(|id| id.seq <= end_seq);
        self.by_key.0.values_mut().filter(cleared).for_each(|touched| *touched = (number, None));
        self.cleared = Some((number, end_seq));
    }

    /// The oldest entry has been applied. It must be the one that joined first.
    pub fn applied(&mut self, entry: &Entry) {
        let number = self.oldest;
        self.oldest += 1;
        if self.is_empty() {
            self.reset();
            return;
        }
        for operation in &entry.operations {
            self.settle(number, operation);
        }
        if let Some(remembered) = &entry.request {
            self.requests.remove(&remembered.id);
        }
    }

    fn settle(&mut self, number: u64, operation: &Operation) {
        match operation {
            Operation::Set(set) => self.settle_set(number, set),
            Operation::Batch { sets } => sets.iter().for_each(|set| self.settle_set(number, set)),
            Operation::Delete { removed, .. } => {
                for Removed { seq, key } in removed {
                    self.by_seq.settle(number, seq);
                    if let Some(key) = key {
                        self.by_key.settle(number, key);
                    }
                }
            }
            Operation::DeleteAll { .. } => {
                self.by_seq.0.retain(|_, (by, _)| *by != number);
                self.by_key.0.retain(|_, (by, _)| *by != number);
                self.cleared.take_if(|(by, _)| *by == number);
            }
            Operation::Configure { .. } => {}
        }
    }

    fn settle_set(&mut self, number: u64, set: &SetOperation) {
        self.by_seq.settle(number, &set.seq);
        if let Some(gone) = &set.replaces {
            self.by_seq.settle(number, gone);
        }
        if let Some(key) = &set.key {
            self.by_key.settle(number, key);
        }
        if let Some(msg_id) = &set.msg_id {
            self.msg_ids.settle(number, msg_id);
        }
    }

    /// Nothing is pending any more: all of it has failed, or the subject is closed.
    pub fn reset(&mut self) {
        self.oldest = self.next;
        self.state = None;
        self.by_seq.clear();
        self.by_key.clear();
        self.cleared = None;
        clear(&mut self.requests);
        self.msg_ids.clear();
    }
}

fn result_of(record: &Record, set: &SetOperation) -> SetResult {
    SetResult { seq: set.seq, term: record.term, rev: record.rev, timestamp: set.timestamp, duplicate: false }
}

/// A subject as it will be once everything pending is applied. Of the figures, `bytes` are those of the applied state.
#[derive(Debug)]
pub struct PendingView<'a, V> {
    pending: &'a Pending,
    applied: &'a V,
}

impl<V> PendingView<'_, V> {
    fn is_cleared(&self, seq: Seq) -> bool {
        self.pending.cleared.is_some_and(|(_, end)| seq <= end)
    }
}

impl<V: SubjectView> SubjectView for PendingView<'_, V> {
    fn state(&self) -> &SubjectState {
        self.pending.state.as_ref().unwrap_or_else(|| self.applied.state())
    }

    fn at(&self, seq: Seq) -> Result<Option<Held>, ErrorReply> {
        match self.pending.by_seq.get(&seq) {
            Some(held) => Ok(held.clone()),
            None if self.is_cleared(seq) => Ok(None),
            None => self.applied.at(seq),
        }
    }

    fn under(&self, key: &str) -> Result<Option<MessageId>, ErrorReply> {
        match self.pending.by_key.get(key) {
            Some(&holder) => Ok(holder),
            None => Ok(self.applied.under(key)?.filter(|holder| !self.is_cleared(holder.seq))),
        }
    }

    fn count_up_to(&self, end_seq: Seq) -> Result<u64, ErrorReply> {
        self.applied.count_up_to(end_seq)
    }

    fn newest_beyond(&self, keep: u64) -> Result<Option<Seq>, ErrorReply> {
        self.applied.newest_beyond(keep)
    }

    fn counts_are_exact(&self) -> bool {
        self.pending.by_seq.0.is_empty() && self.pending.cleared.is_none() && self.applied.counts_are_exact()
    }

    /// Beyond what the applied state will remember: of a session that has many results pending, it forgets the oldest
    /// only when they are applied.
    fn remembered(&self, id: RequestId) -> Result<Memory, ErrorReply> {
        match self.pending.requests.get(&id) {
            Some(outcome) => Ok(Memory::Pending(outcome.clone())),
            None => self.applied.remembered(id),
        }
    }

    fn by_msg_id(&self, msg_id: &str) -> Result<Option<(SetResult, Timestamp)>, ErrorReply> {
        match self.pending.msg_ids.get(msg_id) {
            Some(&found) => Ok(Some(found)),
            None => self.applied.by_msg_id(msg_id),
        }
    }
}

#[cfg(test)]
mod tests;
