//! The sets of one request, while it is being planned.

use std::collections::HashMap;

use dormouse_protocol::data::SetResult;
use dormouse_protocol::limits::MSG_ID_WINDOW_MS;
use dormouse_protocol::message::{Removed, SubjectConfig};
use dormouse_protocol::{ErrorReply, MessageId, Rev, Seq, Term, Timestamp};

use super::Refusal;
use super::limits::{self, Amount};
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
    /// How much there was before the request, and how much there is by now. Only where it is limited.
    before: Amount,
    held: Amount,
}

impl<'a, V: SubjectView> Draft<'a, V> {
    /// Nothing is planned yet. The sets of an `atomic` request share one rev.
    pub(super) fn new(base: &'a V, atomic: bool, accept_time: Timestamp) -> Result<Self, Refusal> {
        let state = base.state();
        let before = if limits::are_set(&state.config) { Amount::of(base)? } else { Amount::default() };
        Ok(Self {
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
            before,
            held: before,
        })
    }

    /// The subject's configuration.
    pub(super) fn config(&self) -> &'a SubjectConfig {
        &self.base.state().config
    }

    /// Whether what is planned matters to nobody who comes after it.
    pub(super) fn is_last(&self, place: usize, sets: usize) -> bool {
        place + 1 == sets && !limits::are_set(self.config())
    }

    /// Checks a set that is about to be counted against the subject's limits. Of a batch, only what one value may have.
    pub(super) fn admit(&self, set: &SetOperation) -> Result<(), Refusal> {
        let config = self.config();
        limits::check_value(config, set.size_bytes())?;
        if self.atomic || !limits::are_set(config) || limits::makes_room(config) {
            return Ok(());
        }
        self.with(set)?.check(config, self.held)
    }

    /// How much there is with one more set.
    fn with(&self, set: &SetOperation) -> Result<Amount, Refusal> {
        let mut with = self.held;
        with.bytes = with.bytes.saturating_add(set.size_bytes());
        match set.replaces {
            None => with.msgs += 1,
            Some(gone) if self.config().max_bytes.is_some() => {
                let gone = self.at(gone)?.map_or(0, |gone| gone.size);
                with.bytes = with.bytes.saturating_sub(gone);
            }
            Some(_) => {}
        }
        Ok(with)
    }

    /// Checks all sets of a batch together: with those that were there, or, where they make room, by themselves.
    pub(super) fn admit_batch(&self, sets: &[SetOperation]) -> Result<(), Refusal> {
        let config = self.config();
        if limits::makes_room(config) {
            let bytes = sets.iter().map(SetOperation::size_bytes).fold(0, u64::saturating_add);
            Amount { msgs: sets.len() as u64, bytes }.check(config, Amount::default())
        } else {
            self.held.check(config, self.before)
        }
    }

    /// What has to go because of the sets that are planned: the oldest messages, and of those of this request only where
    /// nothing else is left.
    pub(super) fn evict(&self) -> Result<Vec<Removed>, Refusal> {
        let config = self.config();
        if !limits::are_set(config) || !limits::makes_room(config) {
            return Ok(Vec::new());
        }
        let mut excess = self.held.above(config, self.before);
        let base = limits::evict(self.base, &mut excess, |seq| self.by_seq.contains_key(&seq))?;
        let mut evicted = base.removed;
        // Where more of the old is left than one entry names, the rest of it follows: what was just written stays.
        if base.is_all && excess != Amount::default() && !self.atomic {
            let mut own: Vec<Held> = self.by_seq.values().flatten().cloned().collect();
            own.sort_unstable_by_key(|held| held.id.seq);
            evicted.extend(limits::evict_of(own, &mut excess));
        }
        evicted.sort_unstable_by_key(|removed| removed.seq);
        Ok(evicted)
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
    ///
    /// # Errors
    /// That what it replaces cannot be read.
    pub(super) fn advance(&mut self, set: &SetOperation) -> Result<SetResult, Refusal> {
        if limits::are_set(self.config()) {
            self.held = self.with(set)?;
        }
        if !self.atomic {
            self.rev = self.rev.next();
        }
        let id = MessageId { term: self.term, seq: set.seq };
        if self.last.is_none_or(|last| id.seq >= last.seq) {
            self.last = Some(id);
        }
        self.next_seq = self.next_seq.max(id.seq.next());
        let (seq, term, rev, timestamp) = (set.seq, self.term, self.rev, set.timestamp);
        Ok(SetResult { seq, term, rev, timestamp, duplicate: false })
    }

    /// Takes note of a set for those that follow in the same request.
    pub(super) fn remember(&mut self, set: &SetOperation, result: SetResult) {
        if let Some(gone) = set.replaces {
            self.by_seq.insert(gone, None);
        }
        let id = result.id();
        self.by_seq.insert(id.seq, Some(Held { id, key: set.key.clone(), size: set.size_bytes() }));
        if let Some(key) = &set.key {
            self.by_key.insert(key.clone(), id);
        }
        if let Some(msg_id) = &set.msg_id {
            self.by_msg_id.insert(msg_id.clone(), result);
        }
    }
}
