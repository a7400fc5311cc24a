//! Bringing a subject's state to the bucket: upload, manifest, second look.

use std::path::PathBuf;
use std::time::Duration;

use dormouse_protocol::{ErrorReply, Rev, Seq, Subject};

use crate::bucket::{BucketError, BucketKey, CreateOutcome, HeaderPatch, create_once};
use crate::claim::{NewBase, Publication, Publish, PublishEffect, PublishInput};
use crate::engine::Shared;
use crate::keys::{Folder, ManifestNumber, Nonce, SnapshotName, SubjectKeys};
use crate::manifest::{Manifest, SnapshotRef};

/// How long one call to the bucket for something small may take before it counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(10);

/// The state to be brought: the main file as a checkpoint left it.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) path: PathBuf,
    pub(super) rev: Rev,
    pub(super) next_seq: Seq,
}

/// What shall be published on top of the current manifest.
#[derive(Debug)]
pub(super) enum Job {
    /// First settle a publication without known outcome.
    Resume(Box<Publish>),
    /// A snapshot of the state.
    Snapshot(State),
    /// Hand the subject back, with a snapshot where the bucket does not have the state yet.
    Release(Option<State>),
    /// Leave nothing but a tombstone.
    Destroy(Rev, Seq),
}

/// How a [`Job`] ended.
#[derive(Debug)]
pub(super) enum PublishEnd {
    /// This manifest counts from now on; what nobody needs any more may be deleted.
    Published(Box<Manifest>, Vec<BucketKey>),
    /// Another process owns the subject.
    Lost,
    /// It may count, now or later: nothing else may be published before this is settled.
    Undecided(Box<Publish>, ErrorReply),
    /// Nothing has changed.
    Failed(ErrorReply),
}

/// Carries out a job on top of `current`.
///
/// Cancelling it leaves its outcome unknown: the subject must then be claimed anew before it is served.
pub(super) async fn publish(shared: &Shared, subject: &Subject, current: &Manifest, job: Job) -> PublishEnd {
    let _permit = shared.publishing.acquire().await;
    let (mut machine, mut effect) = match begin(shared, subject, current, job).await {
        Ok(begun) => begun,
        Err(reply) => return PublishEnd::Failed(reply),
    };
    loop {
        let input = match effect {
            PublishEffect::Create(manifest) => match create(shared, &manifest).await {
                Ok(outcome) => PublishInput::Created(outcome),
                Err(error) => PublishInput::Failed((&error).into()),
            },
            PublishEffect::Get(number) => match get_manifest(shared, subject, number).await {
                Ok(bytes) => PublishInput::Got(bytes),
                Err(reply) => PublishInput::Failed(reply),
            },
            PublishEffect::List => match list(shared, subject).await {
                Ok(folder) => PublishInput::Listed(folder),
                Err(reply) => PublishInput::Failed(reply),
            },
            PublishEffect::Published { manifest, garbage } => {
                return PublishEnd::Published(manifest, garbage);
            }
            PublishEffect::Lost => return PublishEnd::Lost,
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
        Job::Snapshot(state) => Publication::Snapshot(base(shared, subject, current, state).await?),
        Job::Release(None) => Publication::Release(None),
        Job::Release(Some(state)) => Publication::Release(Some(base(shared, subject, current, state).await?)),
        Job::Destroy(rev, next_seq) => Publication::Destroy { rev, next_seq },
    };
    Ok(Publish::new(current, publication, Nonce::new(shared.env.ulid())))
}

async fn base(
    shared: &Shared,
    subject: &Subject,
    current: &Manifest,
    state: State,
) -> Result<NewBase, ErrorReply> {
    let next_seq = state.next_seq;
    let snapshot = upload(shared, subject, current.number.next(), state).await?;
    Ok(NewBase { snapshot, next_seq })
}

/// Puts a snapshot of the state in the bucket. Nothing refers to it yet.
pub(super) async fn upload(
    shared: &Shared,
    subject: &Subject,
    made_for: ManifestNumber,
    state: State,
) -> Result<SnapshotRef, ErrorReply> {
    let name = SnapshotName { made_for, rev: state.rev, nonce: Nonce::new(shared.env.ulid()) };
    let key = SubjectKeys::new(subject).snapshot(&name);
    let summary = shared
        .bucket
        .put_file(&key, &state.path, HeaderPatch::RollbackJournal)
        .await
        .map_err(|error| ErrorReply::from(&error))?;
    Ok(SnapshotRef { name, size_bytes: summary.size_bytes, crc64: summary.crc64 })
}

/// Creates a manifest, for as long as the patience lasts.
pub(super) async fn create(shared: &Shared, manifest: &Manifest) -> Result<CreateOutcome, BucketError> {
    let key = SubjectKeys::new(&manifest.subject).manifest(manifest.number);
    create_once(shared.bucket.as_ref(), &key, manifest.encode(), tokio::time::sleep(PATIENCE)).await
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
) -> Result<Option<bytes::Bytes>, ErrorReply> {
    let key = SubjectKeys::new(subject).manifest(number);
    match tokio::time::timeout(PATIENCE, shared.bucket.get(&key)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err((&error).into()),
        Err(_) => Err(unanswered()),
    }
}

fn unanswered() -> ErrorReply {
    ErrorReply::unavailable(format!("the bucket did not answer within {PATIENCE:?}"))
}
