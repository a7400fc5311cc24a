//! The change that is being planned, in slices.
//!
//! Planning ends with an entry. If the entry is larger than a slice, the pool encodes it, and it joins the pending
//! changes in slices. Only then is it appended to the log. Until then nothing of it is visible: reads use the file, and
//! the other changes of this subject wait. Its request stays the first in the queue. If an earlier change fails
//! meanwhile, or the log rejects one, the request is planned again.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use dormouse_format::entry::{LogEntry, WriteOutcome};
use dormouse_format::frame::{self, FrameTooLarge};
use dormouse_metrics::StepKind;
use dormouse_protocol::Subject;
use dormouse_runtime::pool::JobKind;
use dormouse_subject_state::database::{Database, Slice};
use dormouse_subject_state::plan::{self, PlanProgress, PushProgress, RetentionProgress};

use super::deadline::reply_path;
use super::pipeline::{AppendGroup, PendingChange, Pipeline, PipelineStep, PlanBlocked};
use super::serve::OpenSubject;
use super::values::ValuesOfRequest;
use crate::api::Submission;
use crate::engine::EngineShared;
use crate::values::Uploaded;

/// The change whose planning has begun.
#[derive(Default)]
pub(super) enum ChangeUnderWay {
    /// There is none.
    #[default]
    None,
    /// The first queued request is planned in part.
    Request(Box<RequestPlan>),
    /// A retention entry is planned in part.
    Retention(Box<RetentionProgress>),
    /// An entry larger than a slice is planned.
    Planned(Box<PlannedChange>),
    /// Its request was refused while its entry was joining the pending changes.
    Abandoned,
}

/// A request that is planned in part.
pub(super) struct RequestPlan {
    pub(super) progress: PlanProgress,
    pub(super) values: ValuesOfRequest,
}

/// A planned entry that is larger than a slice.
pub(super) struct PlannedChange {
    entry: LogEntry,
    /// `None` for retention, which has no caller.
    outcome: Option<WriteOutcome>,
    uploaded: Uploaded,
    /// `None` until it is encoded.
    frame: Option<Result<Bytes, FrameTooLarge>>,
    /// `None` until it joins the pending changes.
    push: Option<PushProgress>,
}

impl ChangeUnderWay {
    /// An entry larger than a slice. Retention has no outcome.
    pub(super) fn planned(entry: LogEntry, outcome: Option<WriteOutcome>, uploaded: Uploaded) -> Self {
        Self::Planned(Box::new(PlannedChange { entry, outcome, uploaded, frame: None, push: None }))
    }

    /// Whether there is a change.
    pub(super) const fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Whether its entry is complete.
    pub(super) const fn is_planned(&self) -> bool {
        matches!(self, Self::Planned(_))
    }
}

impl PlannedChange {
    /// Whether retention planned it.
    pub(super) const fn is_retention(&self) -> bool {
        self.outcome.is_none()
    }
}

impl Pipeline {
    /// The first queued request is refused: its planning and its uploads are dropped.
    pub(super) fn abandon_plan(&mut self) {
        self.uploads.abandon();
        let is_joining = match &self.under_way {
            ChangeUnderWay::Planned(planned) => planned.push.is_some(),
            ChangeUnderWay::Abandoned => true,
            ChangeUnderWay::None | ChangeUnderWay::Request(_) | ChangeUnderWay::Retention(_) => false,
        };
        self.under_way = if is_joining { ChangeUnderWay::Abandoned } else { ChangeUnderWay::None };
    }

    /// The change is planned again, with the blobs that it has.
    pub(super) fn put_back_plan(&mut self) {
        match std::mem::take(&mut self.under_way) {
            ChangeUnderWay::Request(plan) => self.uploads.put_back(plan.values.uploaded),
            ChangeUnderWay::Planned(planned) if !planned.is_retention() => {
                self.uploads.put_back(planned.uploaded);
            }
            _ => {}
        }
    }

    /// Removes the part of an abandoned entry from the pending changes.
    pub(super) fn remove_abandoned(&mut self, database: &Database) {
        if matches!(self.under_way, ChangeUnderWay::Abandoned) {
            self.rebuild_pending(database);
        }
    }

    /// Continues with the planned entry of the first queued request. `None`: the request is no longer queued.
    pub(super) fn continue_planned(
        &mut self,
        shared: &Arc<EngineShared>,
        subject: &Subject,
        database: &Database,
        writes: &mut VecDeque<Submission>,
        slice: &mut Slice,
    ) -> Option<PlanBlocked> {
        let (planned, frame) = match self.join_pending(database, slice)? {
            JoinResult::Joined(planned, frame) => (planned, frame),
            JoinResult::Blocked(blocked) => return Some(blocked),
            JoinResult::TooLarge(error) => {
                tracing::error!(%subject, %error, "planned change not encoded");
                if let Some(submission) = writes.pop_front() {
                    (submission.respond)(Err(error.into()));
                }
                return None;
            }
        };
        let (submission, outcome) = writes.pop_front().zip(planned.outcome)?;
        let level = self.level(shared, database, &submission.request);
        let Submission { max_reply_bytes: max_bytes, respond, deadline, received, .. } = submission;
        let change = PendingChange {
            entry: planned.entry,
            bytes: frame.len(),
            level,
            progress: None,
            uploaded: planned.uploaded,
        };
        let step = PipelineStep {
            change: Some(change),
            answer: plan::answer(outcome),
            respond: Some(reply_path(shared, respond, deadline)),
            max_bytes,
            received,
        };
        self.append(shared, subject, database, AppendGroup::of(frame, level, step));
        None
    }

    /// Continues with the planned entry of retention. `None`: it is appended or rejected.
    pub(super) fn continue_retention(
        &mut self,
        shared: &EngineShared,
        subject: &Subject,
        database: &Database,
        slice: &mut Slice,
    ) -> Option<PlanBlocked> {
        match self.join_pending(database, slice)? {
            JoinResult::Joined(planned, frame) => {
                self.append_retention(shared, subject, database, planned.entry, frame);
                None
            }
            JoinResult::Blocked(blocked) => Some(blocked),
            JoinResult::TooLarge(error) => {
                tracing::error!(%subject, %error, "retention entry failed");
                self.retention.retry_later(shared.env.boot());
                None
            }
        }
    }

    /// Adds the next slice of the planned entry to the pending changes. `None`: there is no planned entry.
    fn join_pending(&mut self, database: &Database, slice: &mut Slice) -> Option<JoinResult> {
        let mut planned = match std::mem::take(&mut self.under_way) {
            ChangeUnderWay::Planned(planned) => planned,
            other => {
                self.under_way = other;
                return None;
            }
        };
        let blocked = match planned.frame.take() {
            None => PlanBlocked::UntilEncoded,
            Some(Err(error)) => return Some(JoinResult::TooLarge(error)),
            Some(Ok(frame)) => {
                let push =
                    planned.push.get_or_insert_with(|| self.pending.begin_push(&planned.entry, database));
                if self.pending.push_slice(push, &planned.entry, database, slice) {
                    return Some(JoinResult::Joined(planned, frame));
                }
                planned.frame = Some(Ok(frame));
                PlanBlocked::UntilNextSlice
            }
        };
        self.under_way = ChangeUnderWay::Planned(planned);
        Some(JoinResult::Blocked(blocked))
    }
}

/// What has become of a planned entry.
enum JoinResult {
    /// It is one of the pending changes, and this is its frame.
    Joined(Box<PlannedChange>, Bytes),
    Blocked(PlanBlocked),
    TooLarge(FrameTooLarge),
}

impl OpenSubject<'_> {
    /// Encodes the planned entry on the pool. Must not be cancelled.
    pub(super) async fn encode_planned(&mut self) {
        let mut planned = match std::mem::take(&mut self.pipeline.under_way) {
            ChangeUnderWay::Planned(planned) => planned,
            other => {
                self.pipeline.under_way = other;
                return;
            }
        };
        let entry = self.shared.pool.reserve_internal(self.tenant.get()).await;
        let shared = Arc::clone(self.shared);
        let job = entry.run(JobKind::Indivisible, move || {
            let _step = shared.step(StepKind::Encode);
            planned.frame = Some(frame::encode(&planned.entry));
            planned
        });
        self.pipeline.under_way = ChangeUnderWay::Planned(job.await);
    }
}
