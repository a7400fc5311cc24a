//! Reading a subject straight from the bucket, without serving it.

use std::path::Path;

use dormouse_protocol::{Position, Subject};

use crate::bucket::{Bucket, BucketError};
use crate::keys::SubjectKeys;
use crate::manifest::{Manifest, ManifestError};

/// How often a snapshot may be replaced by a newer one while it is being looked for.
const ATTEMPTS: u32 = 5;

/// Why a subject cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The bucket has nothing of the subject.
    #[error("the bucket has nothing of {0}")]
    NoSuchSubject(Subject),
    /// The subject has a manifest but no snapshot: nothing was written yet, or none of it was flushed.
    #[error("nothing of {0} has been brought to the bucket yet: flush it first")]
    NothingYet(Subject),
    /// A newer snapshot took the place of the one that was about to be read, again and again.
    #[error("the snapshots of {0} are replaced faster than they can be read; try again")]
    TooBusy(Subject),
    /// The bucket failed, or the file could not be written.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The newest manifest is not one that this version can use.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Writes the newest snapshot of `subject` to a new file at `path`: a plain SQLite file. Changes that are not in the
/// bucket yet are not in it. Returns the state that it holds.
///
/// Cancelling the call may leave a partial file at `path`.
///
/// # Errors
/// [`ExportError`]; then there is no new file at `path`.
pub async fn export_snapshot(
    bucket: &dyn Bucket,
    subject: &Subject,
    path: &Path,
) -> Result<Position, ExportError> {
    let keys = SubjectKeys::new(subject);
    for _ in 0..ATTEMPTS {
        let folder = keys.read_listing(&bucket.list(keys.folder()).await?);
        let number = folder.newest().ok_or_else(|| ExportError::NoSuchSubject(subject.clone()))?;
        let Some(bytes) = bucket.get(&keys.manifest(number)).await? else { continue };
        let manifest = Manifest::decode(subject, number, &bytes)?;
        if manifest.tombstone {
            return Err(ExportError::NoSuchSubject(subject.clone()));
        }
        let snapshot = manifest.snapshot.ok_or_else(|| ExportError::NothingYet(subject.clone()))?;
        let key = keys.snapshot(&snapshot.name);
        let Some(summary) = bucket.get_file(&key, path).await? else { continue };
        if (summary.size_bytes, summary.crc64) != (snapshot.size_bytes, snapshot.crc64) {
            // It is only our copy that goes.
            let _ = std::fs::remove_file(path);
            let what = "its size or checksum is not what the manifest says".to_owned();
            return Err(BucketError::Corrupt { object: key.to_string(), what }.into());
        }
        return Ok(Position { term: manifest.term, rev: manifest.base_rev });
    }
    Err(ExportError::TooBusy(subject.clone()))
}
