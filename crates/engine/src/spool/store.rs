//! Stores complete uploads: from the local disk to the bucket.

use std::sync::Arc;

use dormouse_format::keys::SubjectKeys;
use dormouse_protocol::transfer::{UploadFinishRequest, UploadReply, UploadedValue};
use dormouse_protocol::{ErrorReply, Subject, Term};
use dormouse_runtime::fail_point;
use dormouse_subject_state::plan::UploadQuota;

use super::machine::{FinishOutcome, UploadGeneration};
use super::{Spool, UploadKey, key};
use crate::engine::EngineShared;
use crate::values::{StoredValue, Uploader};

/// A request to store an uploaded value in the bucket, with its subject.
pub(crate) struct Finish<'a> {
    pub(crate) subject: &'a Subject,
    /// The subject's term, which the object's name contains.
    pub(crate) term: Term,
    pub(crate) request: UploadFinishRequest,
    /// The quota from the subject's limits.
    pub(crate) quota: UploadQuota,
}

impl Spool {
    /// Starts to store a complete upload in the bucket, and returns whether it is stored. The client repeats the
    /// request until it is.
    ///
    /// # Errors
    /// `unknown_upload`; `bad_request`; `too_large`; `limit_exceeded`; the reason why the last attempt failed:
    /// `corrupt` if the digest differs, and then the upload restarts.
    pub(crate) fn finish(shared: &Arc<EngineShared>, finish: &Finish<'_>) -> Result<UploadReply, ErrorReply> {
        let spool = &shared.spool;
        let UploadFinishRequest { upload, size, digest, .. } = finish.request;
        let (key, value) = (key(finish.subject, upload), UploadedValue { upload, size, digest });
        let mut inner = spool.lock();
        if let Some(failure) = inner.parts.get_mut(&key).and_then(|parts| parts.failure.take()) {
            return Err(failure);
        }
        let generation =
            match inner.uploads.finish(&key, value, finish.term, &finish.quota, spool.env.boot())? {
                FinishOutcome::Reply(reply) => return Ok(reply),
                FinishOutcome::Store(generation) => generation,
                FinishOutcome::StoreAgain(generation) => {
                    inner.parts.entry(key.clone()).or_default().stored = None;
                    generation
                }
            };
        drop(inner);
        let uploader = Uploader {
            bucket: Arc::clone(&shared.bucket),
            env: shared.env.clone(),
            garbage: shared.garbage.clone(),
            keys: SubjectKeys::new(finish.subject),
            term: finish.term,
        };
        let shared = Arc::clone(shared);
        let tasks = shared.tasks.clone();
        tasks
            .spawn("store an upload", async move { store(&shared, &uploader, key, generation, value).await });
        Ok(UploadReply { received: size, stored: false })
    }
}

/// Stores a complete upload in the bucket and records the result.
async fn store(
    shared: &Arc<EngineShared>,
    uploader: &Uploader,
    key: UploadKey,
    generation: UploadGeneration,
    value: UploadedValue,
) {
    let spool = &shared.spool;
    let end = tokio::select! {
        biased;
        () = shared.stopping() => Err(ErrorReply::unavailable("the server is shutting down")),
        end = put(spool, uploader, &key, value) => end,
    };
    fail_point!(BlobUploaded);
    let damaged = matches!(&end, Err(error) if error.code == dormouse_protocol::ErrorCode::Corrupt);
    let mut inner = spool.lock();
    if !inner.uploads.stored(&key, generation, end.is_ok(), spool.env.boot()) {
        return;
    }
    let parts = inner.parts.entry(key.clone()).or_default();
    match end {
        Ok(stored) => parts.stored = Some(stored),
        Err(error) => parts.failure = Some(error),
    }
    if damaged {
        // The file differs from the sent bytes, so keeping it is useless.
        inner.uploads.restart(&key, generation);
    }
    drop(inner);
    spool.begun.notify_one();
}

async fn put(
    spool: &Spool,
    uploader: &Uploader,
    key: &UploadKey,
    value: UploadedValue,
) -> Result<StoredValue, ErrorReply> {
    // The semaphore is never closed.
    let _permit = spool.storing.acquire().await;
    let path = spool.path(key);
    if value.size == 0 {
        // No chunk was written, so the file may not exist.
        let (disk, path) = (Arc::clone(&spool.disk), path.clone());
        spool.env.blocking(move || disk.append(&path, 0, &[])).await.map_err(|error| {
            ErrorReply::unavailable(format!("the upload cannot be written to the local disk: {error}"))
        })?;
    }
    uploader.upload_file(&path, value).await
}
