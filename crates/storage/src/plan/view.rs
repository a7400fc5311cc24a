//! What planning needs to know of a subject.

use std::collections::HashMap;

use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorReply, MessageId, Position, Rev, Seq, Term, Timestamp};

/// The figures of a subject that every request needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubjectState {
    /// The term under which it is served.
    pub term: Term,
    /// The last rev that this term inherited.
    pub term_base: Rev,
    /// The last rev applied.
    pub rev: Rev,
    /// The seq that the next message gets.
    pub next_seq: Seq,
    /// The message with the highest seq ever written, whether it still exists or not.
    pub last: Option<MessageId>,
    /// The latest accept time so far.
    pub accept_time: Timestamp,
    /// How many messages there are.
    pub count: u64,
    /// Bytes of all values together.
    pub bytes: u64,
    /// The configuration.
    pub config: SubjectConfig,
}

impl SubjectState {
    /// Term and rev.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position { term: self.term, rev: self.rev }
    }
}

/// A message that is there, without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub id: MessageId,
    /// Its key.
    pub key: Option<String>,
}

/// A subject as planning sees it.
///
/// # Errors
/// Every method fails only when the state cannot be read; the error is the answer to the request.
pub trait SubjectView {
    /// The subject's figures.
    fn state(&self) -> &SubjectState;
    /// The message at `seq`.
    fn at(&self, seq: Seq) -> Result<Option<Held>, ErrorReply>;
    /// The message under `key`.
    fn under(&self, key: &str) -> Result<Option<MessageId>, ErrorReply>;
    /// How many messages have a seq up to and including `end_seq`.
    fn count_up_to(&self, end_seq: Seq) -> Result<u64, ErrorReply>;
    /// The highest seq that does not belong to the newest `keep` messages.
    fn newest_beyond(&self, keep: u64) -> Result<Option<Seq>, ErrorReply>;
}

/// A view with the sets of one request on top that are planned but not yet applied.
pub(super) struct Pending<'a, V> {
    base: &'a V,
    pub(super) rev: Rev,
    pub(super) next_seq: Seq,
    pub(super) last: Option<MessageId>,
    by_seq: HashMap<Seq, Option<Held>>,
    by_key: HashMap<String, MessageId>,
}

impl<'a, V: SubjectView> Pending<'a, V> {
    pub(super) fn new(base: &'a V) -> Self {
        let state = base.state();
        Self {
            base,
            rev: state.rev,
            next_seq: state.next_seq,
            last: state.last,
            by_seq: HashMap::new(),
            by_key: HashMap::new(),
        }
    }

    pub(super) fn at(&self, seq: Seq) -> Result<Option<Held>, ErrorReply> {
        match self.by_seq.get(&seq) {
            Some(pending) => Ok(pending.clone()),
            None => self.base.at(seq),
        }
    }

    pub(super) fn under(&self, key: &str) -> Result<Option<MessageId>, ErrorReply> {
        // A set never takes a key away without giving it to another message, so a pending key is always held.
        match self.by_key.get(key) {
            Some(&id) => Ok(Some(id)),
            None => self.base.under(key),
        }
    }

    /// Counts a set.
    pub(super) fn advance(&mut self, id: MessageId) {
        self.rev = self.rev.next();
        if self.last.is_none_or(|last| id.seq >= last.seq) {
            self.last = Some(id);
        }
        self.next_seq = self.next_seq.max(id.seq.next());
    }

    /// Takes note of a set for those that follow in the same request.
    pub(super) fn remember(&mut self, id: MessageId, key: Option<&str>, replaces: Option<Seq>) {
        if let Some(gone) = replaces {
            self.by_seq.insert(gone, None);
        }
        self.by_seq.insert(id.seq, Some(Held { id, key: key.map(str::to_owned) }));
        if let Some(key) = key {
            self.by_key.insert(key.to_owned(), id);
        }
    }
}
