//! Export: reads a subject directly from the bucket, without serving it.

use std::path::Path;

use bytes::Bytes;
use dormouse_bucket::{Bucket, BucketError};
use dormouse_commit_log::log::read_tail;
use dormouse_format::keys::{ManifestNumber, SubjectKeys};
use dormouse_format::manifest::{Manifest, ManifestError};
use dormouse_protocol::{ErrorReply, Position, Seq, Subject};
use dormouse_runtime::Env;
use dormouse_subject_state::database::{Database, remove_files};
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::api::TenantId;
use crate::subject::restore::{RestoreError, Restorer};
use crate::values::{self, FetchError, MAX_WHOLE_VALUE_BYTES};

/// Number of attempts if newer bases replace the objects during the read.
const ATTEMPTS: u32 = 5;

/// Blobs read at the same time.
const VALUES_AT_ONCE: usize = 4;

/// Why a subject cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The bucket holds no data of the subject.
    #[error("the bucket holds no data of {0}")]
    SubjectNotFound(Subject),
    /// The subject has a manifest and no data: nothing was written yet, or nothing was flushed.
    #[error("the bucket holds no writes of {0} yet: flush it first")]
    NotFlushed(Subject),
    /// Newer objects replaced the objects during each attempt to read them.
    #[error("the objects of {0} are replaced faster than they can be read; try again")]
    Contended(Subject),
    /// The bucket failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// This version cannot read the newest manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An object is damaged, the bucket failed, or the file could not be written.
    #[error("{}", .0.message)]
    Failed(ErrorReply),
}

impl From<ErrorReply> for ExportError {
    fn from(reply: ErrorReply) -> Self {
        Self::Failed(reply)
    }
}

/// A failed attempt.
enum Attempt {
    /// An object that a manifest refers to is missing: it was replaced, or lost.
    Missing(String),
    Failed(ExportError),
}

impl<E: Into<ExportError>> From<E> for Attempt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn attempt(error: impl Into<RestoreError>) -> Attempt {
    match error.into() {
        RestoreError::Missing(object) => Attempt::Missing(object),
        RestoreError::Failed(reply) => reply.into(),
    }
}

/// Writes the bucket's state of `subject` to a new file at `path`: a plain, self-contained SQLite file with all blobs.
/// Returns the position of that state.
///
/// Nothing is claimed, so a server may serve the subject meanwhile. The file lacks writes that the owner has not
/// shipped yet; a flush beforehand ships them. No other process may write at `path`.
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
        // This call created the file. The reported error is the export's error.
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
        let (tenant, path) = (TenantId::SHARED, path.to_owned());
        let mut restorer = Restorer { bucket, env, engine: None, subject, tenant, path, database: None };
        match copy(&mut restorer, &manifest).await {
            Ok(position) => return Ok(position),
            Err(Attempt::Failed(error)) => return Err(error),
            Err(Attempt::Missing(object)) => {
                let missing = (manifest.number, object);
                // An object is deleted only after a newer manifest exists, so a second miss under one manifest is a
                // loss.
                if seen.as_ref() == Some(&missing) {
                    return Err(
                        ErrorReply::corrupt(missing.1, "a manifest refers to it, and it is missing").into()
                    );
                }
                seen = Some(missing);
            }
        }
    }
    Err(ExportError::Contended(subject.clone()))
}

/// The newest manifest; `None` if it was replaced while it was read.
async fn newest(bucket: &dyn Bucket, subject: &Subject) -> Result<Option<Manifest>, ExportError> {
    let keys = SubjectKeys::new(subject);
    let folder = keys.read_listing(&bucket.list(keys.folder()).await?);
    let number = folder.newest().ok_or_else(|| ExportError::SubjectNotFound(subject.clone()))?;
    let Some(bytes) = bucket.get(&keys.manifest(number)).await? else { return Ok(None) };
    let manifest = Manifest::decode(subject, number, &bytes)?;
    if manifest.tombstone { Err(ExportError::SubjectNotFound(subject.clone())) } else { Ok(Some(manifest)) }
}

async fn copy(restorer: &mut Restorer<'_>, manifest: &Manifest) -> Result<Position, Attempt> {
    let (bucket, subject) = (restorer.bucket, restorer.subject);
    let mut tail = None;
    if !manifest.released {
        let read = read_tail(bucket, &manifest.owner, subject, manifest.first_slot, manifest.base_rev);
        tail = Some(read.await.map_err(attempt)?);
    }
    if manifest.snapshot.is_none() && manifest.deltas.is_empty() {
        let is_empty = match &mut tail {
            Some(tail) => tail.is_at_end().await.map_err(attempt)?,
            None => true,
        };
        if is_empty {
            return Err(ExportError::NotFlushed(subject.clone()).into());
        }
    }
    // Without a local file, the end of the log need not be known before.
    let restored = restorer.restore(Some(manifest), manifest.base_rev, tail.as_mut(), None);
    restored.await.map_err(attempt)?;
    embed_values(restorer).await?;
    let Some(database) = restorer.database.take() else {
        return Err(ErrorReply::internal("the export has no file").into());
    };
    let state = database.state();
    let position = Position { term: state.term.max(manifest.term), rev: state.rev };
    let made = restorer.env.blocking(move || database.make_plain()).await;
    made.map_err(|error| error.reply(subject))?;
    Ok(position)
}

/// Copies the blobs into the file.
async fn embed_values(restorer: &mut Restorer<'_>) -> Result<(), Attempt> {
    let (bucket, keys) = (restorer.bucket, SubjectKeys::new(restorer.subject));
    let mut after = Seq::new(0);
    loop {
        let mut blobs = restorer.on_file(move |database| database.blobs_after(after, VALUES_AT_ONCE)).await?;
        // At most one large value is in memory.
        if let Some(large) = blobs.iter().position(|(_, blob)| blob.size_bytes > MAX_WHOLE_VALUE_BYTES as u64)
        {
            blobs.truncate(large.max(1));
        }
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
