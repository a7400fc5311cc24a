//! Multipart uploads. Only a failed part is sent again, for a limited time, because during an upload of many gigabytes
//! a short failure of the bucket is likely.

use std::sync::Arc;

use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, MultipartId, MultipartUpload, ObjectStoreExt, PutPayload};

use super::BucketError;
use super::store::{CALL_TIMEOUT, CallInfo, ObjectStoreBucket};
use crate::backoff::Backoff;

/// How a store accepts parts.
enum MultipartMode {
    /// Each part by its number, so it may be sent twice; the last one sent is used.
    Numbered { store: Arc<dyn MultipartStore>, id: MultipartId, sent: Vec<PartId> },
    /// In order, each part once: a local directory. There only the disk can fail.
    InOrder(Box<dyn MultipartUpload>),
}

/// See the [module](self). Only [`PartUploader::complete`] creates the object.
pub(super) struct PartUploader<'a> {
    bucket: &'a ObjectStoreBucket,
    call: CallInfo<'a>,
    to: &'a ObjectPath,
    mode: MultipartMode,
}

impl<'a> PartUploader<'a> {
    /// Begins an object at `to`.
    ///
    /// # Errors
    /// [`BucketError`].
    pub(super) async fn begin(
        bucket: &'a ObjectStoreBucket,
        call: CallInfo<'a>,
        to: &'a ObjectPath,
    ) -> Result<Self, BucketError> {
        let mode = match bucket.parts() {
            Some(store) => {
                let id = with_retries(bucket, call, || store.create_multipart(to)).await?;
                MultipartMode::Numbered { store: Arc::clone(store), id, sent: Vec::new() }
            }
            None => MultipartMode::InOrder(call.complete(bucket.store().put_multipart(to)).await?),
        };
        Ok(Self { bucket, call, to, mode })
    }

    /// Sends the next part, with retries.
    ///
    /// # Errors
    /// [`BucketError`] if the part has failed for the whole retry time, or permanently. Then the upload cannot succeed.
    pub(super) async fn put(&mut self, part: &Bytes) -> Result<(), BucketError> {
        let (bucket, call, to) = (self.bucket, self.call, self.to);
        match &mut self.mode {
            MultipartMode::Numbered { store, id, sent } => {
                let number = sent.len();
                let put = || store.put_part(to, id, number, PutPayload::from_bytes(part.clone()));
                let part = with_retries(bucket, call, put).await?;
                sent.push(part);
                Ok(())
            }
            MultipartMode::InOrder(upload) => {
                call.complete(upload.put_part(PutPayload::from_bytes(part.clone()))).await
            }
        }
    }

    /// Creates the object from the sent parts. Sent once: if the first call took effect without an answer, a retry
    /// would report that there is no such upload.
    ///
    /// # Errors
    /// [`BucketError`]; the object may exist or not.
    pub(super) async fn complete(&mut self) -> Result<(), BucketError> {
        let done = match &mut self.mode {
            MultipartMode::Numbered { store, id, sent } => {
                self.call.complete(store.complete_multipart(self.to, id, std::mem::take(sent))).await
            }
            MultipartMode::InOrder(upload) => self.call.complete(upload.complete()).await,
        };
        done.map(drop)
    }

    /// Aborts the upload. Nothing refers to its key. If the abort fails, the parts use space until the store's rule for
    /// unfinished uploads removes them.
    pub(super) async fn abort(&mut self) {
        let aborted = match &mut self.mode {
            MultipartMode::Numbered { store, id, .. } => {
                self.call.complete(store.abort_multipart(self.to, id)).await
            }
            MultipartMode::InOrder(upload) => self.call.complete(upload.abort()).await,
        };
        if let Err(error) = aborted {
            tracing::debug!(object = self.call.name, %error, "multipart upload not aborted");
        }
    }
}

/// Repeats a call until it succeeds, fails permanently, or has failed for too long.
async fn with_retries<T, Answer>(
    bucket: &ObjectStoreBucket,
    call: CallInfo<'_>,
    ask: impl Fn() -> Answer,
) -> Result<T, BucketError>
where
    Answer: Future<Output = Result<T, StoreError>>,
{
    let mut backoff = None;
    loop {
        let error = match call.within(CALL_TIMEOUT, ask()).await {
            Ok(Ok(done)) => return Ok(done),
            // The store has dropped the upload, so a retry cannot succeed.
            Ok(Err(error @ StoreError::NotFound { .. })) => return Err(call.failed(error)),
            Ok(Err(error)) => call.failed(error),
            Err(timeout) => timeout,
        };
        let now = bucket.env().boot();
        // The limit counts from the first failure, because the attempt itself may have taken longer than the limit.
        let pause = backoff.get_or_insert(Backoff::from(now)).pause(now);
        let Some(pause) = pause.filter(|_| error.is_unknown()) else { return Err(error) };
        tracing::debug!(object = call.name, %error, ?pause, "upload part failed, retrying");
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests;
