//! Publishes a subject's next manifest: upload, create, verification.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dormouse_bucket::{HeaderPatch, create_once};
use dormouse_commit_log::log::read_own_tail;
use dormouse_format::keys::{DeltaName, Folder, ManifestNumber, Nonce, SnapshotName, SubjectKeys};
use dormouse_format::manifest::{DeltaRef, Manifest, SnapshotRef, TombstoneState};
use dormouse_protocol::{ErrorReply, OverloadCause, Rev, Seq, Slot, Subject};
use dormouse_runtime::fail_point;

use super::delta::DeltaWriter;
use crate::engine::EngineShared;
use crate::ownership::publish::{Publication, Publish, PublishEffect, PublishInput};
use crate::ownership::{BaseKind, BaseObject, CreateResult, ManifestRead, NewBase, Verified, base_kind};

/// Timeout of one bucket call for a small object.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The state to upload: the main file as a checkpoint left it.
#[derive(Debug, Clone)]
pub(super) struct BaseSource {
    pub(super) path: PathBuf,
    pub(super) rev: Rev,
    pub(super) next_seq: Seq,
    /// Entries above `rev` are in this process's log from this slot on.
    pub(super) first_slot: Slot,
}

/// The change to publish on top of the current manifest.
#[derive(Debug)]
pub(super) enum PublishJob {
    /// First resolve an indeterminate publication.
    Resume(Box<Publish>),
    /// A newer base.
    Base(BaseSource),
    /// Release the subject, with a newer base if the current one does not hold everything.
    Release(Option<BaseSource>),
    /// Leave only a tombstone, which stores this state and this next seq.
    Destroy(Box<TombstoneState>, Seq),
}

/// How a [`PublishJob`] ended.
#[derive(Debug)]
pub(super) enum PublishEnd {
    /// This manifest is in effect from now on.
    Published(Verified),
    /// Another process owns the subject.
    Fenced {
        /// The publication may have been in effect for a while.
        may_have_counted: bool,
    },
    /// It may take effect, now or later: nothing else may be published before it is resolved.
    Undecided(Box<Publish>, ErrorReply),
    /// Nothing has changed.
    Failed(ErrorReply),
}

/// Carries out a job on top of `current`.
///
/// Cancelling it leaves its outcome unknown: the subject must then be claimed again before it is served.
pub(super) async fn publish(
    shared: &EngineShared,
    subject: &Subject,
    current: &Manifest,
    job: PublishJob,
) -> PublishEnd {
    let Ok(_permit) = tokio::time::timeout(CALL_TIMEOUT, shared.publishing.acquire()).await else {
        let reply = ErrorReply::from(OverloadCause::SubjectPublications);
        return match job {
            PublishJob::Resume(machine) => PublishEnd::Undecided(machine, reply),
            PublishJob::Base(_) | PublishJob::Release(_) | PublishJob::Destroy(..) => {
                PublishEnd::Failed(reply)
            }
        };
    };
    let (mut machine, mut effect) = match begin(shared, subject, current, job).await {
        Ok(begun) => begun,
        Err(reply) => return PublishEnd::Failed(reply),
    };
    loop {
        if shared.has_log_ended() {
            return PublishEnd::Failed(shared.log_ended_reply());
        }
        let input = match effect {
            PublishEffect::Create(manifest) => match create(shared, &manifest).await {
                Ok(creation) => {
                    fail_point!(ManifestCreated);
                    PublishInput::Created(creation)
                }
                Err(reply) => PublishInput::Failed(reply),
            },
            PublishEffect::Get(number) => match get_manifest(shared, subject, number).await {
                Ok(found) => PublishInput::Got(found),
                Err(reply) => PublishInput::Failed(reply),
            },
            PublishEffect::List => match list(shared, subject).await {
                Ok(folder) => PublishInput::Listed(folder),
                Err(reply) => PublishInput::Failed(reply),
            },
            PublishEffect::Published(verified) => {
                return PublishEnd::Published(verified);
            }
            PublishEffect::NotOwner { may_have_counted } => return PublishEnd::Fenced { may_have_counted },
            PublishEffect::Indeterminate(reply) => return PublishEnd::Undecided(Box::new(machine), reply),
            PublishEffect::Failed(reply) => return PublishEnd::Failed(reply),
        };
        effect = machine.apply(input);
    }
}

async fn begin(
    shared: &EngineShared,
    subject: &Subject,
    current: &Manifest,
    job: PublishJob,
) -> Result<(Publish, PublishEffect), ErrorReply> {
    let publication = match job {
        PublishJob::Resume(mut machine) => {
            let effect = machine.apply(PublishInput::Resume);
            return Ok((*machine, effect));
        }
        PublishJob::Base(source) => Publication::Base(base(shared, subject, current, source).await?),
        PublishJob::Release(None) => Publication::Release(None),
        PublishJob::Release(Some(source)) => {
            Publication::Release(Some(base(shared, subject, current, source).await?))
        }
        PublishJob::Destroy(past, next_seq) => Publication::Destroy { past, next_seq },
    };
    fail_point!(BaseUploaded);
    Ok(Publish::new(current, publication, Nonce::new(shared.env.ulid())))
}

/// Uploads the changes above the current base, or everything.
async fn base(
    shared: &EngineShared,
    subject: &Subject,
    current: &Manifest,
    source: BaseSource,
) -> Result<NewBase, ErrorReply> {
    let tail_bytes = shared.log.tail(subject).map_or(0, |tail| tail.bytes);
    // The first base that an owner makes after its claim is a snapshot: from then on the bucket has a plain
    // SQLite file of the subject.
    if current.snapshot.is_some()
        && source.rev > current.base_rev
        && base_kind(current, tail_bytes) == BaseKind::Delta
    {
        let (first, base_rev) = (current.first_slot, current.base_rev);
        let mut delta = DeltaWriter::new(shared, subject, base_rev);
        let mut tail = read_own_tail(&shared.log, shared.bucket.as_ref(), subject, first, base_rev);
        while let Some(mut entries) = tail.next().await? {
            entries.retain(|entry| entry.last_rev() <= source.rev);
            delta.push_all(&entries).await?;
        }
        // A delta reaches as far as the log. If the file is ahead of the log, or the tail has only remembered
        // replies, only the snapshot holds everything.
        if delta.reached() == Some(source.rev) {
            let delta = upload_delta(shared, subject, current.number.next(), delta).await?;
            let BaseSource { first_slot, next_seq, .. } = source;
            return Ok(NewBase { object: BaseObject::Delta(delta), first_slot, next_seq });
        }
    }
    let BaseSource { path, rev, next_seq, first_slot } = source;
    let snapshot = upload_snapshot(shared, subject, current.number.next(), rev, path).await?;
    Ok(NewBase { object: BaseObject::Snapshot(snapshot), first_slot, next_seq })
}

/// Uploads a snapshot: the file at `path`, as a checkpoint left it. No manifest refers to it yet.
pub(super) async fn upload_snapshot(
    shared: &EngineShared,
    subject: &Subject,
    made_for: ManifestNumber,
    rev: Rev,
    path: PathBuf,
) -> Result<SnapshotRef, ErrorReply> {
    sync(shared, subject, &path).await?;
    let name = SnapshotName { made_for, rev, nonce: Nonce::new(shared.env.ulid()) };
    let key = SubjectKeys::new(subject).snapshot(&name);
    let summary = shared
        .bucket
        .put_file(&key, &path, HeaderPatch::RollbackJournal)
        .await
        .map_err(|error| ErrorReply::from(&error))?;
    Ok(SnapshotRef { name, size_bytes: summary.size_bytes, crc64: summary.crc64 })
}

/// Syncs the file, to detect a page that the disk did not write: such a page may be read with its old
/// content. A disk that has lost one page may have lost others, so this process can no longer rely on it.
async fn sync(shared: &EngineShared, subject: &Subject, path: &Path) -> Result<(), ErrorReply> {
    let path = path.to_owned();
    let opened = shared.env.blocking(move || File::open(path).map(|file| file.sync_all())).await;
    let synced = opened
        .map_err(|error| ErrorReply::unavailable(format!("the local file cannot be opened: {error}")))?;
    let Err(error) = synced else { return Ok(()) };
    tracing::error!(%subject, %error, impact = "nothing is acknowledged", "local file sync failed, restart required");
    let data = Arc::clone(&shared.data);
    if let Err(error) = shared.env.blocking(move || data.discard_on_next_start()).await {
        tracing::error!(
            %error, action = "remove the folder `subjects` before the restart",
            "setting local files aside failed"
        );
    }
    shared.log.poison();
    Err(shared.log_ended_reply())
}

/// Uploads a delta that has an entry. No manifest refers to it yet.
pub(super) async fn upload_delta(
    shared: &EngineShared,
    subject: &Subject,
    made_for: ManifestNumber,
    delta: DeltaWriter<'_>,
) -> Result<DeltaRef, ErrorReply> {
    let rev = delta.reached().ok_or_else(|| ErrorReply::internal("a delta without an entry"))?;
    let name = DeltaName { made_for, rev, nonce: Nonce::new(shared.env.ulid()) };
    let summary = delta.put(&SubjectKeys::new(subject).delta(&name)).await?;
    Ok(DeltaRef { name, size_bytes: summary.size_bytes, crc64: summary.crc64 })
}

/// Creates a manifest, within the call timeout.
pub(super) async fn create(shared: &EngineShared, manifest: &Manifest) -> Result<CreateResult, ErrorReply> {
    let key = SubjectKeys::new(&manifest.subject).manifest(manifest.number);
    let bytes = manifest.encode();
    CreateResult::of(create_once(shared.bucket.as_ref(), &key, bytes, tokio::time::sleep(CALL_TIMEOUT)).await)
}

/// Lists the subject's folder.
pub(super) async fn list(shared: &EngineShared, subject: &Subject) -> Result<Folder, ErrorReply> {
    let keys = SubjectKeys::new(subject);
    match tokio::time::timeout(CALL_TIMEOUT, shared.bucket.list(keys.folder())).await {
        Ok(Ok(entries)) => Ok(keys.read_listing(&entries)),
        Ok(Err(error)) => Err((&error).into()),
        Err(_) => Err(unanswered()),
    }
}

/// Reads a manifest.
pub(super) async fn get_manifest(
    shared: &EngineShared,
    subject: &Subject,
    number: ManifestNumber,
) -> Result<ManifestRead, ErrorReply> {
    let key = SubjectKeys::new(subject).manifest(number);
    match tokio::time::timeout(CALL_TIMEOUT, shared.bucket.get(&key)).await {
        Ok(Ok(found)) => Ok(ManifestRead::read(subject, number, found)),
        Ok(Err(error)) => Err((&error).into()),
        Err(_) => Err(unanswered()),
    }
}

fn unanswered() -> ErrorReply {
    ErrorReply::unavailable(format!("the bucket did not answer within {CALL_TIMEOUT:?}"))
}
