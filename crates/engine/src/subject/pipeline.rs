//! The write pipeline: a write is planned, appended to the log, acknowledged once it has reached its level,
//! and applied to the file before the next read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dormouse_commit_log::log::{Append, AppendProgress, DurabilityStage};
use dormouse_format::entry::LogEntry;
use dormouse_format::frame;
use dormouse_metrics::{StepKind, StepTimer};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorCode, ErrorReply, Level, OverloadCause, Rev, Subject};
use dormouse_runtime::fail_point;
use dormouse_subject_state::database::{ApplyTransaction, Database, DatabaseError, SLICE_ROWS, Slice};
use dormouse_subject_state::plan::{self, PendingChanges, PlanContext, PlanResult, SubjectView};
use tokio::sync::Notify;

use super::backlog::{AckedChange, ApplyBacklog};
use super::deadline::{DeadlineCheck, QueuedDeadlines, reply_path};
use super::planning::ChangeUnderWay;
use super::retention::{self, PendingRetention};
use super::values::{PlanAttempt, ValueUploads};
use super::{Respond, SubjectResult, events};
use crate::api::{SubjectRequest, Submission, TenantId};
use crate::engine::EngineShared;
use crate::tenant_usage::SubjectUsage;
use crate::values::{self, Uploaded};

/// Maximum number of changes of one subject that wait for their level. Above it writes get `overloaded`;
/// reads continue.
pub(super) const MAX_IN_FLIGHT: usize = 4_096;

/// Delay before a failed apply is retried.
pub(super) const APPLY_RETRY_DELAY: Duration = Duration::from_millis(500);

/// A planned change, or a reply that waits for the changes before it.
pub(super) struct PipelineStep {
    pub(super) change: Option<PendingChange>,
    pub(super) answer: SubjectResult,
    pub(super) respond: Option<Respond>,
    /// The largest event that the bus can carry, in bytes.
    pub(super) max_bytes: usize,
    /// When the request arrived.
    pub(super) received: Duration,
}

impl PipelineStep {
    /// A change without a caller.
    pub(super) fn without_caller(change: PendingChange, max_bytes: usize) -> Self {
        let answer = retention::no_caller_reply();
        Self { change: Some(change), answer, respond: None, max_bytes, received: Duration::ZERO }
    }
}

pub(super) struct PendingChange {
    pub(super) entry: LogEntry,
    pub(super) bytes: usize,
    pub(super) level: Level,
    /// Set when the log has accepted it.
    pub(super) progress: Option<Arc<AppendProgress>>,
    /// The blobs that it refers to. They are deleted with it, unless the log has accepted it.
    pub(super) uploaded: Uploaded,
}

/// Steps of one append; all its changes have the same level.
#[derive(Default)]
pub(super) struct AppendGroup {
    frames: BytesMut,
    entries: u32,
    level: Option<Level>,
    steps: Vec<PipelineStep>,
}

impl AppendGroup {
    /// A group of one change.
    pub(super) fn of(frame: Bytes, level: Level, step: PipelineStep) -> Self {
        Self { frames: frame.into(), entries: 1, level: Some(level), steps: vec![step] }
    }
}

/// Why planning has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlanBlocked {
    /// The next request is not a log entry.
    Unlogged,
    /// The next request needs all earlier changes in the file.
    UntilApplied,
    /// The large values of the next request are being uploaded.
    UntilUploaded,
    /// The next request, a `delete_all`, needs many messages counted.
    UntilCounted,
    /// The slice is spent: the next one continues, once other tasks have had their turn.
    UntilNextSlice,
    /// A planned change of several slices is being encoded.
    UntilEncoded,
}

/// The result of acknowledging the changes that are ready.
#[derive(Default)]
pub(super) struct AckedChanges {
    /// Number of acknowledged revs.
    pub(super) changes: usize,
    /// When the step ended. `None`: there was nothing to acknowledge.
    pub(super) ended_at: Option<Duration>,
    /// Replies that changed nothing and depend on the state: like reads, they need a confirmed lease or a
    /// barrier.
    pub(super) state_replies: Vec<(Respond, SubjectResult)>,
    /// More changes are ready, for the next slice.
    pub(super) has_more: bool,
}

/// The pending changes of one subject.
pub(super) struct Pipeline {
    steps: VecDeque<PipelineStep>,
    /// Acknowledged changes, which precede the steps.
    backlog: ApplyBacklog,
    /// The overlay of the backlog and the steps.
    pub(super) pending: PendingChanges,
    /// Appends that are not in the bucket yet, each with the rev it leads to and its bytes.
    unshipped: VecDeque<(Arc<AppendProgress>, Rev, u64)>,
    /// Bytes of these appends.
    unshipped_bytes: u64,
    /// What the subject uses of its tenant's shares.
    usage: SubjectUsage,
    /// The last rev known to be in the bucket.
    bucket_rev: Rev,
    /// Replies to changes that had reached a weaker level when the lease expired: they wait for the bucket.
    awaiting_bucket: VecDeque<(Arc<AppendProgress>, Respond, SubjectResult)>,
    /// Why a change has failed: every change planned on top of it fails too, and nothing is planned before
    /// all of them have failed.
    failing: Option<ErrorReply>,
    /// Why the file could not be written. Nothing is planned before it can be written.
    pub(super) stalled: Option<ErrorReply>,
    /// When the write is retried, on the monotonic clock.
    retry_at: Duration,
    pub(super) uploads: ValueUploads,
    pub(super) retention: PendingRetention,
    /// The change whose planning has begun. Nothing of it is visible to reads, or logged.
    pub(super) under_way: ChangeUnderWay,
    /// Maximum payload of the bus in bytes, as of the last request.
    pub(super) bus_bytes: usize,
    /// Notified when an append of this subject makes progress.
    pub(super) waker: Arc<Notify>,
}

impl Pipeline {
    pub(super) fn new(bucket_rev: Rev, usage: SubjectUsage) -> Self {
        Self {
            steps: VecDeque::new(),
            backlog: ApplyBacklog::default(),
            pending: PendingChanges::new(),
            unshipped: VecDeque::new(),
            unshipped_bytes: 0,
            usage,
            bucket_rev,
            awaiting_bucket: VecDeque::new(),
            failing: None,
            stalled: None,
            retry_at: Duration::ZERO,
            uploads: ValueUploads::default(),
            retention: PendingRetention::default(),
            under_way: ChangeUnderWay::None,
            bus_bytes: retention::ASSUMED_BUS_BYTES,
            waker: Arc::new(Notify::new()),
        }
    }

    /// Notified when an append makes progress.
    pub(super) fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.waker)
    }

    /// Whether every change is acknowledged or has failed, though it may not be in the file yet.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether every change is in the file.
    pub(super) fn is_applied(&self) -> bool {
        self.is_acknowledged() && self.backlog.is_empty()
    }

    /// The acknowledged changes that are not in the file.
    pub(super) const fn backlog(&self) -> &ApplyBacklog {
        &self.backlog
    }

    /// Whether nothing can be planned at the moment.
    pub(super) fn is_blocked(&self) -> bool {
        self.failing.is_some() || self.stalled.is_some() || self.steps.len() >= MAX_IN_FLIGHT
    }

    /// Whether changes are failing, and nothing is planned before all of them have failed.
    pub(super) const fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// Whether the first step is a reply, all changes before which are acknowledged.
    pub(super) fn has_answer(&self) -> bool {
        self.steps.front().is_some_and(|step| step.change.is_none())
    }

    /// Whether every change is in the file and in the bucket, or has failed.
    pub(super) fn is_quiescent(&self) -> bool {
        self.is_applied() && self.unshipped.is_empty()
    }

    /// The last rev known to be in the bucket.
    pub(super) const fn bucket_rev(&self) -> Rev {
        self.bucket_rev
    }

    /// The rev after all planned changes; `None` if no change is pending.
    pub(super) fn planned_rev(&self) -> Option<Rev> {
        let planned =
            self.steps.iter().rev().find_map(|step| step.change.as_ref()).map(|change| &change.entry);
        planned.or_else(|| self.backlog.entries().last()).map(LogEntry::last_rev)
    }

    /// The last append that is not known to be in the bucket.
    pub(super) fn last_unshipped(&self) -> Option<Arc<AppendProgress>> {
        self.unshipped.back().map(|(progress, ..)| Arc::clone(progress))
    }

    /// Plans changing requests from the front of `writes` and appends them to the log. Returns why it stopped, if it
    /// did before the end.
    pub(super) fn plan(
        &mut self,
        shared: &Arc<EngineShared>,
        subject: &Subject,
        database: &Database,
        writes: &mut VecDeque<Submission>,
    ) -> Option<PlanBlocked> {
        let slice = &mut Slice::new();
        self.remove_abandoned(database);
        if let Some(blocked) = self.run_retention(shared, subject, database, slice) {
            return Some(blocked);
        }
        let mut group = AppendGroup::default();
        let (mut deadlines, now) = (QueuedDeadlines::default(), shared.env.boot());
        let blocked = loop {
            if slice.is_spent() && !writes.is_empty() {
                break Some(PlanBlocked::UntilNextSlice);
            }
            // While changes are failing, it is open whether an earlier copy is executed.
            if self.failing.is_none() && !self.under_way.is_planned() {
                match self.check_deadline(shared, database, writes, &mut deadlines, now) {
                    DeadlineCheck::InTime => {}
                    DeadlineCheck::Known(reply) => {
                        let Some(submission) = writes.pop_front() else { break None };
                        slice.count(0);
                        self.abandon_plan();
                        self.take(
                            database,
                            reply,
                            Uploaded::default(),
                            submission,
                            Level::Bucket,
                            &mut group,
                        );
                        continue;
                    }
                    DeadlineCheck::Expired => {
                        let Some(submission) = writes.pop_front() else { break None };
                        slice.count(0);
                        self.abandon_plan();
                        shared.refuse_expired(submission);
                        continue;
                    }
                }
            }
            let Some(front) = writes.front() else { break None };
            if is_unlogged(&front.request) {
                break Some(PlanBlocked::Unlogged);
            }
            if self.failing.is_some() {
                break Some(PlanBlocked::UntilApplied);
            }
            if !is_change(&front.request) {
                let Some(known) = self.remembered_reply(shared, database, front) else {
                    break Some(PlanBlocked::Unlogged);
                };
                let Some(submission) = writes.pop_front() else { break None };
                slice.count(0);
                self.take(database, known, Uploaded::default(), submission, Level::Bucket, &mut group);
                continue;
            }
            // With pending changes it waits until they are applied.
            if let SubjectRequest::DeleteAll(request) = &front.request
                && self.pending.is_empty()
                && database.needs_count(request)
            {
                break Some(PlanBlocked::UntilCounted);
            }
            // The group is appended before a change of another level is planned: if the log rejects the group, that
            // change is planned without it.
            let level = self.level(shared, database, &front.request);
            if group.level.is_some_and(|other| other != level) {
                self.append(shared, subject, database, std::mem::take(&mut group));
            }
            if self.under_way.is_planned() {
                self.append(shared, subject, database, std::mem::take(&mut group));
                if let Some(blocked) = self.continue_planned(shared, subject, database, writes, slice) {
                    break Some(blocked);
                }
                continue;
            }
            let in_flight = self.steps.len() + group.steps.len();
            let (planned, uploaded) = match self.attempt(shared, subject, database, front, in_flight, slice) {
                PlanAttempt::Planned(planned, uploaded) => (planned, uploaded),
                PlanAttempt::UntilUploaded => break Some(PlanBlocked::UntilUploaded),
                PlanAttempt::UntilNextSlice => break Some(PlanBlocked::UntilNextSlice),
            };
            if matches!(planned, PlanResult::Later) {
                self.uploads.put_back(uploaded);
                break Some(PlanBlocked::UntilApplied);
            }
            let planned = match planned {
                PlanResult::Write { entry, outcome } if !plan::fits_slice(&entry) => {
                    self.under_way = ChangeUnderWay::planned(entry, Some(outcome), uploaded);
                    break Some(PlanBlocked::UntilEncoded);
                }
                planned => planned,
            };
            let Some(mut submission) = writes.pop_front() else { break None };
            submission.respond = reply_path(shared, submission.respond, submission.deadline);
            self.take(database, planned, uploaded, submission, level, &mut group);
        };
        self.append(shared, subject, database, group);
        self.report_usage(database);
        blocked
    }

    /// The remembered reply to a request that is not a log entry but is executed only once; `None` if it is
    /// new.
    pub(super) fn remembered_reply(
        &self,
        shared: &EngineShared,
        database: &Database,
        front: &Submission,
    ) -> Option<PlanResult> {
        let context = PlanContext {
            accept_time: retention::wall(shared),
            max_message_bytes: front.max_reply_bytes,
            blobs: &[],
        };
        plan::remembered_reply(&front.request, &self.pending.view(database), context)
    }

    /// The level that a change has to reach. A change that a successor could not see must not be
    /// acknowledged. A successor deletes a blob of which it sees no record, so a record that is only local
    /// would be useless.
    pub(super) fn level(
        &self,
        shared: &EngineShared,
        database: &Database,
        request: &SubjectRequest,
    ) -> Level {
        if !shared.read_lease.is_confirmed() || values::is_large(request) {
            return Level::Bucket;
        }
        let view = self.pending.view(database);
        plan::required(request, &view.state().config, shared.settings.level)
    }

    /// The same for a change without a caller.
    pub(super) fn level_of(&self, shared: &EngineShared, config: &SubjectConfig) -> Level {
        let own = config.level.unwrap_or(shared.settings.level);
        if shared.read_lease.is_confirmed() { own } else { Level::Bucket }
    }

    fn take(
        &mut self,
        database: &Database,
        planned: PlanResult,
        uploaded: Uploaded,
        submission: Submission,
        level: Level,
        group: &mut AppendGroup,
    ) {
        let Submission { max_reply_bytes: max_bytes, respond, received, .. } = submission;
        match planned {
            PlanResult::Answer(answer) => respond(answer),
            PlanResult::DeferredAnswer(answer) => {
                group.steps.push(PipelineStep {
                    change: None,
                    answer,
                    respond: Some(respond),
                    max_bytes,
                    received,
                });
            }
            PlanResult::Write { entry, outcome } => match frame::encode(&entry) {
                Ok(frame) => {
                    group.frames.extend_from_slice(&frame);
                    group.entries += 1;
                    group.level = Some(level);
                    self.pending.push(&entry, database);
                    let change = PendingChange { entry, bytes: frame.len(), level, progress: None, uploaded };
                    let answer = plan::answer(outcome);
                    group.steps.push(PipelineStep {
                        change: Some(change),
                        answer,
                        respond: Some(respond),
                        max_bytes,
                        received,
                    });
                }
                Err(error) => respond(Err(ErrorReply::internal(error))),
            },
            // The caller handles this case first.
            PlanResult::Later => respond(Err(ErrorReply::internal("a request was planned too early"))),
        }
    }

    /// Returns whether the log has accepted it.
    pub(super) fn append(
        &mut self,
        shared: &EngineShared,
        subject: &Subject,
        database: &Database,
        group: AppendGroup,
    ) -> bool {
        let AppendGroup { frames, entries, level, mut steps } = group;
        let mut changes = steps.iter().filter_map(|step| step.change.as_ref());
        let Some(first) = changes.next() else {
            self.steps.extend(steps);
            return true;
        };
        let last_rev = changes.next_back().unwrap_or(first).entry.last_rev();
        let append = Append {
            subject: subject.clone(),
            frames: frames.freeze(),
            first_after: first.entry.after,
            last_rev,
            entries,
            level: level.unwrap_or(Level::Bucket),
            waker: Arc::clone(&self.waker),
        };
        fail_point!(Planned);
        let (log, bytes) = (&shared.settings.log, append.frames.len() as u64);
        let allowed =
            shared.tenants.check_append(self.usage.tenant(), log.max_unshipped_bytes, log.ship_interval);
        match allowed.and_then(|()| shared.log.append(append)) {
            Ok(progress) => {
                self.unshipped.push_back((Arc::clone(&progress), last_rev, bytes));
                self.unshipped_bytes += bytes;
                for change in steps.iter_mut().filter_map(|step| step.change.as_mut()) {
                    change.progress = Some(Arc::clone(&progress));
                    change.uploaded.keep(&change.entry);
                }
                self.steps.extend(steps);
                true
            }
            Err(refusal) => {
                // The rejected changes leave the overlay. If this repeats, a shorter backlog makes the
                // rebuild cheaper.
                self.rebuild_pending(database);
                self.backlog.apply_soon();
                for respond in steps.into_iter().filter_map(|step| step.respond) {
                    respond(Err(refusal.clone()));
                }
                false
            }
        }
    }

    /// Rebuilds the overlay from the backlog and the steps, without rejected or failed changes.
    pub(super) fn rebuild_pending(&mut self, database: &Database) {
        // What is planned on top of them is planned again.
        self.put_back_plan();
        self.pending.reset();
        let steps = self.steps.iter().filter_map(|step| step.change.as_ref()).map(|change| &change.entry);
        for entry in self.backlog.entries().chain(steps) {
            self.pending.push(entry, database);
        }
    }

    /// Announces and acknowledges changes that have reached their level, in order of rev: a slice, or one change with more
    /// operations than a slice. The next reader of the file has to [apply](Self::begin_apply) them first.
    pub(super) fn acknowledge_ready(
        &mut self,
        shared: &EngineShared,
        subject: &Subject,
        database: &Database,
    ) -> AckedChanges {
        let mut acked = AckedChanges::default();
        let step = (!self.is_acknowledged()).then(|| shared.step(StepKind::Acknowledge));
        self.note_shipped();
        self.answer_awaiting_bucket(shared);
        let (ready, has_more) = self.ready(shared);
        acked.has_more = has_more;
        if ready > 0 {
            fail_point!(LevelReached);
            let now = step.as_ref().map_or_else(|| shared.env.boot(), StepTimer::started);
            self.publish_and_reply(shared, subject, database, ready, now, &mut acked);
        }
        self.fail_dependents(database);
        acked.ended_at = step.map(StepTimer::end);
        acked
    }

    /// Takes the next transaction out of the backlog. `None`: there is none, or a write has failed and its retry is not
    /// due. Until [`Pipeline::end_apply`] nothing may be planned.
    pub(super) fn begin_apply(&mut self, now: Duration) -> Option<ApplyTransaction> {
        if self.stalled_until().is_some_and(|until| until > now) {
            return None;
        }
        self.backlog.take_first().map(ApplyTransaction::new)
    }

    /// Ends a transaction, which is in the file now, or has failed and is rolled back. Returns the approximate number of
    /// applied bytes.
    ///
    /// # Errors
    /// The file is unusable. If it only cannot be written at the moment, [`Pipeline::stalled`] is set
    /// instead.
    pub(super) fn end_apply(
        &mut self,
        subject: &Subject,
        database: &mut Database,
        transaction: ApplyTransaction,
        result: Result<(), DatabaseError>,
        now: Duration,
    ) -> Result<usize, DatabaseError> {
        let entries = transaction.into_entries();
        if let Err(error) = result {
            self.backlog.put_back(entries);
            self.defer_apply(subject, &error, now);
            database.rollback()?;
            return if error.is_unfit_file() { Err(error) } else { Ok(0) };
        }
        fail_point!(Applied);
        self.stalled = None;
        for entry in &entries {
            self.pending.applied(entry);
        }
        Ok(self.backlog.applied())
    }

    /// Reports what the subject uses to its tenant.
    pub(super) fn report_usage(&mut self, database: &Database) {
        self.usage.set(self.unshipped_bytes, database.state().bytes);
    }

    /// The tenant that the subject belongs to.
    pub(super) const fn tenant(&self) -> TenantId {
        self.usage.tenant()
    }

    fn note_shipped(&mut self) {
        while let Some((progress, rev, bytes)) = self.unshipped.front() {
            match progress.stage() {
                DurabilityStage::Shipped => self.bucket_rev = self.bucket_rev.max(*rev),
                DurabilityStage::Failed => {}
                _ => break,
            }
            self.unshipped_bytes -= bytes;
            self.unshipped.pop_front();
        }
    }

    /// Replies to changes that are in the bucket by now. A change that was only on the local disk when the
    /// log ended is indeterminate.
    fn answer_awaiting_bucket(&mut self, shared: &EngineShared) {
        while let Some((progress, ..)) = self.awaiting_bucket.front() {
            let shipped = progress.stage() == DurabilityStage::Shipped;
            if !shipped && !shared.log.is_closed() {
                return;
            }
            let Some((_, respond, answer)) = self.awaiting_bucket.pop_front() else { return };
            respond(if shipped { answer } else { Err(unknown()) });
        }
    }

    /// How many steps, from the first, the next slice acknowledges, and whether more are ready.
    fn ready(&self, shared: &EngineShared) -> (usize, bool) {
        if self.steps.is_empty() {
            return (0, false);
        }
        // A change that a successor could not see must not be acknowledged: the successor might already be
        // serving.
        let strict = shared.log.is_write_stalled() || !shared.read_lease.is_confirmed();
        let is_ready = |step: &&PipelineStep| {
            let Some(change) = &step.change else { return true };
            let level = if strict { Level::Bucket } else { change.level };
            let progress = change.progress.as_ref();
            progress.is_some_and(|progress| matches!(progress.reached(level), Some(Ok(()))))
        };
        let operations =
            |step: &PipelineStep| step.change.as_ref().map_or(0, |change| change.entry.operations.len());
        let mut slice = 0;
        let fits = |step: &&PipelineStep| {
            let fits = slice == 0 || slice + operations(step) <= SLICE_ROWS;
            slice += operations(step);
            fits
        };
        let count = self.steps.iter().take_while(is_ready).take_while(fits).count();
        (count, self.steps.get(count).is_some_and(|step| is_ready(&step)))
    }

    /// The changes stay in the log; they are applied once the file can be written.
    fn defer_apply(&mut self, subject: &Subject, error: &DatabaseError, now: Duration) {
        if self.stalled.is_none() {
            tracing::error!(%subject, %error, "apply to local file failed, retrying");
        }
        self.stalled = Some(error.reply(subject));
        self.retry_at = now + APPLY_RETRY_DELAY;
    }

    /// When the write of the file is retried; `None` if it can be written.
    pub(super) fn stalled_until(&self) -> Option<Duration> {
        self.stalled.is_some().then_some(self.retry_at)
    }

    /// Publishes the events of the first steps, then replies to their callers.
    fn publish_and_reply(
        &mut self,
        shared: &EngineShared,
        subject: &Subject,
        database: &Database,
        ready: usize,
        now: Duration,
        acked: &mut AckedChanges,
    ) {
        let done: Vec<PipelineStep> = self.steps.drain(..ready).collect();
        let confirmed = shared.read_lease.is_confirmed();
        let expiring = database.next_expiry().is_some() || database.state().config.max_age_ms.is_some();
        let max_bytes = done.iter().map(|step| step.max_bytes).min().unwrap_or(usize::MAX);
        let changes = done.iter().filter_map(|step| step.change.as_ref());
        let records: Vec<_> = changes.flat_map(|change| change.entry.records()).collect();
        for event in events::events(&records, database.state().term_base, max_bytes) {
            shared.events.publish(subject, event);
        }
        acked.changes += records.len();
        for PipelineStep { change, answer, respond, received, .. } in done {
            let Some(PendingChange { entry, bytes, level, progress, .. }) = change else {
                acked.state_replies.extend(respond.map(|respond| (respond, answer)));
                continue;
            };
            if respond.is_some() {
                shared.instruments.acknowledged.of(level).observe(now.saturating_sub(received));
            }
            let change = AckedChange { entry, bytes, is_retention: respond.is_none() };
            self.backlog.push(change, now, expiring);
            match (respond, progress) {
                (Some(respond), Some(progress))
                    if !confirmed && progress.stage() != DurabilityStage::Shipped =>
                {
                    self.awaiting_bucket.push_back((progress, respond, answer));
                }
                (Some(respond), _) => respond(answer),
                (None, _) => {}
            }
        }
    }

    /// Fails the changes that the log has failed, and every change planned on top of them. Only then is
    /// anything new planned.
    fn fail_dependents(&mut self, database: &Database) {
        while let Some(front) = self.steps.front() {
            match front.change.as_ref().and_then(|change| change.progress.as_ref()) {
                Some(progress) if progress.stage() == DurabilityStage::Failed => {
                    let log_failed = || ErrorReply::unavailable("the log has failed");
                    self.failing = Some(progress.failure().unwrap_or_else(log_failed));
                }
                // A reply that depends on a failed change.
                None if self.failing.is_some() => {}
                _ => break,
            }
            let Some((step, reply)) = self.steps.pop_front().zip(self.failing.clone()) else { break };
            if let Some(respond) = step.respond {
                respond(Err(reply));
            }
        }
        if self.steps.is_empty() && self.failing.take().is_some() {
            self.rebuild_pending(database);
            self.retention.failed();
        }
    }

    /// Drops every change whose outcome is definite. The file is unusable: the changes in the log are applied
    /// when the subject is opened again.
    pub(super) fn drop_definite_changes(&mut self) {
        self.note_shipped();
        self.backlog = ApplyBacklog::default();
        while let Some(front) = self.steps.front() {
            let progress = front.change.as_ref().and_then(|change| change.progress.as_ref());
            if progress.is_some_and(|progress| {
                !matches!(progress.stage(), DurabilityStage::Shipped | DurabilityStage::Failed)
            }) {
                break;
            }
            self.steps.pop_front();
        }
    }

    /// Sends the same reply to all waiting callers. The changes themselves stay pending.
    pub(super) fn answer_all(&mut self, reply: &ErrorReply) {
        let waiting = self.steps.iter_mut().filter_map(|step| step.respond.take());
        for respond in waiting {
            respond(Err(reply.clone()));
        }
        for (_, respond, _) in self.awaiting_bucket.drain(..) {
            respond(Err(unknown()));
        }
    }
}

/// The reply to a change that was made and may or may not last.
fn unknown() -> ErrorReply {
    ErrorReply::new(
        ErrorCode::Indeterminate,
        "the server's lease expired during the change: whether it lasts is not known",
    )
}

/// Whether `request` becomes an entry of the log.
const fn is_change(request: &SubjectRequest) -> bool {
    matches!(
        request,
        SubjectRequest::Set(_)
            | SubjectRequest::Delete(_)
            | SubjectRequest::DeleteAll(_)
            | SubjectRequest::Configure(_)
    )
}

/// Whether `request` is neither a change nor a destroy, so repeating it has no effect.
const fn is_unlogged(request: &SubjectRequest) -> bool {
    !is_change(request) && !matches!(request, SubjectRequest::Destroy(_))
}

pub(super) fn too_many() -> ErrorReply {
    ErrorReply::from(OverloadCause::ChangesBelowLevel)
}
