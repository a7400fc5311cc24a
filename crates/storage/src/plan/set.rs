//! The rules of writing messages: one by one, or all or none.

use std::collections::HashSet;

use dormouse_protocol::data::{Expect, SetItem, SetOutcome, SetReply, SetRequest, SetResult};
use dormouse_protocol::limits::{
    MAX_ATOMIC_BATCH_BYTES, MAX_GIVEN_SEQ, MAX_HEADERS_BYTES, MAX_MSG_ID_BYTES, MAX_SEQ,
};
use dormouse_protocol::{ErrorReply, Seq};

use super::delete::{DELETE_RECORD_BYTES, cut};
use super::draft::Draft;
use super::record::{Operation, RemovalCause, SetOperation};
use super::view::SubjectView;
use super::{Context, Decision, Refusal, check_expectation, check_items, check_key, size};
use crate::entry::Outcome;

/// What one set comes to.
enum Item {
    Write(SetOperation),
    /// A set with the same message id was carried out before.
    Duplicate(SetResult),
}

pub(super) fn plan_set(
    request: &SetRequest,
    view: &impl SubjectView,
    context: Context<'_>,
) -> Result<Decision, Refusal> {
    if request.sets.is_empty() {
        return Err(Refusal::bad_request("a set request needs at least one set"));
    }
    check_items(request.sets.len()).map_err(Refusal::Outright)?;
    check_bytes(request, context)?;
    check_uploads(&request.sets)?;
    let draft = Draft::new(view, request.atomic, context.accept_time)?;
    if request.atomic {
        plan_batch(&request.sets, draft, context)
    } else {
        plan_each(&request.sets, draft, context)
    }
}

/// Whatever is in one request becomes one entry of the log, which is never split.
fn check_bytes(request: &SetRequest, context: Context<'_>) -> Result<(), Refusal> {
    let logged = |(place, item): (usize, &SetItem)| match context.blob(place) {
        Some(_) => SetItem { value: None, ..item.clone() },
        None => item.clone(),
    };
    let most: usize = request.sets.iter().map(size::of_item).sum();
    if most <= MAX_ATOMIC_BATCH_BYTES {
        return Ok(());
    }
    // Only what may be too large is worth measuring exactly.
    let mut bytes = 0;
    for item in request.sets.iter().enumerate().map(logged) {
        let encoded = dormouse_protocol::encode(&item)
            .map_err(|error| Refusal::bad_request(format!("a set cannot be encoded: {error}")))?;
        bytes += encoded.len();
    }
    if bytes <= MAX_ATOMIC_BATCH_BYTES {
        return Ok(());
    }
    let limit = if request.atomic { "max_atomic_batch_bytes" } else { "max_request_bytes" };
    Err(Refusal::Outright(ErrorReply::too_large(limit, bytes, MAX_ATOMIC_BATCH_BYTES)))
}

/// An object belongs to one message.
fn check_uploads(items: &[SetItem]) -> Result<(), Refusal> {
    let mut seen = HashSet::new();
    match items.iter().filter_map(|item| item.uploaded).find(|value| !seen.insert(value.upload)) {
        None => Ok(()),
        Some(value) => {
            Err(Refusal::bad_request(format!("two sets have the value of upload {}", value.upload)))
        }
    }
}

fn plan_each<V: SubjectView>(
    sets: &[SetItem],
    mut draft: Draft<'_, V>,
    context: Context<'_>,
) -> Result<Decision, Refusal> {
    let mut operations = Vec::with_capacity(sets.len());
    let mut results = Vec::with_capacity(sets.len());
    let mut by_state = false;
    for (place, item) in sets.iter().enumerate() {
        results.push(match plan_item(item, place, &draft, context) {
            Ok(Item::Write(set)) => {
                let result = draft.advance(&set)?;
                // Most requests hold one set: nobody comes after it to whom it would matter.
                if !draft.is_last(place, sets.len()) {
                    draft.remember(&set, result);
                }
                operations.push(Operation::Set(set));
                SetOutcome::Ok(result)
            }
            Ok(Item::Duplicate(first)) => {
                by_state = true;
                SetOutcome::Ok(SetResult { duplicate: true, ..first })
            }
            Err(Refusal::Outright(error)) => SetOutcome::Error(error),
            Err(Refusal::ByState(error)) => {
                by_state = true;
                SetOutcome::Error(error)
            }
            // A state that cannot be read is no refusal of one set: nothing of the request may be carried out.
            Err(refusal @ (Refusal::Unreadable(_) | Refusal::Undecided)) => return Err(refusal),
        });
    }
    operations.extend(evictions(&draft, context)?);
    Ok(Decision { operations, outcome: Outcome::Set(SetReply { results }), by_state })
}

/// What has to go because of the sets that are planned.
fn evictions<V: SubjectView>(draft: &Draft<'_, V>, context: Context<'_>) -> Result<Vec<Operation>, Refusal> {
    let most_bytes = DELETE_RECORD_BYTES.min(context.most_bytes());
    Ok(cut(draft.evict()?, most_bytes, RemovalCause::Evicted))
}

fn plan_batch<V: SubjectView>(
    items: &[SetItem],
    mut draft: Draft<'_, V>,
    context: Context<'_>,
) -> Result<Decision, Refusal> {
    check_distinct(items, "key", |item| item.key.as_deref())?;
    check_distinct(items, "msg_id", |item| item.msg_id.as_deref())?;
    let mut sets = Vec::with_capacity(items.len());
    let mut results = Vec::with_capacity(items.len());
    for (place, item) in items.iter().enumerate() {
        let planned = plan_item(item, place, &draft, context).map_err(|refusal| refusal.of_set(place))?;
        results.push(SetOutcome::Ok(match planned {
            Item::Write(set) => {
                let result = draft.advance(&set)?;
                if !draft.is_last(place, items.len()) {
                    draft.remember(&set, result);
                }
                sets.push(set);
                result
            }
            Item::Duplicate(first) => SetResult { duplicate: true, ..first },
        }));
    }
    let operations = match sets.len() {
        // The whole batch was carried out before.
        0 => Vec::new(),
        written if written == items.len() => {
            draft.admit_batch(&sets)?;
            let mut operations = vec![Operation::Batch { sets }];
            operations.extend(evictions(&draft, context)?);
            operations
        }
        // Neither can all of it be written once, nor is all of it there.
        _ => {
            return Err(Refusal::ByState(ErrorReply::bad_request(
                "some sets of the batch were carried out before, by their msg_id, and others were not",
            )));
        }
    };
    Ok(Decision { operations, outcome: Outcome::Set(SetReply { results }), by_state: true })
}

/// Within a batch no set may undo another.
fn check_distinct<'a>(
    items: &'a [SetItem],
    what: &str,
    of: impl Fn(&'a SetItem) -> Option<&'a str>,
) -> Result<(), Refusal> {
    let mut seen = HashSet::new();
    match items.iter().filter_map(of).find(|name| !seen.insert(*name)) {
        None => Ok(()),
        Some(_) => Err(Refusal::bad_request(format!("two sets of the batch have the same {what}"))),
    }
}

impl Refusal {
    /// Says which set of a batch it was.
    fn of_set(self, place: usize) -> Self {
        let named = |mut error: ErrorReply| {
            error.message = format!("set {} of the batch: {}", place + 1, error.message);
            error
        };
        match self {
            Self::Outright(error) => Self::Outright(named(error)),
            Self::ByState(error) => Self::ByState(named(error)),
            Self::Unreadable(_) | Self::Undecided => self,
        }
    }
}

fn plan_item<V: SubjectView>(
    item: &SetItem,
    place: usize,
    draft: &Draft<'_, V>,
    context: Context<'_>,
) -> Result<Item, Refusal> {
    check_item(item, place, context)?;
    if let Some(msg_id) = &item.msg_id
        && let Some(first) = draft.by_msg_id(msg_id)?
    {
        return Ok(Item::Duplicate(first));
    }
    let key_holder = item.key.as_deref().map(|key| draft.under(key)).transpose()?.flatten();
    check_expectation(item.expect, draft.last(), key_holder)?;
    let (seq, in_place) = choose_seq(item, draft)?;
    let blob = context.blob(place);
    let ttl_ms = item.ttl_ms.or(draft.config().default_ttl_ms);
    let set = SetOperation {
        seq,
        key: item.key.clone(),
        value: if blob.is_some() { None } else { item.value.clone() },
        blob,
        headers: item.headers.clone(),
        timestamp: item.timestamp.unwrap_or(draft.accept_time()),
        replaces: if in_place { Some(seq) } else { key_holder.map(|holder| holder.seq) },
        expires_at: ttl_ms.map(|ttl_ms| draft.accept_time().plus_millis(ttl_ms)),
        msg_id: item.msg_id.clone(),
    };
    draft.admit(&set)?;
    Ok(Item::Write(set))
}

/// What can be said of a set without looking at the subject.
fn check_item(item: &SetItem, place: usize, context: Context<'_>) -> Result<(), Refusal> {
    match (&item.uploaded, &item.value, context.blob(place)) {
        (Some(_), Some(_), _) => return Err(Refusal::bad_request("a set has one value: given, or uploaded")),
        // Whoever plans it knows the value, or stands something in for it.
        (Some(_), None, None) => return Err(Refusal::bad_request("an uploaded value is not expected here")),
        _ => {}
    }
    // What a file can count; nothing so large was ever uploaded.
    if item.uploaded.is_some_and(|value| value.size > i64::MAX as u64) {
        return Err(Refusal::bad_request("no value is that large"));
    }
    if item.ttl_ms == Some(0) {
        return Err(Refusal::bad_request("a time to live is at least 1 ms"));
    }
    let too_large =
        |limit: &str, size: usize, most: usize| Refusal::Outright(ErrorReply::too_large(limit, size, most));
    match item.msg_id.as_deref().map(str::len) {
        // It would make every message without an id a duplicate of the first.
        Some(0) => return Err(Refusal::bad_request("a msg_id must not be empty")),
        Some(bytes) if bytes > MAX_MSG_ID_BYTES => {
            return Err(too_large("max_msg_id_bytes", bytes, MAX_MSG_ID_BYTES));
        }
        _ => {}
    }
    match (&item.key, item.expect) {
        (Some(key), _) => check_key(key).map_err(Refusal::Outright)?,
        (None, Some(Expect::Key(_))) => {
            return Err(Refusal::bad_request("an expectation on a key needs a key"));
        }
        _ => {}
    }
    if item.seq.is_some_and(|seq| seq.get() == 0 || seq.get() > MAX_SEQ) {
        return Err(Refusal::bad_request(format!("a seq is at least 1 and at most {MAX_SEQ}")));
    }
    let headers = item.headers.size_bytes();
    if headers > MAX_HEADERS_BYTES {
        return Err(too_large("max_headers_bytes", headers, MAX_HEADERS_BYTES));
    }
    let size = size::parts_bytes(item.key.as_deref(), item.value.as_ref(), &item.headers);
    let most = context.most_bytes();
    if size > most { Err(too_large("max_message_bytes", size, most)) } else { Ok(()) }
}

/// Where the message goes, and whether one is there already that it replaces.
fn choose_seq<V: SubjectView>(item: &SetItem, draft: &Draft<'_, V>) -> Result<(Seq, bool), Refusal> {
    let next = draft.next_seq();
    let refuse = |why: String| Err(Refusal::ByState(ErrorReply::bad_request(why)));
    match item.seq {
        None if next.get() > MAX_SEQ => {
            Err(Refusal::ByState(ErrorReply::limit_exceeded("max_seq", "every seq is used up")))
        }
        None => Ok((next, false)),
        Some(seq) if seq >= next && seq.get() > MAX_GIVEN_SEQ => {
            refuse(format!("a seq given for a new message is at most {MAX_GIVEN_SEQ}"))
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
