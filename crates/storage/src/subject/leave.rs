//! The ways in which serving ends: closed, released, lost, destroyed, broken.

use std::time::Duration;

use dormouse_protocol::data::DestroyReply;
use dormouse_protocol::{ErrorCode, ErrorReply, RequestId, Rev};

use super::base::published;
use super::events;
use super::publish::{self, Job, PublishEnd};
use super::serve::{End, Serving};
use super::{Inbox, Respond, upkeep};
use crate::api::{HandedOver, Reply};
use crate::database::{DatabaseError, remove_files};
use crate::directory::shutting_down;
use crate::fail_points::{Step as FailPoint, reach};

/// How often a release is tried at shutdown.
const RELEASE_ATTEMPTS: u32 = 3;

/// The pause between attempts to settle something with the bucket.
const PAUSE: Duration = Duration::from_millis(500);

impl Serving<'_> {
    /// Closes the file. Everything is in the bucket; the manifest stays ours, so the next request opens the file
    /// again without a new claim.
    pub(super) async fn close(&mut self) -> End {
        self.beacon();
        self.close_file().await;
        tracing::debug!(subject = %self.subject, "closed");
        End::Closed
    }

    async fn close_file(&mut self) {
        let Some(database) = self.take_file() else { return };
        if let Err(error) = self.shared.env.blocking(move || database.close()).await {
            tracing::warn!(subject = %self.subject, %error, "the local file could not be closed in one piece");
        }
    }

    /// The log has ended: nothing of it may be used any more, and what is under way is somebody else's business.
    pub(super) async fn abandon(&mut self, inbox: &mut Inbox) -> End {
        let reply = self.shared.log_ended_reply();
        inbox.refuse(&reply);
        self.refuse_all(&reply);
        if self.publishing.is_some() {
            // It reads the file. What it says matters no more.
            let _ = published(&mut self.publishing).await;
            self.publishing = None;
        }
        // Every ticket of a log that has ended is definite: those who wait for a change learn what became of it.
        if let Err(error) = self.settle_changes().await {
            tracing::debug!(subject = %self.subject, %error, "changes of a log that has ended were not applied");
        }
        self.close_file().await;
        End::Refused(reply)
    }

    /// Waits for the publication under way and settles one without known outcome, as far as the bucket answers.
    async fn settle(&mut self) -> Option<End> {
        if self.publishing.is_some() {
            let end = published(&mut self.publishing).await;
            if let Some(end) = self.published(end).await {
                return Some(end);
            }
        }
        let undecided = self.undecided.take()?;
        let end = publish::publish(self.shared, self.subject, &self.manifest, Job::Resume(undecided)).await;
        self.published(end).await
    }

    /// Somebody else owns the subject, so this process's log has been taken over or the subject was never its own:
    /// serves no more. What only exists here is in the local log, and stays there until it is settled.
    pub(super) async fn lose(&mut self) -> End {
        if self.publishing.is_some() {
            // It reads the file. What it says matters no more.
            let _ = published(&mut self.publishing).await;
            self.publishing = None;
        }
        self.shared.counters.lost_subjects.add(1);
        tracing::info!(subject = %self.subject, "another process owns the subject now");
        self.refuse_all(&ErrorReply::not_owner(None));
        // No second life before the changes of this one are definite.
        if let Err(error) = self.settle_changes().await {
            tracing::debug!(subject = %self.subject, %error, "changes of a lost subject were not applied");
        }
        self.close_file().await;
        // Requests that wait make a claim of their own, and so learn who the owner is.
        End::Closed
    }

    /// The file can be used no more. It is made anew from the bucket when the subject is opened again; before that,
    /// what is under way becomes definite.
    pub(super) async fn fail(&mut self, broken: &DatabaseError, inbox: &mut Inbox) -> End {
        tracing::error!(subject = %self.subject, error = %broken, "the local file is closed: its state cannot be relied on");
        let reply = broken.reply(self.subject);
        self.refuse_all(&reply);
        let unknown = ErrorReply::new(ErrorCode::Indeterminate, reply.message.clone());
        self.pipeline.answer_all(&unknown);
        let moved = self.pipeline.waker();
        loop {
            if let Some(end) = self.settle().await {
                return end;
            }
            if self.shared.is_stopping() || self.shared.has_log_ended() {
                self.shared.directory.record_release(self.subject, Err(reply.to_string()));
                return End::Refused(reply);
            }
            self.pipeline.forget_applied();
            if self.undecided.is_none() && self.pipeline.is_settled() {
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
        // Its content is in the bucket; what is wrong with it is found, and kept, when it is opened.
        drop(self.take_file());
        End::Refused(reply)
    }

    /// Hands the subject back: nothing is accepted any more, everything accepted goes to the bucket, and the manifest
    /// says that whoever comes next need not ask.
    pub(super) async fn release(&mut self, inbox: &mut Inbox) -> End {
        inbox.refuse(&shutting_down());
        self.refuse_all(&shutting_down());
        let mut attempt = 0;
        let released = loop {
            if self.shared.has_log_ended() {
                return self.abandon(inbox).await;
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
                self.shared.directory.record_release(self.subject, Ok(()));
            }
            Err(why) => {
                tracing::warn!(
                    subject = %self.subject, %why,
                    "the subject could not be handed back; whoever comes next takes it over from the log"
                );
                self.shared.directory.record_release(self.subject, Err(why.to_string()));
            }
        }
        self.beacon();
        self.close_file().await;
        End::Refused(shutting_down())
    }

    /// Hands the subject over, if that is possible, as [`Request::HandOver`](crate::api::Request::HandOver) asks. Whoever
    /// asks for something meanwhile is held up until it is known where to go. `None`: it was not possible, the subject is
    /// still this process's, and serving goes on.
    pub(super) async fn hand_over(&mut self, inbox: &mut Inbox) -> Option<End> {
        let asked = std::mem::take(&mut self.handing_over);
        let answer = |answer: Result<HandedOver, ErrorReply>| {
            asked.into_iter().for_each(|respond| respond(answer.clone().map(Reply::HandOver)));
        };
        // They are of requests that are not begun.
        self.pipeline.abandon_uploads();
        if let Err((reply, end)) = self.come_to_rest(inbox).await {
            answer(Err(reply));
            return end;
        }
        loop {
            match self.try_release().await {
                Ok(None) => break,
                Ok(Some(end)) => {
                    answer(Ok(HandedOver::NotHeld));
                    return Some(end);
                }
                Err(why) if self.undecided.is_none() => {
                    answer(Err(why));
                    return None;
                }
                // The release may come to count at any time, so nothing may be accepted or read until that is known.
                Err(why) => {
                    let reply =
                        ErrorReply::unavailable("whether the subject is handed over is not known yet");
                    inbox.refuse(&reply);
                    self.refuse_all(&reply);
                    if self.shared.has_log_ended() {
                        answer(Err(why));
                        return Some(self.abandon(inbox).await);
                    }
                    if self.shared.is_stopping() {
                        self.shared.directory.record_release(self.subject, Err(why.to_string()));
                        answer(Err(why));
                        self.close_file().await;
                        return Some(End::Refused(shutting_down()));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        self.beacon();
        self.close_file().await;
        // The subject is nobody's by now. Before whoever places subjects knows that, asking where it is leads back here.
        self.shared.authority.released(self.subject).await;
        self.shared.counters.handed_over.add(1);
        tracing::debug!(subject = %self.subject, "handed over");
        answer(Ok(HandedOver::Released));
        Some(End::Refused(ErrorReply::not_owner(None)))
    }

    async fn try_release(&mut self) -> Result<Option<End>, ErrorReply> {
        if let Some(end) = self.settle().await {
            return Ok(Some(end));
        }
        if self.manifest.released {
            return Ok(None);
        }
        if self.undecided.is_some() {
            return Err(self.failure.clone().unwrap_or_else(shutting_down));
        }
        self.settle_changes().await.map_err(|error| error.reply(self.subject))?;
        // What is handed back has a plain SQLite file in the bucket, also where a claim has left a delta and no more.
        let rev = self.position().rev;
        let lacks_snapshot = self.manifest.snapshot.is_none() && rev > Rev::default();
        let is_behind = self.shared.log.tail(self.subject).is_some() || rev > self.manifest.base_rev;
        let needs_base = is_behind || lacks_snapshot;
        let source = if needs_base { Some(self.source().await?) } else { None };
        reach(FailPoint::Releasing);
        let end = publish::publish(self.shared, self.subject, &self.manifest, Job::Release(source)).await;
        reach(FailPoint::Released);
        match self.published(end).await {
            Some(end) => Ok(Some(end)),
            None if self.manifest.released => Ok(None),
            None => Err(self.failure.clone().unwrap_or_else(shutting_down)),
        }
    }

    /// Waits, as long as one waits for a flush, until nothing of the subject is under way. Where that is not to be, says
    /// what to answer, and whether serving ends.
    async fn come_to_rest(&mut self, inbox: &mut Inbox) -> Result<(), (ErrorReply, Option<End>)> {
        if let Some(end) = self.settle().await {
            return Err((ErrorReply::not_owner(None), Some(end)));
        }
        if self.undecided.is_some() {
            return Err((self.not_in_bucket(), None));
        }
        let patience = self.shared.settings.flush_patience;
        match tokio::time::timeout(patience, self.settle_changes()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let reply = error.reply(self.subject);
                Err((reply, Some(self.fail(&error, inbox).await)))
            }
            Err(_) => Err((self.not_in_bucket(), None)),
        }
    }

    /// Destroys the subject: `request` is known to be new. `None`: it was not possible, and serving goes on.
    pub(super) async fn destroy(
        &mut self,
        request: Option<RequestId>,
        respond: Respond,
        inbox: &mut Inbox,
    ) -> Option<End> {
        let mut respond = Some(respond);
        let mut answer = |reply| {
            if let Some(respond) = respond.take() {
                respond(reply);
            }
        };
        if let Err((reply, end)) = self.come_to_rest(inbox).await {
            answer(Err(reply));
            return end;
        }
        let wall = upkeep::wall(self.shared);
        let past = match self.database().past_life(request, wall) {
            Ok(past) => Box::new(past),
            Err(error) => {
                answer(Err(error.reply(self.subject)));
                return None;
            }
        };
        let state = self.database().state();
        let (destroyed, next_seq) = (events::destroyed(state), state.next_seq);
        let mut job = Job::Destroy(past.clone(), next_seq);
        loop {
            match publish::publish(self.shared, self.subject, &self.manifest, job).await {
                // An earlier publication of this process had counted after all.
                PublishEnd::Published(verified) if !verified.manifest.tombstone => {
                    if let Some(end) = self.published(PublishEnd::Published(verified)).await {
                        return Some(end);
                    }
                    job = Job::Destroy(past.clone(), next_seq);
                }
                PublishEnd::Published(verified) => {
                    let manifest = &verified.manifest;
                    self.shared.log.based(self.subject, manifest.base_rev, manifest.first_slot);
                    self.shared.events.publish(self.subject, destroyed);
                    let position = past.position;
                    answer(Ok(Reply::Destroy(DestroyReply { position, duplicate: false })));
                    self.collect(verified).await;
                    self.remove_file().await;
                    return Some(End::Closed);
                }
                PublishEnd::Lost { may_have_counted } => {
                    answer(Err(if may_have_counted {
                        let why = "another process has gone on with the subject: whether it was destroyed is not known";
                        ErrorReply::new(ErrorCode::Indeterminate, why)
                    } else {
                        ErrorReply::not_owner(None)
                    }));
                    return Some(self.lose().await);
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
                    job = Job::Resume(machine);
                }
            }
        }
    }

    /// Waits a while. The tombstone may come to count at any time, so nothing may be accepted until that is known.
    async fn wait_for_tombstone(&mut self, inbox: &mut Inbox) -> Option<End> {
        inbox.refuse(&ErrorReply::unavailable("whether the subject is destroyed is not known yet"));
        if self.shared.has_log_ended() {
            return Some(self.abandon(inbox).await);
        }
        if self.shared.is_stopping() {
            let why = "whether it is destroyed is not known".to_owned();
            self.shared.directory.record_release(self.subject, Err(why));
            self.close_file().await;
            return Some(End::Refused(shutting_down()));
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
            // The next claim begins with the tombstone and puts an empty file in its place.
            tracing::warn!(subject = %self.subject, %error, "the local file of a destroyed subject stays behind");
        }
    }
}
