//! From a request to records: every decision about a write, and no I/O.
//!
//! [`plan`] looks at a request and at the subject as it is, checks every limit and expectation, and decides seq, rev,
//! timestamps and what is replaced. What comes out are [`Record`]s, which can be applied here, now, or elsewhere,
//! later, with the same result.

mod draft;
mod level;
mod record;
pub mod size;
mod view;

pub use level::required;
pub use record::{BlobRef, Operation, Record, RemovalCause, SetOperation};
pub use view::{Held, Memory, SubjectState, SubjectView};

use dormouse_protocol::data::{
    ConfigureReply, ConfigureRequest, DeleteAllReply, DeleteAllRequest, DeleteReply, DeleteRequest, Expect,
    SetItem, SetOutcome, SetReply, SetRequest, SetResult,
};
use dormouse_protocol::limits::{
    ENVELOPE_BYTES, MAX_HEADERS_BYTES, MAX_ITEMS_PER_REQUEST, MAX_KEY_BYTES, MAX_METADATA_BYTES, MAX_SEQ,
};
use dormouse_protocol::message::{Removed, SubjectConfig};
use dormouse_protocol::{ErrorCode, ErrorReply, Level, MessageId, Position, Rev, Seq, Timestamp};

use crate::api::{Reply, Request};
use draft::Draft;

/// The most bytes of removed messages that one delete record names: it becomes one event, which must fit a payload.
const DELETE_RECORD_BYTES: usize = 128 * 1_024;

/// What belongs to a request beside its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// When the request is accepted: the server's clock, but never before the subject's last accept time.
    pub accept_time: Timestamp,
    /// The largest encoded message or answer that can be sent on: what is larger could be written but never read, and
    /// of what is done nobody could be told.
    pub max_message_bytes: usize,
}

/// What one part of a changing request comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned {
    /// A change to apply.
    Write(Record),
    /// This part is refused; the others stand.
    Refuse(ErrorReply),
}

impl Planned {
    /// The record, if there is one.
    #[must_use]
    pub const fn record(&self) -> Option<&Record> {
        match self {
            Self::Write(record) => Some(record),
            Self::Refuse(_) => None,
        }
    }
}

/// Plans a changing request. For `set` there is one [`Planned`] per item; for the others one per record, none when
/// nothing changes.
///
/// # Errors
/// The answer to a request that is refused as a whole; then nothing changes. Among the reasons: its answer would not
/// fit, `too_large` by `max_reply_bytes`.
pub fn plan(
    request: &Request,
    view: &impl SubjectView,
    context: Context,
) -> Result<Vec<Planned>, ErrorReply> {
    let planned = plan_unchecked(request, view, context)?;
    let (reply, most) =
        (planned.iter().map(part_of_reply).sum(), context.max_message_bytes.saturating_sub(ENVELOPE_BYTES));
    if reply > most { Err(ErrorReply::too_large("max_reply_bytes", reply, most)) } else { Ok(planned) }
}

/// The most bytes that one part adds to the answer.
fn part_of_reply(planned: &Planned) -> usize {
    match planned {
        Planned::Refuse(error) => size::of_error(error),
        Planned::Write(record) => match &record.operation {
            Operation::Set(_) => size::SET_RESULT_BYTES,
            Operation::Batch { sets } => sets.len() * size::SET_RESULT_BYTES,
            Operation::Delete { removed, .. } => size::of_seqs(removed.len()),
            Operation::DeleteAll { .. } | Operation::Configure { .. } => 0,
        },
    }
}

fn plan_unchecked(
    request: &Request,
    view: &impl SubjectView,
    context: Context,
) -> Result<Vec<Planned>, ErrorReply> {
    match request {
        Request::Set(request) => plan_set(request, view, context),
        Request::Delete(request) => plan_delete(request, view, context),
        Request::DeleteAll(request) => plan_delete_all(request, view, context),
        Request::Configure(request) => plan_configure(request, view, context),
        Request::Get(_)
        | Request::GetAll(_)
        | Request::Keys(_)
        | Request::Info
        | Request::Flush
        | Request::Destroy => Ok(Vec::new()),
    }
}

/// The answer to a changing request once everything in `planned` has been applied, or `None` for a request that
/// changes nothing by records. `before` is the subject's position before the first record.
#[must_use]
pub fn reply(request: &Request, planned: &[Planned], before: Position) -> Option<Reply> {
    let last = planned.iter().filter_map(Planned::record).next_back();
    let position = last.map_or(before, |record| Position { term: record.term, rev: record.rev });
    match request {
        Request::Set(_) => {
            Some(Reply::Set(SetReply { results: planned.iter().filter_map(set_outcome).collect() }))
        }
        Request::Delete(_) => {
            let mut seqs = Vec::new();
            for record in planned.iter().filter_map(Planned::record) {
                if let Operation::Delete { removed, .. } = &record.operation {
                    seqs.extend(removed.iter().map(|removed| removed.seq));
                }
            }
            Some(Reply::Delete(DeleteReply { position, seqs, duplicate: false }))
        }
        Request::DeleteAll(_) => {
            let count = match last.map(|record| &record.operation) {
                Some(Operation::DeleteAll { count, .. }) => *count,
                _ => 0,
            };
            Some(Reply::DeleteAll(DeleteAllReply { position, count, duplicate: false }))
        }
        Request::Configure(_) => Some(Reply::Configure(ConfigureReply { position, duplicate: false })),
        Request::Get(_)
        | Request::GetAll(_)
        | Request::Keys(_)
        | Request::Info
        | Request::Flush
        | Request::Destroy => None,
    }
}

fn set_outcome(planned: &Planned) -> Option<SetOutcome> {
    match planned {
        Planned::Refuse(error) => Some(SetOutcome::Error(error.clone())),
        Planned::Write(record) => match &record.operation {
            Operation::Set(set) => Some(SetOutcome::Ok(SetResult {
                seq: set.seq,
                term: record.term,
                rev: record.rev,
                timestamp: set.timestamp,
                duplicate: false,
            })),
            Operation::Batch { .. }
            | Operation::Delete { .. }
            | Operation::DeleteAll { .. }
            | Operation::Configure { .. } => None,
        },
    }
}

fn plan_set(
    request: &SetRequest,
    view: &impl SubjectView,
    context: Context,
) -> Result<Vec<Planned>, ErrorReply> {
    check_level(request.level)?;
    if request.atomic {
        return Err(ErrorReply::unsupported("atomic batches"));
    }
    if request.sets.is_empty() {
        return Err(ErrorReply::bad_request("a set request needs at least one set"));
    }
    check_items(request.sets.len())?;
    let mut pending = Draft::new(view);
    let term = view.state().term;
    let mut planned = Vec::with_capacity(request.sets.len());
    for (place, item) in request.sets.iter().enumerate() {
        planned.push(match plan_item(item, &pending, context) {
            Ok(set) => {
                let id = MessageId { term, seq: set.seq };
                pending.advance(id);
                // Most requests hold one set: nobody comes after it to whom it would matter.
                if place + 1 < request.sets.len() {
                    pending.remember(id, set.key.as_deref(), set.replaces);
                }
                Planned::Write(Record {
                    term,
                    rev: pending.rev,
                    accept_time: context.accept_time,
                    operation: Operation::Set(set),
                })
            }
            // A state that cannot be read is no refusal of one set: nothing of the request may be carried out.
            Err(error) if is_unreadable(&error) => return Err(error),
            Err(error) => Planned::Refuse(error),
        });
    }
    Ok(planned)
}

const fn is_unreadable(error: &ErrorReply) -> bool {
    matches!(error.code, ErrorCode::Internal | ErrorCode::Corrupt | ErrorCode::Unavailable)
}

fn plan_item<V: SubjectView>(
    item: &SetItem,
    pending: &Draft<'_, V>,
    context: Context,
) -> Result<SetOperation, ErrorReply> {
    check_item(item, context)?;
    let key_holder = item.key.as_deref().map(|key| pending.under(key)).transpose()?.flatten();
    check_expectation(item.expect, pending.last, item.key.is_some(), key_holder)?;
    let (seq, in_place) = match item.seq {
        None => (pending.next_seq, false),
        Some(seq) if seq >= pending.next_seq => (seq, false),
        Some(seq) => match pending.at(seq)? {
            Some(held) if held.key == item.key => (seq, true),
            Some(_) => {
                return Err(ErrorReply::bad_request(format!("the message at {seq} has another key")));
            }
            None => {
                return Err(ErrorReply::bad_request(format!(
                    "there is no message at {seq}, and the next is {}",
                    pending.next_seq
                )));
            }
        },
    };
    if seq.get() > MAX_SEQ {
        return Err(ErrorReply::bad_request(format!("a seq is at most {MAX_SEQ}")));
    }
    Ok(SetOperation {
        seq,
        key: item.key.clone(),
        value: item.value.clone(),
        headers: item.headers.clone(),
        timestamp: item.timestamp.unwrap_or(context.accept_time),
        replaces: if in_place { Some(seq) } else { key_holder.map(|holder| holder.seq) },
        expires_at: None,
        blob: None,
        msg_id: None,
    })
}

fn check_item(item: &SetItem, context: Context) -> Result<(), ErrorReply> {
    if item.ttl_ms.is_some() {
        return Err(ErrorReply::unsupported("a time to live"));
    }
    if item.msg_id.is_some() {
        return Err(ErrorReply::unsupported("message ids"));
    }
    if let Some(key) = &item.key {
        check_key(key)?;
    }
    let headers = item.headers.size_bytes();
    if headers > MAX_HEADERS_BYTES {
        return Err(ErrorReply::too_large("max_headers_bytes", headers, MAX_HEADERS_BYTES));
    }
    let size = size::parts_bytes(item.key.as_deref(), item.value.as_ref(), &item.headers);
    let most = context.max_message_bytes.saturating_sub(ENVELOPE_BYTES);
    if size > most { Err(ErrorReply::too_large("max_message_bytes", size, most)) } else { Ok(()) }
}

fn plan_delete(
    request: &DeleteRequest,
    view: &impl SubjectView,
    context: Context,
) -> Result<Vec<Planned>, ErrorReply> {
    check_level(request.level)?;
    if request.seqs.is_empty() && request.keys.is_empty() {
        return Err(ErrorReply::bad_request("a delete request needs at least one seq or key"));
    }
    check_items(request.seqs.len() + request.keys.len())?;
    request.keys.iter().try_for_each(|key| check_key(key))?;
    let single_key = match (request.seqs.as_slice(), request.keys.as_slice()) {
        ([], [key]) => Some(key),
        _ => None,
    };
    if matches!(request.expect, Some(Expect::Key(_))) && single_key.is_none() {
        return Err(ErrorReply::bad_request("an expectation on a key needs exactly one key and no seq"));
    }
    let mut removed = Vec::new();
    for key in &request.keys {
        if let Some(id) = view.under(key)? {
            removed.push(Removed { seq: id.seq, key: Some(key.clone()) });
        }
    }
    let key_holder = match (single_key, request.expect) {
        (Some(key), Some(Expect::Key(_))) => view.under(key)?,
        _ => None,
    };
    check_expectation(request.expect, view.state().last, single_key.is_some(), key_holder)?;
    for &seq in &request.seqs {
        if let Some(held) = view.at(seq)? {
            removed.push(Removed { seq, key: held.key });
        }
    }
    removed.sort_unstable_by_key(|removed| removed.seq);
    removed.dedup_by_key(|removed| removed.seq);
    Ok(delete_records(removed, view.state(), context))
}

/// One record per run of removed messages that fits an event: a record cut in two events would look complete to a
/// watcher that lost the second.
fn delete_records(removed: Vec<Removed>, state: &SubjectState, context: Context) -> Vec<Planned> {
    let most = DELETE_RECORD_BYTES.min(context.max_message_bytes.saturating_sub(ENVELOPE_BYTES));
    let mut runs: Vec<Vec<Removed>> = Vec::new();
    let mut run_bytes = 0;
    for one in removed {
        let bytes = size::of_removed(&one);
        match runs.last_mut() {
            Some(run) if run_bytes + bytes <= most => {
                run_bytes += bytes;
                run.push(one);
            }
            _ => {
                run_bytes = bytes;
                runs.push(vec![one]);
            }
        }
    }
    let mut rev = state.rev;
    let mut records = Vec::with_capacity(runs.len());
    for run in runs {
        rev = rev.next();
        records.push(write(
            state,
            rev,
            context,
            Operation::Delete { removed: run, cause: RemovalCause::Asked },
        ));
    }
    records
}

fn plan_delete_all(
    request: &DeleteAllRequest,
    view: &impl SubjectView,
    context: Context,
) -> Result<Vec<Planned>, ErrorReply> {
    check_level(request.level)?;
    let state = view.state();
    let newest = Seq::new(state.next_seq.get().saturating_sub(1));
    let end_seq = match (request.end_seq, request.keep_last) {
        (Some(_), Some(_)) => {
            return Err(ErrorReply::bad_request("end_seq and keep_last exclude each other"));
        }
        (Some(end_seq), None) => Some(end_seq.min(newest)),
        (None, Some(keep)) => view.newest_beyond(keep)?,
        (None, None) => Some(newest),
    };
    let Some(end_seq) = end_seq else { return Ok(Vec::new()) };
    match view.count_up_to(end_seq)? {
        0 => Ok(Vec::new()),
        count => Ok(vec![write(state, state.rev.next(), context, Operation::DeleteAll { end_seq, count })]),
    }
}

fn plan_configure(
    request: &ConfigureRequest,
    view: &impl SubjectView,
    context: Context,
) -> Result<Vec<Planned>, ErrorReply> {
    let SubjectConfig {
        level,
        max_msgs,
        max_bytes,
        max_age_ms,
        max_msg_size,
        discard,
        default_ttl_ms,
        metadata,
    } = &request.config;
    check_level(*level)?;
    let limits = [max_msgs, max_bytes, max_age_ms, max_msg_size, default_ttl_ms];
    if limits.iter().any(|limit| limit.is_some()) || discard.is_some() {
        return Err(ErrorReply::unsupported("limits and expiry"));
    }
    let metadata_bytes = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if metadata_bytes > MAX_METADATA_BYTES {
        return Err(ErrorReply::too_large("max_metadata_bytes", metadata_bytes, MAX_METADATA_BYTES));
    }
    let state = view.state();
    let operation = Operation::Configure { config: request.config.clone() };
    Ok(vec![write(state, state.rev.next(), context, operation)])
}

fn write(state: &SubjectState, rev: Rev, context: Context, operation: Operation) -> Planned {
    Planned::Write(Record { term: state.term, rev, accept_time: context.accept_time, operation })
}

/// The levels above `memory` need what this version does not have: saying so is the only honest answer.
///
/// # Errors
/// `unsupported` for any other level.
pub fn check_level(level: Option<Level>) -> Result<(), ErrorReply> {
    match level {
        None | Some(Level::Memory) => Ok(()),
        Some(level) => Err(ErrorReply::unsupported(format_args!(
            "the durability level `{level}`: in this version every write has the level `memory`"
        ))),
    }
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

fn check_expectation(
    expect: Option<Expect>,
    last: Option<MessageId>,
    has_key: bool,
    key_holder: Option<MessageId>,
) -> Result<(), ErrorReply> {
    match expect {
        None => Ok(()),
        Some(Expect::Last(expected)) if expected == last => Ok(()),
        Some(Expect::Last(_)) => Err(ErrorReply::wrong_last(last)),
        Some(Expect::Key(_)) if !has_key => {
            Err(ErrorReply::bad_request("an expectation on a key needs a key"))
        }
        Some(Expect::Key(expected)) if expected == key_holder => Ok(()),
        Some(Expect::Key(expected)) => Err(match (expected, key_holder) {
            (None, Some(holder)) => ErrorReply::key_exists(holder),
            _ => ErrorReply::wrong_last(key_holder),
        }),
    }
}

#[cfg(test)]
mod tests;
