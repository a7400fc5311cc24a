//! Flushes: they wait until all changes so far are in the bucket.

use std::sync::Arc;
use std::time::Duration;

use dormouse_commit_log::log::{AppendProgress, DurabilityStage};
use dormouse_protocol::data::FlushReply;
use dormouse_protocol::{ErrorReply, Position, Rev};

use super::Respond;
use super::reads::PendingRead;
use super::serve::OpenSubject;
use crate::api::SubjectReply;

/// Where all changes so far must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlushTarget {
    /// In the log in the bucket.
    Log,
    /// In the subject's base.
    Base,
    /// In the bucket, and then the subject is handed over. It is served until then.
    HandOver,
}

/// A caller that waits until all changes so far are in the bucket.
pub(super) struct PendingFlush {
    /// The append that must be shipped; `None` if all changes are shipped.
    progress: Option<Arc<AppendProgress>>,
    /// Whether a base must hold the changes, too.
    base: bool,
    hands_over: bool,
    position: Position,
    pub(super) until: Duration,
    pub(super) respond: Respond,
}

impl OpenSubject<'_> {
    /// Queues a flush.
    pub(super) fn flush(&mut self, respond: Respond, target: FlushTarget) {
        let base = match target {
            FlushTarget::Log => false,
            FlushTarget::Base => true,
            // A long tail is uploaded while the subject is still served, so the unserved interval stays
            // short.
            FlushTarget::HandOver => self.needs_base_first(),
        };
        let hands_over = target == FlushTarget::HandOver;
        let progress = self.pipeline.last_unshipped();
        if progress.is_some() {
            self.shared.log.ship();
        }
        let position = Position { rev: self.planned_rev(), ..self.position() };
        let until = self.shared.env.boot() + self.shared.settings.flush_timeout;
        self.flushes.push(PendingFlush { progress, base, hands_over, position, until, respond });
    }

    fn planned_rev(&mut self) -> Rev {
        let applied = self.position().rev;
        self.pipeline.planned_rev().unwrap_or(applied)
    }

    /// Replies to flushes that are complete, have failed or have timed out.
    pub(super) fn answer_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let now = self.shared.env.boot();
        let is_applied = self.pipeline.is_applied();
        let based = self.manifest.base_rev;
        let mut compact = false;
        let done: Vec<_> = self
            .flushes
            .extract_if(.., |flush| {
                let stage = flush.progress.as_ref().map(|progress| progress.stage());
                let shipped = matches!(stage, None | Some(DurabilityStage::Shipped));
                let held = !flush.base || based >= flush.position.rev;
                compact |= shipped && is_applied && !held;
                (shipped && held) || stage == Some(DurabilityStage::Failed) || flush.until <= now
            })
            .collect();
        if compact && self.publishing.is_none() {
            self.schedule.ask_compact();
        }
        // Even if nothing is unshipped here, a successor may have accepted changes since.
        let confirmed = self.shared.read_lease.is_confirmed();
        for flush in done {
            let failure = flush.progress.as_ref().and_then(|progress| progress.failure());
            let in_time = flush.until > now
                || flush
                    .progress
                    .as_ref()
                    .is_none_or(|progress| progress.stage() == DurabilityStage::Shipped);
            let answer = match failure {
                Some(reply) => Err(reply),
                None if in_time && (!flush.base || based >= flush.position.rev) => Ok(flush.position),
                None => Err(self.not_in_bucket()),
            };
            match answer {
                Ok(_) if flush.hands_over => self.pending_handovers.push(flush.respond),
                Ok(position) => {
                    let answer = Ok(SubjectReply::Flush(FlushReply { position }));
                    if confirmed || flush.base {
                        (flush.respond)(answer);
                    } else {
                        self.reads.push(self.shared, PendingRead::Ready(flush.respond, answer));
                    }
                }
                Err(reply) => (flush.respond)(Err(reply)),
            }
        }
    }

    pub(super) fn not_in_bucket(&self) -> ErrorReply {
        let why =
            self.publish_failure.as_ref().map_or("the bucket does not answer", |failure| &failure.message);
        ErrorReply::unavailable(format!("not in the bucket yet: {why}"))
    }
}
