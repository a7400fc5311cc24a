//! How far the planning of one request is.

use dormouse_format::entry::WriteOutcome;
use dormouse_format::record::{RecordOp, RemovalCause};
use dormouse_protocol::data::{ConfigureReply, ConfigureRequest};
use dormouse_protocol::{ErrorReply, Position, Timestamp};

use super::delete::{DELETE_RECORD_BYTES, DeletePlan, cut, plan_delete_all};
use super::limits::{self, Amount, Eviction};
use super::set::SetPlan;
use super::view::SubjectView;
use super::{
    PlanContext, PlanDecision, PlanRejection, PlanResult, finish, position_after, remembered_reply,
    request_id,
};
use crate::database::Slice;
use crate::request::{ChangeRequest, SubjectRequest};

/// The planning of one changing request, in slices.
///
/// It holds what it has decided so far, and no part of that is in the subject. So between two slices readers and other
/// subjects proceed. Another change of this subject waits: if one is planned or fails meanwhile, planning begins
/// again.
#[derive(Debug, Default)]
pub struct PlanProgress(Option<Begun>);

/// A planning that has begun.
#[derive(Debug)]
struct Begun {
    /// The position of the view. At another position, nothing of the planning is valid.
    position: Position,
    accept_time: Timestamp,
    kind: PlanKind,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the largest is the usual one, and it is kept only between slices"
)]
enum PlanKind {
    Set(SetPlan),
    Delete(DeletePlan),
    Configure(ConfigurePlan),
    /// It is decided in one step.
    DeleteAll,
}

impl PlanProgress {
    /// Nothing is planned yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Plans one slice of a changing request, which is the same in each call. `None`: the slice is spent, and the next
    /// call continues. After a result, nothing is left to plan. Any other request gets `internal`.
    ///
    /// The dedup window is checked before expectations and limits: a repeat gets the reply to the first copy,
    /// whatever the subject's state is now.
    #[must_use]
    pub fn step(
        &mut self,
        request: &SubjectRequest,
        view: &impl SubjectView,
        context: PlanContext<'_>,
        slice: &mut Slice,
    ) -> Option<PlanResult> {
        let state = view.state();
        self.0.take_if(|begun| begun.position != state.position());
        let begun = match self.0.take() {
            Some(begun) => Ok(begun),
            None => {
                if let Some(known) = remembered_reply(request, view, context) {
                    slice.count(0);
                    return Some(known);
                }
                let accept_time = context.accept_time.max(state.accept_time);
                PlanKind::new(request, view, PlanContext { accept_time, ..context }).map(|kind| Begun {
                    position: state.position(),
                    accept_time,
                    kind,
                })
            }
        };
        let accept_time =
            begun.as_ref().map_or(context.accept_time.max(state.accept_time), |begun| begun.accept_time);
        let context = PlanContext { accept_time, ..context };
        let decided = match begun {
            Err(rejection) => {
                slice.count(0);
                Err(rejection)
            }
            Ok(mut begun) => match begun.kind.step(request, view, context, slice) {
                Ok(None) => {
                    self.0 = Some(begun);
                    return None;
                }
                Ok(Some(decision)) => Ok(decision),
                Err(rejection) => Err(rejection),
            },
        };
        Some(finish(decided, request_id(request), state, context))
    }
}

impl PlanKind {
    fn new(
        request: &SubjectRequest,
        view: &impl SubjectView,
        context: PlanContext<'_>,
    ) -> Result<Self, PlanRejection> {
        match request.as_change() {
            Some(ChangeRequest::Set(request)) => SetPlan::new(request, view, context).map(Self::Set),
            Some(ChangeRequest::Delete(request)) => DeletePlan::new(request, view).map(Self::Delete),
            Some(ChangeRequest::DeleteAll(_)) => Ok(Self::DeleteAll),
            Some(ChangeRequest::Configure(request)) => ConfigurePlan::new(request, view).map(Self::Configure),
            // A destroy is a manifest, and no entry of the log.
            Some(ChangeRequest::Destroy(_)) | None => {
                Err(ErrorReply::internal("a request that is not planned").into())
            }
        }
    }

    fn step(
        &mut self,
        request: &SubjectRequest,
        view: &impl SubjectView,
        context: PlanContext<'_>,
        slice: &mut Slice,
    ) -> Result<Option<PlanDecision>, PlanRejection> {
        match (self, request.as_change()) {
            (Self::Set(plan), Some(ChangeRequest::Set(request))) => plan.step(request, view, context, slice),
            (Self::Delete(plan), Some(ChangeRequest::Delete(request))) => {
                plan.step(request, view, context, slice)
            }
            (Self::Configure(plan), Some(ChangeRequest::Configure(request))) => {
                plan.step(request, view, context, slice)
            }
            (Self::DeleteAll, Some(ChangeRequest::DeleteAll(request))) => {
                slice.count(0);
                plan_delete_all(request, view).map(Some)
            }
            _ => Err(ErrorReply::internal("planning continued with another request").into()),
        }
    }
}

/// How far the planning of a configure is.
#[derive(Debug)]
struct ConfigurePlan {
    eviction: Eviction,
}

impl ConfigurePlan {
    fn new(request: &ConfigureRequest, view: &impl SubjectView) -> Result<Self, PlanRejection> {
        let config = &request.config;
        limits::check_config(config)?;
        let mut excess = Amount::default();
        if limits::are_set(config) && limits::discards_old(config) {
            let msgs = view.state().count;
            let bytes =
                if config.max_bytes.is_some() { view.bytes().ok_or(PlanRejection::Undecided)? } else { 0 };
            excess = Amount { msgs, bytes }.above(config, Amount::default());
        }
        Ok(Self { eviction: Eviction::new(excess) })
    }

    fn step(
        &mut self,
        request: &ConfigureRequest,
        view: &impl SubjectView,
        context: PlanContext<'_>,
        slice: &mut Slice,
    ) -> Result<Option<PlanDecision>, PlanRejection> {
        if !self.eviction.step(view, |_| false, slice)? {
            return Ok(None);
        }
        slice.count(0);
        let mut operations = vec![RecordOp::Configure { config: request.config.clone() }];
        // The position of the configure itself; evictions follow as separate changes.
        let position = position_after(view.state(), &operations);
        let eviction = std::mem::replace(&mut self.eviction, Eviction::new(Amount::default()));
        let most_bytes = DELETE_RECORD_BYTES.min(context.most_bytes());
        operations.extend(cut(eviction.into_removed(), most_bytes, RemovalCause::Evicted));
        let outcome = WriteOutcome::Configure(ConfigureReply { position, duplicate: false });
        Ok(Some(PlanDecision { operations, outcome, by_state: true }))
    }
}

#[cfg(test)]
mod tests;
