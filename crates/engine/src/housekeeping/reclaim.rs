//! Reclamation of orphaned logs: those of earlier processes on this data directory, and those that this process has
//! sealed in a takeover. Without it, their slots would never be deleted.

use std::sync::Arc;
use std::time::Duration;

use dormouse_commit_log::log::SealedLog;
use dormouse_protocol::{ErrorReply, LogId, Subject};

use crate::engine::EngineShared;
use crate::ownership::reclaim::{
    Deletions, LogReclaim, ReclaimEffect, ReclaimInput, ReclaimReport, SubjectInLog,
};
use crate::subject::reclaim_subject;

/// The pause between two rounds while logs are left.
const PAUSE: Duration = Duration::from_secs(60);

/// The pause between two subjects or two deletions. No request waits for reclamation, so it leaves the bucket's
/// capacity to requests.
const STEP: Duration = Duration::from_millis(50);

/// Reclaims every log that is marked as orphaned, and waits for the next.
pub(super) async fn run(shared: Arc<EngineShared>) {
    loop {
        let data = Arc::clone(&shared.data);
        let orphaned = shared.env.blocking(move || data.orphaned_logs()).await;
        let orphaned = orphaned.unwrap_or_else(|error| {
            tracing::warn!(%error, "orphaned log list unreadable");
            Vec::new()
        });
        let mut left = false;
        for log in orphaned {
            // Stranded writes are resolved first: then each subject's owner has them.
            if shared.stranded.contains_log(&log) {
                left = true;
                continue;
            }
            match reclaim_log(&shared, &log).await {
                Ok(report) if report.skipped == 0 && report.sealed => {
                    shared.counters.orphaned_logs.remove(&log);
                    let slots = report.deletions.slots.len();
                    tracing::info!(%log, moved = report.needed, slots, "orphaned log reclaimed");
                    let data = Arc::clone(&shared.data);
                    if let Err(error) = shared.env.blocking(move || data.unmark_orphaned(&log)).await {
                        tracing::debug!(%error, action = "the log is reclaimed once more", "orphaned log mark not removed");
                    }
                }
                Ok(report) => {
                    left = true;
                    tracing::debug!(%log, left = report.skipped, "log reclamation incomplete");
                }
                Err(error) => {
                    left = true;
                    tracing::info!(%log, %error, "log reclamation failed");
                }
            }
        }
        tokio::select! {
            biased;
            () = shared.orphaned_log_marked.notified() => {}
            () = tokio::time::sleep(PAUSE), if left => {}
        }
    }
}

async fn reclaim_log(shared: &Arc<EngineShared>, log: &LogId) -> Result<ReclaimReport, ErrorReply> {
    let (mut machine, mut effect) = LogReclaim::new(log, shared.log.id(), false);
    let mut sealed: Option<Arc<SealedLog>> = None;
    loop {
        let opened = || {
            sealed.clone().ok_or_else(|| ErrorReply::internal("a log reclamation had an unexpected effect"))
        };
        let input = match effect {
            // A log without a slot was never created, or is reclaimed already.
            ReclaimEffect::Seal if !shared.sealed.seal_only(log).await? => {
                return Ok(ReclaimReport { sealed: true, ..ReclaimReport::default() });
            }
            ReclaimEffect::Seal => {
                let log_to_read = shared.sealed.seal(log).await?;
                shared.counters.orphaned_logs.set(log, log_to_read.size_bytes());
                sealed = Some(log_to_read);
                ReclaimInput::Sealed(true)
            }
            ReclaimEffect::CheckSeal => ReclaimInput::Sealed(shared.sealed.is_sealed(log).await?),
            ReclaimEffect::Next { after } => {
                let next = opened()?.next_subject(after.as_ref());
                ReclaimInput::Next(next.map(|(subject, slots)| SubjectInLog { subject, slots }))
            }
            ReclaimEffect::Rebase(subject) => move_off_log(shared, log, &subject).await,
            ReclaimEffect::List => ReclaimInput::Listed(opened()?.list().await?),
            ReclaimEffect::Delete(deletions) => {
                delete(opened()?.as_ref(), &deletions).await;
                ReclaimInput::Deleted
            }
            ReclaimEffect::Done(report) => {
                shared.sealed.evict(log);
                return Ok(report);
            }
            ReclaimEffect::GiveUp(reply) => return Err(reply),
        };
        effect = machine.apply(input);
    }
}

async fn move_off_log(shared: &Arc<EngineShared>, log: &LogId, subject: &Subject) -> ReclaimInput {
    tokio::time::sleep(STEP).await;
    match reclaim_subject(shared, subject, log).await {
        Ok(outcome) => ReclaimInput::Rebased(outcome),
        Err(error) => {
            tracing::debug!(%subject, %log, %error, "subject not moved off orphaned log");
            ReclaimInput::Skipped
        }
    }
}

async fn delete(log: &SealedLog, deletions: &Deletions) {
    for &slot in &deletions.slots {
        match log.delete_slot(slot).await {
            Ok(()) => tracing::debug!(log = %log.log(), %slot, "slot deleted"),
            Err(error) => tracing::debug!(log = %log.log(), %slot, %error, "slot delete failed"),
        }
        tokio::time::sleep(STEP).await;
    }
    if deletions.index
        && let Err(error) = log.delete_index().await
    {
        tracing::debug!(log = %log.log(), %error, "index delete failed");
    }
}
