//! Uploads. Of a multipart upload, only a failed part is sent again, for a limited time, because during an upload of
//! many gigabytes a short failure of the bucket is likely.

mod complete;

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{Either, select};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::{
    Error as StoreError, MultipartId, MultipartUpload, ObjectStoreExt, PutPayload, PutResult,
};

use super::store::{CALL_TIMEOUT, CallInfo, ObjectStoreBucket, upload_timeout};
use super::{BucketError, FileSummary, transfer};
use crate::backoff::Backoff;
use complete::{CompleteInput, CompleteStep, CompleteUpload, Look};

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
                let id = with_retries(bucket, call, 0, || store.create_multipart(to)).await?;
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
                sent.push(with_retries(bucket, call, part.len(), put).await?);
                Ok(())
            }
            MultipartMode::InOrder(upload) => {
                let timeout = upload_timeout(part.len());
                let put = upload.put_part(PutPayload::from_bytes(part.clone()));
                call.within(timeout, put).await?.map_err(|error| call.failed(error))
            }
        }
    }

    /// Creates the object from the sent parts. After silence or an error, the object itself is the answer: see
    /// [`complete`]. `expected` is the size and the checksum of all parts.
    ///
    /// # Errors
    /// [`BucketError`]; the object may exist or not.
    pub(super) async fn complete(&mut self, expected: FileSummary) -> Result<(), BucketError> {
        match &mut self.mode {
            MultipartMode::Numbered { store, id, sent } => {
                let send = || store.complete_multipart(self.to, id, sent.clone());
                complete_numbered(self.bucket, self.call, expected, send).await
            }
            MultipartMode::InOrder(upload) => self.call.complete(upload.complete()).await.map(drop),
        }
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

/// Carries out the steps of [`CompleteUpload`].
async fn complete_numbered<Answer>(
    bucket: &ObjectStoreBucket,
    call: CallInfo<'_>,
    expected: FileSummary,
    send: impl Fn() -> Answer,
) -> Result<(), BucketError>
where
    Answer: Future<Output = Result<PutResult, StoreError>>,
{
    let mut machine = CompleteUpload::new(bucket.env().boot());
    let mut request = Box::pin(send());
    let mut step = CompleteStep::Wait;
    loop {
        let input = match step {
            CompleteStep::Send => {
                request = Box::pin(send());
                step = CompleteStep::Wait;
                continue;
            }
            CompleteStep::Wait => match select(&mut request, pin!(tokio::time::sleep(CALL_TIMEOUT))).await {
                Either::Left((Ok(_), _)) => CompleteInput::Completed,
                Either::Left((Err(error @ StoreError::NotFound { .. }), _)) => {
                    CompleteInput::UploadMissing(call.failed(error))
                }
                Either::Left((Err(error), _)) => CompleteInput::Failed(call.failed(error)),
                Either::Right(((), _)) => CompleteInput::Silent(call.timed_out()),
            },
            CompleteStep::Look => CompleteInput::Looked(look(bucket, call, expected).await),
            CompleteStep::Pause(pause) => {
                tokio::time::sleep(pause).await;
                CompleteInput::PauseOver
            }
            CompleteStep::Done(result) => return result,
        };
        if let CompleteInput::Silent(error) | CompleteInput::Failed(error) = &input {
            tracing::debug!(object = call.name, %error, "upload completion unanswered, looking at the object");
        }
        step = machine.apply(input, bucket.env().boot());
    }
}

/// Looks for a completed object, and reads it to compare its checksum.
async fn look(bucket: &ObjectStoreBucket, call: CallInfo<'_>, expected: FileSummary) -> Look {
    match transfer::read_back(bucket, call, expected.size_bytes).await {
        Ok(Some(found)) if found == expected => Look::Whole,
        Ok(Some(found)) => {
            let what = format!(
                "the uploaded object has {} bytes with checksum {}, but the file has {} bytes with checksum {}",
                found.size_bytes, found.crc64, expected.size_bytes, expected.crc64
            );
            Look::Other(BucketError::Corrupt { object: call.name.to_owned(), what })
        }
        Ok(None) => Look::Absent,
        Err(error) => {
            tracing::debug!(object = call.name, %error, "uploaded object not readable");
            Look::Unknown
        }
    }
}

/// Writes a small object in one piece, with retries: the same bytes under a fresh key, so a second write changes nothing.
pub(super) async fn put_whole(
    bucket: &ObjectStoreBucket,
    call: CallInfo<'_>,
    to: &ObjectPath,
    bytes: &Bytes,
) -> Result<(), BucketError> {
    let put = || bucket.store().put(to, PutPayload::from_bytes(bytes.clone()));
    with_retries(bucket, call, bytes.len(), put).await.map(drop)
}

/// Repeats a call with a body of this size until it succeeds, fails permanently, or has failed for too long.
async fn with_retries<T, Answer>(
    bucket: &ObjectStoreBucket,
    call: CallInfo<'_>,
    body_bytes: usize,
    ask: impl Fn() -> Answer,
) -> Result<T, BucketError>
where
    Answer: Future<Output = Result<T, StoreError>>,
{
    let mut backoff = None;
    loop {
        let error = match call.within(upload_timeout(body_bytes), ask()).await {
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

#[cfg(test)]
pub(crate) use tests::pattern;
