//! Plans sets: one by one, or as a batch.

use std::collections::HashSet;

use dormouse_format::entry::WriteOutcome;
use dormouse_format::record::{RecordOp, RemovalCause, SetOperation};
use dormouse_protocol::data::{Expect, SetItem, SetOutcome, SetReply, SetRequest, SetResult};
use dormouse_protocol::limits::{
    MAX_ATOMIC_BATCH_BYTES, MAX_CALLER_SEQ, MAX_HEADERS_BYTES, MAX_MSG_ID_BYTES, MAX_SEQ,
};
use dormouse_protocol::{ErrorReply, Seq};

use super::delete::{DELETE_RECORD_BYTES, cut};
use super::draft::RequestOverlay;
use super::view::SubjectView;
use super::{PlanContext, PlanDecision, PlanRejection, check_expectation, check_items, check_key, size};

/// The result of planning one set.
enum PlannedSet {
    Write(SetOperation),
    /// A set with the same message id was executed before.
    Duplicate(SetResult),
}

pub(super) fn plan_set(
    request: &SetRequest,
    view: &impl SubjectView,
    context: PlanContext<'_>,
) -> Result<PlanDecision, PlanRejection> {
    if request.sets.is_empty() {
        return Err(PlanRejection::bad_request("a set request needs at least one set"));
    }
    check_items(request.sets.len()).map_err(PlanRejection::ByRequest)?;
    check_bytes(request, context)?;
    check_uploads(&request.sets)?;
    let draft = RequestOverlay::new(view, request.atomic, context.accept_time)?;
    if request.atomic {
        plan_batch(&request.sets, draft, context)
    } else {
        plan_each(&request.sets, draft, context)
    }
}

/// All sets of one request become one entry of the log, which is never split.
fn check_bytes(request: &SetRequest, context: PlanContext<'_>) -> Result<(), PlanRejection> {
    let logged = |(index, item): (usize, &SetItem)| match context.blob(index) {
        Some(_) => SetItem { value: None, ..item.clone() },
        None => item.clone(),
    };
    let most: usize = request.sets.iter().map(size::of_item).sum();
    if most <= MAX_ATOMIC_BATCH_BYTES {
        return Ok(());
    }
    // Only a request that may be too large is measured exactly.
    let mut bytes = 0;
    for item in request.sets.iter().enumerate().map(logged) {
        let encoded = dormouse_protocol::encode(&item)
            .map_err(|error| PlanRejection::bad_request(format!("a set cannot be encoded: {error}")))?;
        bytes += encoded.len();
    }
    if bytes <= MAX_ATOMIC_BATCH_BYTES {
        return Ok(());
    }
    let limit = if request.atomic { "max_atomic_batch_bytes" } else { "max_request_bytes" };
    Err(PlanRejection::ByRequest(ErrorReply::too_large(limit, bytes, MAX_ATOMIC_BATCH_BYTES)))
}

/// A blob belongs to one message.
fn check_uploads(items: &[SetItem]) -> Result<(), PlanRejection> {
    let mut seen = HashSet::new();
    match items.iter().filter_map(|item| item.uploaded).find(|value| !seen.insert(value.upload)) {
        None => Ok(()),
        Some(value) => {
            Err(PlanRejection::bad_request(format!("two sets have the value of upload {}", value.upload)))
        }
    }
}

fn plan_each<V: SubjectView>(
    sets: &[SetItem],
    mut draft: RequestOverlay<'_, V>,
    context: PlanContext<'_>,
) -> Result<PlanDecision, PlanRejection> {
    let mut operations = Vec::with_capacity(sets.len());
    let mut results = Vec::with_capacity(sets.len());
    let mut by_state = false;
    for (index, item) in sets.iter().enumerate() {
        results.push(match plan_item(item, index, &draft, context) {
            Ok(PlannedSet::Write(set)) => {
                let result = draft.advance(&set)?;
                // Most requests hold one set, so no later set depends on it.
                if !draft.is_last(index, sets.len()) {
                    draft.record_set(&set, result);
                }
                operations.push(RecordOp::Set(set));
                SetOutcome::Ok(result)
            }
            Ok(PlannedSet::Duplicate(first)) => {
                by_state = true;
                SetOutcome::Ok(SetResult { duplicate: true, ..first })
            }
            Err(PlanRejection::ByRequest(error)) => SetOutcome::Error(error),
            Err(PlanRejection::ByState(error)) => {
                by_state = true;
                SetOutcome::Error(error)
            }
            // A state that cannot be read rejects the whole request: no set of it may be executed.
            Err(refusal @ (PlanRejection::Unreadable(_) | PlanRejection::Undecided)) => return Err(refusal),
        });
    }
    operations.extend(evictions(&draft, context)?);
    Ok(PlanDecision { operations, outcome: WriteOutcome::Set(SetReply { results }), by_state })
}

/// The evictions caused by the planned sets.
fn evictions<V: SubjectView>(
    draft: &RequestOverlay<'_, V>,
    context: PlanContext<'_>,
) -> Result<Vec<RecordOp>, PlanRejection> {
    let most_bytes = DELETE_RECORD_BYTES.min(context.most_bytes());
    Ok(cut(draft.evict()?, most_bytes, RemovalCause::Evicted))
}

fn plan_batch<V: SubjectView>(
    items: &[SetItem],
    mut draft: RequestOverlay<'_, V>,
    context: PlanContext<'_>,
) -> Result<PlanDecision, PlanRejection> {
    check_distinct(items, "key", |item| item.key.as_deref())?;
    check_distinct(items, "msg_id", |item| item.msg_id.as_deref())?;
    let mut sets = Vec::with_capacity(items.len());
    let mut results = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let planned = plan_item(item, index, &draft, context).map_err(|refusal| refusal.of_set(index))?;
        results.push(SetOutcome::Ok(match planned {
            PlannedSet::Write(set) => {
                let result = draft.advance(&set)?;
                if !draft.is_last(index, items.len()) {
                    draft.record_set(&set, result);
                }
                sets.push(set);
                result
            }
            PlannedSet::Duplicate(first) => SetResult { duplicate: true, ..first },
        }));
    }
    let operations = match sets.len() {
        // The whole batch was executed before.
        0 => Vec::new(),
        written if written == items.len() => {
            draft.admit_batch(&sets)?;
            let mut operations = vec![RecordOp::Batch { sets }];
            operations.extend(evictions(&draft, context)?);
            operations
        }
        // The batch can neither be written as a whole nor be a duplicate as a whole.
        _ => {
            return Err(PlanRejection::ByState(ErrorReply::bad_request(
                "some sets of the batch were executed before, by their msg_id, and others were not",
            )));
        }
    };
    Ok(PlanDecision { operations, outcome: WriteOutcome::Set(SetReply { results }), by_state: true })
}

/// No set of a batch may undo another.
fn check_distinct<'a>(
    items: &'a [SetItem],
    field: &str,
    of: impl Fn(&'a SetItem) -> Option<&'a str>,
) -> Result<(), PlanRejection> {
    let mut seen = HashSet::new();
    match items.iter().filter_map(of).find(|name| !seen.insert(*name)) {
        None => Ok(()),
        Some(_) => Err(PlanRejection::bad_request(format!("two sets of the batch have the same {field}"))),
    }
}

impl PlanRejection {
    /// Names the rejected set of a batch.
    fn of_set(self, index: usize) -> Self {
        let named = |mut error: ErrorReply| {
            error.message = format!("set {} of the batch: {}", index + 1, error.message);
            error
        };
        match self {
            Self::ByRequest(error) => Self::ByRequest(named(error)),
            Self::ByState(error) => Self::ByState(named(error)),
            Self::Unreadable(_) | Self::Undecided => self,
        }
    }
}

fn plan_item<V: SubjectView>(
    item: &SetItem,
    index: usize,
    draft: &RequestOverlay<'_, V>,
    context: PlanContext<'_>,
) -> Result<PlannedSet, PlanRejection> {
    check_item(item, index, context)?;
    if let Some(msg_id) = &item.msg_id
        && let Some(first) = draft.by_msg_id(msg_id)?
    {
        return Ok(PlannedSet::Duplicate(first));
    }
    let key_holder = item.key.as_deref().map(|key| draft.by_key(key)).transpose()?.flatten();
    check_expectation(item.expect, draft.last(), key_holder)?;
    let (seq, replaces_at_seq) = choose_seq(item, draft)?;
    let blob = context.blob(index);
    let ttl_ms = item.ttl_ms.or(draft.config().default_ttl_ms);
    let set = SetOperation {
        seq,
        key: item.key.clone(),
        value: if blob.is_some() { None } else { item.value.clone() },
        blob,
        headers: item.headers.clone(),
        timestamp: item.timestamp.unwrap_or(draft.accept_time()),
        replaces: if replaces_at_seq { Some(seq) } else { key_holder.map(|holder| holder.seq) },
        expires_at: ttl_ms.map(|ttl_ms| draft.accept_time().plus_millis(ttl_ms)),
        msg_id: item.msg_id.clone(),
    };
    draft.admit(&set)?;
    Ok(PlannedSet::Write(set))
}

/// Checks a set without the subject's state.
fn check_item(item: &SetItem, index: usize, context: PlanContext<'_>) -> Result<(), PlanRejection> {
    match (&item.uploaded, &item.value, context.blob(index)) {
        (Some(_), Some(_), _) => {
            return Err(PlanRejection::bad_request("a set has one value: given, or uploaded"));
        }
        // A planner that allows uploaded values provides the blob or a placeholder.
        (Some(_), None, None) => {
            return Err(PlanRejection::bad_request("an uploaded value is not expected here"));
        }
        _ => {}
    }
    // The file stores sizes as signed numbers; no upload is larger.
    if item.uploaded.is_some_and(|value| value.size > i64::MAX as u64) {
        return Err(PlanRejection::bad_request("no value is that large"));
    }
    if item.ttl_ms == Some(0) {
        return Err(PlanRejection::bad_request("a time to live is at least 1 ms"));
    }
    let too_large = |limit: &str, size: usize, most: usize| {
        PlanRejection::ByRequest(ErrorReply::too_large(limit, size, most))
    };
    match item.msg_id.as_deref().map(str::len) {
        // An empty id would make every such message a duplicate of the first.
        Some(0) => return Err(PlanRejection::bad_request("a msg_id must not be empty")),
        Some(bytes) if bytes > MAX_MSG_ID_BYTES => {
            return Err(too_large("max_msg_id_bytes", bytes, MAX_MSG_ID_BYTES));
        }
        _ => {}
    }
    match (&item.key, item.expect) {
        (Some(key), _) => check_key(key).map_err(PlanRejection::ByRequest)?,
        (None, Some(Expect::Key(_))) => {
            return Err(PlanRejection::bad_request("an expectation on a key needs a key"));
        }
        _ => {}
    }
    if item.seq.is_some_and(|seq| seq.get() == 0 || seq.get() > MAX_SEQ) {
        return Err(PlanRejection::bad_request(format!("a seq is at least 1 and at most {MAX_SEQ}")));
    }
    let headers = item.headers.size_bytes();
    if headers > MAX_HEADERS_BYTES {
        return Err(too_large("max_headers_bytes", headers, MAX_HEADERS_BYTES));
    }
    let size = size::parts_bytes(item.key.as_deref(), item.value.as_ref(), &item.headers);
    let most = context.most_bytes();
    if size > most { Err(too_large("max_message_bytes", size, most)) } else { Ok(()) }
}

/// The seq of the message, and whether it replaces an existing message there.
fn choose_seq<V: SubjectView>(
    item: &SetItem,
    draft: &RequestOverlay<'_, V>,
) -> Result<(Seq, bool), PlanRejection> {
    let next = draft.next_seq();
    let refuse = |why: String| Err(PlanRejection::ByState(ErrorReply::bad_request(why)));
    match item.seq {
        None if next.get() > MAX_SEQ => {
            Err(PlanRejection::ByState(ErrorReply::limit_exceeded("max_seq", "every seq is used up")))
        }
        None => Ok((next, false)),
        Some(seq) if seq >= next && seq.get() > MAX_CALLER_SEQ => {
            refuse(format!("a seq given for a new message is at most {MAX_CALLER_SEQ}"))
        }
        Some(seq) if seq >= next => Ok((seq, false)),
        Some(seq) if draft.is_taken_in_batch(seq) => refuse(format!("two sets of the batch go to {seq}")),
        Some(seq) => match draft.at(seq)? {
            Some(held) if held.key == item.key => Ok((seq, true)),
            Some(_) => refuse(format!("the message at {seq} has another key")),
            None => refuse(format!("there is no message at {seq}, and the next is {next}")),
        },
    }
}

#[cfg(test)]
mod tests;
