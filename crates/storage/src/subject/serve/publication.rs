//! Bringing changes to the bucket while the subject is served, and answering those who wait for it.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::data::FlushReply;
use dormouse_protocol::{ErrorReply, Position};
use tokio::sync::oneshot;

use super::{CHECKPOINT_BYTES, CHECKPOINT_LOOK_BYTES, End, Flush, Serving};
use crate::api::{Reply, Submission};
use crate::database::{Database, DatabaseError};
use crate::manifest::Manifest;
use crate::subject::publish::{self, Job, PublishEnd, State};

impl Serving<'_> {
    pub(super) fn flush(&mut self, submission: Submission) {
        let position = self.position();
        if position.rev <= self.manifest.base_rev {
            return (submission.respond)(Ok(Reply::Flush(FlushReply { position })));
        }
        let until = self.shared.env.boot() + self.shared.settings.flush_patience;
        self.flushes.push(Flush { rev: position.rev, until, respond: submission.respond });
        self.schedule.ask_publish();
    }

    pub(super) fn expire_flushes(&mut self, now: Duration) {
        if self.flushes.iter().all(|flush| flush.until > now) {
            return;
        }
        let why = self.failure.as_ref().map_or("the bucket does not answer", |failure| &failure.message);
        let reply = ErrorReply::unavailable(format!("not in the bucket yet: {why}"));
        for flush in self.flushes.extract_if(.., |flush| flush.until <= now) {
            (flush.respond)(Err(reply.clone()));
        }
    }

    /// Begins to bring the state to the bucket. Serving goes on meanwhile; the file itself stays as it is now, because
    /// only a checkpoint changes it.
    pub(super) async fn start_publishing(&mut self) {
        let job = match self.undecided.take() {
            Some(undecided) => Job::Resume(undecided),
            None => match self.checkpointed().await {
                Ok(state) => Job::Snapshot(state),
                Err(error) => return self.publication_failed(error.reply(self.subject)),
            },
        };
        let (sender, receiver) = oneshot::channel();
        self.publishing = Some(receiver);
        let shared = Arc::clone(self.shared);
        let (subject, manifest, hold) = (self.subject.clone(), self.manifest.clone(), Arc::clone(self.hold));
        self.shared.tasks.spawn("publish", async move {
            // It reads the file: should the subject's task panic, nobody opens the file before this has ended.
            let _hold = hold;
            let end = publish::publish(&shared, &subject, &manifest, job).await;
            // The subject waits for it, unless its process is on its way out.
            let _ = sender.send(end);
        });
    }

    pub(super) async fn checkpointed(&mut self) -> Result<State, DatabaseError> {
        self.apart(Database::checkpoint).await?;
        self.written_bytes = 0;
        self.count_bytes();
        let database = self.file.get();
        let state = database.state();
        Ok(State { path: database.path().to_owned(), rev: state.rev, next_seq: state.next_seq })
    }

    /// Takes note of how a publication ended.
    pub(super) async fn published(&mut self, end: PublishEnd) -> Option<End> {
        self.publishing = None;
        match end {
            PublishEnd::Published(manifest, garbage) => {
                self.adopt(*manifest);
                self.collect(garbage);
                None
            }
            PublishEnd::Lost => Some(self.lose().await),
            PublishEnd::Undecided(machine, reply) => {
                self.undecided = Some(machine);
                self.publication_failed(reply);
                None
            }
            PublishEnd::Failed(reply) => {
                self.publication_failed(reply);
                None
            }
        }
    }

    /// `manifest` counts from now on.
    fn adopt(&mut self, manifest: Manifest) {
        self.shared.counters.publications.add(1);
        let in_bucket = manifest.base_rev;
        if let Err(error) = self.file.get().set_in_bucket(manifest.number, in_bucket) {
            // The file then says less than is true, which only makes a later owner keep more than it must.
            tracing::warn!(subject = %self.subject, %error, "cannot note in the local file what is in the bucket");
        }
        self.manifest = manifest;
        self.failure = None;
        let position = self.position();
        let dirty = position.rev > in_bucket;
        self.schedule.published(self.shared.env.boot(), dirty);
        self.behind.set(0);
        self.dirty.set(u64::from(dirty));
        for flush in self.flushes.extract_if(.., |flush| flush.rev <= in_bucket) {
            let position = Position { rev: in_bucket, ..position };
            (flush.respond)(Ok(Reply::Flush(FlushReply { position })));
        }
        if !self.flushes.is_empty() {
            self.schedule.ask_publish();
        }
    }

    fn publication_failed(&mut self, reply: ErrorReply) {
        if !self.schedule.is_failing() {
            tracing::warn!(
                subject = %self.subject, error = %reply,
                "changes cannot be brought to the bucket; they are served and kept here, and it is tried again"
            );
        }
        self.shared.counters.publication_failures.add(1);
        self.schedule.failed(self.shared.env.boot());
        self.behind.set(1);
        self.failure = Some(reply);
    }

    /// Keeps the companion small between snapshots.
    pub(super) async fn checkpoint_if_large(&mut self) {
        if self.written_bytes < CHECKPOINT_LOOK_BYTES || self.publishing.is_some() {
            return;
        }
        self.written_bytes = 0;
        if self.file.get().wal_bytes() > CHECKPOINT_BYTES
            && let Err(error) = self.apart(Database::checkpoint).await
        {
            tracing::warn!(subject = %self.subject, %error, "cannot bring the write-ahead file into the local file");
        }
    }
}

/// The end of the publication under way; never, while there is none.
pub(super) async fn published(publishing: &mut Option<oneshot::Receiver<PublishEnd>>) -> PublishEnd {
    match publishing {
        Some(receiver) => receiver.await.unwrap_or_else(|_| {
            PublishEnd::Failed(ErrorReply::internal("the task that published ended without a result"))
        }),
        None => std::future::pending().await,
    }
}
