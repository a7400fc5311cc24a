//! Plans requests: from a request to an entry of the log. Every decision about a write is made here, and
//! there is no I/O.
//!
//! [`PlanProgress`] reads a request and the subject as it will be once all pending entries are applied. It checks
//! every limit and expectation, and decides seq, rev, timestamps and the replaced messages. The result is a
//! [`LogEntry`], which gives the same result wherever and whenever it is applied.
//!
//! Planning proceeds in [slices](crate::database::Slice). Between two slices nothing of it is in the subject: a
//! caller that drops it leaves no trace.
//!
//! | module | contents |
//! |---|---|
//! | `view` | the queries of planning to a subject |
//! | `pending`, `overlay` | entries that are planned and not yet applied, as an overlay on a subject |
//! | `progress` | how far the planning of a request is |
//! | `set`, `draft`, `delete` | the rules of each request |
//! | `limits` | the effect of a subject's limits on a write |
//! | `upload_quota` | the effect of the limits on a value that is still being uploaded |
//! | `retention` | removal of expired messages, and of messages above the limits |
//! | `level` | how durable a change must be |
//! | `outcome` | the reply to a request, and to its repeats |
//! | [`size`] | the encoded sizes of the parts of an entry |

mod delete;
mod draft;
mod level;
mod limits;
mod outcome;
mod overlay;
mod pending;
mod progress;
mod retention;
mod set;
pub mod size;
mod upload_quota;
mod view;

pub use level::required;
pub use outcome::answer;
pub use pending::{PendingChanges, PendingView, PushProgress};
pub use progress::PlanProgress;
pub use retention::{RetentionProgress, is_above_limits};
pub use size::fits_slice;
pub use upload_quota::UploadQuota;
pub use view::{DedupLookup, ExpiryCursor, StoredMessage, SubjectState, SubjectView};

use dormouse_format::entry::{DedupRecord, LogEntry, WriteOutcome};
use dormouse_format::record::{BlobRef, RecordOp};
use dormouse_protocol::data::Expect;
use dormouse_protocol::limits::{ENVELOPE_BYTES, MAX_ITEMS_PER_REQUEST, MAX_KEY_BYTES};
use dormouse_protocol::{ErrorCode, ErrorReply, MessageId, Position, RequestId, Timestamp};

use crate::request::{ChangeRequest, SubjectReply, SubjectRequest};

/// The context of a request, beside its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanContext<'a> {
    /// The server's clock. A request is accepted at this time, or at the subject's last accept time if that is later.
    pub accept_time: Timestamp,
    /// The largest encoded message or reply that can be sent. A larger message could be written but never
    /// read, and a larger reply could not be delivered.
    pub max_message_bytes: usize,
    /// Values of a set request that are stored as blobs: the set's index in the request, from 0, and the
    /// object, in order of index. Such a value stays out of the log.
    pub blobs: &'a [(usize, BlobRef)],
}

impl PlanContext<'_> {
    fn most_bytes(&self) -> usize {
        self.max_message_bytes.saturating_sub(ENVELOPE_BYTES)
    }

    fn blob(&self, index: usize) -> Option<BlobRef> {
        self.blobs.binary_search_by_key(&index, |(at, _)| *at).ok().map(|place| self.blobs[place].1)
    }
}

/// The result of planning a changing request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "the largest is the usual one, and none is kept for long")]
pub enum PlanResult {
    /// The reply is final: the request alone decides it, or it is no longer known whether the request was
    /// executed.
    Answer(Result<SubjectReply, ErrorReply>),
    /// Nothing changes and no reply has to be recorded. But the reply depends on the subject's state, or
    /// repeats the recorded reply to an earlier copy. It may depend on pending changes, so it waits until all
    /// of them are acknowledged. Like a read, it needs a confirmed lease or a barrier.
    DeferredAnswer(Result<SubjectReply, ErrorReply>),
    /// It cannot be decided while changes are pending. It is planned again, before any later request, once
    /// none is pending.
    Later,
    /// The entry to log. The outcome is the reply once the entry has reached its level.
    Write {
        /// The entry for the log. Without operations it only records the reply.
        entry: LogEntry,
        /// The reply.
        outcome: WriteOutcome,
    },
}

/// The decision about a request, before the size of its reply is checked.
struct PlanDecision {
    operations: Vec<RecordOp>,
    outcome: WriteOutcome,
    /// Whether it depends on the state.
    by_state: bool,
}

/// Why a request, or a part of it, is rejected.
enum PlanRejection {
    /// By the request alone: it is always rejected.
    ByRequest(ErrorReply),
    /// By the state: it might succeed later, so the reply has to be recorded.
    ByState(ErrorReply),
    /// The state cannot be read: nothing is decided.
    Unreadable(ErrorReply),
    /// It cannot be decided while changes are pending.
    Undecided,
}

impl PlanRejection {
    fn bad_request(why: impl Into<String>) -> Self {
        Self::ByRequest(ErrorReply::bad_request(why))
    }
}

/// A bare `ErrorReply` comes from a view that cannot be read.
impl From<ErrorReply> for PlanRejection {
    fn from(error: ErrorReply) -> Self {
        Self::Unreadable(error)
    }
}

/// The reply to a request that was executed before, or of which it is no longer known whether it was
/// executed; `None` if it is new. For a destroy, which is not an entry of the log, planning does nothing else.
#[must_use]
pub fn remembered_reply(
    request: &SubjectRequest,
    view: &impl SubjectView,
    context: PlanContext<'_>,
) -> Option<PlanResult> {
    match view.remembered(request_id(request)?) {
        Ok(DedupLookup::New) => None,
        // Also for an applied change: a successor may not have it.
        Ok(DedupLookup::Pending(outcome) | DedupLookup::Done(outcome)) => {
            Some(PlanResult::DeferredAnswer(repeat(request, outcome, context)))
        }
        Ok(DedupLookup::Forgotten) => Some(PlanResult::Answer(Err(ErrorReply::forgotten()))),
        Err(error) => Some(PlanResult::Answer(Err(error))),
    }
}

/// The id under which the dedup window stores a changing request.
#[must_use]
pub fn request_id(request: &SubjectRequest) -> Option<RequestId> {
    match request.as_change()? {
        ChangeRequest::Set(request) => request.request,
        ChangeRequest::Delete(request) => request.request,
        ChangeRequest::DeleteAll(request) => request.request,
        ChangeRequest::Configure(request) => request.request,
        ChangeRequest::Destroy(request) => request.request,
    }
}

fn finish(
    decided: Result<PlanDecision, PlanRejection>,
    id: Option<RequestId>,
    state: &SubjectState,
    context: PlanContext<'_>,
) -> PlanResult {
    let PlanDecision { operations, outcome, by_state } = match decided {
        Ok(decision) => decision,
        Err(PlanRejection::ByRequest(error) | PlanRejection::Unreadable(error)) => {
            return PlanResult::Answer(Err(error));
        }
        Err(PlanRejection::Undecided) => return PlanResult::Later,
        Err(PlanRejection::ByState(error)) => {
            PlanDecision { operations: Vec::new(), outcome: WriteOutcome::Refused(error), by_state: true }
        }
    };
    let (size, most) = (outcome::size_bytes(&outcome), context.most_bytes());
    if size > most {
        return PlanResult::Answer(Err(ErrorReply::too_large("max_reply_bytes", size, most)));
    }
    if operations.is_empty() && !by_state {
        return PlanResult::Answer(answer(outcome));
    }
    if operations.is_empty() && id.is_none() {
        return PlanResult::DeferredAnswer(answer(outcome));
    }
    let request = id.map(|id| DedupRecord { id, outcome: outcome.clone() });
    let entry = LogEntry {
        term: state.term,
        after: state.rev,
        accept_time: context.accept_time,
        request,
        operations,
    };
    PlanResult::Write { entry, outcome }
}

/// The reply to a request that was executed before.
fn repeat(
    request: &SubjectRequest,
    first: WriteOutcome,
    context: PlanContext<'_>,
) -> Result<SubjectReply, ErrorReply> {
    if !outcome::answers(&first, request) {
        return Err(ErrorReply::bad_request("the id of this request belongs to another one"));
    }
    let (size, most) = (outcome::size_bytes(&first), context.most_bytes());
    if size > most {
        return Err(ErrorReply::new(
            ErrorCode::Indeterminate,
            format!("the request was answered before, in {size} bytes where at most {most} can be sent now"),
        ));
    }
    answer(outcome::repeated(first))
}

/// The subject's position once `operations` are applied, one rev each.
fn position_after(state: &SubjectState, operations: &[RecordOp]) -> Position {
    let rev = operations.iter().fold(state.rev, |rev, _| rev.next());
    Position { term: state.term, rev }
}

/// Checks the length of the key of a message or of a query.
///
/// # Errors
/// `too_large`.
pub(crate) fn check_key(key: &str) -> Result<(), ErrorReply> {
    if key.len() > MAX_KEY_BYTES {
        Err(ErrorReply::too_large("max_key_bytes", key.len(), MAX_KEY_BYTES))
    } else {
        Ok(())
    }
}

/// Checks the number of items in one request.
///
/// # Errors
/// `too_large`.
pub(crate) fn check_items(items: usize) -> Result<(), ErrorReply> {
    if items > MAX_ITEMS_PER_REQUEST {
        Err(ErrorReply::too_large("max_items_per_request", items, MAX_ITEMS_PER_REQUEST))
    } else {
        Ok(())
    }
}

/// Compares the caller's expectation with the current state.
fn check_expectation(
    expect: Option<Expect>,
    last: Option<MessageId>,
    key_holder: Option<MessageId>,
) -> Result<(), PlanRejection> {
    match expect {
        None => Ok(()),
        Some(Expect::Last(expected)) if expected == last => Ok(()),
        Some(Expect::Last(_)) => Err(PlanRejection::ByState(ErrorReply::wrong_last(last))),
        Some(Expect::Key(expected)) if expected == key_holder => Ok(()),
        Some(Expect::Key(expected)) => Err(PlanRejection::ByState(match (expected, key_holder) {
            (None, Some(holder)) => ErrorReply::key_exists(holder),
            _ => ErrorReply::wrong_last(key_holder),
        })),
    }
}

#[cfg(test)]
pub(crate) use tests::{plan, plan_retention};

#[cfg(test)]
pub(crate) mod tests;
