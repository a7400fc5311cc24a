//! The overlay of the sets of one request while it is planned.

use std::collections::HashMap;

use dormouse_format::record::SetOperation;
use dormouse_protocol::data::SetResult;
use dormouse_protocol::limits::MSG_ID_WINDOW_MS;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorReply, MessageId, Rev, Seq, Term, Timestamp};

use super::PlanRejection;
use super::limits::{self, Amount, Eviction};
use super::view::{StoredMessage, SubjectView};
use crate::database::Slice;

/// The sets of one request that are already planned. It holds no view, so planning can be continued later.
#[derive(Debug)]
pub(super) struct RequestDraft {
    atomic: bool,
    accept_time: Timestamp,
    term: Term,
    rev: Rev,
    next_seq: Seq,
    last: Option<MessageId>,
    by_seq: HashMap<Seq, Option<StoredMessage>>,
    by_key: HashMap<String, MessageId>,
    by_msg_id: HashMap<String, SetResult>,
    /// The amount before the request, and the amount now. Kept only if it is limited.
    before: Amount,
    held: Amount,
}

/// A view with the sets of one request that are already planned on top.
pub(super) struct RequestOverlay<'a, V> {
    pub(super) base: &'a V,
    pub(super) draft: &'a mut RequestDraft,
}

impl RequestDraft {
    /// Nothing is planned yet. The sets of an `atomic` request share one rev.
    pub(super) fn new(
        base: &impl SubjectView,
        atomic: bool,
        accept_time: Timestamp,
    ) -> Result<Self, PlanRejection> {
        let state = base.state();
        let before = if limits::are_set(&state.config) { Amount::of(base)? } else { Amount::default() };
        Ok(Self {
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
}

impl<'a, V: SubjectView> RequestOverlay<'a, V> {
    /// The subject's configuration.
    pub(super) fn config(&self) -> &'a SubjectConfig {
        &self.base.state().config
    }

    /// Whether no later set of the request depends on the set at `index`.
    pub(super) fn is_last(&self, index: usize, sets: usize) -> bool {
        index + 1 == sets && !limits::are_set(self.config())
    }

    /// Checks a set that is about to be counted against the subject's limits. For a batch, checks only the
    /// limits of one value.
    pub(super) fn admit(&self, set: &SetOperation) -> Result<(), PlanRejection> {
        let config = self.config();
        limits::check_value(config, set.size_bytes())?;
        if self.draft.atomic || !limits::are_set(config) || limits::discards_old(config) {
            return Ok(());
        }
        self.with(set)?.check(config, self.draft.held)
    }

    /// The amount with one more set.
    fn with(&self, set: &SetOperation) -> Result<Amount, PlanRejection> {
        let mut with = self.draft.held;
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

    /// Checks all sets of a batch together: with the existing messages, or, if old messages are discarded, by
    /// themselves.
    pub(super) fn admit_batch(&self, sets: &[SetOperation]) -> Result<(), PlanRejection> {
        let config = self.config();
        if limits::discards_old(config) {
            let bytes = sets.iter().map(SetOperation::size_bytes).fold(0, u64::saturating_add);
            Amount { msgs: sets.len() as u64, bytes }.check(config, Amount::default())
        } else {
            self.draft.held.check(config, self.draft.before)
        }
    }

    /// The messages to evict because of the planned sets; `None` if none are.
    pub(super) fn eviction(&self) -> Option<Eviction> {
        let config = self.config();
        if !limits::are_set(config) || !limits::discards_old(config) {
            return None;
        }
        let excess = self.draft.held.above(config, self.draft.before);
        (!excess.is_zero()).then(|| Eviction::new(excess))
    }

    /// Selects more messages to evict: the oldest messages, and messages of this request only if no other is
    /// left. Returns whether all are selected.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(super) fn evict(&self, eviction: &mut Eviction, slice: &mut Slice) -> Result<bool, PlanRejection> {
        if !eviction.step(self.base, |seq| self.draft.by_seq.contains_key(&seq), slice)? {
            return Ok(false);
        }
        // If more old messages are left than one entry can name, later entries evict the rest: the new
        // messages stay.
        if eviction.wants_more() && !self.draft.atomic {
            let mut own: Vec<StoredMessage> = self.draft.by_seq.values().flatten().cloned().collect();
            own.sort_unstable_by_key(|held| held.id.seq);
            eviction.add(own);
        }
        Ok(true)
    }

    /// When the request is accepted.
    pub(super) const fn accept_time(&self) -> Timestamp {
        self.draft.accept_time
    }

    /// The seq of a set without a given seq.
    pub(super) const fn next_seq(&self) -> Seq {
        self.draft.next_seq
    }

    /// The message with which an expectation on the last message is compared. A batch is one change: its sets
    /// expect the state before it.
    pub(super) fn last(&self) -> Option<MessageId> {
        if self.draft.atomic { self.base.state().last } else { self.draft.last }
    }

    pub(super) fn at(&self, seq: Seq) -> Result<Option<StoredMessage>, ErrorReply> {
        match self.draft.by_seq.get(&seq) {
            Some(planned) => Ok(planned.clone()),
            None => self.base.at(seq),
        }
    }

    /// Whether an earlier set of the same batch has this seq: one of the two would be lost.
    pub(super) fn is_taken_in_batch(&self, seq: Seq) -> bool {
        self.draft.atomic && matches!(self.draft.by_seq.get(&seq), Some(Some(_)))
    }

    pub(super) fn by_key(&self, key: &str) -> Result<Option<MessageId>, ErrorReply> {
        // A set removes a key from a message only by giving it to another, so a planned key always has a
        // message.
        match self.draft.by_key.get(key) {
            Some(&id) => Ok(Some(id)),
            None => self.base.by_key(key),
        }
    }

    /// The result of an earlier set with this message id, if it is within the window.
    pub(super) fn by_msg_id(&self, msg_id: &str) -> Result<Option<SetResult>, ErrorReply> {
        if let Some(&result) = self.draft.by_msg_id.get(msg_id) {
            return Ok(Some(result));
        }
        let age_micros = |at: Timestamp| self.draft.accept_time.as_micros().saturating_sub(at.as_micros());
        let found = self.base.by_msg_id(msg_id)?;
        Ok(found.filter(|&(_, at)| age_micros(at) < MSG_ID_WINDOW_MS * 1_000).map(|(result, _)| result))
    }

    /// Counts a set and returns its result.
    ///
    /// # Errors
    /// The replaced message cannot be read.
    pub(super) fn advance(&mut self, set: &SetOperation) -> Result<SetResult, PlanRejection> {
        if limits::are_set(self.config()) {
            self.draft.held = self.with(set)?;
        }
        if !self.draft.atomic {
            self.draft.rev = self.draft.rev.next();
        }
        let id = MessageId { term: self.draft.term, seq: set.seq };
        if self.draft.last.is_none_or(|last| id.seq >= last.seq) {
            self.draft.last = Some(id);
        }
        self.draft.next_seq = self.draft.next_seq.max(id.seq.next());
        let (seq, term, rev, timestamp) = (set.seq, self.draft.term, self.draft.rev, set.timestamp);
        Ok(SetResult { seq, term, rev, timestamp, duplicate: false })
    }

    /// Records a set for the later sets of the same request.
    pub(super) fn record_set(&mut self, set: &SetOperation, result: SetResult) {
        if let Some(gone) = set.replaces {
            self.draft.by_seq.insert(gone, None);
        }
        let id = result.id();
        self.draft
            .by_seq
            .insert(id.seq, Some(StoredMessage { id, key: set.key.clone(), size: set.size_bytes() }));
        if let Some(key) = &set.key {
            self.draft.by_key.insert(key.clone(), id);
        }
        if let Some(msg_id) = &set.msg_id {
            self.draft.by_msg_id.insert(msg_id.clone(), result);
        }
    }
}
