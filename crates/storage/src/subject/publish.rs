//! Bringing a subject from one manifest to the next: upload, manifest, second look.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorReply, Rev, Seq, Slot, Subject};

use crate::bucket::{HeaderPatch, create_once};
use crate::engine::Shared;
use crate::entry::Entry;
use crate::fail_points::{Step as FailPoint, reach};
use crate::format::{delta, frame};
use crate::keys::{DeltaName, Folder, ManifestNumber, Nonce, SnapshotName, SubjectKeys};
use crate::log::read_own_tail;
use crate::manifest::{DeltaRef, Manifest, PastLife, SnapshotRef};
use crate::ownership::publish::{Publication, Publish, PublishEffect, PublishInput};
use crate::ownership::{BaseKind, BaseObject, Creation, Found, NewBase, Verified, base_kind};

/// How long one call to the bucket for something small may take before it counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(10);

/// The state to be brought: the main file as a checkpoint left it.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) rev: Rev,
    pub(super) next_seq: Seq,
    /// Entries above `rev` are in this process's log from this slot on.
    pub(super) first_slot: Slot,
}

/// What shall be published on top of the current manifest.
#[derive(Debug)]
pub(super) enum Job {
    /// First settle a publication without known outcome.
    Resume(Box<Publish>),
    /// A newer base.
    Base(Source),
    /// Hand the subject back, with a newer base where the current one does not hold everything.
    Release(Option<Source>),
    /// Leave nothing but a tombstone, which remembers this and goes on with this seq.
    Destroy(Box<PastLife>, Seq),
}

/// How a [`Job`] ended.
#[derive(Debug)]
pub(super) enum PublishEnd {
    /// This manifest counts from now on.
    Published(Verified),
    /// Another process owns the subject.
    Lost {
        /// What was to be published may have counted for a while.
        may_have_counted: bool,
    },
    /// It may count, now or later: nothing else may be published before this is settled.
    Undecided(Box<Publish>, ErrorReply),
    /// Nothing has changed.
    Failed(ErrorReply),
}

/// Carries out a job on top of `current`.
///
/// Cancelling it leaves its outcome unknown: the subject must then be claimed anew before it is served.
pub(super) async fn publish(shared: &Shared, subject: &Subject, current: &Manifest, job: Job) -> PublishEnd {
    let Ok(_permit) = tokio::time::timeout(PATIENCE, shared.publishing.acquire()).await else {
        let reply = ErrorReply::overloaded("too many subjects are being brought to the bucket", 1_000);
        return match job {
            Job::Resume(machine) => PublishEnd::Undecided(machine, reply),
            Job::Base(_) | Job::Release(_) | Job::Destroy(..) => PublishEnd::Failed(reply),
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
                    reach(FailPoint::ManifestCreated);
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
            PublishEffect::Lost { may_have_counted } => return PublishEnd::Lost { may_have_counted },
            PublishEffect::Undecided(reply) => return PublishEnd::Undecided(Box::new(machine), reply),
            PublishEffect::Failed(reply) => return PublishEnd::Failed(reply),
        };
        effect = machine.apply(input);
    }
}

async fn begin(
    shared: &Shared,
    subject: &Subject,
    current: &Manifest,
    job: Job,
) -> Result<(Publish, PublishEffect), ErrorReply> {
    let publication = match job {
        Job::Resume(mut machine) => {
            let effect = machine.apply(PublishInput::Resume);
            return Ok((*machine, effect));
        }
        Job::Base(source) => Publication::Base(base(shared, subject, current, source).await?),
        Job::Release(None) => Publication::Release(None),
        Job::Release(Some(source)) => {
            Publication::Release(Some(base(shared, subject, current, source).await?))
        }
        Job::Destroy(past, next_seq) => Publication::Destroy { past, next_seq },
    };
    reach(FailPoint::BaseUp);
    Ok(Publish::new(current, publication, Nonce::new(shared.env.ulid())))
}

/// Uploads what is above the current base, or everything.
async fn base(
    shared: &Shared,
    subject: &Subject,
    current: &Manifest,
    source: Source,
) -> Result<NewBase, ErrorReply> {
    let tail_bytes = shared.log.tail(subject).map_or(0, |tail| tail.bytes);
    // The first base that an owner makes of its own accord is a snapshot: from then on the bucket has a plain SQLite file
    // of the subject.
    if current.snapshot.is_some() && base_kind(Some(current), tail_bytes) == BaseKind::Delta {
        let (first, base_rev) = (current.first_slot, current.base_rev);
        let mut tail = read_own_tail(&shared.log, shared.bucket.as_ref(), subject, first, base_rev).await?;
        tail.retain(|entry| entry.last_rev() <= source.rev);
        // A delta leads as far as the log does. Where the file is ahead of it, or the tail holds nothing but memories
        // of answers, the snapshot is what holds it all.
        if tail.last().is_some_and(|last| last.last_rev() == source.rev && source.rev > current.base_rev) {
            let delta = upload_delta(shared, subject, current.number.next(), current.base_rev, &tail).await?;
            let Source { first_slot, next_seq, .. } = source;
            return Ok(NewBase { object: BaseObject::Delta(delta), first_slot, next_seq });
        }
    }
    let Source { path, rev, next_seq, first_slot } = source;
    let snapshot = upload_snapshot(shared, subject, current.number.next(), rev, path).await?;
    Ok(NewBase { object: BaseObject::Snapshot(snapshot), first_slot, next_seq })
}

/// Puts a snapshot in the bucket: the file at `path`, as a checkpoint left it. Nothing refers to it yet.
pub(super) async fn upload_snapshot(
    shared: &Shared,
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

/// Nothing else would tell of a page that the disk did not take: it may be read again as it was before. A disk that loses
/// one may have lost others, so that this process can rely on it no more.
async fn sync(shared: &Shared, subject: &Subject, path: &Path) -> Result<(), ErrorReply> {
    let path = path.to_owned();
    let opened = shared.env.blocking(move || File::open(path).map(|file| file.sync_all())).await;
    let synced =
        opened.map_err(|error| ErrorReply::unavailable(format!("the local file is not there: {error}")))?;
    let Err(error) = synced else { return Ok(()) };
    tracing::error!(%subject, %error, "the local disk lost a part of a file: nothing is acknowledged from here on, restart this server");
    let data = Arc::clone(&shared.data);
    if let Err(error) = shared.env.blocking(move || data.distrust_files()).await {
        tracing::error!(%error, "remove the folder `subjects` before the restart");
    }
    shared.log.poison();
    Err(shared.log_ended_reply())
}

/// Puts a delta in the bucket: every entry above `after`. Nothing refers to it yet.
pub(super) async fn upload_delta(
    shared: &Shared,
    subject: &Subject,
    made_for: ManifestNumber,
    after: Rev,
    entries: &[Entry],
) -> Result<DeltaRef, ErrorReply> {
    let frames =
        entries.iter().map(frame::encode).collect::<Result<Vec<_>, _>>().map_err(ErrorReply::internal)?;
    let encoded = delta::encode(subject, after, frames).map_err(ErrorReply::internal)?;
    let name = DeltaName { made_for, rev: encoded.last_rev, nonce: Nonce::new(shared.env.ulid()) };
    let key = SubjectKeys::new(subject).delta(&name);
    let (size_bytes, crc64) = (encoded.bytes.len() as u64, crate::checksum::Crc64::of(&encoded.bytes));
    let created =
        create_once(shared.bucket.as_ref(), &key, encoded.bytes, tokio::time::sleep(PATIENCE)).await;
    match Creation::of(created)? {
        Creation::Ours => Ok(DeltaRef { name, size_bytes, crc64 }),
        Creation::Anothers => Err(ErrorReply::internal(format!("{key} was there before it was made"))),
        Creation::Unknown(reply) => Err(reply),
    }
}

/// Creates a manifest, for as long as the patience lasts.
pub(super) async fn create(shared: &Shared, manifest: &Manifest) -> Result<Creation, ErrorReply> {
    let key = SubjectKeys::new(&manifest.subject).manifest(manifest.number);
    let bytes = manifest.encode();
    Creation::of(create_once(shared.bucket.as_ref(), &key, bytes, tokio::time::sleep(PATIENCE)).await)
}

/// Lists the subject's folder.
pub(super) async fn list(shared: &Shared, subject: &Subject) -> Result<Folder, ErrorReply> {
    let keys = SubjectKeys::new(subject);
    match tokio::time::timeout(PATIENCE, shared.bucket.list(keys.folder())).await {
        Ok(Ok(entries)) => Ok(keys.read_listing(&entries)),
        Ok(Err(error)) => Err((&error).into()),
        Err(_) => Err(unanswered()),
    }
}

/// Reads a manifest.
pub(super) async fn get_manifest(
    shared: &Shared,
    subject: &Subject,
    number: ManifestNumber,
) -> Result<Found, ErrorReply> {
    let key = SubjectKeys::new(subject).manifest(number);
    match tokio::time::timeout(PATIENCE, shared.bucket.get(&key)).await {
        Ok(Ok(found)) => Ok(Found::read(subject, number, found)),
        Ok(Err(error)) => Err((&error).into()),
        Err(_) => Err(unanswered()),
    }
}

fn unanswered() -> ErrorReply {
    ErrorReply::unavailable(format!("the bucket did not answer within {PATIENCE:?}"))
}
