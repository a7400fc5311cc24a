//! From a request to an entry of the log: every decision about a write, and no I/O.
//!
//! [`plan`] looks at a request and at the subject as it will be once everything pending is applied, checks every limit
//! and expectation, and decides seq, rev, timestamps and what is replaced. What comes out is an [`Entry`], which can be
//! applied here, now, or elsewhere, later, with the same result.
//!
//! | module | holds |
//! |---|---|
//! | `view` | what planning asks of a subject |
//! | `pending`, `touched` | entries that are planned and not yet applied, as a layer over a subject |
//! | `set`, `draft`, `delete` | the rules of each request |
//! | `limits` | what a subject's limits make of a write |
//! | `room` | what they leave for a value that is still on its way up |
//! | `upkeep` | what goes by itself: what has expired, and what is above the limits |
//! | `level` | how durable a change must be |
//! | `outcome` | what a request is answered, now and when it comes again |
//! | `record`, [`size`] | what an entry consists of, and how large it becomes |

mod delete;
mod draft;
mod level;
mod limits;
mod outcome;
mod pending;
mod record;
mod room;
mod set;
pub mod size;
mod touched;
mod upkeep;
mod view;

pub use level::required;
pub use pending::{Pending, PendingView};
pub use record::{BlobRef, Operation, Record, RemovalCause, SetOperation};
pub use room::UploadRoom;
pub use upkeep::{is_above_limits, upkeep};
pub use view::{Held, Memory, SubjectState, SubjectView};

use dormouse_protocol::data::{ConfigureReply, ConfigureRequest, Expect};
use dormouse_protocol::limits::{ENVELOPE_BYTES, MAX_ITEMS_PER_REQUEST, MAX_KEY_BYTES};
use dormouse_protocol::{ErrorCode, ErrorReply, MessageId, Position, RequestId, Timestamp};

use self::delete::{DELETE_RECORD_BYTES, cut};
use self::limits::Amount;
use crate::api::{Reply, Request};
use crate::entry::{Entry, Outcome, Remembered};

/// What belongs to a request beside its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// The server's clock. A request is accepted at this time, or at the subject's last accept time if that is later.
    pub accept_time: Timestamp,
    /// The largest encoded message or answer that can be sent on: what is larger could be written but never read, and
    /// of what is done nobody could be told.
    pub max_message_bytes: usize,
    /// Values of a set request that have been put into objects of their own: the set's place in the request, from 0,
    /// and the object. Such a value stays out of the log.
    pub blobs: &'a [(usize, BlobRef)],
}

impl Context<'_> {
    fn most_bytes(&self) -> usize {
        self.max_message_bytes.saturating_sub(ENVELOPE_BYTES)
    }

    fn blob(&self, place: usize) -> Option<BlobRef> {
        self.blobs.iter().find(|(at, _)| *at == place).map(|&(_, blob)| blob)
    }
}

/// What a changing request comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "the largest is the usual one, and none is kept for long")]
pub enum Planned {
    /// The answer is certain already: the request alone decided it, or nobody can say any more whether it was carried
    /// out.
    Answer(Result<Reply, ErrorReply>),
    /// Nothing changes and nothing has to be remembered, but the subject's state had a say in the answer, or remembers it
    /// of an earlier copy of the request. It may tell
    /// of what is pending at this moment, and so has to wait until all of that is acknowledged; and like a read it needs the
    /// certainty that nobody else has taken the subject over.
    Settle(Result<Reply, ErrorReply>),
    /// It cannot be decided while changes are pending: to be planned again, before anything that came after it, once
    /// nothing is.
    Later,
    /// To be logged, and answered by the outcome once it has reached its level.
    Write {
        /// What goes to the log. Without operations it only remembers the answer.
        entry: Entry,
        /// The answer.
        outcome: Outcome,
    },
}

/// What a request comes to before it is certain that its answer can be sent.
struct Decision {
    operations: Vec<Operation>,
    outcome: Outcome,
    /// Whether the state had a say in it.
    by_state: bool,
}

/// Why nothing comes of a request, or of a part of it.
enum Refusal {
    /// By the request alone: it will always be refused.
    Outright(ErrorReply),
    /// By what is there: later it might be carried out, so that the answer has to be remembered.
    ByState(ErrorReply),
    /// What is there cannot be read: nobody has decided anything.
    Unreadable(ErrorReply),
    /// It cannot be decided while changes are pending.
    Undecided,
}

impl Refusal {
    fn bad_request(why: impl Into<String>) -> Self {
        Self::Outright(ErrorReply::bad_request(why))
    }
}

/// Whatever fails without further word is a view that cannot be read.
impl From<ErrorReply> for Refusal {
    fn from(error: ErrorReply) -> Self {
        Self::Unreadable(error)
    }
}

/// Plans a changing request. Any other is answered `internal`.
///
/// What was carried out before is found first, before expectations and limits: a repeat is answered as the first was,
/// whatever has become of the subject since.
#[must_use]
pub fn plan(request: &Request, view: &impl SubjectView, context: Context<'_>) -> Planned {
    if let Some(known) = recall(request, view, context) {
        return known;
    }
    let accept_time = context.accept_time.max(view.state().accept_time);
    let context = Context { accept_time, ..context };
    let decided = match request {
        Request::Set(request) => set::plan_set(request, view, context),
        Request::Delete(request) => delete::plan_delete(request, view, context),
        Request::DeleteAll(request) => delete::plan_delete_all(request, view),
        Request::Configure(request) => plan_configure(request, view, context),
        Request::Get(_)
        | Request::GetAll(_)
        | Request::Keys(_)
        | Request::Changes(_)
        | Request::Info
        | Request::Flush
        | Request::Compact
        | Request::Destroy(_)
        | Request::HandOver
        | Request::UploadBegin(_)
        | Request::UploadChunk(_)
        | Request::UploadFinish(_)
        | Request::UploadCancel(_)
        | Request::GetChunk(_) => Err(ErrorReply::internal("a request that is not planned").into()),
    };
    finish(decided, request_id(request), view.state(), context)
}

/// What is answered to a request that was carried out before, or of which nobody can say any more whether it was; `None`
/// where it is new. All that [`plan`] has to say of a destroy, which is no entry of the log.
#[must_use]
pub fn recall(request: &Request, view: &impl SubjectView, context: Context<'_>) -> Option<Planned> {
    match view.remembered(request_id(request)?) {
        Ok(Memory::New) => None,
        // Also what is applied: a successor may have gone on without it.
        Ok(Memory::Pending(outcome) | Memory::Done(outcome)) => {
            Some(Planned::Settle(repeat(request, outcome, context)))
        }
        Ok(Memory::Forgotten) => Some(Planned::Answer(Err(forgotten()))),
        Err(error) => Some(Planned::Answer(Err(error))),
    }
}

/// The id under which a changing request is remembered.
#[must_use]
pub const fn request_id(request: &Request) -> Option<RequestId> {
    match request {
        Request::Set(request) => request.request,
        Request::Delete(request) => request.request,
        Request::DeleteAll(request) => request.request,
        Request::Configure(request) => request.request,
        Request::Destroy(request) => request.request,
        Request::Get(_)
        | Request::GetAll(_)
        | Request::Keys(_)
        | Request::Changes(_)
        | Request::Info
        | Request::Flush
        | Request::Compact
        | Request::HandOver
        | Request::UploadBegin(_)
        | Request::UploadChunk(_)
        | Request::UploadFinish(_)
        | Request::UploadCancel(_)
        | Request::GetChunk(_) => None,
    }
}

fn finish(
    decided: Result<Decision, Refusal>,
    id: Option<RequestId>,
    state: &SubjectState,
    context: Context<'_>,
) -> Planned {
    let Decision { operations, outcome, by_state } = match decided {
        Ok(decision) => decision,
        Err(Refusal::Outright(error) | Refusal::Unreadable(error)) => return Planned::Answer(Err(error)),
        Err(Refusal::Undecided) => return Planned::Later,
        Err(Refusal::ByState(error)) => {
            Decision { operations: Vec::new(), outcome: Outcome::Refused(error), by_state: true }
        }
    };
    let (size, most) = (outcome.size_bytes(), context.most_bytes());
    if size > most {
        return Planned::Answer(Err(ErrorReply::too_large("max_reply_bytes", size, most)));
    }
    if operations.is_empty() && !by_state {
        return Planned::Answer(outcome.answer());
    }
    if operations.is_empty() && id.is_none() {
        return Planned::Settle(outcome.answer());
    }
    let request = id.map(|id| Remembered { id, outcome: outcome.clone() });
    let entry =
        Entry { term: state.term, after: state.rev, accept_time: context.accept_time, request, operations };
    Planned::Write { entry, outcome }
}

/// The answer to a request that was carried out before.
fn repeat(request: &Request, first: Outcome, context: Context<'_>) -> Result<Reply, ErrorReply> {
    if !first.answers(request) {
        return Err(ErrorReply::bad_request("the id of this request belongs to another one"));
    }
    let (size, most) = (first.size_bytes(), context.most_bytes());
    if size > most {
        return Err(ErrorReply::new(
            ErrorCode::Indeterminate,
            format!("the request was answered before, in {size} bytes where at most {most} can be sent now"),
        ));
    }
    first.repeated().answer()
}

fn forgotten() -> ErrorReply {
    ErrorReply::new(
        ErrorCode::Indeterminate,
        "the request is older than what is remembered of its session: it may have been carried out before",
    )
}

fn plan_configure(
    request: &ConfigureRequest,
    view: &impl SubjectView,
    context: Context<'_>,
) -> Result<Decision, Refusal> {
    let config = &request.config;
    limits::check_config(config)?;
    let mut operations = vec![Operation::Configure { config: config.clone() }];
    // Its own: what goes because of it are changes behind it.
    let position = position_after(view.state(), &operations);
    if limits::are_set(config) && limits::makes_room(config) {
        let msgs = view.state().count;
        let bytes = if config.max_bytes.is_some() { view.bytes().ok_or(Refusal::Undecided)? } else { 0 };
        let mut excess = Amount { msgs, bytes }.above(config, Amount::default());
        let evicted = limits::evict(view, &mut excess, |_| false)?.removed;
        let most_bytes = DELETE_RECORD_BYTES.min(context.most_bytes());
        operations.extend(cut(evicted, most_bytes, RemovalCause::Evicted));
    }
    let outcome = Outcome::Configure(ConfigureReply { position, duplicate: false });
    Ok(Decision { operations, outcome, by_state: true })
}

/// Where the subject is once `operations` are applied, one rev each.
fn position_after(state: &SubjectState, operations: &[Operation]) -> Position {
    let rev = operations.iter().fold(state.rev, |rev, _| rev.next());
    Position { term: state.term, rev }
}

/// Checks the length of a key, of a message or asked for.
///
/// # Errors
/// `too_large`.
pub fn check_key(key: &str) -> Result<(), ErrorReply> {
    if key.len() > MAX_KEY_BYTES {
        Err(ErrorReply::too_large("max_key_bytes", key.len(), MAX_KEY_BYTES))
    } else {
        Ok(())
    }
}

/// Checks the number of things in one request.
///
/// # Errors
/// `too_large`.
pub fn check_items(items: usize) -> Result<(), ErrorReply> {
    if items > MAX_ITEMS_PER_REQUEST {
        Err(ErrorReply::too_large("max_items_per_request", items, MAX_ITEMS_PER_REQUEST))
    } else {
        Ok(())
    }
}

/// Compares what the caller believes with what is there.
fn check_expectation(
    expect: Option<Expect>,
    last: Option<MessageId>,
    key_holder: Option<MessageId>,
) -> Result<(), Refusal> {
    match expect {
        None => Ok(()),
        Some(Expect::Last(expected)) if expected == last => Ok(()),
        Some(Expect::Last(_)) => Err(Refusal::ByState(ErrorReply::wrong_last(last))),
        Some(Expect::Key(expected)) if expected == key_holder => Ok(()),
        Some(Expect::Key(expected)) => Err(Refusal::ByState(match (expected, key_holder) {
            (None, Some(holder)) => ErrorReply::key_exists(holder),
            _ => ErrorReply::wrong_last(key_holder),
        })),
    }
}

#[cfg(test)]
pub(crate) mod tests;
