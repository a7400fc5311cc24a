//! Retention of an open subject: it removes expired messages, and messages above the limits.
//!
//! A message exists until the entry that removes it is applied, so a read never depends on the clock. That
//! entry goes through the log like a write, at the subject's level, and names the removed messages: every
//! replay removes the same messages.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_format::entry::LogEntry;
use dormouse_format::frame;
use dormouse_metrics::StepKind;
use dormouse_protocol::{ErrorReply, Subject, Timestamp};
use dormouse_subject_state::database::{Database, Slice};
use dormouse_subject_state::plan::{self, PlanContext, SubjectView};

use super::SubjectInbox;
use super::pipeline::{AppendGroup, PendingChange, Pipeline, PipelineStep, PlanBlocked};
use super::planning::ChangeUnderWay;
use super::serve::{OpenSubject, SubjectServeEnd};
use crate::engine::EngineShared;
use crate::values::Uploaded;

/// The wall clock may be adjusted: the longest time between two checks of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Retry delay after the log has rejected an entry or the state could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// How long the first requests wait for the removal of messages that expired while the subject was dormant.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// Assumed maximum payload of the bus before the first request, in bytes: less than that of any bus.
pub(super) const ASSUMED_BUS_BYTES: usize = 64 * 1_024;

/// The server's wall clock.
pub(super) fn wall(shared: &EngineShared) -> Timestamp {
    Timestamp::from_micros(shared.env.wall_micros())
}

/// The pending retention entry.
#[derive(Debug, Default)]
pub(super) struct PendingRetention {
    /// The rev after it; it is applied once the subject has this rev.
    until: Option<dormouse_protocol::Rev>,
    /// No attempt before this time on the monotonic clock.
    retry_at: Option<Duration>,
}

impl PendingRetention {
    /// All pending changes have failed.
    pub(super) const fn failed(&mut self) {
        self.until = None;
    }

    /// The next attempt follows after a pause.
    pub(super) fn retry_later(&mut self, boot: Duration) {
        self.retry_at = Some(boot + RETRY);
    }
}

impl Pipeline {
    /// Removes the messages that are due now, as many as one entry can name: plans the next slice. `None`: nothing is
    /// left to plan.
    pub(super) fn run_retention(
        &mut self,
        shared: &EngineShared,
        subject: &Subject,
        database: &Database,
        slice: &mut Slice,
    ) -> Option<PlanBlocked> {
        let (now, boot) = (wall(shared), shared.env.boot());
        let mut progress = match std::mem::take(&mut self.under_way) {
            ChangeUnderWay::Retention(progress) if !self.is_blocked() => progress,
            // It is planned again once something can be planned.
            ChangeUnderWay::Retention(_) => return None,
            ChangeUnderWay::Planned(planned) if planned.is_retention() => {
                self.under_way = ChangeUnderWay::Planned(planned);
                if self.is_failing() {
                    return Some(PlanBlocked::UntilApplied);
                }
                return self.continue_retention(shared, subject, database, slice);
            }
            other => {
                self.under_way = other;
                if !self.may_run_retention(database) || self.retention.retry_at.is_some_and(|at| at > boot) {
                    return None;
                }
                self.retention.retry_at = None;
                if !is_due(database, now) && !plan::is_above_limits(&self.pending.view(database)) {
                    return None;
                }
                Box::default()
            }
        };
        let context = PlanContext { accept_time: now, max_message_bytes: self.bus_bytes, blobs: &[] };
        match progress.step(&self.pending.view(database), context, slice) {
            Ok(None) => {
                self.under_way = ChangeUnderWay::Retention(progress);
                Some(PlanBlocked::UntilNextSlice)
            }
            Ok(Some(None)) => None,
            Ok(Some(Some(entry))) if !plan::fits_slice(&entry) => {
                self.under_way = ChangeUnderWay::planned(entry, None, Uploaded::default());
                Some(PlanBlocked::UntilEncoded)
            }
            Ok(Some(Some(entry))) => {
                match frame::encode(&entry) {
                    Ok(frame) => {
                        self.pending.push(&entry, database);
                        self.append_retention(shared, subject, database, entry, frame);
                    }
                    Err(error) => {
                        tracing::error!(%subject, %error, "retention entry failed");
                        self.retention.retry_later(boot);
                    }
                }
                None
            }
            // The error is logged where it occurs.
            Err(_) => {
                self.retention.retry_later(boot);
                None
            }
        }
    }

    /// Appends the entry, which is one of the pending changes.
    pub(super) fn append_retention(
        &mut self,
        shared: &EngineShared,
        subject: &Subject,
        database: &Database,
        entry: LogEntry,
        frame: Bytes,
    ) {
        let (until, bytes) = (entry.last_rev(), frame.len());
        let level = self.level_of(shared, &self.pending.view(database).state().config);
        let change = PendingChange { entry, bytes, level, progress: None, uploaded: Uploaded::default() };
        let step = PipelineStep::without_caller(change, self.bus_bytes);
        if self.append(shared, subject, database, AppendGroup::of(frame, level, step)) {
            self.retention.until = Some(until);
        } else {
            self.retention.retry_later(shared.env.boot());
        }
    }

    fn may_run_retention(&self, database: &Database) -> bool {
        let is_under_way =
            !self.is_applied() && self.retention.until.is_some_and(|until| database.state().rev < until);
        !is_under_way && !self.is_blocked() && !self.under_way.is_some()
    }

    /// When to check next, on the monotonic clock; `None` if no check is needed without another event.
    pub(super) fn retention_due_at(&self, shared: &EngineShared, database: &Database) -> Option<Duration> {
        if !self.may_run_retention(database) {
            return None;
        }
        let (now, boot) = (wall(shared), shared.env.boot());
        let is_due = is_due(database, now) || plan::is_above_limits(&self.pending.view(database));
        if is_due {
            // The removal is pending, or was rejected, or is acknowledged and not applied to the file yet.
            let behind = self.is_acknowledged().then(|| self.backlog().due_at()).flatten();
            return behind.or(self.is_applied().then(|| self.retention.retry_at.unwrap_or(boot + RETRY)));
        }
        let left = database.next_expiry()?.as_micros().saturating_sub(now.as_micros());
        Some(boot + Duration::from_micros(left).min(LONGEST_PAUSE))
    }
}

/// Whether a message has expired by accept time, which is the clock's time unless the clock has gone back.
fn is_due(database: &Database, now: Timestamp) -> bool {
    let accept_time = now.max(database.state().accept_time);
    database.next_expiry().is_some_and(|at| at <= accept_time)
}

impl OpenSubject<'_> {
    /// When a message expires next, on the monotonic clock, as far as it can be predicted.
    pub(super) fn expires_at(&mut self) -> Option<Duration> {
        let (now, boot) = (wall(self.shared), self.shared.env.boot());
        let at = self.database().next_expiry()?;
        Some(boot + Duration::from_micros(at.as_micros().saturating_sub(now.as_micros())))
    }

    /// Removes the messages that expired while the subject was dormant before any request is answered, within
    /// a time limit.
    pub(super) async fn expire_before_serving(
        &mut self,
        inbox: &mut SubjectInbox,
    ) -> Option<SubjectServeEnd> {
        let opened_at = wall(self.shared);
        let until = self.shared.env.boot() + OPEN_TIMEOUT;
        let moved = self.pipeline.waker();
        loop {
            if let Err(broken) = self.advance().await {
                return Some(self.fail(&broken, inbox).await);
            }
            if !is_due(self.database(), opened_at) {
                return None;
            }
            match self.run_retention() {
                Some(PlanBlocked::UntilEncoded) => {
                    self.encode_planned().await;
                    continue;
                }
                Some(PlanBlocked::UntilNextSlice) => {
                    tokio::task::yield_now().await;
                    continue;
                }
                _ => {}
            }
            let left = until.saturating_sub(self.shared.env.boot());
            if self.pipeline.is_applied() || left.is_zero() {
                return None;
            }
            let shared = Arc::clone(self.shared);
            tokio::select! {
                biased;
                () = shared.stopping() => return None,
                () = moved.notified() => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// Plans the next slice of the removal of the messages that are due now. `None`: nothing is left to plan.
    pub(super) fn run_retention(&mut self) -> Option<PlanBlocked> {
        let (shared, subject) = (self.shared, self.subject);
        let _step = shared.step(StepKind::Plan);
        let (pipeline, database) = self.pipeline_and_file();
        pipeline.run_retention(shared, subject, database, &mut Slice::new())
    }
}

/// The reply of a step without a caller.
pub(super) fn no_caller_reply() -> super::SubjectResult {
    Err(ErrorReply::internal("the change has no caller"))
}
