//! Entries that are planned and not yet applied, as an overlay on the applied subject.

use std::collections::HashMap;

use dormouse_format::entry::{LogEntry, WriteOutcome};
use dormouse_format::record::{RecordOp, RemovalCause, SetOperation};
use dormouse_protocol::data::SetResult;
use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorReply, MessageId, RequestId, Seq, Timestamp};

use super::overlay::{KeyOverlay, SeqOverlay, clear};
use super::view::{DedupLookup, ExpiryCursor, StoredMessage, SubjectState, SubjectView};
use crate::database::Slice;

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

    /// Begins to add an entry that was planned against the current [view](PendingChanges::view). `applied` is the
    /// applied subject. Until the [push](PendingChanges::push_slice) is complete, the view is not valid, and nothing is
    /// planned.
    pub fn begin_push(&mut self, entry: &LogEntry, applied: &impl SubjectView) -> PushProgress {
        let number = self.next;
        self.next += 1;
        let before = self.state.take();
        if before.is_none() {
            self.bytes = applied.bytes();
        }
        let mut state = before.unwrap_or_else(|| applied.state().clone());
        if state.config.max_bytes.is_none() {
            self.bytes = None;
        }
        debug_assert_eq!(entry.after, state.rev, "the entry was not planned against the pending entries");
        state.accept_time = state.accept_time.max(entry.accept_time);
        PushProgress { number, operation: 0, item: 0, state }
    }

    /// Adds the next slice of an entry. Returns whether the entry is complete.
    pub fn push_slice(
        &mut self,
        push: &mut PushProgress,
        entry: &LogEntry,
        applied: &impl SubjectView,
        slice: &mut Slice,
    ) -> bool {
        while let Some(operation) = entry.operations.get(push.operation) {
            if slice.is_spent() {
                return false;
            }
            if push.item == 0 {
                push.state.rev = push.state.rev.next();
            }
            if !self.push_operation(push, entry, operation, applied, slice) {
                return false;
            }
            push.operation += 1;
            push.item = 0;
        }
        if let Some(remembered) = &entry.request {
            self.requests.insert(remembered.id, remembered.outcome.clone());
        }
        self.state = Some(std::mem::take(&mut push.state));
        true
    }

    /// Adds an entry at once.
    pub fn push(&mut self, entry: &LogEntry, applied: &impl SubjectView) {
        let mut push = self.begin_push(entry, applied);
        while !self.push_slice(&mut push, entry, applied, &mut Slice::new()) {}
    }

    /// Returns whether the operation is complete.
    fn push_operation(
        &mut self,
        push: &mut PushProgress,
        entry: &LogEntry,
        operation: &RecordOp,
        applied: &impl SubjectView,
        slice: &mut Slice,
    ) -> bool {
        match operation {
            RecordOp::Set(set) => {
                slice.count(0);
                self.push_set(push, entry, set, applied);
            }
            RecordOp::Batch { sets } => {
                while let Some(set) = sets.get(push.item) {
                    if slice.is_spent() {
                        return false;
                    }
                    slice.count(0);
                    push.item += 1;
                    self.push_set(push, entry, set, applied);
                }
            }
            RecordOp::Delete { removed, cause } => {
                while let Some(Removed { seq, key }) = removed.get(push.item) {
                    if slice.is_spent() {
                        return false;
                    }
                    slice.count(0);
                    push.item += 1;
                    self.count_gone(*seq, applied);
                    self.by_seq.touch(push.number, *seq, None);
                    if let Some(key) = key {
                        self.by_key.touch(push.number, key.clone(), None);
                    }
                }
                self.end_delete(push, removed, *cause);
            }
            RecordOp::DeleteAll { end_seq, count } => {
                // The sizes of the removed messages are not read.
                self.bytes = None;
                self.push_delete_all(push.number, *end_seq);
                push.state.count = push.state.count.saturating_sub(*count);
            }
            RecordOp::Configure { config } => push.state.config = config.clone(),
        }
        true
    }

    fn end_delete(&mut self, push: &mut PushProgress, removed: &[Removed], cause: RemovalCause) {
        if cause == RemovalCause::Evicted
            && let Some(last) = removed.last()
        {
            let left = self.by_seq.held(self.lowest..=last.seq.max(self.lowest)).next();
            self.lowest = left.map_or(last.seq.next(), |held| held.id.seq).max(self.lowest);
        }
        push.state.count = push.state.count.saturating_sub(removed.len() as u64);
    }

    fn push_set(
        &mut self,
        push: &mut PushProgress,
        entry: &LogEntry,
        set: &SetOperation,
        applied: &impl SubjectView,
    ) {
        let (number, state) = (push.number, &mut push.state);
        let id = MessageId { term: entry.term, seq: set.seq };
        self.bytes = self.bytes.map(|bytes| bytes + set.size_bytes());
        if let Some(gone) = set.replaces {
            self.count_gone(gone, applied);
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
            let (seq, term, rev, timestamp) = (set.seq, entry.term, state.rev, set.timestamp);
            let result = SetResult { seq, term, rev, timestamp, duplicate: false };
            self.msg_ids.touch(number, msg_id.clone(), (result, entry.accept_time));
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

    /// Subtracts the bytes of a message that is about to be removed.
    fn count_gone(&mut self, seq: Seq, applied: &impl SubjectView) {
        let Some(bytes) = self.bytes else { return };
        self.bytes = match self.view(applied).at(seq) {
            Ok(held) => Some(bytes.saturating_sub(held.map_or(0, |held| held.size))),
            Err(_) => None,
        };
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

/// How far an entry is added to the pending ones.
#[derive(Debug)]
pub struct PushProgress {
    /// Its number.
    number: u64,
    /// The next operation, and its next item.
    operation: usize,
    item: usize,
    /// The state so far.
    state: SubjectState,
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
        cursor: &mut ExpiryCursor,
        limit: usize,
    ) -> Result<Vec<StoredMessage>, ErrorReply> {
        let mut expired = self.applied.expired(now, max_age_ms, cursor, limit)?;
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
