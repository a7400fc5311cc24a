//! The ways in which serving ends: closed, released, lost, destroyed.

use std::time::Duration;

use dormouse_protocol::data::DestroyReply;
use dormouse_protocol::{ErrorCode, ErrorReply, Position};

use super::{End, Serving, events, lost, published};
use crate::api::{Reply, Submission};
use crate::database::{DatabaseError, remove_files};
use crate::directory::shutting_down;
use crate::subject::Inbox;
use crate::subject::publish::{self, Job, PublishEnd};

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

    pub(super) async fn close_file(&mut self) {
        let Some(database) = self.file.0.take() else { return };
        if let Err(error) = self.shared.env.blocking(move || database.close()).await {
            tracing::warn!(subject = %self.subject, %error, "the local file could not be closed in one piece");
        }
    }

    /// Waits for the publication under way and settles one without known outcome, as far as the bucket answers.
    pub(super) async fn settle(&mut self) -> Option<End> {
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

    /// Somebody else owns the subject: keeps what only exists here, and serves no more.
    pub(super) async fn lose(&mut self) -> End {
        if self.publishing.is_some() {
            // It reads the file. What it says matters no more.
            let _ = published(&mut self.publishing).await;
            self.publishing = None;
        }
        self.shared.counters.lost_subjects.add(1);
        let unshipped = self.file.get().state().rev > self.manifest.base_rev;
        if !unshipped {
            self.close_file().await;
        } else if let Some(database) = self.file.0.take()
            && let Err(error) = lost::set_aside(self.shared, self.subject, database).await
        {
            tracing::error!(subject = %self.subject, %error, "the file stays where it is");
        }
        tracing::info!(subject = %self.subject, "another process owns the subject now");
        self.refuse_flushes(&ErrorReply::not_owner(None));
        // Requests that wait make a claim of their own, and so learn who the owner is.
        End::Closed
    }

    pub(super) fn refuse_flushes(&mut self, reply: &ErrorReply) {
        for flush in self.flushes.drain(..) {
            (flush.respond)(Err(reply.clone()));
        }
    }

    /// The file can be used no more. What is on its way to the bucket ends first: the task opens the file again at
    /// once, and must neither write to it while it is read nor take a manifest of its own for a stranger's.
    pub(super) async fn fail(&mut self, broken: &DatabaseError, inbox: &mut Inbox) -> End {
        tracing::error!(subject = %self.subject, error = %broken, "the local file is closed: its state cannot be read back");
        let reply = broken.reply(self.subject);
        self.refuse_flushes(&reply);
        loop {
            if let Some(end) = self.settle().await {
                return end;
            }
            if self.is_stopping() {
                self.shared.directory.record_release(self.subject, Err(reply.to_string()));
                break;
            }
            if self.undecided.is_none() {
                break;
            }
            inbox.refuse(&reply);
            tokio::time::sleep(PAUSE).await;
        }
        End::Refused(reply)
    }

    fn is_stopping(&self) -> bool {
        self.shared.stop.is_given() || self.shared.tasks.stop().is_given()
    }

    /// Hands the subject back: nothing is accepted any more, everything accepted goes to the bucket, and the manifest
    /// says that whoever comes next need not ask.
    pub(super) async fn release(&mut self, inbox: &mut Inbox) -> End {
        inbox.refuse(&shutting_down());
        let mut attempt = 0;
        let released = loop {
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
                    "the subject could not be handed back; the next process on this data directory goes on from it"
                );
                self.shared.directory.record_release(self.subject, Err(why.to_string()));
            }
        }
        self.refuse_flushes(&shutting_down());
        self.beacon();
        self.close_file().await;
        End::Refused(shutting_down())
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
        let dirty = self.position().rev > self.manifest.base_rev;
        let state = if dirty {
            Some(self.checkpointed().await.map_err(|error| error.reply(self.subject))?)
        } else {
            None
        };
        let end = publish::publish(self.shared, self.subject, &self.manifest, Job::Release(state)).await;
        match self.published(end).await {
            Some(end) => Ok(Some(end)),
            None if self.manifest.released => Ok(None),
            None => Err(self.failure.clone().unwrap_or_else(shutting_down)),
        }
    }

    /// Destroys the subject. `None`: it was not possible, and serving goes on.
    pub(super) async fn destroy(&mut self, submission: Submission, inbox: &mut Inbox) -> Option<End> {
        if let Some(end) = self.settle().await {
            (submission.respond)(Err(ErrorReply::not_owner(None)));
            return Some(end);
        }
        if self.undecided.is_some() {
            let why = self.failure.clone().unwrap_or_else(|| ErrorReply::unavailable(""));
            (submission.respond)(Err(ErrorReply::unavailable(why.message)));
            return None;
        }
        let position = self.position();
        let (destroyed, next_seq) = {
            let state = self.file.get().state();
            (events::destroyed(state), state.next_seq)
        };
        // A change like any other, with a rev of its own, so that watchers hear of it or notice that they did not.
        let position = Position { rev: destroyed.rev, ..position };
        let mut respond = Some(submission.respond);
        let mut job = Job::Destroy(position.rev, next_seq);
        loop {
            match publish::publish(self.shared, self.subject, &self.manifest, job).await {
                // An earlier publication of this process had counted after all.
                PublishEnd::Published(manifest, garbage) if !manifest.tombstone => {
                    if let Some(end) = self.published(PublishEnd::Published(manifest, garbage)).await {
                        return Some(end);
                    }
                    job = Job::Destroy(position.rev, next_seq);
                }
                PublishEnd::Published(_, garbage) => {
                    self.shared.events.publish(self.subject, destroyed);
                    self.refuse_flushes(&ErrorReply::unavailable("the subject has been destroyed"));
                    if let Some(respond) = respond.take() {
                        respond(Ok(Reply::Destroy(DestroyReply { position })));
                    }
                    self.collect(garbage);
                    self.remove_file().await;
                    return Some(End::Closed);
                }
                PublishEnd::Lost => {
                    if let Some(respond) = respond.take() {
                        respond(Err(ErrorReply::not_owner(None)));
                    }
                    return Some(self.lose().await);
                }
                PublishEnd::Failed(reply) => {
                    if let Some(respond) = respond.take() {
                        respond(Err(reply));
                    }
                    return None;
                }
                // The tombstone may come to count at any time, so nothing may be accepted until that is known.
                PublishEnd::Undecided(machine, reply) => {
                    if let Some(respond) = respond.take() {
                        respond(Err(ErrorReply::new(ErrorCode::Indeterminate, reply.message)));
                    }
                    inbox.refuse(&ErrorReply::unavailable(
                        "whether the subject is destroyed is not known yet",
                    ));
                    if self.is_stopping() {
                        let why = "whether it is destroyed is not known".to_owned();
                        self.shared.directory.record_release(self.subject, Err(why));
                        self.close_file().await;
                        return Some(End::Refused(shutting_down()));
                    }
                    tokio::time::sleep(PAUSE).await;
                    job = Job::Resume(machine);
                }
            }
        }
    }

    async fn remove_file(&mut self) {
        let Some(database) = self.file.0.take() else { return };
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
