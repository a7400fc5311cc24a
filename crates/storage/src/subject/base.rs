//! Giving a subject a newer base while it is served, so that it needs less of the log.

use std::sync::Arc;

use dormouse_protocol::ErrorReply;
use tokio::sync::oneshot;

use super::publish::{self, Job, PublishEnd, Source};
use super::serve::{End, Serving};
use crate::database::Database;
use crate::manifest::Manifest;

/// A tail below this size is not worth a base of its own, in bytes.
const SMALL_TAIL_BYTES: u64 = 64 * 1_024;

/// Whether a tail of `tail_bytes` asks for a newer base: reading it back would cost more than half of what reading the
/// snapshot costs.
const fn is_due(tail_bytes: u64, snapshot_bytes: u64) -> bool {
    let half = snapshot_bytes / 2;
    tail_bytes > if half > SMALL_TAIL_BYTES { half } else { SMALL_TAIL_BYTES }
}

impl Serving<'_> {
    /// Asks for a compaction when the tail has grown too long.
    pub(super) fn compact_if_due(&mut self) {
        let Some(tail) = self.shared.log.tail(self.subject) else { return };
        let snapshot = self.manifest.snapshot.map_or(0, |snapshot| snapshot.size_bytes);
        if !self.schedule.is_compacting() && is_due(tail.bytes, snapshot) {
            self.schedule.ask_compact();
        }
    }

    /// Whether a release would have much to bring to the bucket.
    pub(super) fn needs_base_first(&self) -> bool {
        self.shared.log.tail(self.subject).is_some_and(|tail| tail.bytes > SMALL_TAIL_BYTES)
    }

    /// Begins to bring a newer base to the bucket. Serving goes on meanwhile; the file itself stays as it is now, because
    /// only a checkpoint changes it.
    pub(super) async fn start_compacting(&mut self) {
        let job = match self.undecided.take() {
            Some(undecided) => Job::Resume(undecided),
            None => match self.source().await {
                Ok(source) => Job::Base(source),
                Err(reply) => return self.compaction_failed(reply),
            },
        };
        let (sender, receiver) = oneshot::channel();
        self.publishing = Some(receiver);
        let shared = Arc::clone(self.shared);
        let (subject, manifest, hold) = (self.subject.clone(), self.manifest.clone(), Arc::clone(self.hold));
        self.shared.tasks.spawn("compact", async move {
            // It reads the file: should the subject's task panic, nobody opens the file before this has ended.
            let _hold = hold;
            let end = tokio::select! {
                biased;
                // What it says would matter no more, and nobody shall wait for an upload.
                () = shared.log.over() => PublishEnd::Failed(shared.log_ended_reply()),
                end = publish::publish(&shared, &subject, &manifest, job) => end,
            };
            // The subject waits for it, unless its process is on its way out.
            let _ = sender.send(end);
        });
    }

    /// The state as it is now, ready to be uploaded.
    pub(super) async fn source(&mut self) -> Result<Source, ErrorReply> {
        // In this order: what is shipped by now is applied next, so that everything the state lacks lies in this slot or
        // in a later one.
        let first_slot = self.shared.log.next_slot();
        self.advance().map_err(|error| error.reply(self.subject))?;
        if let Some(reply) = &self.pipeline.stalled {
            return Err(reply.clone());
        }
        self.apart(Database::checkpoint).await.map_err(|error| error.reply(self.subject))?;
        self.count_bytes();
        let database = self.database();
        let state = database.state();
        let (path, rev, next_seq) = (database.path().to_owned(), state.rev, state.next_seq);
        Ok(Source { path, rev, next_seq, first_slot })
    }

    /// Takes note of how a publication ended.
    pub(super) async fn published(&mut self, end: PublishEnd) -> Option<End> {
        self.publishing = None;
        match end {
            PublishEnd::Published(verified) => {
                self.adopt((*verified.manifest).clone());
                self.collect(verified).await;
                None
            }
            PublishEnd::Lost { .. } => Some(self.lose().await),
            PublishEnd::Undecided(machine, reply) => {
                self.undecided = Some(machine);
                self.compaction_failed(reply);
                None
            }
            PublishEnd::Failed(reply) => {
                self.compaction_failed(reply);
                None
            }
        }
    }

    /// `manifest` counts from now on.
    fn adopt(&mut self, manifest: Manifest) {
        self.shared.counters.publications.add(1);
        self.shared.log.based(self.subject, manifest.base_rev, manifest.first_slot);
        self.manifest = manifest;
        self.failure = None;
        self.schedule.compacted();
        self.behind.set(0);
        self.compact_if_due();
    }

    fn compaction_failed(&mut self, reply: ErrorReply) {
        if !self.schedule.is_failing() {
            tracing::warn!(
                subject = %self.subject, error = %reply,
                "the subject cannot be given a newer base; its changes are in the log, and it is tried again"
            );
        }
        self.shared.counters.publication_failures.add(1);
        self.schedule.failed(self.shared.env.boot());
        self.behind.set(1);
        self.failure = Some(reply);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_compacted_when_it_costs_half_as_much_as_the_snapshot() {
        assert!(!is_due(64 * 1_024, 0) && is_due(64 * 1_024 + 1, 0));
        assert!(!is_due(500_000, 1_000_000) && is_due(500_001, 1_000_000));
    }
}
