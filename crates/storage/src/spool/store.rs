//! From the local disk to the bucket: an upload that is whole becomes an object.

use std::sync::Arc;

use dormouse_protocol::transfer::{UploadFinishRequest, UploadReply, UploadedValue};
use dormouse_protocol::{ErrorReply, Subject, Term};

use super::machine::{Finishing, Life};
use super::{Spool, UploadKey, key};
use crate::engine::Shared;
use crate::fail_points::{Step as FailPoint, reach};
use crate::keys::SubjectKeys;
use crate::plan::UploadRoom;
use crate::values::{StoredValue, Uploader};

/// A request to put an uploaded value in the bucket, and for whom.
pub(crate) struct Finish<'a> {
    pub(crate) subject: &'a Subject,
    /// The subject's term: the object's name has it.
    pub(crate) term: Term,
    pub(crate) request: UploadFinishRequest,
    /// What the subject's limits leave for it.
    pub(crate) room: UploadRoom,
}

impl Spool {
    /// Has an upload that is whole put in the bucket, and says whether it is there. To be asked again until it is.
    ///
    /// # Errors
    /// `unknown_upload`; `bad_request`; `too_large`; `limit_exceeded`; why the last attempt failed: `corrupt` where the
    /// digest is another, and then the upload has gone.
    pub(crate) fn finish(shared: &Arc<Shared>, finish: &Finish<'_>) -> Result<UploadReply, ErrorReply> {
        let spool = &shared.spool;
        let UploadFinishRequest { upload, size, digest, .. } = finish.request;
        let (key, value) = (key(finish.subject, upload), UploadedValue { upload, size, digest });
        let mut inner = spool.lock();
        if let Some(failure) = inner.parts.get_mut(&key).and_then(|parts| parts.failure.take()) {
            return Err(failure);
        }
        let life = match inner.uploads.finish(&key, value, finish.term, &finish.room, spool.env.boot())? {
            Finishing::Answer(reply) => return Ok(reply),
            Finishing::Begin(life) => life,
            Finishing::BeginAnew(life) => {
                inner.parts.entry(key.clone()).or_default().stored = None;
                life
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
        tasks.spawn("store an upload", async move { store(&shared, &uploader, key, life, value).await });
        Ok(UploadReply { received: size, stored: false })
    }
}

/// Puts a whole upload in the bucket and takes down what became of it.
async fn store(shared: &Arc<Shared>, uploader: &Uploader, key: UploadKey, life: Life, value: UploadedValue) {
    let spool = &shared.spool;
    let end = tokio::select! {
        biased;
        () = shared.stopping() => Err(ErrorReply::unavailable("the server is about to stop")),
        end = put(spool, uploader, &key, value) => end,
    };
    reach(FailPoint::ValueUp);
    let damaged = matches!(&end, Err(error) if error.code == dormouse_protocol::ErrorCode::Corrupt);
    let mut inner = spool.lock();
    if !inner.uploads.stored(&key, life, end.is_ok(), spool.env.boot()) {
        return;
    }
    let parts = inner.parts.entry(key.clone()).or_default();
    match end {
        Ok(stored) => parts.stored = Some(stored),
        Err(error) => parts.failure = Some(error),
    }
    if damaged {
        // What is here is not what was sent: it is of no use to anybody, and nothing is gained by keeping it.
        inner.uploads.restart(&key, life);
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
        // Nothing was written, so that there may be no file.
        let (disk, path) = (Arc::clone(&spool.disk), path.clone());
        spool.env.blocking(move || disk.append(&path, 0, &[])).await.map_err(|error| {
            ErrorReply::unavailable(format!("the local disk does not take the upload: {error}"))
        })?;
    }
    uploader.upload_file(&path, value).await
}
