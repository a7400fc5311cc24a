//! A large object on its way up in parts. A part that fails is sent again for a while, and the others are not: of a file of
//! many gigabytes some part meets a bucket that has a bad moment.

use std::sync::Arc;

use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, MultipartId, MultipartUpload, ObjectStoreExt, PutPayload};

use super::BucketError;
use super::store::{CALL_TIMEOUT, Call, ObjectStoreBucket};
use crate::patience::Patience;

/// How a store takes parts.
enum Way {
    /// Each by its number, so that it may be sent twice: the last one sent counts.
    Numbered { store: Arc<dyn MultipartStore>, id: MultipartId, sent: Vec<PartId> },
    /// One behind the other, each once: a directory. What fails there is the disk.
    InOrder(Box<dyn MultipartUpload>),
}

/// See the [module](self). It becomes an object by [`Parts::complete`], and by nothing else.
pub(super) struct Parts<'a> {
    bucket: &'a ObjectStoreBucket,
    call: Call<'a>,
    to: &'a ObjectPath,
    way: Way,
}

impl<'a> Parts<'a> {
    /// Begins an object at `to`.
    ///
    /// # Errors
    /// [`BucketError`].
    pub(super) async fn begin(
        bucket: &'a ObjectStoreBucket,
        call: Call<'a>,
        to: &'a ObjectPath,
    ) -> Result<Self, BucketError> {
        let way = match bucket.parts() {
            Some(store) => {
                let id = patiently(bucket, call, || store.create_multipart(to)).await?;
                Way::Numbered { store: Arc::clone(store), id, sent: Vec::new() }
            }
            None => Way::InOrder(call.complete(bucket.store().put_multipart(to)).await?),
        };
        Ok(Self { bucket, call, to, way })
    }

    /// Sends the next part, as often as it takes.
    ///
    /// # Errors
    /// [`BucketError`], when it has failed for as long as anybody waits, or for good. Then nothing can come of the object.
    pub(super) async fn put(&mut self, part: &Bytes) -> Result<(), BucketError> {
        let (bucket, call, to) = (self.bucket, self.call, self.to);
        match &mut self.way {
            Way::Numbered { store, id, sent } => {
                let number = sent.len();
                let put = || store.put_part(to, id, number, PutPayload::from_bytes(part.clone()));
                let part = patiently(bucket, call, put).await?;
                sent.push(part);
                Ok(())
            }
            Way::InOrder(upload) => {
                call.complete(upload.put_part(PutPayload::from_bytes(part.clone()))).await
            }
        }
    }

    /// All parts were sent: makes them the object. Asked once: of what was carried out without an answer a repeat would be
    /// told that there is no such upload.
    ///
    /// # Errors
    /// [`BucketError`]; the object may be there or not.
    pub(super) async fn complete(&mut self) -> Result<(), BucketError> {
        let done = match &mut self.way {
            Way::Numbered { store, id, sent } => {
                self.call.complete(store.complete_multipart(self.to, id, std::mem::take(sent))).await
            }
            Way::InOrder(upload) => self.call.complete(upload.complete()).await,
        };
        done.map(drop)
    }

    /// Gives the object up. Nothing refers to its key; what stays behind where this fails costs space, until the store's rule
    /// for unfinished uploads takes it away.
    pub(super) async fn abort(&mut self) {
        let gone = match &mut self.way {
            Way::Numbered { store, id, .. } => self.call.complete(store.abort_multipart(self.to, id)).await,
            Way::InOrder(upload) => self.call.complete(upload.abort()).await,
        };
        if let Err(leftover) = gone {
            tracing::debug!(object = self.call.name, error = %leftover, "an unfinished upload stays behind");
        }
    }
}

/// Asks again and again, until the store has done it, has refused it for good, or has failed for too long.
async fn patiently<T, Answer>(
    bucket: &ObjectStoreBucket,
    call: Call<'_>,
    ask: impl Fn() -> Answer,
) -> Result<T, BucketError>
where
    Answer: Future<Output = Result<T, StoreError>>,
{
    let mut patience = None;
    loop {
        let error = match call.within(CALL_TIMEOUT, ask()).await {
            Ok(Ok(done)) => return Ok(done),
            // The store has given the upload up. It does not come back.
            Ok(Err(error @ StoreError::NotFound { .. })) => return Err(call.failed(error)),
            Ok(Err(error)) => call.failed(error),
            Err(timeout) => timeout,
        };
        let now = bucket.env().boot();
        // From the first failure on: the attempt itself may have taken longer than anybody waits for the next.
        let pause = patience.get_or_insert(Patience::from(now)).pause(now);
        let Some(pause) = pause.filter(|_| error.is_unknown()) else { return Err(error) };
        tracing::debug!(object = call.name, %error, ?pause, "a part of an upload is sent again");
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests;
