//! Serving an open subject: batches, events, snapshots, and the ways in which it ends.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorCode, ErrorReply, Position, Rev, Subject, Timestamp};
use tokio::sync::{Notify, oneshot};

use super::batch::{self, Executed, Respond, Surroundings};
use super::publish::{self, PublishEnd};
use super::schedule::{Due, Schedule};
use super::{Inbox, events, lost, no_lease};
use crate::api::{LeaseGeneration, Reply, Request};
use crate::claim::{Publish, is_newest};
use crate::database::{Database, DatabaseError};
use crate::directory::Hold;
use crate::engine::Shared;
use crate::figures::Share;
use crate::manifest::Manifest;
use crate::subject::open::Opened;

mod leave;
mod publication;

use publication::published;

/// A companion of this size is brought into the file without waiting for a snapshot.
const CHECKPOINT_BYTES: u64 = 4 * 1_024 * 1_024;

/// After this many bytes of changes the companion's size is looked at.
const CHECKPOINT_LOOK_BYTES: usize = 1_024 * 1_024;

/// A delete_all on more messages than this runs where it stalls nobody else.
const INLINE_DELETE_ALL: u64 = 10_000;

/// Why a subject is not served any more.
pub(super) enum End {
    /// It is closed in good order; requests that wait open it again.
    Closed,
    /// It cannot be served; requests that wait get this answer.
    Refused(ErrorReply),
}

/// A flush that waits for the bucket.
struct Flush {
    rev: Rev,
    until: Duration,
    respond: Respond,
}

/// The file, except while it is being worked on elsewhere.
struct Held(Option<Database>);

impl Held {
    fn get(&mut self) -> &mut Database {
        // `Serving::apart` puts it back before it returns, and nobody polls the task that panicked in between.
        self.0.as_mut().expect("the file is always back when somebody looks")
    }
}

/// An open subject.
pub(super) struct Serving<'a> {
    shared: &'a Arc<Shared>,
    subject: &'a Subject,
    /// Nobody else opens the file while a clone of it lives.
    hold: &'a Arc<Hold>,
    file: Held,
    /// The newest manifest, ours.
    manifest: Manifest,
    /// The lease under which the subject was claimed.
    generation: LeaseGeneration,
    schedule: Schedule,
    flushes: Vec<Flush>,
    publishing: Option<oneshot::Receiver<PublishEnd>>,
    /// A publication without known outcome, which must be settled before the next.
    undecided: Option<Box<Publish>>,
    /// Why the last publication failed.
    failure: Option<ErrorReply>,
    written_bytes: usize,
    dirty: Share<'a>,
    behind: Share<'a>,
    local_bytes: Share<'a>,
}

impl<'a> Serving<'a> {
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        subject: &'a Subject,
        hold: &'a Arc<Hold>,
        opened: Opened,
    ) -> Self {
        let Opened { database, manifest, generation, garbage } = opened;
        let dirty = database.state().rev > manifest.base_rev;
        let mut serving = Self {
            shared,
            subject,
            hold,
            schedule: Schedule::new(&shared.settings, shared.env.boot(), dirty),
            file: Held(Some(database)),
            manifest,
            generation,
            flushes: Vec::new(),
            publishing: None,
            undecided: None,
            failure: None,
            written_bytes: 0,
            dirty: shared.counters.dirty_subjects.share(),
            behind: shared.counters.subjects_not_in_bucket.share(),
            local_bytes: shared.counters.local_bytes.share(),
        };
        serving.count_bytes();
        serving.dirty.set(u64::from(dirty));
        serving.collect(garbage);
        serving
    }

    /// Serves until the subject is idle, evicted, lost, destroyed, or the engine stops.
    pub(super) async fn run(mut self, inbox: &mut Inbox, close: &Notify) -> End {
        let end = self.serve(inbox, close).await;
        debug_assert!(
            self.publishing.is_none(),
            "nothing may read the file when the subject is opened again"
        );
        // However it ended: nobody may wait for an answer that never comes.
        match &end {
            End::Refused(reply) => self.refuse_flushes(reply),
            End::Closed => {
                self.refuse_flushes(&ErrorReply::unavailable("the subject was closed: flush again"));
            }
        }
        end
    }

    async fn serve(&mut self, inbox: &mut Inbox, close: &Notify) -> End {
        tracing::debug!(subject = %self.subject, position = %self.file.get().state().position(), "opened");
        self.beacon();
        let (engine_stop, task_stop) = (&self.shared.stop, self.shared.tasks.stop());
        let mut stop = std::pin::pin!(async {
            tokio::select! { () = engine_stop.given() => {}, () = task_stop.given() => {} }
        });
        loop {
            if let Some(end) = self.work(inbox).await {
                return end;
            }
            let pause = self.pause();
            tokio::select! {
                biased;
                () = &mut stop => return self.release(inbox).await,
                end = published(&mut self.publishing) => {
                    if let Some(end) = self.published(end).await {
                        return end;
                    }
                }
                () = inbox.receive() => {}
                () = close.notified() => self.schedule.ask_close(),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does everything that can be done now.
    async fn work(&mut self, inbox: &mut Inbox) -> Option<End> {
        if !inbox.waiting.is_empty() {
            self.schedule.used(self.shared.env.boot());
            if let Some(end) = self.take(inbox).await {
                return Some(end);
            }
            self.checkpoint_if_large().await;
        }
        loop {
            let now = self.shared.env.boot();
            self.expire_flushes(now);
            match self.schedule.due(now) {
                Some(Due::Beacon) => self.beacon(),
                Some(Due::Publish) => self.start_publishing().await,
                Some(Due::Close) if inbox.queue.is_empty() => return Some(self.close().await),
                // Somebody has just asked for it.
                Some(Due::Close) | None => return None,
            }
        }
    }

    /// How long there is nothing to do, requests aside.
    fn pause(&self) -> Duration {
        let flushes = self.flushes.iter().map(|flush| flush.until).min();
        let next = self.schedule.next().into_iter().chain(flushes).min();
        // An hour: only to have a number.
        next.map_or(Duration::from_secs(3_600), |next| next.saturating_sub(self.shared.env.boot()))
    }

    /// Answers everything that waits.
    async fn take(&mut self, inbox: &mut Inbox) -> Option<End> {
        while !inbox.waiting.is_empty() {
            // Each time: what came before may have taken long.
            match self.verify_lease().await {
                Ok(None) => {}
                Ok(Some(end)) => return Some(end),
                Err(reply) => {
                    inbox.refuse(&reply);
                    return None;
                }
            }
            match inbox.waiting.front()?.request {
                Request::Flush => {
                    if let Some(submission) = inbox.waiting.pop_front() {
                        self.flush(submission);
                    }
                }
                Request::Destroy => {
                    let submission = inbox.waiting.pop_front()?;
                    if let Some(end) = self.destroy(submission, inbox).await {
                        return Some(end);
                    }
                }
                _ => {
                    let executed = self.execute(inbox).await;
                    if let Some(broken) = self.conclude(executed) {
                        return Some(self.fail(&broken, inbox).await);
                    }
                    // Batches run without waiting for anything, and other subjects share the thread.
                    tokio::task::yield_now().await;
                }
            }
        }
        None
    }

    async fn execute(&mut self, inbox: &mut Inbox) -> Executed {
        let around = Surroundings {
            subject: self.subject.clone(),
            log: self.shared.log.clone(),
            level: self.shared.settings.level,
            bucket_rev: self.manifest.base_rev,
            now: Timestamp::from_micros(self.shared.env.wall_micros()),
        };
        let long = self.file.get().state().count > INLINE_DELETE_ALL
            && inbox.waiting.iter().any(|waiting| matches!(waiting.request, Request::DeleteAll(_)));
        if !long {
            return batch::execute(self.file.get(), &mut inbox.waiting, &around);
        }
        let mut waiting = std::mem::take(&mut inbox.waiting);
        let (waiting, executed) = self
            .apart(move |database| {
                let executed = batch::execute(database, &mut waiting, &around);
                (waiting, executed)
            })
            .await;
        inbox.waiting = waiting;
        executed
    }

    /// Tells the world what a batch did: watchers first, then those who asked.
    ///
    /// If the lease ran out while the batch was carried out, somebody else may serve the subject by now: then its
    /// changes are in the file, and whether they last is decided by who claims the subject next. Returns why the file
    /// can be used no more.
    fn conclude(&mut self, executed: Executed) -> Option<DatabaseError> {
        let Executed { records, answers, max_bytes, written_bytes, broken } = executed;
        let in_time = self.shared.authority.lease() == Some(self.generation);
        if !records.is_empty() {
            let term_base = self.file.get().state().term_base;
            if in_time {
                for event in events::events(&records, term_base, max_bytes) {
                    self.shared.events.publish(self.subject, event);
                }
            }
            self.schedule.changed(self.shared.env.boot());
            self.dirty.set(1);
            self.shared.counters.changes.add(records.len() as u64);
            self.written_bytes += written_bytes;
        }
        for (respond, answer) in answers {
            respond(if in_time { answer } else { answer.and_then(|reply| Err(too_late(&reply))) });
        }
        broken
    }

    /// Works on the file where blocking stalls nobody else.
    async fn apart<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Database) -> T + Send + 'static,
    ) -> T {
        // See `Held::get`.
        let mut database = self.file.0.take().expect("the file is always back when somebody looks");
        let (database, done) = self
            .shared
            .env
            .blocking(move || {
                let done = work(&mut database);
                (database, done)
            })
            .await;
        self.file.0 = Some(database);
        done
    }

    /// May the subject be served at this moment? `Ok(Some)`: never again, in this life.
    async fn verify_lease(&mut self) -> Result<Option<End>, ErrorReply> {
        let generation = self.shared.authority.lease().ok_or_else(no_lease)?;
        if generation == self.generation {
            return Ok(None);
        }
        // There was a gap. A publication of our own under way would look like a stranger's.
        if let Some(end) = self.settle().await {
            return Ok(Some(end));
        }
        if self.undecided.is_some() {
            let why = self.failure.as_ref().map_or("the bucket does not answer", |failure| &failure.message);
            return Err(ErrorReply::unavailable(format!("cannot verify who owns the subject: {why}")));
        }
        let folder = publish::list(self.shared, self.subject).await?;
        if !is_newest(&folder, &self.manifest) {
            return Ok(Some(self.lose().await));
        }
        // The newest now, but somebody may have been allowed to claim the subject during the gap and be about to
        // create the next manifest: it is claimed anew, which defeats every claim from this one.
        tracing::debug!(subject = %self.subject, "closed after a gap in the leases");
        self.refuse_flushes(&ErrorReply::unavailable("the server's lease was interrupted: flush again"));
        self.close_file().await;
        Ok(Some(End::Closed))
    }

    fn beacon(&mut self) {
        let event = events::beacon(self.file.get().state());
        self.shared.events.publish(self.subject, event);
    }

    fn position(&mut self) -> Position {
        self.file.get().state().position()
    }

    fn collect(&self, garbage: Vec<crate::bucket::BucketKey>) {
        if garbage.is_empty() {
            return;
        }
        // A full queue drops it: what lies about is found again by a later listing.
        let _ = self.shared.garbage.try_send(garbage);
    }

    fn count_bytes(&mut self) {
        let bytes = self.file.get().file_bytes();
        self.local_bytes.set(bytes);
    }
}

/// The answer to a request that was carried out when the lease had run out already.
fn too_late(reply: &Reply) -> ErrorReply {
    match reply {
        Reply::Set(_) | Reply::Delete(_) | Reply::DeleteAll(_) | Reply::Configure(_) => ErrorReply::new(
            ErrorCode::Indeterminate,
            "the server's lease ran out while the change was made: whether it lasts is not known",
        ),
        Reply::Get(_)
        | Reply::GetAll(_)
        | Reply::Keys(_)
        | Reply::Info(_)
        | Reply::Flush(_)
        | Reply::Destroy(_) => no_lease(),
    }
}
