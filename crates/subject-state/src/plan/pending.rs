//! Entries that are planned and not yet applied, as an overlay on the applied subject.

use std::collections::HashMap;

use dormouse_format::entry::{LogEntry, WriteOutcome};
use dormouse_format::record::{Record, RecordOp, RemovalCause, SetOperation};
use dormouse_protocol::data::SetResult;
use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorReply, MessageId, RequestId, Seq, Timestamp};

use super::overlay::{KeyOverlay, SeqOverlay, clear};
use super::view::{DedupLookup, StoredMessage, SubjectState, SubjectView};

/// Entries that are planned and wait to be applied. A request is planned against the
/// [view](PendingChanges::view) of them, so that writes follow each other without waiting for each other's
/// durability.
///
/// Entries join in the order of the log and leave in the same order. Between the application of an entry and
/// [`PendingChanges::applied`] nothing may be planned.
#[derive(Debug, Default)]
pub struct PendingChanges {
    /// Number of the oldest entry, and of the next to join.
    oldest: u64,
    next: u64,
    /// The state after the newest entry; `None` when nothing is pending.
    state: Option<SubjectState>,
    /// Bytes of all values after the newest entry, if known. Kept only while they are limited: each removed
    /// message must be read.
    bytes: Option<u64>,
    by_seq: SeqOverlay,
    by_key: KeyOverlay<String, Option<MessageId>>,
    /// There is no message below: entries have evicted the oldest ones, and a scan need not pass over them
    /// again.
    lowest: Seq,
    /// Applied messages up to and including this seq are removed by the entry with this number.
    cleared: Option<(u64, Seq)>,
    requests: HashMap<RequestId, WriteOutcome>,
    msg_ids: KeyOverlay<String, (SetResult, Timestamp)>,
}

impl PendingChanges {
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

    /// Adds an entry that was planned against the current [view](PendingChanges::view). `applied` is the
    /// applied subject.
    pub fn push(&mut self, entry: &LogEntry, applied: &impl SubjectView) {
        let number = self.next;
        self.next += 1;
        let before = self.state.take();
        let is_first = before.is_none();
        let mut state = before.unwrap_or_else(|| applied.state().clone());
        if is_first {
            self.bytes = applied.bytes();
        }
        if state.config.max_bytes.is_none() {
            self.bytes = None;
        }
        debug_assert_eq!(entry.after, state.rev, "the entry was not planned against the pending entries");
        state.accept_time = state.accept_time.max(entry.accept_time);
        for record in entry.records() {
            self.count_bytes(&record.operation, applied);
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
            RecordOp::Set(set) => self.push_set(number, record, set, state),
            RecordOp::Batch { sets } => {
                for set in sets {
                    self.push_set(number, record, set, state);
                }
            }
            RecordOp::Delete { removed, cause } => {
                for Removed { seq, key } in removed {
                    self.by_seq.touch(number, *seq, None);
                    if let Some(key) = key {
                        self.by_key.touch(number, key.clone(), None);
                    }
                }
                if *cause == RemovalCause::Evicted
                    && let Some(last) = removed.last()
                {
                    let left = self.by_seq.held(self.lowest..=last.seq.max(self.lowest)).next();
                    self.lowest = left.map_or(last.seq.next(), |held| held.id.seq).max(self.lowest);
                }
                state.count = state.count.saturating_sub(removed.len() as u64);
            }
            RecordOp::DeleteAll { end_seq, count } => {
                self.push_delete_all(number, *end_seq);
                state.count = state.count.saturating_sub(*count);
            }
            RecordOp::Configure { config } => state.config = config.clone(),
        }
    }

    fn push_set(&mut self, number: u64, record: &Record, set: &SetOperation, state: &mut SubjectState) {
        let id = MessageId { term: record.term, seq: set.seq };
        if let Some(gone) = set.replaces {
            self.by_seq.touch(number, gone, None);
        } else {
            state.count += 1;
        }
        let held = StoredMessage { id, key: set.key.clone(), size: set.size_bytes() };
        self.by_seq.touch(number, set.seq, Some(held));
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
        self.by_seq.remove_up_to(number, end_seq);
        self.by_key.replace(number, None, |id| id.is_some_and(|id| id.seq <= end_seq));
        self.cleared = Some((number, end_seq));
    }

    /// Updates the bytes for an operation that is about to be pushed.
    fn count_bytes(&mut self, operation: &RecordOp, applied: &impl SubjectView) {
        let Some(mut bytes) = self.bytes else { return };
        let mut gone: Vec<Seq> = Vec::new();
        let mut write = |set: &SetOperation| {
            bytes += set.size_bytes();
            gone.extend(set.replaces);
        };
        match operation {
            RecordOp::Set(set) => write(set),
            RecordOp::Batch { sets } => sets.iter().for_each(write),
            RecordOp::Delete { removed, .. } => gone.extend(removed.iter().map(|removed| removed.seq)),
            // The sizes of the removed messages are not read.
            RecordOp::DeleteAll { .. } => {
                self.bytes = None;
                return;
            }
            RecordOp::Configure { .. } => {}
        }
        for seq in gone {
            match self.view(applied).at(seq) {
                Ok(held) => bytes = bytes.saturating_sub(held.map_or(0, |held| held.size)),
                Err(_) => {
                    self.bytes = None;
                    return;
                }
            }
        }
        self.bytes = Some(bytes);
    }

    /// Removes the oldest entry, which has been applied.
    pub fn applied(&mut self, entry: &LogEntry) {
        let number = self.oldest;
        self.oldest += 1;
        if self.is_empty() {
            self.reset();
            return;
        }
        for operation in &entry.operations {
            self.remove_applied(number, operation);
        }
        if let Some(remembered) = &entry.request {
            self.requests.remove(&remembered.id);
        }
    }

    fn remove_applied(&mut self, number: u64, operation: &RecordOp) {
        match operation {
            RecordOp::Set(set) => self.remove_applied_set(number, set),
            RecordOp::Batch { sets } => sets.iter().for_each(|set| self.remove_applied_set(number, set)),
            RecordOp::Delete { removed, .. } => {
                for Removed { seq, key } in removed {
                    self.by_seq.remove_applied(number, *seq);
                    if let Some(key) = key {
                        self.by_key.remove_applied(number, key);
                    }
                }
            }
            RecordOp::DeleteAll { .. } => {
                self.by_seq.remove_all_applied(number);
                self.by_key.remove_all_applied(number);
                self.cleared.take_if(|(by, _)| *by == number);
            }
            RecordOp::Configure { .. } => {}
        }
    }

    fn remove_applied_set(&mut self, number: u64, set: &SetOperation) {
        self.by_seq.remove_applied(number, set.seq);
        if let Some(gone) = &set.replaces {
            self.by_seq.remove_applied(number, *gone);
        }
        if let Some(key) = &set.key {
            self.by_key.remove_applied(number, key);
        }
        if let Some(msg_id) = &set.msg_id {
            self.msg_ids.remove_applied(number, msg_id);
        }
    }

    /// Removes all entries: all have failed, or the subject is closed.
    pub fn reset(&mut self) {
        self.oldest = self.next;
        self.state = None;
        self.bytes = None;
        self.lowest = Seq::default();
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

/// A subject as it will be once everything pending is applied. In its state, `bytes` is that of the applied
/// state: see [`SubjectView::bytes`].
#[derive(Debug)]
pub struct PendingView<'a, V> {
    pending: &'a PendingChanges,
    applied: &'a V,
}

impl<V> PendingView<'_, V> {
    fn is_cleared(&self, seq: Seq) -> bool {
        self.pending.cleared.is_some_and(|(_, end)| seq <= end)
    }

    /// Whether the applied message at `seq` is unchanged by pending entries.
    fn is_untouched(&self, seq: Seq) -> bool {
        self.pending.by_seq.get(seq).is_none() && !self.is_cleared(seq)
    }
}

impl<V: SubjectView> SubjectView for PendingView<'_, V> {
    fn state(&self) -> &SubjectState {
        self.pending.state.as_ref().unwrap_or_else(|| self.applied.state())
    }

    fn at(&self, seq: Seq) -> Result<Option<StoredMessage>, ErrorReply> {
        match self.pending.by_seq.get(seq) {
            Some(held) => Ok(held.clone()),
            None if self.is_cleared(seq) => Ok(None),
            None => self.applied.at(seq),
        }
    }

    fn by_key(&self, key: &str) -> Result<Option<MessageId>, ErrorReply> {
        match self.pending.by_key.get(key) {
            Some(&holder) => Ok(holder),
            None => Ok(self.applied.by_key(key)?.filter(|holder| !self.is_cleared(holder.seq))),
        }
    }

    fn bytes(&self) -> Option<u64> {
        if self.pending.is_empty() { self.applied.bytes() } else { self.pending.bytes }
    }

    fn oldest(&self, from: Seq, limit: usize) -> Result<Vec<StoredMessage>, ErrorReply> {
        let first = from.max(self.pending.lowest);
        let mut pending = self.pending.by_seq.held(first..).peekable();
        // No applied message up to the end of a pending `delete_all` exists: the scan does not pass over them.
        let mut cursor = self.pending.cleared.map_or(first, |(_, end)| first.max(end.next()));
        let mut oldest = Vec::new();
        loop {
            let page = self.applied.oldest(cursor, limit)?;
            let (is_last, end) = (page.len() < limit, page.last().map(|last| last.id.seq));
            for held in page {
                while let Some(earlier) = pending.next_if(|pending| pending.id.seq < held.id.seq) {
                    oldest.push(earlier.clone());
                }
                if self.is_untouched(held.id.seq) {
                    oldest.push(held);
                }
                if oldest.len() >= limit {
                    break;
                }
            }
            if is_last {
                let left = limit.saturating_sub(oldest.len());
                oldest.extend(pending.by_ref().take(left).cloned());
            }
            if is_last || oldest.len() >= limit {
                oldest.truncate(limit);
                return Ok(oldest);
            }
            cursor = end.map_or(cursor, Seq::next);
        }
    }

    fn expired(
        &self,
        now: Timestamp,
        max_age_ms: Option<u64>,
        limit: usize,
    ) -> Result<Vec<StoredMessage>, ErrorReply> {
        let mut expired = self.applied.expired(now, max_age_ms, limit)?;
        expired.retain(|held| self.is_untouched(held.id.seq));
        Ok(expired)
    }

    fn count_up_to(&self, end_seq: Seq) -> Result<u64, ErrorReply> {
        self.applied.count_up_to(end_seq)
    }

    fn newest_beyond(&self, keep: u64) -> Result<Option<Seq>, ErrorReply> {
        self.applied.newest_beyond(keep)
    }

    fn counts_are_exact(&self) -> bool {
        self.pending.by_seq.is_empty() && self.pending.cleared.is_none() && self.applied.counts_are_exact()
    }

    /// May remember more than the applied state will: if a session has many pending results, its oldest
    /// results are forgotten only when they are applied.
    fn remembered(&self, id: RequestId) -> Result<DedupLookup, ErrorReply> {
        match self.pending.requests.get(&id) {
            Some(outcome) => Ok(DedupLookup::Pending(outcome.clone())),
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
