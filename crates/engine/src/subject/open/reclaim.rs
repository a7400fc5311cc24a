//! Moves a subject off an orphaned log: copies the entries that its newest manifest needs into a delta, without the
//! snapshot and without a database.

use std::sync::Arc;

use dormouse_format::entry::LogEntry;
use dormouse_format::keys::Nonce;
use dormouse_format::manifest::{MAX_DELTAS, Manifest};
use dormouse_format::record::RecordOp;
use dormouse_protocol::{ErrorReply, LogId, Seq, Subject};
use dormouse_runtime::fail_point;

use super::super::delta::{DeltaReader, DeltaWriter};
use super::super::garbage::Garbage;
use super::super::publish;
use super::super::restore::{RestoreError, unexpected_effect};
use super::{Opener, sealed_tail};
use crate::api::TenantId;
use crate::engine::EngineShared;
use crate::ownership::BaseObject;
use crate::ownership::claim::{Claim, ClaimEffect, ClaimInput, ReclaimOutcome, Restored, TailSource};

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
    let path = shared.data.subject_file(subject);
    let mut copier = Copier { opener: Opener::new(shared, subject, TenantId::SHARED, path), copy: None };
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
    if let Ok(ReclaimOutcome::Released(verified)) = &outcome {
        // If the queue is full, the garbage is dropped; a later listing finds it again.
        let _ = shared.garbage.try_send(Garbage::objects(subject, verified.garbage.clone()));
    }
    outcome
}

/// Performs the effects of a reclamation. It makes no file of the subject.
struct Copier<'a> {
    opener: Opener<'a>,
    copy: Option<DeltaCopy<'a>>,
}

/// A delta with the entries that a manifest needs.
struct DeltaCopy<'a> {
    delta: DeltaWriter<'a>,
    /// It begins with the entries of all deltas of the newest manifest.
    is_merged: bool,
}

impl<'a> Copier<'a> {
    async fn perform(&mut self, effect: ClaimEffect) -> Result<ClaimInput, ErrorReply> {
        match effect {
            ClaimEffect::Restore { manifest: Some(manifest), tail: TailSource::Sealed(log) } => {
                match self.read(&manifest, &log).await {
                    Ok(restored) => Ok(ClaimInput::Restored(restored)),
                    Err(RestoreError::Missing(object)) => Ok(ClaimInput::ObjectMissing { object }),
                    Err(RestoreError::Failed(reply)) => Err(reply),
                }
            }
            ClaimEffect::Restore { .. } => Err(unexpected_effect()),
            ClaimEffect::PutBase { made_for } => {
                let DeltaCopy { delta, is_merged } = self.copy.take().ok_or_else(unexpected_effect)?;
                let (shared, subject) = (self.opener.shared, self.opener.restorer.subject);
                let delta = publish::upload_delta(shared, subject, made_for, delta).await?;
                fail_point!(ClaimBaseUploaded);
                let object =
                    if is_merged { BaseObject::MergedDelta(delta) } else { BaseObject::Delta(delta) };
                Ok(ClaimInput::BasePut(object))
            }
            effect => self.opener.perform(effect).await,
        }
    }

    /// Copies the entries of `log` that the manifest needs.
    async fn read(&mut self, manifest: &Manifest, log: &LogId) -> Result<Restored, RestoreError> {
        let (shared, subject) = (self.opener.shared, self.opener.restorer.subject);
        let sealed = shared.sealed.seal(log).await?;
        let mut tail = sealed_tail(shared, subject, &sealed, manifest.first_slot, manifest.base_rev)?;
        let mut restored = Restored {
            rev: manifest.base_rev,
            next_seq: manifest.next_seq,
            above_base: false,
            first_slot: shared.log.next_slot(),
            nonce: Nonce::new(shared.env.ulid()),
        };
        self.copy = None;
        if tail.is_at_end().await? {
            return Ok(restored);
        }
        let mut copy = begin_copy(shared, subject, manifest).await?;
        while let Some(entries) = tail.next().await? {
            copy.delta.push_all(&entries).await?;
            restored.next_seq = next_seq(restored.next_seq, &entries);
        }
        restored.rev = copy.delta.reached().map_or(restored.rev, |rev| rev.max(restored.rev));
        restored.above_base = true;
        self.copy = Some(copy);
        Ok(restored)
    }
}

/// The delta for the entries above the base. If the manifest has no room for one more delta, it begins with those of all
/// its deltas.
async fn begin_copy<'a>(
    shared: &'a EngineShared,
    subject: &'a Subject,
    manifest: &Manifest,
) -> Result<DeltaCopy<'a>, RestoreError> {
    if manifest.deltas.len() < MAX_DELTAS {
        let delta = DeltaWriter::new(shared, subject, manifest.base_rev);
        return Ok(DeltaCopy { delta, is_merged: false });
    }
    let mut merged = None;
    for reference in &manifest.deltas {
        let mut reader = DeltaReader::new(shared.bucket.as_ref(), subject, reference);
        while let Some(entries) = reader.next().await? {
            let after = reader.after().unwrap_or(manifest.base_rev);
            merged.get_or_insert_with(|| DeltaWriter::new(shared, subject, after)).push_all(&entries).await?;
        }
    }
    let delta = merged.ok_or_else(unexpected_effect)?;
    Ok(DeltaCopy { delta, is_merged: true })
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
