//! Emptying dead logs: those that earlier processes on this data directory left behind, and those that this process
//! sealed when it took over a subject of theirs. Otherwise they would stay for ever.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorReply, LogId, Subject};

use crate::engine::Shared;
use crate::log::SealedLog;
use crate::ownership::drain::{Deletions, Drain, DrainEffect, DrainInput, DrainReport, Holding};
use crate::subject::drain_subject;

/// The pause between two rounds, while something is left.
const PAUSE: Duration = Duration::from_secs(60);

/// The pause between two subjects or two deletions: nobody waits for it, so it leaves the bucket to those who do.
const STEP: Duration = Duration::from_millis(50);

/// Empties every dead log that is noted, and waits for the next.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let data = Arc::clone(&shared.data);
        let dead = shared.env.blocking(move || data.dead_logs()).await;
        let dead = dead.unwrap_or_else(|error| {
            tracing::warn!(%error, "which logs are dead cannot be read");
            Vec::new()
        });
        let mut left = false;
        for log in dead {
            // What it holds beyond its slots is seen to first: then it has an owner who knows of it.
            if shared.surplus.holds(&log) {
                left = true;
                continue;
            }
            match drain(&shared, &log).await {
                Ok(report) if report.left == 0 && report.sealed => {
                    let slots = report.deletions.slots.len();
                    tracing::info!(%log, moved = report.needed, slots, "emptied the log of an earlier process");
                    let data = Arc::clone(&shared.data);
                    if let Err(error) = shared.env.blocking(move || data.unmark_dead(&log)).await {
                        tracing::debug!(%error, "a dead log is looked through once more");
                    }
                }
                Ok(report) => {
                    left = true;
                    tracing::debug!(%log, left = report.left, "subjects still need the log of an earlier process");
                }
                Err(error) => {
                    left = true;
                    tracing::info!(%log, %error, "the log of an earlier process cannot be emptied yet");
                }
            }
        }
        tokio::select! {
            biased;
            () = shared.dead_log.notified() => {}
            () = tokio::time::sleep(PAUSE), if left => {}
        }
    }
}

async fn drain(shared: &Arc<Shared>, log: &LogId) -> Result<DrainReport, ErrorReply> {
    let (mut machine, mut effect) = Drain::new(log, shared.log.id(), false);
    let mut sealed: Option<Arc<SealedLog>> = None;
    loop {
        let opened = || sealed.clone().ok_or_else(|| ErrorReply::internal("a drain was driven out of step"));
        let input = match effect {
            // A log without a slot was never born, or is empty and forgotten.
            DrainEffect::Seal if !shared.sealed.seal_only(log).await? => {
                return Ok(DrainReport { sealed: true, ..DrainReport::default() });
            }
            DrainEffect::Seal => {
                sealed = Some(shared.sealed.seal(log).await?);
                DrainInput::Sealed(true)
            }
            DrainEffect::LookForSeal => DrainInput::Sealed(shared.sealed.is_sealed(log).await?),
            DrainEffect::Next { after } => {
                let next = opened()?.next_subject(after.as_ref());
                DrainInput::Next(next.map(|(subject, slots)| Holding { subject, slots }))
            }
            DrainEffect::Settle(subject) => settle(shared, log, &subject).await,
            DrainEffect::List => DrainInput::Listed(opened()?.list().await?),
            DrainEffect::Delete(deletions) => {
                delete(opened()?.as_ref(), &deletions).await;
                DrainInput::Deleted
            }
            DrainEffect::Done(report) => {
                shared.sealed.forget(log);
                return Ok(report);
            }
            DrainEffect::GiveUp(reply) => return Err(reply),
        };
        effect = machine.apply(input);
    }
}

async fn settle(shared: &Arc<Shared>, log: &LogId, subject: &Subject) -> DrainInput {
    tokio::time::sleep(STEP).await;
    match drain_subject(shared, subject, log).await {
        Ok(drained) => DrainInput::Settled(drained),
        Err(error) => {
            tracing::debug!(%subject, %log, %error, "a subject cannot be freed of a dead log yet");
            DrainInput::Left
        }
    }
}

async fn delete(log: &SealedLog, deletions: &Deletions) {
    for &slot in &deletions.slots {
        match log.delete_slot(slot).await {
            Ok(()) => tracing::debug!(log = %log.log(), %slot, "deleted a slot that nobody needs"),
            Err(error) => tracing::debug!(log = %log.log(), %slot, %error, "a slot that nobody needs stays"),
        }
        tokio::time::sleep(STEP).await;
    }
    if deletions.index
        && let Err(error) = log.delete_index().await
    {
        tracing::debug!(log = %log.log(), %error, "an index that nobody needs stays");
    }
}
