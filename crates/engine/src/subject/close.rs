//! How serving ends: closed, released, fenced, destroyed, file unusable.

use std::time::Duration;

use dormouse_protocol::data::DestroyReply;
use dormouse_protocol::{ErrorCode, ErrorReply, RequestId, Rev};
use dormouse_runtime::fail_point;
use dormouse_runtime::pool::JobKind;
use dormouse_subject_state::database::{DatabaseError, remove_files};

use super::base::published;
use super::events;
use super::publish::{self, PublishEnd, PublishJob};
use super::serve::{OpenSubject, SubjectServeEnd};
use super::{Respond, SubjectInbox, retention};
use crate::api::{HandoverOutcome, SubjectReply};
use crate::subject_table::shutting_down;

/// How often a release is tried at shutdown.
const RELEASE_ATTEMPTS: u32 = 3;

/// The pause between attempts to resolve an outcome with the bucket.
const PAUSE: Duration = Duration::from_millis(500);

impl OpenSubject<'_> {
    /// Closes the file. Everything is in the bucket; this process keeps the manifest, so the next request
    /// opens the file again without a new claim.
    pub(super) async fn close(&mut self) -> SubjectServeEnd {
        self.beacon();
        let complete = self.pipeline.is_quiescent() && self.pipeline.stalled.is_none();
        if self.close_file().await && complete {
            self.shared.log.file_complete(self.subject);
        }
        tracing::debug!(subject = %self.subject, "subject closed");
        SubjectServeEnd::Closed
    }

    /// Returns whether the file is closed and complete on its own.
    async fn close_file(&mut self) -> bool {
        let Some(database) = self.take_file() else { return false };
        let entry = self.shared.pool.reserve_internal(self.tenant.get()).await;
        let closed = entry.run(JobKind::Indivisible, move || database.close());
        let closed = closed.await;
        if let Err(error) = &closed {
            tracing::warn!(subject = %self.subject, %error, "local file close failed");
        }
        closed.is_ok()
    }

    /// The log has ended: the state may no longer be used here, and pending changes belong to the process
    /// that took over.
    pub(super) async fn on_log_end(&mut self, inbox: &mut SubjectInbox) -> SubjectServeEnd {
        let reply = self.shared.log_ended_reply();
        inbox.refuse(&reply);
        self.refuse_all(&reply);
        if self.publishing.is_some() {
            // The publication reads the file; its result no longer matters.
            let _ = published(&mut self.publishing).await;
            self.publishing = None;
        }
        // Every append of an ended log has a definite outcome: callers that wait for a change get it.
        if let Err(error) = self.wait_until_quiescent().await {
            tracing::debug!(subject = %self.subject, %error, "changes of ended log not applied");
        }
        self.close_file().await;
        SubjectServeEnd::Refused(reply)
    }

    /// Waits for the running publication and resolves an indeterminate one, as far as the bucket answers.
    async fn resolve_publish(&mut self) -> Option<SubjectServeEnd> {
        if self.publishing.is_some() {
            let end = published(&mut self.publishing).await;
            if let Some(end) = self.published(end).await {
                return Some(end);
            }
        }
        let undecided = self.unresolved_publish.take()?;
        let end =
            publish::publish(self.shared, self.subject, &self.manifest, PublishJob::Resume(undecided)).await;
        self.published(end).await
    }

    /// Another process owns the subject: this process's log was taken over, or the subject was never owned
    /// here. Stops serving. Writes that exist only here are in the local log and stay there until they are
    /// resolved.
    pub(super) async fn on_fenced(&mut self) -> SubjectServeEnd {
        if self.publishing.is_some() {
            // The publication reads the file; its result no longer matters.
            let _ = published(&mut self.publishing).await;
            self.publishing = None;
        }
        self.shared.counters.fenced_subjects.add(1);
        tracing::info!(subject = %self.subject, "subject fenced: owned by another process");
        self.refuse_all(&ErrorReply::not_owner(None));
        // The subject is not opened again before its changes have definite outcomes.
        if let Err(error) = self.wait_until_quiescent().await {
            tracing::debug!(subject = %self.subject, %error, "changes of fenced subject not applied");
        }
        self.close_file().await;
        // Waiting requests start a new claim, which finds the owner.
        SubjectServeEnd::Closed
    }

    /// The file is unusable. It is rebuilt from the bucket at the next open; before that, pending changes get
    /// definite outcomes.
    pub(super) async fn fail(&mut self, broken: &DatabaseError, inbox: &mut SubjectInbox) -> SubjectServeEnd {
        tracing::error!(subject = %self.subject, error = %broken, "local file unusable, closing subject");
        let reply = broken.reply(self.subject);
        self.refuse_all(&reply);
        let unknown = ErrorReply::new(ErrorCode::Indeterminate, reply.message.clone());
        self.pipeline.answer_all(&unknown);
        let moved = self.pipeline.waker();
        loop {
            if let Some(end) = self.resolve_publish().await {
                return end;
            }
            if self.shared.is_stopping() || self.shared.has_log_ended() {
                self.shared.subject_table.record_release(self.subject, Err(reply.to_string()));
                return SubjectServeEnd::Refused(reply);
            }
            self.pipeline.drop_definite_changes();
            if self.unresolved_publish.is_none() && self.pipeline.is_quiescent() {
                break;
            }
            inbox.refuse(&reply);
            self.shared.log.ship();
            tokio::select! {
                biased;
                () = moved.notified() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
        // Its content is in the bucket. The next open detects the fault and keeps the file.
        drop(self.take_file());
        SubjectServeEnd::Refused(reply)
    }

    /// Releases the subject: rejects new requests, puts all accepted changes in the bucket, and publishes a released
    /// manifest. The next owner claims the subject without sealing this log.
    pub(super) async fn release(&mut self, inbox: &mut SubjectInbox) -> SubjectServeEnd {
        inbox.refuse(&shutting_down());
        self.refuse_all(&shutting_down());
        let mut attempt = 0;
        let released = loop {
            if self.shared.has_log_ended() {
                return self.on_log_end(inbox).await;
            }
            attempt += 1;
            match self.try_release().await {
                Ok(None) => break Ok(()),
                Ok(Some(end)) => return end,
                Err(why) if attempt == RELEASE_ATTEMPTS => break Err(why),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        match released {
            Ok(()) => {
                self.shared.authority.released(self.subject).await;
                self.shared.subject_table.record_release(self.subject, Ok(()));
            }
            Err(why) => {
                tracing::warn!(
                    subject = %self.subject, error = %why, impact = "the next owner takes it over from the log",
                    "subject release failed"
                );
                self.shared.subject_table.record_release(self.subject, Err(why.to_string()));
            }
        }
        self.beacon();
        self.close_file().await;
        SubjectServeEnd::Refused(shutting_down())
    }

    /// Hands the subject over, if possible, as
    /// [`SubjectRequest::HandOver`](crate::api::SubjectRequest::HandOver) requests. Requests that arrive
    /// meanwhile wait until the outcome is known. Returns `None` if it was not possible: this process still
    /// owns the subject and continues to serve it.
    pub(super) async fn hand_over(&mut self, inbox: &mut SubjectInbox) -> Option<SubjectServeEnd> {
        let waiting = std::mem::take(&mut self.pending_handovers);
        let answer = |answer: Result<HandoverOutcome, ErrorReply>| {
            waiting.into_iter().for_each(|respond| respond(answer.clone().map(SubjectReply::HandOver)));
        };
        // They belong to requests that are not planned yet.
        self.pipeline.abandon_plan();
        if let Err((reply, end)) = self.quiesce(inbox).await {
            answer(Err(reply));
            return end;
        }
        loop {
            match self.try_release().await {
                Ok(None) => break,
                Ok(Some(end)) => {
                    answer(Ok(HandoverOutcome::NotHeld));
                    return Some(end);
                }
                Err(why) if self.unresolved_publish.is_none() => {
                    answer(Err(why));
                    return None;
                }
                // The release may take effect at any time, so nothing is accepted or read until its outcome
                // is known.
                Err(why) => {
                    let reply = ErrorReply::unavailable("the outcome of the handover is not known yet");
                    inbox.refuse(&reply);
                    self.refuse_all(&reply);
                    if self.shared.has_log_ended() {
                        answer(Err(why));
                        return Some(self.on_log_end(inbox).await);
                    }
                    if self.shared.is_stopping() {
                        self.shared.subject_table.record_release(self.subject, Err(why.to_string()));
                        answer(Err(why));
                        self.close_file().await;
                        return Some(SubjectServeEnd::Refused(shutting_down()));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        self.beacon();
        self.close_file().await;
        // The subject has no owner now. Until the authority knows this, location queries still lead to this
        // server.
        self.shared.authority.released(self.subject).await;
        self.shared.counters.handed_over.add(1);
        tracing::debug!(subject = %self.subject, "subject handed over");
        answer(Ok(HandoverOutcome::Released));
        Some(SubjectServeEnd::Refused(ErrorReply::not_owner(None)))
    }

    async fn try_release(&mut self) -> Result<Option<SubjectServeEnd>, ErrorReply> {
        if let Some(end) = self.resolve_publish().await {
            return Ok(Some(end));
        }
        if self.manifest.released {
            return Ok(None);
        }
        if self.unresolved_publish.is_some() {
            return Err(self.publish_failure.clone().unwrap_or_else(shutting_down));
        }
        self.wait_until_quiescent().await.map_err(|error| error.reply(self.subject))?;
        // A released subject has a plain SQLite file in the bucket, even if a claim has left only a delta.
        let rev = self.position().rev;
        let lacks_snapshot = self.manifest.snapshot.is_none() && rev > Rev::default();
        let is_behind = self.shared.log.tail(self.subject).is_some() || rev > self.manifest.base_rev;
        let needs_base = is_behind || lacks_snapshot;
        let source = if needs_base { Some(self.prepare_base_source().await?) } else { None };
        fail_point!(Releasing);
        let end =
            publish::publish(self.shared, self.subject, &self.manifest, PublishJob::Release(source)).await;
        fail_point!(Released);
        match self.published(end).await {
            Some(end) => Ok(Some(end)),
            None if self.manifest.released => Ok(None),
            None => Err(self.publish_failure.clone().unwrap_or_else(shutting_down)),
        }
    }

    /// Waits, up to the flush timeout, until the subject has no pending change or publication. If this fails,
    /// returns the reply and, if serving ends, how.
    async fn quiesce(
        &mut self,
        inbox: &mut SubjectInbox,
    ) -> Result<(), (ErrorReply, Option<SubjectServeEnd>)> {
        if let Some(end) = self.resolve_publish().await {
            return Err((ErrorReply::not_owner(None), Some(end)));
        }
        if self.unresolved_publish.is_some() {
            return Err((self.not_in_bucket(), None));
        }
        let timeout = self.shared.settings.flush_timeout;
        match self.is_quiescent_within(Some(timeout)).await {
            Ok(true) => Ok(()),
            Err(error) => {
                let reply = error.reply(self.subject);
                Err((reply, Some(self.fail(&error, inbox).await)))
            }
            Ok(false) => Err((self.not_in_bucket(), None)),
        }
    }

    /// Destroys the subject: `request` is known to be new. Returns `None` if it was not possible and serving
    /// continues.
    pub(super) async fn destroy(
        &mut self,
        request: Option<RequestId>,
        respond: Respond,
        inbox: &mut SubjectInbox,
    ) -> Option<SubjectServeEnd> {
        let mut respond = Some(respond);
        let mut answer = |reply| {
            if let Some(respond) = respond.take() {
                respond(reply);
            }
        };
        if let Err((reply, end)) = self.quiesce(inbox).await {
            answer(Err(reply));
            return end;
        }
        let wall = retention::wall(self.shared);
        let tombstone = match self.database().tombstone_state(request, wall) {
            Ok(tombstone) => Box::new(tombstone),
            Err(error) => {
                answer(Err(error.reply(self.subject)));
                return None;
            }
        };
        let state = self.database().state();
        let (destroyed, next_seq) = (events::destroyed(state), state.next_seq);
        let mut job = PublishJob::Destroy(tombstone.clone(), next_seq);
        loop {
            match publish::publish(self.shared, self.subject, &self.manifest, job).await {
                // An earlier publication of this process had taken effect.
                PublishEnd::Published(verified) if !verified.manifest.tombstone => {
                    if let Some(end) = self.published(PublishEnd::Published(verified)).await {
                        return Some(end);
                    }
                    job = PublishJob::Destroy(tombstone.clone(), next_seq);
                }
                PublishEnd::Published(verified) => {
                    let manifest = &verified.manifest;
                    self.shared.log.base_published(self.subject, manifest.base_rev, manifest.first_slot);
                    self.shared.events.publish(self.subject, destroyed);
                    let position = tombstone.position;
                    answer(Ok(SubjectReply::Destroy(DestroyReply { position, duplicate: false })));
                    self.collect(verified).await;
                    self.remove_file().await;
                    return Some(SubjectServeEnd::Closed);
                }
                PublishEnd::Fenced { may_have_counted } => {
                    answer(Err(if may_have_counted {
                        let why = "fenced by another process: whether the subject was destroyed is not known";
                        ErrorReply::new(ErrorCode::Indeterminate, why)
                    } else {
                        ErrorReply::not_owner(None)
                    }));
                    return Some(self.on_fenced().await);
                }
                PublishEnd::Failed(reply) => {
                    answer(Err(reply));
                    return None;
                }
                PublishEnd::Undecided(machine, reply) => {
                    answer(Err(ErrorReply::new(ErrorCode::Indeterminate, reply.message)));
                    if let Some(end) = self.wait_for_tombstone(inbox).await {
                        return Some(end);
                    }
                    job = PublishJob::Resume(machine);
                }
            }
        }
    }

    /// Waits before the next attempt. The tombstone may take effect at any time, so nothing is accepted until
    /// its outcome is known.
    async fn wait_for_tombstone(&mut self, inbox: &mut SubjectInbox) -> Option<SubjectServeEnd> {
        inbox.refuse(&ErrorReply::unavailable("the outcome of the destroy is not known yet"));
        if self.shared.has_log_ended() {
            return Some(self.on_log_end(inbox).await);
        }
        if self.shared.is_stopping() {
            let why = "the outcome of the destroy is not known".to_owned();
            self.shared.subject_table.record_release(self.subject, Err(why));
            self.close_file().await;
            return Some(SubjectServeEnd::Refused(shutting_down()));
        }
        tokio::time::sleep(PAUSE).await;
        None
    }

    async fn remove_file(&mut self) {
        let Some(database) = self.take_file() else { return };
        let removed = self
            .shared
            .env
            .blocking(move || {
                let path = database.path().to_owned();
                drop(database);
                remove_files(&path)
            })
            .await;
        if let Err(error) = removed {
            // The next claim starts from the tombstone and replaces the file with an empty one.
            tracing::warn!(subject = %self.subject, %error, "local file of destroyed subject not removed");
        }
    }
}
