//! What planning needs to know of a subject.

use dormouse_protocol::data::SetResult;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorReply, MessageId, Position, RequestId, Rev, Seq, Term, Timestamp};

use crate::entry::Outcome;

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

/// What a subject knows of a request by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    /// It was never carried out.
    New,
    /// It is decided and waits to be applied. Only an overlay of pending entries says so.
    Pending(Outcome),
    /// It was carried out, and was answered so.
    Done(Outcome),
    /// It is older than what is remembered of its session: it may have been carried out, and nobody knows.
    Forgotten,
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
    /// Whether [`SubjectView::count_up_to`] and [`SubjectView::newest_beyond`] can be asked: they speak of what is
    /// applied, and changes that are pending would make them wrong.
    fn counts_are_exact(&self) -> bool;
    /// What is known of a request.
    fn remembered(&self, id: RequestId) -> Result<Memory, ErrorReply>;
    /// The result of the last set that carried this message id, and its accept time. What is older than
    /// [`MSG_ID_WINDOW_MS`](dormouse_protocol::limits::MSG_ID_WINDOW_MS) may be forgotten or not: the caller checks.
    fn by_msg_id(&self, msg_id: &str) -> Result<Option<(SetResult, Timestamp)>, ErrorReply>;
}
