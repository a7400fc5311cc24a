//! Plans sets: one by one, or as a batch.

use std::collections::HashSet;

use bytes::Bytes;
use dormouse_format::entry::WriteOutcome;
use dormouse_format::record::{RecordOp, RemovalCause, SetOperation};
use dormouse_protocol::data::{Expect, SetItem, SetOutcome, SetReply, SetRequest, SetResult};
use dormouse_protocol::limits::{
    MAX_ATOMIC_BATCH_BYTES, MAX_CALLER_SEQ, MAX_HEADERS_BYTES, MAX_MSG_ID_BYTES, MAX_SEQ,
};
use dormouse_protocol::{ErrorReply, Seq, UploadId};

use super::delete::{DELETE_RECORD_BYTES, cut};
use super::draft::{RequestDraft, RequestOverlay};
use super::limits::{Amount, Eviction};
use super::view::SubjectView;
use super::{PlanContext, PlanDecision, PlanRejection, check_expectation, check_items, check_key, size};
use crate::database::Slice;

/// The result of planning one set.
enum PlannedSet {
    Write(SetOperation),
    /// A set with the same message id was executed before.
    Duplicate(SetResult),
}

/// How far the planning of a set request is.
#[derive(Debug)]
pub(super) struct SetPlan {
    phase: SetPhase,
    draft: RequestDraft,
    operations: Vec<RecordOp>,
    /// The sets of a batch, which become one operation.
    batch: Vec<SetOperation>,
    results: Vec<SetOutcome>,
    by_state: bool,
}

/// What the next slice does.
#[derive(Debug)]
enum SetPhase {
    /// It compares the sets with each other.
    Compare(Comparison),
    /// It measures the sets exactly, because together they may be too large: from this index on, after sets of so
    /// many bytes.
    Measure { next: usize, bytes: usize },
    /// It plans the sets from this index on.
    Plan { next: usize },
    /// It selects the messages to evict.
    Evict(Eviction),
}

/// The comparison of the sets of one request.
#[derive(Debug, Default)]
struct Comparison {
    next: usize,
    /// An upper bound of the bytes of the sets so far.
    bytes: usize,
    uploads: HashSet<UploadId>,
    keys: HashSet<String>,
    msg_ids: HashSet<String>,
}

impl SetPlan {
    /// # Errors
    /// The request as a whole is rejected.
    pub(super) fn new(
        request: &SetRequest,
        view: &impl SubjectView,
        context: PlanContext<'_>,
    ) -> Result<Self, PlanRejection> {
        if request.sets.is_empty() {
            return Err(PlanRejection::bad_request("a set request needs at least one set"));
        }
        check_items(request.sets.len()).map_err(PlanRejection::ByRequest)?;
        let phase = match request.sets.as_slice() {
            // There is nothing to compare it with.
            [only] => phase_after_comparison(size::of_item(only)),
            _ => SetPhase::Compare(Comparison::default()),
        };
        Ok(Self {
            phase,
            draft: RequestDraft::new(view, request.atomic, context.accept_time)?,
            operations: Vec::new(),
            batch: Vec::new(),
            results: Vec::with_capacity(request.sets.len()),
            by_state: request.atomic,
        })
    }

    /// Plans one slice. `None`: the slice is spent, and planning continues with another one.
    ///
    /// # Errors
    /// The request is rejected.
    pub(super) fn step<V: SubjectView>(
        &mut self,
        request: &SetRequest,
        view: &V,
        context: PlanContext<'_>,
        slice: &mut Slice,
    ) -> Result<Option<PlanDecision>, PlanRejection> {
        loop {
            let next = match &mut self.phase {
                SetPhase::Compare(comparison) => comparison.step(request, slice)?,
                SetPhase::Measure { next, bytes } => measure(request, context, next, bytes, slice)?,
                SetPhase::Plan { next } => {
                    let mut at = *next;
                    let is_complete = self.plan_sets(request, view, context, &mut at, slice)?;
                    self.phase = SetPhase::Plan { next: at };
                    if !is_complete {
                        return Ok(None);
                    }
                    if request.atomic && !self.close_batch(view)? {
                        return Ok(Some(self.decision()));
                    }
                    match (RequestOverlay { base: view, draft: &mut self.draft }).eviction() {
                        None => return Ok(Some(self.decision())),
                        Some(eviction) => Some(SetPhase::Evict(eviction)),
                    }
                }
                SetPhase::Evict(eviction) => {
                    let overlay = RequestOverlay { base: view, draft: &mut self.draft };
                    if !overlay.evict(eviction, slice)? {
                        return Ok(None);
                    }
                    let removed =
                        std::mem::replace(eviction, Eviction::new(Amount::default())).into_removed();
                    let most_bytes = DELETE_RECORD_BYTES.min(context.most_bytes());
                    self.operations.extend(cut(removed, most_bytes, RemovalCause::Evicted));
                    return Ok(Some(self.decision()));
                }
            };
            let Some(next) = next else { return Ok(None) };
            self.phase = next;
        }
    }

    /// Plans sets until the slice is spent. Returns whether all are planned.
    fn plan_sets<V: SubjectView>(
        &mut self,
        request: &SetRequest,
        view: &V,
        context: PlanContext<'_>,
        next: &mut usize,
        slice: &mut Slice,
    ) -> Result<bool, PlanRejection> {
        let mut overlay = RequestOverlay { base: view, draft: &mut self.draft };
        while let Some(item) = request.sets.get(*next) {
            if slice.is_spent() {
                return Ok(false);
            }
            let index = *next;
            *next += 1;
            slice.count(item_bytes(item));
            let planned = plan_item(item, index, &overlay, context);
            let planned =
                if request.atomic { planned.map_err(|refusal| refusal.of_set(index)) } else { planned };
            self.results.push(match planned {
                Ok(PlannedSet::Write(set)) => {
                    let result = overlay.advance(&set)?;
                    // Most requests hold one set, so no later set depends on it.
                    if !overlay.is_last(index, request.sets.len()) {
                        overlay.record_set(&set, result);
                    }
                    if request.atomic {
                        self.batch.push(set);
                    } else {
                        self.operations.push(RecordOp::Set(set));
                    }
                    SetOutcome::Ok(result)
                }
                Ok(PlannedSet::Duplicate(first)) => {
                    self.by_state = true;
                    SetOutcome::Ok(SetResult { duplicate: true, ..first })
                }
                // A state that cannot be read rejects the whole request: no set of it may be executed.
                Err(refusal @ (PlanRejection::Unreadable(_) | PlanRejection::Undecided)) => {
                    return Err(refusal);
                }
                // So does any refusal of a set of a batch.
                Err(refusal) if request.atomic => return Err(refusal),
                Err(PlanRejection::ByRequest(error)) => SetOutcome::Error(error),
                Err(PlanRejection::ByState(error)) => {
                    self.by_state = true;
                    SetOutcome::Error(error)
                }
            });
        }
        Ok(true)
    }

    /// Makes one operation of a planned batch. Returns `false` if the whole batch was executed before.
    fn close_batch(&mut self, view: &impl SubjectView) -> Result<bool, PlanRejection> {
        match self.batch.len() {
            0 => Ok(false),
            written if written == self.results.len() => {
                let sets = std::mem::take(&mut self.batch);
                RequestOverlay { base: view, draft: &mut self.draft }.admit_batch(&sets)?;
                self.operations.push(RecordOp::Batch { sets });
                Ok(true)
            }
            // The batch can neither be written as a whole nor be a duplicate as a whole.
            _ => Err(PlanRejection::ByState(ErrorReply::bad_request(
                "some sets of the batch were executed before, by their msg_id, and others were not",
            ))),
        }
    }

    fn decision(&mut self) -> PlanDecision {
        let reply = SetReply { results: std::mem::take(&mut self.results) };
        PlanDecision {
            operations: std::mem::take(&mut self.operations),
            outcome: WriteOutcome::Set(reply),
            by_state: self.by_state,
        }
    }
}

impl Comparison {
    /// Compares sets until the slice is spent; then `None`.
    fn step(&mut self, request: &SetRequest, slice: &mut Slice) -> Result<Option<SetPhase>, PlanRejection> {
        while let Some(item) = request.sets.get(self.next) {
            if slice.is_spent() {
                return Ok(None);
            }
            self.next += 1;
            slice.count(item.key.as_ref().map_or(0, String::len));
            self.bytes += size::of_item(item);
            // A blob belongs to one message.
            if let Some(value) = item.uploaded
                && !self.uploads.insert(value.upload)
            {
                let why = format!("two sets have the value of upload {}", value.upload);
                return Err(PlanRejection::bad_request(why));
            }
            if request.atomic {
                check_distinct(&mut self.keys, "key", item.key.as_ref())?;
                check_distinct(&mut self.msg_ids, "msg_id", item.msg_id.as_ref())?;
            }
        }
        Ok(Some(phase_after_comparison(self.bytes)))
    }
}

/// Only a request that may be too large is measured exactly.
const fn phase_after_comparison(most_bytes: usize) -> SetPhase {
    if most_bytes <= MAX_ATOMIC_BATCH_BYTES {
        SetPhase::Plan { next: 0 }
    } else {
        SetPhase::Measure { next: 0, bytes: 0 }
    }
}

/// Measures sets until the slice is spent; then `None`. All sets of one request become one entry of the log, which
/// is never split.
fn measure(
    request: &SetRequest,
    context: PlanContext<'_>,
    next: &mut usize,
    bytes: &mut usize,
    slice: &mut Slice,
) -> Result<Option<SetPhase>, PlanRejection> {
    while let Some(item) = request.sets.get(*next) {
        if slice.is_spent() {
            return Ok(None);
        }
        let logged = match context.blob(*next) {
            Some(_) => SetItem { value: None, ..item.clone() },
            None => item.clone(),
        };
        let encoded = dormouse_protocol::encode(&logged)
            .map_err(|error| PlanRejection::bad_request(format!("a set cannot be encoded: {error}")))?;
        slice.count(encoded.len());
        *bytes += encoded.len();
        *next += 1;
    }
    if *bytes <= MAX_ATOMIC_BATCH_BYTES {
        return Ok(Some(SetPhase::Plan { next: 0 }));
    }
    let limit = if request.atomic { "max_atomic_batch_bytes" } else { "max_request_bytes" };
    Err(PlanRejection::ByRequest(ErrorReply::too_large(limit, *bytes, MAX_ATOMIC_BATCH_BYTES)))
}

/// The bytes that planning and encoding a set copies.
fn item_bytes(item: &SetItem) -> usize {
    item.key.as_ref().map_or(0, String::len)
        + item.value.as_ref().map_or(0, Bytes::len)
        + item.headers.size_bytes()
}

/// No set of a batch may undo another.
fn check_distinct(
    seen: &mut HashSet<String>,
    field: &str,
    name: Option<&String>,
) -> Result<(), PlanRejection> {
    match name {
        Some(name) if !seen.insert(name.clone()) => {
            Err(PlanRejection::bad_request(format!("two sets of the batch have the same {field}")))
        }
        _ => Ok(()),
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
