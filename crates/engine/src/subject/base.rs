//! Compaction: publishes a newer base of a subject while it is served, so that it needs less of the log.

use std::sync::Arc;

use dormouse_commit_log::log::SubjectTail;
use dormouse_format::manifest::Manifest;
use dormouse_protocol::ErrorReply;
use tokio::sync::oneshot;

use super::publish::{self, BaseSource, PublishEnd, PublishJob};
use super::serve::{OpenSubject, SubjectServeEnd};

/// A tail below this size does not justify a new base, in bytes.
const SMALL_TAIL_BYTES: u64 = 64 * 1_024;

/// Whether a tail requires a newer base: reading it would cost more than half as much as reading the snapshot, or too
/// many requests.
const fn is_due(tail: &SubjectTail, snapshot_bytes: u64) -> bool {
    let half = snapshot_bytes / 2;
    let max_bytes = if half > SMALL_TAIL_BYTES { half } else { SMALL_TAIL_BYTES };
    tail.bytes > max_bytes || tail.slots >= SubjectTail::DUE_SLOTS
}

impl OpenSubject<'_> {
    /// Requests a compaction if the tail is too long.
    pub(super) fn compact_if_due(&mut self) {
        let Some(tail) = self.shared.log.tail(self.subject) else { return };
        let snapshot = self.manifest.snapshot.map_or(0, |snapshot| snapshot.size_bytes);
        if !self.schedule.is_compacting() && is_due(&tail, snapshot) {
            self.schedule.ask_compact();
        }
    }

    /// Whether a release would have much to upload.
    pub(super) fn needs_base_first(&self) -> bool {
        self.shared.log.tail(self.subject).is_some_and(|tail| tail.bytes > SMALL_TAIL_BYTES)
    }

    /// Starts the upload of a newer base. Serving continues meanwhile; the main file does not change, because
    /// only a checkpoint changes it.
    pub(super) async fn start_compacting(&mut self) {
        let job = match self.unresolved_publish.take() {
            Some(undecided) => PublishJob::Resume(undecided),
            None => match self.prepare_base_source().await {
                Ok(source) => PublishJob::Base(source),
                Err(reply) => return self.compaction_failed(reply),
            },
        };
        let (sender, receiver) = oneshot::channel();
        self.publishing = Some(receiver);
        let shared = Arc::clone(self.shared);
        let (subject, manifest, file_guard) =
            (self.subject.clone(), self.manifest.clone(), Arc::clone(self.file_guard));
        self.shared.tasks.spawn("compact", async move {
            // It reads the file: if the subject's task panics, the guard keeps the file closed until this has
            // ended.
            let _guard = file_guard;
            let end = tokio::select! {
                biased;
                // The result no longer matters, and no task may wait for the upload.
                () = shared.log.closed() => PublishEnd::Failed(shared.log_ended_reply()),
                end = publish::publish(&shared, &subject, &manifest, job) => end,
            };
            // The subject waits for it, unless the process is shutting down.
            let _ = sender.send(end);
        });
    }

    /// The current state, ready for upload.
    pub(super) async fn prepare_base_source(&mut self) -> Result<BaseSource, ErrorReply> {
        // The order matters: entries shipped so far are applied next, so every entry that the state lacks is
        // in this slot or a later one.
        let first_slot = self.shared.log.next_slot();
        self.advance().await.map_err(|error| error.reply(self.subject))?;
        if let Some(reply) = &self.pipeline.stalled {
            return Err(reply.clone());
        }
        self.delete_all_hidden_rows().await.map_err(|error| error.reply(self.subject))?;
        self.run_checkpoint().await.map_err(|error| error.reply(self.subject))?;
        self.count_bytes();
        let database = self.database();
        let state = database.state();
        let (path, rev, next_seq) = (database.path().to_owned(), state.rev, state.next_seq);
        Ok(BaseSource { path, rev, next_seq, first_slot })
    }

    /// Handles the end of a publication.
    pub(super) async fn published(&mut self, end: PublishEnd) -> Option<SubjectServeEnd> {
        self.publishing = None;
        match end {
            PublishEnd::Published(verified) => {
                self.adopt((*verified.manifest).clone());
                self.collect(verified).await;
                None
            }
            PublishEnd::Fenced { .. } => Some(self.on_fenced().await),
            PublishEnd::Undecided(machine, reply) => {
                self.unresolved_publish = Some(machine);
                self.compaction_failed(reply);
                None
            }
            PublishEnd::Failed(reply) => {
                self.compaction_failed(reply);
                None
            }
        }
    }

    /// `manifest` is in effect from now on.
    fn adopt(&mut self, manifest: Manifest) {
        self.shared.counters.manifest_publishes.add(1);
        self.shared.log.base_published(self.subject, manifest.base_rev, manifest.first_slot);
        self.manifest = manifest;
        self.publish_failure = None;
        self.schedule.compacted();
        self.compaction_failing.set(0);
        self.compact_if_due();
    }

    fn compaction_failed(&mut self, reply: ErrorReply) {
        if !self.schedule.is_failing() {
            tracing::warn!(
                subject = %self.subject, error = %reply, impact = "the subject's changes stay in the log",
                "compaction failed, retrying"
            );
        }
        self.shared.counters.manifest_publish_failures.add(1);
        self.schedule.failed(self.shared.env.boot());
        self.compaction_failing.set(1);
        self.publish_failure = Some(reply);
    }
}

/// The end of the running publication; pends while there is none.
pub(super) async fn published(publishing: &mut Option<oneshot::Receiver<PublishEnd>>) -> PublishEnd {
    match publishing {
        Some(receiver) => receiver.await.unwrap_or_else(|_| {
            PublishEnd::Failed(ErrorReply::internal("the publish task ended without a result"))
        }),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dormouse_protocol::Slot;

    use super::*;

    const fn tail(bytes: u64, slots: u64) -> SubjectTail {
        SubjectTail { first_slot: Slot::new(1), bytes, entries: slots, slots, since: Duration::ZERO }
    }

    /// A compaction is due if the tail exceeds a minimum size and half of the snapshot.
    #[test]
    fn compaction_is_due_when_tail_exceeds_half_of_snapshot() {
        assert!(!is_due(&tail(64 * 1_024, 1), 0) && is_due(&tail(64 * 1_024 + 1, 1), 0));
        assert!(!is_due(&tail(500_000, 1), 1_000_000) && is_due(&tail(500_001, 1), 1_000_000));
    }

    /// A compaction is due if the tail is in 1,024 slots, however small it is.
    #[test]
    fn compaction_is_due_at_limit_of_slots() {
        assert!(!is_due(&tail(1_023, 1_023), 1_000_000) && is_due(&tail(1_024, 1_024), 1_000_000));
    }
}
