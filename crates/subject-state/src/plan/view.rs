//! The queries of planning to a subject.

use dormouse_format::entry::WriteOutcome;
use dormouse_protocol::data::SetResult;
use dormouse_protocol::message::{Removed, SubjectConfig};
use dormouse_protocol::{ErrorReply, MessageId, Position, RequestId, Rev, Seq, Term, Timestamp};

/// The state of a subject that every request needs.
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

/// An existing message, without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its id.
    pub id: MessageId,
    /// Its key.
    pub key: Option<String>,
    /// Size of its value in bytes.
    pub size: u64,
}

impl StoredMessage {
    /// The form in which watchers get its removal.
    #[must_use]
    pub fn removed(self) -> Removed {
        Removed { seq: self.id.seq, key: self.key }
    }
}

/// The result of looking up a request id in the dedup window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DedupLookup {
    /// It was never executed.
    New,
    /// It is planned and waits to be applied. Only an overlay of pending entries returns this.
    Pending(WriteOutcome),
    /// It was executed, with this outcome.
    Done(WriteOutcome),
    /// It is older than its session's dedup window: it may or may not have been executed.
    Forgotten,
}

/// How far a search for expired messages is: through those that expire by their own time to live, then through those
/// that expire by the maximum age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExpiryCursor {
    /// The last message found by its time to live: when it expires, and its seq.
    pub by_ttl: Option<(Timestamp, Seq)>,
    /// The last message found by its age: its rev, accept time and seq.
    pub by_age: Option<(Rev, Timestamp, Seq)>,
    /// Every message by its time to live is found.
    pub ttl_ended: bool,
    /// Every message by its age is found.
    pub age_ended: bool,
}

impl ExpiryCursor {
    /// Whether every expired message is found.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ttl_ended && self.age_ended
    }
}

/// The view of a subject for planning.
///
/// # Errors
/// Every method fails only when the state cannot be read; the error is the reply to the request.
pub trait SubjectView {
    /// The subject's state.
    fn state(&self) -> &SubjectState;
    /// The message at `seq`.
    fn at(&self, seq: Seq) -> Result<Option<StoredMessage>, ErrorReply>;
    /// The message under `key`.
    fn by_key(&self, key: &str) -> Result<Option<MessageId>, ErrorReply>;
    /// Bytes of all values together; `None` while it is unknown how many bytes pending changes free.
    fn bytes(&self) -> Option<u64>;
    /// The first messages from `from` on, in order of seq: at most `limit`, and fewer only if there are no
    /// more.
    fn oldest(&self, from: Seq, limit: usize) -> Result<Vec<StoredMessage>, ErrorReply>;
    /// The next messages after `cursor` that have expired at the accept time `now`, by their own time to live or by
    /// this maximum age: at most `limit`. More follow until the cursor has ended. A message may be found by both.
    /// Pending changes count once they are applied.
    fn expired(
        &self,
        now: Timestamp,
        max_age_ms: Option<u64>,
        cursor: &mut ExpiryCursor,
        limit: usize,
    ) -> Result<Vec<StoredMessage>, ErrorReply>;
    /// How many messages have a seq up to and including `end_seq`.
    fn count_up_to(&self, end_seq: Seq) -> Result<u64, ErrorReply>;
    /// The highest seq that does not belong to the newest `keep` messages.
    fn newest_beyond(&self, keep: u64) -> Result<Option<Seq>, ErrorReply>;
    /// Whether [`SubjectView::count_up_to`] and [`SubjectView::newest_beyond`] are exact: they count applied
    /// messages, and pending changes would make them wrong.
    fn counts_are_exact(&self) -> bool;
    /// Looks up a request id in the dedup window.
    fn remembered(&self, id: RequestId) -> Result<DedupLookup, ErrorReply>;
    /// The result of the last set that carried this message id, and its accept time. A result older than
    /// [`MSG_ID_WINDOW_MS`](dormouse_protocol::limits::MSG_ID_WINDOW_MS) may still be returned: the caller
    /// checks.
    fn by_msg_id(&self, msg_id: &str) -> Result<Option<(SetResult, Timestamp)>, ErrorReply>;
}
