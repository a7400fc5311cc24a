//! Moves a subject off an orphaned log: copies the entries that its newest manifest needs into a delta, without the
//! snapshot and without a database.

use std::sync::Arc;

use dormouse_commit_log::log::TailError;
use dormouse_format::entry::LogEntry;
use dormouse_format::keys::{ManifestNumber, Nonce};
use dormouse_format::manifest::{MAX_DELTAS, Manifest};
use dormouse_format::record::RecordOp;
use dormouse_protocol::{ErrorReply, LogId, Rev, Seq, Subject};
use dormouse_runtime::fail_point;

use super::super::delta::read_delta;
use super::super::garbage::Garbage;
use super::super::publish;
use super::super::restore::{RestoreError, highest_rev, unexpected_effect};
use super::{Opener, frames_bytes, missing_part, sealed_tail};
use crate::api::TenantId;
use crate::engine::EngineShared;
use crate::ownership::BaseObject;
use crate::ownership::claim::{Claim, ClaimEffect, ClaimInput, ReclaimOutcome, Restored, TailSource};

/// Entries that are copied into one delta, in bytes: they are in memory together. Above it, the next base is a snapshot.
const MAX_COPIED_BYTES: u64 = 16 * 1_024 * 1_024;

/// Rebases a subject off an orphaned log: if its newest manifest needs entries of that log, the next manifest does not
/// need them and is released. If the subject is open here, its own task rebases it.
///
/// # Errors
/// Why it could not be done this time.
pub(crate) async fn reclaim_subject(
    shared: &Arc<EngineShared>,
    subject: &Subject,
    log: &LogId,
) -> Result<ReclaimOutcome, ErrorReply> {
    // A file is made only for a snapshot. It has a separate path, so it does not conflict with the subject's own file.
    let path = shared.data.reclaim_file(subject, Nonce::new(shared.env.ulid()));
    let mut copier =
        Copier { opener: Opener::new(shared, subject, TenantId::SHARED, path.clone()), copy: None };
    let (mut claim, mut effect) =
        Claim::reclaim(subject.clone(), shared.log.id().clone(), log.clone(), false);
    let outcome = loop {
        let answer = match effect {
            ClaimEffect::GiveUp(reply) => break Err(reply),
            ClaimEffect::Reclaimed(outcome) => break Ok(outcome),
            effect => copier.perform(effect).await,
        };
        effect = claim.apply(answer.unwrap_or_else(ClaimInput::Failed));
    };
    drop(copier);
    let removed = shared.env.blocking(move || dormouse_subject_state::database::remove_files(&path)).await;
    if let Err(error) = removed {
        tracing::debug!(%subject, %error, "temporary reclaim file not removed");
    }
    if let Ok(ReclaimOutcome::Released(verified)) = &outcome {
        // If the queue is full, the garbage is dropped; a later listing finds it again.
        let _ = shared.garbage.try_send(Garbage::objects(subject, verified.garbage.clone()));
    }
    outcome
}

/// Performs the effects of a reclamation.
struct Copier<'a> {
    opener: Opener<'a>,
    /// The delta to upload; `None`: the restored state is the base.
    copy: Option<DeltaCopy>,
}

/// Entries for one delta.
struct DeltaCopy {
    /// The rev before the first of them.
    after: Rev,
    entries: Vec<LogEntry>,
    /// They include those of all deltas of the newest manifest.
    is_merged: bool,
}

impl Copier<'_> {
    async fn perform(&mut self, effect: ClaimEffect) -> Result<ClaimInput, ErrorReply> {
        match effect {
            ClaimEffect::Restore { manifest: Some(manifest), tail: TailSource::Sealed(log) } => {
                self.read(*manifest, log).await
            }
            ClaimEffect::PutBase { made_for } => match self.copy.take() {
                Some(copy) => upload(self.opener.shared, self.opener.restorer.subject, made_for, &copy).await,
                None => self.opener.perform(ClaimEffect::PutBase { made_for }).await,
            },
            effect => self.opener.perform(effect).await,
        }
    }

    /// Reads the entries of `log` that the manifest needs. If they are too many for a delta, restores the state.
    async fn read(&mut self, manifest: Manifest, log: LogId) -> Result<ClaimInput, ErrorReply> {
        let (shared, subject) = (self.opener.shared, self.opener.restorer.subject);
        let base = manifest.base_rev;
        let mut above = match sealed_tail(shared, subject, &log, manifest.first_slot, base).await {
            Ok(entries) => entries,
            Err(TailError::Missing { object }) => return Ok(ClaimInput::ObjectMissing { object }),
            Err(TailError::Failed(reply)) => return Err(reply),
        };
        above.retain(|entry| entry.is_above(base));
        if let Some(missing) = missing_part(subject, &above) {
            return Ok(missing);
        }
        let restored = Restored {
            rev: highest_rev(base, &above),
            next_seq: next_seq(manifest.next_seq, &above),
            above_base: !above.is_empty(),
            first_slot: shared.log.next_slot(),
            nonce: Nonce::new(shared.env.ulid()),
        };
        self.copy = None;
        if above.is_empty() {
            return Ok(ClaimInput::Restored(restored));
        }
        match copy_for(shared, subject, &manifest, above).await {
            Ok(Some(copy)) => {
                self.copy = Some(copy);
                Ok(ClaimInput::Restored(restored))
            }
            Ok(None) => self.opener.restore(Some(manifest), TailSource::Sealed(log)).await,
            Err(RestoreError::Missing(object)) => Ok(ClaimInput::ObjectMissing { object }),
            Err(RestoreError::Failed(reply)) => Err(reply),
        }
    }
}

/// The delta that holds `above`, the entries above the base. If the manifest has no room for one more delta, it holds
/// those of all its deltas, too. `None`: it would be too large.
async fn copy_for(
    shared: &EngineShared,
    subject: &Subject,
    manifest: &Manifest,
    above: Vec<LogEntry>,
) -> Result<Option<DeltaCopy>, RestoreError> {
    let is_merged = manifest.deltas.len() >= MAX_DELTAS;
    let merged = if is_merged { &manifest.deltas[..] } else { &[] };
    let sizes = merged.iter().map(|delta| delta.size_bytes);
    if sizes.fold(frames_bytes(&above), u64::saturating_add) > MAX_COPIED_BYTES {
        return Ok(None);
    }
    let mut entries = Vec::new();
    for delta in merged {
        entries.extend(read_delta(shared.bucket.as_ref(), subject, delta).await?);
    }
    entries.extend(above);
    let after = entries.first().map_or(manifest.base_rev, |first| first.after);
    Ok(Some(DeltaCopy { after, entries, is_merged }))
}

async fn upload(
    shared: &EngineShared,
    subject: &Subject,
    made_for: ManifestNumber,
    copy: &DeltaCopy,
) -> Result<ClaimInput, ErrorReply> {
    if copy.entries.is_empty() {
        return Err(unexpected_effect());
    }
    let delta = publish::upload_delta(shared, subject, made_for, copy.after, &copy.entries).await?;
    fail_point!(ClaimBaseUploaded);
    let object = if copy.is_merged { BaseObject::MergedDelta(delta) } else { BaseObject::Delta(delta) };
    Ok(ClaimInput::BasePut(object))
}

/// The next seq after these entries, if it was `before` at their base.
fn next_seq(before: Seq, entries: &[LogEntry]) -> Seq {
    let operations = entries.iter().flat_map(|entry| &entry.operations);
    let sets = operations.flat_map(|operation| match operation {
        RecordOp::Set(set) => std::slice::from_ref(set),
        RecordOp::Batch { sets } => &sets[..],
        RecordOp::Delete { .. } | RecordOp::DeleteAll { .. } | RecordOp::Configure { .. } => &[],
    });
    sets.map(|set| set.seq.next()).fold(before, Seq::max)
}
