//! Plans deletes.

use dormouse_format::entry::WriteOutcome;
use dormouse_format::record::{RecordOp, RemovalCause};
use dormouse_protocol::Seq;
use dormouse_protocol::data::{DeleteAllReply, DeleteAllRequest, DeleteReply, DeleteRequest, Expect};
use dormouse_protocol::message::Removed;

use super::view::SubjectView;
use super::{
    PlanContext, PlanDecision, PlanRejection, check_expectation, check_items, check_key, position_after, size,
};
use crate::database::Slice;

/// The most bytes of removed messages that one record of a delete names: it becomes one event, which must fit a
/// payload.
pub(super) const DELETE_RECORD_BYTES: usize = 128 * 1_024;

/// How far the planning of a delete is.
#[derive(Debug, Default)]
pub(super) struct DeletePlan {
    /// How many of the keys, then of the seqs, have been looked up.
    next: usize,
    removed: Vec<Removed>,
}

impl DeletePlan {
    /// # Errors
    /// The request as a whole is rejected.
    pub(super) fn new(request: &DeleteRequest, view: &impl SubjectView) -> Result<Self, PlanRejection> {
        if request.seqs.is_empty() && request.keys.is_empty() {
            return Err(PlanRejection::bad_request("a delete request needs at least one seq or key"));
        }
        check_items(request.seqs.len() + request.keys.len()).map_err(PlanRejection::ByRequest)?;
        request.keys.iter().try_for_each(|key| check_key(key)).map_err(PlanRejection::ByRequest)?;
        let key_holder = match (request.expect, request.seqs.as_slice(), request.keys.as_slice()) {
            (Some(Expect::Key(_)), [], [key]) => view.by_key(key)?,
            (Some(Expect::Key(_)), _, _) => {
                return Err(PlanRejection::bad_request(
                    "an expectation on a key needs exactly one key and no seq",
                ));
            }
            _ => None,
        };
        check_expectation(request.expect, view.state().last, key_holder)?;
        Ok(Self::default())
    }

    /// Looks up one slice of the messages. `None`: the slice is spent, and planning continues with another one.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(super) fn step(
        &mut self,
        request: &DeleteRequest,
        view: &impl SubjectView,
        context: PlanContext<'_>,
        slice: &mut Slice,
    ) -> Result<Option<PlanDecision>, PlanRejection> {
        let keys = request.keys.len();
        while self.next < keys + request.seqs.len() {
            if slice.is_spent() {
                return Ok(None);
            }
            let found = match request.keys.get(self.next) {
                Some(key) => view.by_key(key)?.map(|id| Removed { seq: id.seq, key: Some(key.clone()) }),
                None => {
                    let seq = request.seqs[self.next - keys];
                    view.at(seq)?.map(|held| Removed { seq, key: held.key })
                }
            };
            let key = found.as_ref().and_then(|removed| removed.key.as_ref());
            slice.count(key.map_or(0, String::len));
            self.removed.extend(found);
            self.next += 1;
        }
        let mut removed = std::mem::take(&mut self.removed);
        removed.sort_unstable_by_key(|removed| removed.seq);
        removed.dedup_by_key(|removed| removed.seq);
        let seqs = removed.iter().map(|removed| removed.seq).collect();
        let most_bytes = DELETE_RECORD_BYTES.min(context.most_bytes());
        let operations = cut(removed, most_bytes, RemovalCause::Asked);
        let position = position_after(view.state(), &operations);
        let outcome = WriteOutcome::Delete(DeleteReply { position, seqs, duplicate: false });
        Ok(Some(PlanDecision { operations, outcome, by_state: true }))
    }
}

/// One operation per run of removed messages that fits an event: an operation split over two events would
/// look complete to a watcher that lost the second.
pub(super) fn cut(removed: Vec<Removed>, most_bytes: usize, cause: RemovalCause) -> Vec<RecordOp> {
    let mut runs: Vec<Vec<Removed>> = Vec::new();
    let mut run_bytes = 0;
    for one in removed {
        let bytes = size::of_removed(&one);
        match runs.last_mut() {
            Some(run) if run_bytes + bytes <= most_bytes => {
                run_bytes += bytes;
                run.push(one);
            }
            _ => {
                run_bytes = bytes;
                runs.push(vec![one]);
            }
        }
    }
    runs.into_iter().map(|removed| RecordOp::Delete { removed, cause }).collect()
}

pub(super) fn plan_delete_all(
    request: &DeleteAllRequest,
    view: &impl SubjectView,
) -> Result<PlanDecision, PlanRejection> {
    let state = view.state();
    let newest = Seq::new(state.next_seq.get().saturating_sub(1));
    let end_seq = match (request.end_seq, request.keep_last) {
        (Some(_), Some(_)) => {
            return Err(PlanRejection::bad_request("end_seq and keep_last exclude each other"));
        }
        (Some(end_seq), None) => Some(end_seq.min(newest)),
        (None, None | Some(0)) => Some(newest),
        (None, Some(keep)) if keep >= state.count => None,
        (None, Some(_)) if !view.counts_are_exact() => return Err(PlanRejection::Undecided),
        (None, Some(keep)) => view.newest_beyond(keep)?,
    };
    let count = match end_seq {
        None => 0,
        // The total count is known even with pending changes.
        Some(end_seq) if end_seq == newest => state.count,
        Some(_) if !view.counts_are_exact() => return Err(PlanRejection::Undecided),
        Some(end_seq) => view.count_up_to(end_seq)?,
    };
    let operations = match end_seq {
        Some(end_seq) if count > 0 => vec![RecordOp::DeleteAll { end_seq, count }],
        _ => Vec::new(),
    };
    let position = position_after(state, &operations);
    let outcome = WriteOutcome::DeleteAll(DeleteAllReply { position, count, duplicate: false });
    Ok(PlanDecision { operations, outcome, by_state: true })
}
