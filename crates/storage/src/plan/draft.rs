//! The sets of one request, while it is being planned.

use std::collections::HashMap;

use dormouse_protocol::data::SetResult;
use dormouse_protocol::limits::MSG_ID_WINDOW_MS;
use dormouse_protocol::{ErrorReply, MessageId, Rev, Seq, Term, Timestamp};

use super::record::SetOperation;
use super::view::{Held, SubjectView};

/// A view with the sets of one request on top that are planned already.
pub(super) struct Draft<'a, V> {
    base: &'a V,
    atomic: bool,
    accept_time: Timestamp,
    term: Term,
    rev: Rev,
    next_seq: Seq,
    last: Option<MessageId>,
    by_seq: HashMap<Seq, Option<Held>>,
    by_key: HashMap<String, MessageId>,
    by_msg_id: HashMap<String, SetResult>,
}

impl<'a, V: SubjectView> Draft<'a, V> {
    /// Nothing is planned yet. The sets of an `atomic` request share one rev.
    pub(super) fn new(base: &'a V, atomic: bool, accept_time: Timestamp) -> Self {
        let state = base.state();
        Self {
            base,
            atomic,
            accept_time,
            term: state.term,
            rev: if atomic { state.rev.next() } else { state.rev },
            next_seq: state.next_seq,
            last: state.last,
            by_seq: HashMap::new(),
            by_key: HashMap::new(),
            by_msg_id: HashMap::new(),
        }
    }

    /// When the request is accepted.
    pub(super) const fn accept_time(&self) -> Timestamp {
        self.accept_time
    }

    /// The seq of a set that names none.
    pub(super) const fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// What an expectation on the last message is held against. A batch is one change: what its sets expect is what
    /// there is before it.
    pub(super) fn last(&self) -> Option<MessageId> {
        if self.atomic { self.base.state().last } else { self.last }
    }

    pub(super) fn at(&self, seq: Seq) -> Result<Option<Held>, ErrorReply> {
        match self.by_seq.get(&seq) {
            Some(planned) => Ok(planned.clone()),
            None => self.base.at(seq),
        }
    }

    /// Whether an earlier set of the same batch goes there: one of the two would be lost.
    pub(super) fn is_taken_in_batch(&self, seq: Seq) -> bool {
        self.atomic && matches!(self.by_seq.get(&seq), Some(Some(_)))
    }

    pub(super) fn under(&self, key: &str) -> Result<Option<MessageId>, ErrorReply> {
        // A set never takes a key away without giving it to another message, so a planned key is always held.
        match self.by_key.get(key) {
            Some(&id) => Ok(Some(id)),
            None => self.base.under(key),
        }
    }

    /// The result of an earlier set with this message id, unless that is too long ago.
    pub(super) fn by_msg_id(&self, msg_id: &str) -> Result<Option<SetResult>, ErrorReply> {
        if let Some(&result) = self.by_msg_id.get(msg_id) {
            return Ok(Some(result));
        }
        let age_micros = |at: Timestamp| self.accept_time.as_micros().saturating_sub(at.as_micros());
        let found = self.base.by_msg_id(msg_id)?;
        Ok(found.filter(|&(_, at)| age_micros(at) < MSG_ID_WINDOW_MS * 1_000).map(|(result, _)| result))
    }

    /// Counts a set, and gives its result.
    pub(super) fn advance(&mut self, set: &SetOperation) -> SetResult {
        if !self.atomic {
            self.rev = self.rev.next();
        }
        let id = MessageId { term: self.term, seq: set.seq };
        if self.last.is_none_or(|last| id.seq >= last.seq) {
            self.last = Some(id);
        }
        self.next_seq = self.next_seq.max(id.seq.next());
        SetResult { seq: set.seq, term: self.term, rev: self.rev, timestamp: set.timestamp, duplicate: false }
    }

    /// Takes note of a set for those that follow in the same request.
    pub(super) fn remember(&mut self, set: &SetOperation, result: SetResult) {
        if let Some(gone) = set.replaces {
            self.by_seq.insert(gone, None);
        }
        let id = result.id();
        self.by_seq.insert(id.seq, Some(Held { id, key: set.key.clone() }));
        if let Some(key) = &set.key {
            self.by_key.insert(key.clone(), id);
        }
        if let Some(msg_id) = &set.msg_id {
            self.by_msg_id.insert(msg_id.clone(), result);
        }
    }
}
