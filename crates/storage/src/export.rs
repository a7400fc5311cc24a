//! Reading a subject straight from the bucket, without serving it.

use std::path::Path;

use bytes::Bytes;
use dormouse_protocol::{ErrorReply, Position, Seq, Subject};
use dormouse_runtime::Env;
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::bucket::{Bucket, BucketError};
use crate::database::{Database, remove_files};
use crate::keys::{ManifestNumber, SubjectKeys};
use crate::log::{TailError, read_tail};
use crate::manifest::{Manifest, ManifestError};
use crate::subject::restore::{RestoreError, Restorer};
use crate::values::{self, FetchError};

/// How often a newer base may take the place of the one that is being read.
const ATTEMPTS: u32 = 5;

/// Large values read at the same time.
const VALUES_AT_ONCE: usize = 4;

/// Why a subject cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The bucket has nothing of the subject.
    #[error("the bucket has nothing of {0}")]
    NoSuchSubject(Subject),
    /// The subject has a manifest and nothing else: nothing was written yet, or none of it was flushed.
    #[error("nothing of {0} has been brought to the bucket yet: flush it first")]
    NothingYet(Subject),
    /// Newer objects took the place of those that were about to be read, again and again.
    #[error("the objects of {0} are replaced faster than they can be read; try again")]
    TooBusy(Subject),
    /// The bucket failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The newest manifest is not one that this version can use.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An object is not what it should be, the bucket failed, or the file could not be written.
    #[error("{}", .0.message)]
    Failed(ErrorReply),
}

impl From<ErrorReply> for ExportError {
    fn from(reply: ErrorReply) -> Self {
        Self::Failed(reply)
    }
}

/// How an attempt ended that failed.
enum Attempt {
    /// Something is gone that a manifest refers to: it is replaced, or lost.
    Missing(String),
    Failed(ExportError),
}

impl<E: Into<ExportError>> From<E> for Attempt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Writes what the bucket holds of `subject` to a new file at `path`: a plain SQLite file that is complete by itself,
/// large values included. Returns the state that it holds.
///
/// Nothing is claimed: the subject may be served meanwhile. What its owner has not brought to the bucket yet is not in
/// the file; a flush beforehand brings it there. The process that calls must be the only one that writes at `path`.
///
/// Cancelling the call may leave a partial file at `path`.
///
/// # Errors
/// [`ExportError`]; then there is no new file at `path`.
pub async fn export_snapshot(
    bucket: &dyn Bucket,
    env: &Env,
    subject: &Subject,
    path: &Path,
) -> Result<Position, ExportError> {
    let exported = export(bucket, env, subject, path).await;
    if exported.is_err() {
        let path = path.to_owned();
        // Ours: the call has made it. The error that is reported is the one that made it useless.
        let _ = env.blocking(move || remove_files(&path)).await;
    }
    exported
}

async fn export(
    bucket: &dyn Bucket,
    env: &Env,
    subject: &Subject,
    path: &Path,
) -> Result<Position, ExportError> {
    let mut seen: Option<(ManifestNumber, String)> = None;
    for _ in 0..ATTEMPTS {
        let Some(manifest) = newest(bucket, subject).await? else { continue };
        let mut restorer =
            Restorer { bucket, env, home: None, subject, path: path.to_owned(), database: None };
        match copy(&mut restorer, &manifest).await {
            Ok(position) => return Ok(position),
            Err(Attempt::Failed(error)) => return Err(error),
            Err(Attempt::Missing(object)) => {
                let missing = (manifest.number, object);
                // Whatever is deleted, a newer manifest came first.
                if seen.as_ref() == Some(&missing) {
                    return Err(ErrorReply::corrupt(missing.1, "referred to, and missing").into());
                }
                seen = Some(missing);
            }
        }
    }
    Err(ExportError::TooBusy(subject.clone()))
}

/// The newest manifest; `None` when it was replaced while it was read.
async fn newest(bucket: &dyn Bucket, subject: &Subject) -> Result<Option<Manifest>, ExportError> {
    let keys = SubjectKeys::new(subject);
    let folder = keys.read_listing(&bucket.list(keys.folder()).await?);
    let number = folder.newest().ok_or_else(|| ExportError::NoSuchSubject(subject.clone()))?;
    let Some(bytes) = bucket.get(&keys.manifest(number)).await? else { return Ok(None) };
    let manifest = Manifest::decode(subject, number, &bytes)?;
    if manifest.tombstone { Err(ExportError::NoSuchSubject(subject.clone())) } else { Ok(Some(manifest)) }
}

async fn copy(restorer: &mut Restorer<'_>, manifest: &Manifest) -> Result<Position, Attempt> {
    let (bucket, subject) = (restorer.bucket, restorer.subject);
    let tail = if manifest.released {
        Vec::new()
    } else {
        let read = read_tail(bucket, &manifest.owner, subject, manifest.first_slot, manifest.base_rev);
        read.await.map_err(|error| match error {
            TailError::Missing { object } => Attempt::Missing(object),
            TailError::Failed(reply) => reply.into(),
        })?
    };
    if manifest.snapshot.is_none() && manifest.deltas.is_empty() && tail.is_empty() {
        return Err(ExportError::NothingYet(subject.clone()).into());
    }
    restorer.restore(Some(manifest), tail).await.map_err(|error| match error {
        RestoreError::Missing(object) => Attempt::Missing(object),
        RestoreError::Failed(reply) => reply.into(),
    })?;
    embed_values(restorer).await?;
    let Some(database) = restorer.database.take() else {
        return Err(ErrorReply::internal("an export lost its file").into());
    };
    let state = database.state();
    let position = Position { term: state.term.max(manifest.term), rev: state.rev };
    let made = restorer.env.blocking(move || database.make_plain()).await;
    made.map_err(|error| error.reply(subject))?;
    Ok(position)
}

/// Brings the large values into the file.
async fn embed_values(restorer: &mut Restorer<'_>) -> Result<(), Attempt> {
    let (bucket, keys) = (restorer.bucket, SubjectKeys::new(restorer.subject));
    let mut after = Seq::new(0);
    loop {
        let blobs = restorer.on_file(move |database| database.blobs_after(after, VALUES_AT_ONCE)).await?;
        let Some(&(last, _)) = blobs.last() else { return Ok(()) };
        after = last;
        let values: Vec<(Seq, Bytes)> = stream::iter(blobs)
            .map(|(seq, blob)| {
                let keys = &keys;
                async move { Ok::<_, FetchError>((seq, values::fetch(bucket, keys, &blob).await?)) }
            })
            .buffered(VALUES_AT_ONCE)
            .try_collect()
            .await
            .map_err(|error| match error {
                FetchError::Missing(key) => Attempt::Missing(key.to_string()),
                error => ErrorReply::from(error).into(),
            })?;
        restorer.on_file(move |database: &mut Database| database.embed(&values)).await?;
    }
}
