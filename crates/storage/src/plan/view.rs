//! What planning needs to know of a subject.

use dormouse_protocol::data::SetResult;
use dormouse_protocol::message::{Removed, SubjectConfig};
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
    /// Size of its value in bytes.
    pub size: u64,
}

impl Held {
    /// What watchers are told when it goes.
    #[must_use]
    pub fn removed(self) -> Removed {
        Removed { seq: self.id.seq, key: self.key }
    }
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
    /// Bytes of all values together; `None` while changes are pending of which it is not known what they free.
    fn bytes(&self) -> Option<u64>;
    /// The first messages from `from` on, in order of seq: at most `limit`, and fewer only where there are no more.
    fn oldest(&self, from: Seq, limit: usize) -> Result<Vec<Held>, ErrorReply>;
    /// Messages whose time is over at the accept time `now`, by their own time to live or because they are of that age: at
    /// most `limit`. What is pending counts once it is applied.
    fn expired(&self, now: Timestamp, max_age_ms: Option<u64>, limit: usize)
    -> Result<Vec<Held>, ErrorReply>;
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
