//! Serves an open subject: requests, the write pipeline, timed beacons and compactions.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dormouse_format::entry::LogEntry;
use dormouse_format::keys::BlobName;
use dormouse_format::manifest::Manifest;
use dormouse_metrics::StepKind;
use dormouse_protocol::{ErrorReply, Event, OverloadCause, Position, Subject, Timestamp};
use dormouse_subject_state::database::{Database, DatabaseError, Slice};
use tokio::sync::{Notify, oneshot};

use super::file::DatabaseCell;
use super::flush::{FlushTarget, PendingFlush};
use super::open::Opened;
use super::pages::FileReads;
use super::pipeline::{APPLY_RETRY_DELAY, Pipeline, PlanBlocked};
use super::publish::PublishEnd;
use super::reads::{self, PendingRead, ReadContext, ReadQueue};
use super::timers::{DueTimers, SubjectTimers};
use super::values::{Fetches, RetriedRead};
use super::{Respond, SubjectInbox, base, events, retention};
use crate::api::{SubjectRequest, Submission, TenantId};
use crate::engine::EngineShared;
use crate::metrics::GaugeShare;
use crate::ownership::Verified;
use crate::ownership::publish::Publish;
use crate::subject_table::FileGuard;

/// A sidecar of this size is checkpointed without waiting for a snapshot.
const CHECKPOINT_BYTES: u64 = 4 * 1_024 * 1_024;

/// The sidecar's size is checked after this many bytes of changes.
const CHECKPOINT_LOOK_BYTES: usize = 1_024 * 1_024;

/// Maximum number of a subject's changes that wait to be planned.
const MAX_WRITES: usize = 4_096;

/// Why a subject is no longer served.
pub(super) enum SubjectServeEnd {
    /// It is closed cleanly; waiting requests open it again.
    Closed,
    /// It cannot be served; waiting requests get this reply.
    Refused(ErrorReply),
}

/// An open subject.
pub(super) struct OpenSubject<'a> {
    pub(super) shared: &'a Arc<EngineShared>,
    pub(super) subject: &'a Subject,
    /// No other task opens the file while a clone of it exists.
    pub(super) file_guard: &'a Arc<FileGuard>,
    pub(super) file: DatabaseCell,
    /// The newest manifest, owned by this process.
    pub(super) manifest: Manifest,
    /// The result of the claim, until its garbage is collected.
    opened_with: Option<Verified>,
    /// Blobs queued for deletion, ascending.
    pub(super) deleting: Vec<Weak<Vec<BlobName>>>,
    pub(super) schedule: SubjectTimers,
    pub(super) pipeline: Pipeline,
    pub(super) reads: ReadQueue,
    /// Reads that wait for the file.
    pub(super) file_reads: FileReads,
    /// The tenant of the last request, to which work on the file is charged.
    pub(super) tenant: TenantId,
    pub(super) fetches: Fetches,
    pub(super) writes: VecDeque<Submission>,
    /// The next slice of plans or acknowledgements runs once other tasks have had their turn.
    has_next_slice: bool,
    pub(super) flushes: Vec<PendingFlush>,
    /// Callers that wait for a handover, which is about to begin.
    pub(super) pending_handovers: Vec<Respond>,
    pub(super) publishing: Option<oneshot::Receiver<PublishEnd>>,
    /// An indeterminate publication. It must be resolved before the next.
    pub(super) unresolved_publish: Option<Box<Publish>>,
    /// Why the last publication failed.
    pub(super) publish_failure: Option<ErrorReply>,
    pub(super) written_bytes: usize,
    /// The next slice of removed rows is deleted no earlier, on the monotonic clock.
    pub(super) deletion_retry_at: Duration,
    /// Bytes of the apply backlog.
    backlog_bytes: GaugeShare<'a>,
    /// When the subject was opened, by the server's clock. Only for display.
    open_since: Timestamp,
    pub(super) compaction_failing: GaugeShare<'a>,
    local_bytes: GaugeShare<'a>,
}

impl<'a> OpenSubject<'a> {
    pub(super) fn new(
        shared: &'a Arc<EngineShared>,
        subject: &'a Subject,
        file_guard: &'a Arc<FileGuard>,
        tenant: TenantId,
        opened: Opened,
    ) -> Self {
        let Opened { database, verified } = opened;
        let mut serving = Self {
            shared,
            subject,
            file_guard,
            schedule: SubjectTimers::new(&shared.settings, shared.env.boot()),
            pipeline: Pipeline::new(database.state().rev, shared.tenants.of_subject(tenant)),
            file: DatabaseCell::new(database),
            manifest: (*verified.manifest).clone(),
            opened_with: Some(verified),
            deleting: Vec::new(),
            reads: ReadQueue::new(),
            file_reads: FileReads::default(),
            tenant,
            fetches: Fetches::default(),
            writes: VecDeque::new(),
            has_next_slice: false,
            flushes: Vec::new(),
            pending_handovers: Vec::new(),
            publishing: None,
            unresolved_publish: None,
            publish_failure: None,
            written_bytes: 0,
            deletion_retry_at: Duration::ZERO,
            backlog_bytes: shared.counters.apply_backlog_bytes.share(),
            open_since: retention::wall(shared),
            compaction_failing: shared.counters.compaction_failing_subjects.share(),
            local_bytes: shared.counters.local_bytes.share(),
        };
        serving.count_bytes();
        let (pipeline, database) = serving.pipeline_and_file();
        pipeline.report_usage(database);
        serving.compact_if_due();
        serving
    }

    /// Serves until the subject is idle, evicted, fenced, destroyed, or the engine stops.
    pub(super) async fn run(mut self, inbox: &mut SubjectInbox, close: &Notify) -> SubjectServeEnd {
        let end = self.serve(inbox, close).await;
        if let SubjectServeEnd::Closed = end {
            // Changes that were not planned go back to the inbox, before the requests that have arrived
            // since.
            for write in std::mem::take(&mut self.writes).into_iter().rev() {
                inbox.waiting.push_front(write);
            }
        }
        // Every waiting caller gets a reply, whatever the end.
        let reply = match &end {
            SubjectServeEnd::Refused(reply) => reply.clone(),
            SubjectServeEnd::Closed => ErrorReply::unavailable("the subject was closed, retry"),
        };
        self.refuse_all(&reply);
        // No change of this opening may be pending when the subject is opened again.
        self.pipeline.answer_all(&reply);
        end
    }

    async fn serve(&mut self, inbox: &mut SubjectInbox, close: &Notify) -> SubjectServeEnd {
        let position = self.position();
        tracing::debug!(subject = %self.subject, %position, "subject opened");
        self.beacon();
        if let Some(verified) = self.opened_with.take() {
            self.collect(verified).await;
        }
        if let Some(end) = self.expire_before_serving(inbox).await {
            return end;
        }
        let moved = self.pipeline.waker();
        loop {
            if let Some(end) = self.run_ready_work(inbox).await {
                return end;
            }
            let pause = self.pause();
            let is_inbox_empty = inbox.waiting.is_empty();
            let has_more = !is_inbox_empty || self.has_next_slice || !self.file_reads.is_empty();
            tokio::select! {
                biased;
                () = self.shared.stopping() => {
                    return if self.shared.has_log_ended() {
                        self.on_log_end(inbox).await
                    } else {
                        self.release(inbox).await
                    };
                }
                end = base::published(&mut self.publishing) => {
                    if let Some(end) = self.published(end).await {
                        return end;
                    }
                }
                () = moved.notified() => {}
                passed = self.reads.passed() => self.barrier_ended(&passed),
                again = self.fetches.next_retry() => self.retry_read(again),
                () = inbox.receive(), if is_inbox_empty => {}
                () = close.notified() => self.schedule.ask_close(),
                // The next slice, once other tasks have had their turn and the requests that have arrived are taken.
                () = tokio::task::yield_now(), if has_more => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Runs all work that is ready.
    async fn run_ready_work(&mut self, inbox: &mut SubjectInbox) -> Option<SubjectServeEnd> {
        if !inbox.waiting.is_empty() {
            self.confirm_lease();
            self.dispatch(inbox);
        }
        if let Err(broken) = self.serve_reads().await {
            return Some(self.fail(&broken, inbox).await);
        }
        self.has_next_slice = false;
        loop {
            let has_more_ready = self.acknowledge();
            let plans = !self.writes.is_empty() || self.pipeline.under_way.is_some();
            let step = plans.then(|| self.shared.step(StepKind::Plan));
            let blocked = self.pipeline.plan(self.shared, self.subject, self.file.get(), &mut self.writes);
            drop(step);
            match blocked {
                Some(PlanBlocked::Unlogged) => {
                    if let Some(end) = self.handle_unlogged(inbox).await {
                        return Some(end);
                    }
                }
                Some(PlanBlocked::UntilApplied) if self.pipeline.is_acknowledged() => {
                    if let Err(broken) = self.apply().await {
                        return Some(self.fail(&broken, inbox).await);
                    }
                }
                Some(PlanBlocked::UntilCounted) => self.count_ahead().await,
                Some(PlanBlocked::UntilEncoded) => self.encode_planned().await,
                Some(PlanBlocked::UntilNextSlice) => {
                    self.has_next_slice = true;
                    break;
                }
                // The awaited changes or uploads are still pending, or everything is planned.
                Some(PlanBlocked::UntilApplied | PlanBlocked::UntilUploaded) | None => {
                    // No other event would send a reply that no longer waits for a change.
                    if has_more_ready || !self.pipeline.has_answer() {
                        self.has_next_slice |= has_more_ready;
                        break;
                    }
                }
            }
        }
        if self.is_apply_due(inbox) {
            // Replies are sent first.
            tokio::task::yield_now().await;
            if let Err(broken) = self.apply().await {
                return Some(self.fail(&broken, inbox).await);
            }
            // Retention reads the next due messages from the file.
            self.has_next_slice |= self.run_retention().is_some();
        }
        self.answer_flushes();
        if !self.pending_handovers.is_empty()
            && self.publishing.is_none()
            && let Some(end) = self.hand_over(inbox).await
        {
            return Some(end);
        }
        if let Err(broken) = self.delete_hidden_rows().await {
            return Some(self.fail(&broken, inbox).await);
        }
        self.checkpoint_if_large().await;
        self.run_due_timers(inbox).await
    }

    fn confirm_lease(&self) {
        if self.shared.read_lease.lease_to_confirm().is_none() {
            return;
        }
        let shared = Arc::clone(self.shared);
        self.shared.tasks.spawn("confirm lease", async move {
            tokio::select! {
                biased;
                () = shared.stopping() => {}
                // If it fails, the next read or the end of the log reports it.
                _ = shared.read_lease.barrier() => {}
            }
        });
    }

    async fn run_due_timers(&mut self, inbox: &mut SubjectInbox) -> Option<SubjectServeEnd> {
        let expires_at = self.expires_at();
        self.schedule.set_next_expiry(expires_at);
        self.schedule.set_deleting_rows(self.file.get().has_hidden_rows());
        loop {
            let (now, busy) = (self.shared.env.boot(), self.is_busy());
            match self.schedule.due(now, busy) {
                Some(DueTimers::Beacon) => self.beacon(),
                Some(DueTimers::Compact) => self.start_compacting().await,
                Some(DueTimers::Close) if inbox.is_empty() => match self.apply().await {
                    Err(broken) => return Some(self.fail(&broken, inbox).await),
                    Ok(()) if self.pipeline.is_applied() => return Some(self.close().await),
                    Ok(()) => {}
                },
                // A request has just arrived.
                Some(DueTimers::Close) | None => return None,
            }
        }
    }

    /// Time until the next scheduled work, if no request arrives.
    fn pause(&mut self) -> Duration {
        let flushes = self.flushes.iter().map(|flush| flush.until).min();
        let now = self.shared.env.boot();
        let apply = self.pipeline.stalled_until().or(self.pipeline.backlog().due_at());
        let (shared, (pipeline, database)) = (self.shared, self.pipeline_and_file());
        let retention = pipeline.retention_due_at(shared, database);
        let next = self.schedule.next(self.is_busy()).into_iter();
        let deletion = self.file.get().has_hidden_rows().then_some(self.deletion_retry_at);
        let next = next.chain(flushes).chain(apply).chain(retention).chain(deletion).min();
        // An hour: an arbitrary upper bound.
        next.map_or(Duration::from_secs(3_600), |next| next.saturating_sub(now))
    }

    /// Whether a change is not in the bucket yet or a caller waits.
    fn is_busy(&self) -> bool {
        // An indeterminate publication may still take effect: the subject stays open until it is resolved.
        !self.pipeline.is_acknowledged()
            || self.pipeline.last_unshipped().is_some()
            || self.pipeline.stalled.is_some()
            || self.unresolved_publish.is_some()
            || !self.writes.is_empty()
            || self.pipeline.under_way.is_some()
            || !self.flushes.is_empty()
            || !self.pending_handovers.is_empty()
            || !self.reads.is_empty()
            || !self.file_reads.is_empty()
    }

    /// Replies to reads and queues everything else, until the slice is spent.
    fn dispatch(&mut self, inbox: &mut SubjectInbox) {
        let (confirmed, now) = (self.shared.read_lease.is_confirmed(), self.shared.env.boot());
        self.schedule.used(now);
        let mut slice = Slice::new();
        while !slice.is_spent()
            && let Some(submission) = inbox.waiting.pop_front()
        {
            self.shared.instruments.queue_wait.observe(now.saturating_sub(submission.received));
            self.tenant = submission.tenant;
            if !reads::is_read(&submission.request) {
                slice.count(0);
                if self.writes.len() < MAX_WRITES {
                    self.writes.push_back(submission);
                } else {
                    let reply = ErrorReply::from(OverloadCause::QueuedChanges);
                    (submission.respond)(Err(reply));
                }
            } else if confirmed {
                self.read(submission, None, &mut slice);
            } else {
                slice.count(0);
                self.reads.push(self.shared, PendingRead::Read(submission));
            }
        }
    }

    /// Reads a message again whose blob was missing in the bucket: the message may have been replaced
    /// meanwhile.
    fn retry_read(&mut self, again: RetriedRead) {
        if self.shared.read_lease.is_confirmed() {
            self.read(again.submission, Some(again.missing), &mut Slice::new());
        } else {
            self.reads.push(self.shared, PendingRead::Retried(again));
        }
    }

    /// Answers a read of a file that has all acknowledged changes.
    pub(super) fn read_at_once(
        &mut self,
        submission: Submission,
        missing: Option<BlobName>,
        slice: &mut Slice,
    ) {
        let Some(submission) = self.transfer(submission, missing) else { return slice.count(0) };
        let context = ReadContext {
            log: self.shared.log.id(),
            level: self.shared.settings.level,
            bucket_rev: self.pipeline.bucket_rev(),
            base_rev: self.manifest.base_rev,
            tail_bytes: self.shared.log.tail(self.subject).map_or(0, |tail| tail.bytes),
            open_since: self.open_since,
        };
        let kind = match submission.request {
            SubjectRequest::GetAll(_) | SubjectRequest::Keys(_) | SubjectRequest::Changes(_) => {
                StepKind::Page
            }
            _ => StepKind::Get,
        };
        let step = self.shared.step(kind);
        let answer =
            reads::answer(self.file.get(), &submission.request, submission.max_reply_bytes, &context);
        drop(step);
        slice.count(answer.as_ref().map_or(0, reads::value_bytes));
        let answer = answer.unwrap_or_else(|| Err(ErrorReply::internal("a change was dispatched as a read")));
        self.answer_read(submission, answer, missing);
    }

    fn barrier_ended(&mut self, passed: &Result<(), ErrorReply>) {
        // They are answered in slices.
        for waiting in self.reads.take(self.shared) {
            match (waiting, passed) {
                (PendingRead::Read(read), Ok(())) => self.file_reads.keep(read, None),
                (PendingRead::Retried(again), Ok(())) => {
                    self.file_reads.keep(again.submission, Some(again.missing));
                }
                (PendingRead::Ready(respond, answer), Ok(())) => respond(answer),
                (waiting, Err(reply)) => waiting.into_respond()(Err(reply.clone())),
            }
        }
    }

    pub(super) fn count_backlog(&mut self) {
        self.backlog_bytes.set(self.pipeline.backlog().bytes() as u64);
    }

    fn is_apply_due(&self, inbox: &SubjectInbox) -> bool {
        // The page reflects one state; the backlog is applied after it.
        if self.file_reads.is_page_open() {
            return false;
        }
        let is_idle = self.pipeline.is_acknowledged() && inbox.is_empty();
        // A flush or handover may need the file in the bucket.
        let is_wanted = !self.flushes.is_empty() || !self.pending_handovers.is_empty();
        let of_all = self.shared.counters.apply_backlog_bytes.get();
        let is_due = self.pipeline.backlog().is_due(self.shared.env.boot(), of_all);
        let is_worth_it = is_idle && self.pipeline.backlog().exceeds_idle_apply_size();
        is_due || is_wanted || is_worth_it || self.pipeline.stalled.is_some()
    }

    /// Acknowledges a slice of the changes that have reached their level. Returns whether more are ready.
    pub(super) fn acknowledge(&mut self) -> bool {
        let database = self.file.get();
        let acked = self.pipeline.acknowledge_ready(self.shared, self.subject, database);
        if let Some(ended_at) = acked.ended_at.filter(|_| acked.changes > 0) {
            self.schedule.changed(ended_at);
            self.shared.counters.changes.add(acked.changes as u64);
        }
        self.count_backlog();
        if !acked.state_replies.is_empty() {
            let confirmed = self.shared.read_lease.is_confirmed();
            for (respond, answer) in acked.state_replies {
                if confirmed {
                    respond(answer);
                } else {
                    self.reads.push(self.shared, PendingRead::Ready(respond, answer));
                }
            }
        }
        self.compact_if_due();
        acked.has_more
    }

    /// Executes the first queued request, which is not a log entry.
    async fn handle_unlogged(&mut self, inbox: &mut SubjectInbox) -> Option<SubjectServeEnd> {
        let submission = self.writes.pop_front()?;
        match submission.request {
            SubjectRequest::Flush => self.flush(submission.respond, FlushTarget::Log),
            SubjectRequest::Compact => self.flush(submission.respond, FlushTarget::Base),
            SubjectRequest::HandOver => self.flush(submission.respond, FlushTarget::HandOver),
            SubjectRequest::Destroy(request) => {
                return self.destroy(request.request, submission.respond, inbox).await;
            }
            _ => (submission.respond)(Err(ErrorReply::internal("a read was queued with the changes"))),
        }
        None
    }

    /// Copies the content of the sidecar into the main file.
    pub(super) async fn run_checkpoint(&mut self) -> Result<(), DatabaseError> {
        let shared = Arc::clone(self.shared);
        self.run_indivisible(move |database| {
            let _step = shared.step(StepKind::Checkpoint);
            database.checkpoint()
        })
        .await
    }

    pub(super) fn pipeline_and_file(&mut self) -> (&mut Pipeline, &Database) {
        (&mut self.pipeline, self.file.get())
    }

    pub(super) fn database(&mut self) -> &mut Database {
        self.file.get()
    }

    /// Takes the database out permanently.
    pub(super) const fn take_file(&mut self) -> Option<Database> {
        self.file.take()
    }

    /// Publishes the subject's position to watchers.
    pub(super) fn beacon(&mut self) {
        let state = self.file.get().state();
        let rev = self.pipeline.backlog().entries().last().map_or(state.rev, LogEntry::last_rev);
        let event = Event { rev, ..events::beacon(state) };
        self.shared.events.publish(self.subject, event);
    }

    pub(super) fn position(&mut self) -> Position {
        self.file.get().state().position()
    }

    pub(super) fn count_bytes(&mut self) {
        let bytes = self.file.get().file_bytes();
        self.local_bytes.set(bytes);
        self.file_guard.set_bytes(bytes);
        self.written_bytes = 0;
    }

    /// Keeps the sidecar small between snapshots.
    async fn checkpoint_if_large(&mut self) {
        if self.written_bytes < CHECKPOINT_LOOK_BYTES || self.publishing.is_some() {
            return;
        }
        self.written_bytes = 0;
        if self.file.get().wal_bytes() > CHECKPOINT_BYTES
            && let Err(error) = self.run_checkpoint().await
        {
            tracing::warn!(subject = %self.subject, %error, "checkpoint failed");
        }
    }

    /// Rejects all waiting requests except planned changes.
    pub(super) fn refuse_all(&mut self, reply: &ErrorReply) {
        self.pipeline.abandon_plan();
        let writes = self.writes.drain(..).map(|write| write.respond);
        let flushes =
            self.flushes.drain(..).map(|flush| flush.respond).chain(self.pending_handovers.drain(..));
        for respond in writes.chain(flushes).chain(self.reads.drain()).chain(self.file_reads.drain()) {
            respond(Err(reply.clone()));
        }
    }

    /// Waits until every change is applied and in the bucket, or has failed. Nothing new is planned meanwhile. Must not be
    /// cancelled.
    pub(super) async fn wait_until_quiescent(&mut self) -> Result<(), DatabaseError> {
        self.is_quiescent_within(None).await.map(drop)
    }

    /// The same, with a time limit; returns whether it was kept.
    pub(super) async fn is_quiescent_within(
        &mut self,
        limit: Option<Duration>,
    ) -> Result<bool, DatabaseError> {
        let until = limit.map(|limit| self.shared.env.boot() + limit);
        let moved = self.pipeline.waker();
        loop {
            self.advance().await?;
            // A change acknowledged at a weaker level before the log ended is never shipped in that log.
            if self.pipeline.is_quiescent() || self.shared.log.end().is_some() && self.pipeline.is_applied() {
                return Ok(true);
            }
            let stalled = self.pipeline.stalled.is_some();
            if stalled && self.shared.has_log_ended() {
                // The changes are in the log; the next owner applies them.
                return Ok(true);
            }
            let left = until.map(|until| until.saturating_sub(self.shared.env.boot()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            self.shared.log.ship();
            tokio::select! {
                biased;
                () = moved.notified() => {}
                _ = self.shared.log.ended(), if self.shared.log.end().is_none() => {}
                () = tokio::time::sleep(APPLY_RETRY_DELAY), if stalled => {}
                () = tokio::time::sleep(left.unwrap_or_default()), if left.is_some() => {}
            }
        }
    }
}
