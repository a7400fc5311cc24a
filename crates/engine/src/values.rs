//! Blobs: large values as objects of their own, written before a record refers to them, and checked when read.
//!
//! Every attempt to write a blob uses a fresh name. So no attempt can affect another object, and an unreferenced blob
//! can be deleted at once.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dormouse_bucket::Backoff;
use dormouse_bucket::{Bucket, BucketError, Created, FileSummary, HeaderPatch};
use dormouse_format::checksum::Crc64;
use dormouse_format::entry::LogEntry;
use dormouse_format::keys::{BlobName, BucketKey, Nonce, SubjectKeys};
use dormouse_format::record::{BlobRef, RecordOp};
use dormouse_protocol::limits::{INLINE_LIMIT_BYTES, MAX_ATOMIC_BATCH_BYTES};
use dormouse_protocol::transfer::UploadedValue;
use dormouse_protocol::{ErrorReply, OverloadCause, Term};
use dormouse_runtime::Env;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::api::SubjectRequest;
use crate::subject::garbage::Garbage;

/// The largest value that one request or reply carries in one piece. In bytes.
pub(crate) const MAX_WHOLE_VALUE_BYTES: usize = MAX_ATOMIC_BATCH_BYTES;

/// Maximum bytes of blobs in transfer in one direction. Above it, requests get `overloaded`.
const MAX_BYTES_IN_TRANSFER: u64 = 128 * 1_024 * 1_024;

/// The unit in which the limiter counts bytes.
const PIECE_BYTES: u64 = 4 * 1_024;

/// Blobs in transfer in one direction at the same time; further transfers wait.
const AT_ONCE: usize = 32;

/// Blobs of one request in transfer at the same time.
const OF_ONE_REQUEST: usize = 4;

/// The longest range of one read of a value that was uploaded in chunks.
const RANGE_BYTES: u64 = 8 * 1_024 * 1_024;

const _: () = {
    // One value must fit, or it would always be refused.
    assert!(MAX_WHOLE_VALUE_BYTES as u64 <= MAX_BYTES_IN_TRANSFER);
    assert!(MAX_BYTES_IN_TRANSFER / PIECE_BYTES <= u32::MAX as u64);
};

/// Limits the blobs of all subjects in transfer in one direction.
#[derive(Debug)]
pub(crate) struct TransferLimiter {
    pieces: Arc<Semaphore>,
    calls: Semaphore,
}

impl TransferLimiter {
    pub(crate) fn new() -> Self {
        let pieces = usize::try_from(MAX_BYTES_IN_TRANSFER / PIECE_BYTES).unwrap_or(usize::MAX);
        Self { pieces: Arc::new(Semaphore::new(pieces)), calls: Semaphore::new(AT_ONCE) }
    }

    /// Admits a transfer of so many bytes, which lasts until the permit is dropped. A transfer above the limit is
    /// admitted alone.
    ///
    /// # Errors
    /// `overloaded`.
    pub(crate) fn admit(&self, bytes: u64) -> Result<OwnedSemaphorePermit, ErrorReply> {
        let pieces = bytes.min(MAX_BYTES_IN_TRANSFER).div_ceil(PIECE_BYTES);
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        Arc::clone(&self.pieces)
            .try_acquire_many_owned(pieces)
            .map_err(|_| ErrorReply::from(OverloadCause::ValueBytesInTransfer))
    }
}

/// A value that becomes a blob, and the index of its set in the request.
pub(crate) type LargeValue = (usize, Bytes);

/// Whether a request has a value that is stored as a blob.
pub(crate) fn is_large(request: &SubjectRequest) -> bool {
    let SubjectRequest::Set(request) = request else { return false };
    let is_large = |value: &Bytes| value.len() > INLINE_LIMIT_BYTES;
    request.sets.iter().any(|item| item.uploaded.is_some() || item.value.as_ref().is_some_and(is_large))
}

/// The values of a request that were uploaded in chunks before it, each with the index of its set.
pub(crate) fn uploaded_before(request: &SubjectRequest) -> impl Iterator<Item = (usize, UploadedValue)> {
    let sets = match request {
        SubjectRequest::Set(request) => request.sets.as_slice(),
        _ => &[],
    };
    sets.iter().enumerate().filter_map(|(index, item)| item.uploaded.map(|value| (index, value)))
}

/// The values of a request that must become blobs.
pub(crate) fn large_values(request: &SubjectRequest) -> Vec<LargeValue> {
    let SubjectRequest::Set(request) = request else { return Vec::new() };
    let sets = request.sets.iter().enumerate();
    sets.filter_map(|(index, item)| {
        let value = item.value.as_ref()?;
        // A larger value is refused for its size, like a value in the log.
        let is_large = value.len() > INLINE_LIMIT_BYTES && value.len() <= MAX_WHOLE_VALUE_BYTES;
        is_large.then(|| (index, value.clone()))
    })
    .collect()
}

/// Represents a blob that is not written yet, so that a request can be planned as if it were. No real blob has such a
/// name, because a nonce contains its time of creation.
pub(crate) fn placeholder(index: usize, size_bytes: u64) -> BlobRef {
    let nonce = Nonce::from_bytes((index as u128).to_be_bytes());
    let name = BlobName { term: Term::default(), nonce };
    BlobRef { name, size_bytes, crc64: Crc64::of(&[]) }
}

/// The objects that an entry refers to.
pub(crate) fn blobs_of_entry(entry: &LogEntry) -> impl Iterator<Item = BlobRef> {
    let sets = entry.operations.iter().flat_map(|operation| match operation {
        RecordOp::Set(set) => std::slice::from_ref(set),
        RecordOp::Batch { sets } => sets,
        RecordOp::Delete { .. } | RecordOp::DeleteAll { .. } | RecordOp::Configure { .. } => &[],
    });
    sets.filter_map(|set| set.blob)
}

/// A blob that no record refers to yet. If it is dropped in this state, it is queued for deletion.
#[derive(Debug)]
struct UnreferencedObject {
    name: BlobName,
    keys: SubjectKeys,
    /// `None`: a record refers to it.
    garbage: Option<mpsc::Sender<Garbage>>,
}

impl Drop for UnreferencedObject {
    fn drop(&mut self) {
        if let Some(garbage) = self.garbage.take() {
            // If the queue is full, the blob stays until the owner of a later term finds it.
            let _ = garbage.try_send(Garbage::blobs(self.keys.clone(), vec![self.name]));
        }
    }
}

/// An uploaded value that is complete in the bucket. If it is dropped, its blob is queued for deletion.
#[derive(Debug)]
pub(crate) struct StoredValue {
    blob: BlobRef,
    unreferenced: UnreferencedObject,
}

impl StoredValue {
    /// The object.
    pub(crate) const fn blob(&self) -> BlobRef {
        self.blob
    }
}

/// Values of one request that are complete in the bucket.
#[derive(Debug, Default)]
pub(crate) struct Uploaded {
    blobs: Vec<(usize, BlobRef)>,
    unreferenced: Vec<UnreferencedObject>,
}

impl Uploaded {
    /// Adds the value of the set at `index` of the request.
    pub(crate) fn add(&mut self, index: usize, value: StoredValue) {
        self.blobs.push((index, value.blob));
        self.unreferenced.push(value.unreferenced);
    }

    /// The index of each set in the request, and its blob.
    pub(crate) fn blobs(&self) -> &[(usize, BlobRef)] {
        &self.blobs
    }

    pub(crate) fn extend(&mut self, more: Self) {
        self.blobs.extend(more.blobs);
        self.unreferenced.extend(more.unreferenced);
    }

    /// Keeps the blobs that `entry` refers to, because the log has accepted the entry.
    pub(crate) fn keep(&mut self, entry: &LogEntry) {
        let kept: Vec<_> = blobs_of_entry(entry).map(|blob| blob.name).collect();
        for unreferenced in
            self.unreferenced.iter_mut().filter(|unreferenced| kept.contains(&unreferenced.name))
        {
            unreferenced.garbage = None;
        }
    }
}

/// Writes the blobs of one subject.
#[derive(Clone)]
pub(crate) struct Uploader {
    pub(crate) bucket: Arc<dyn Bucket>,
    pub(crate) env: Env,
    pub(crate) garbage: mpsc::Sender<Garbage>,
    pub(crate) keys: SubjectKeys,
    /// The subject's term.
    pub(crate) term: Term,
}

impl Uploader {
    /// Writes `values`; each is complete when the call returns. If no attempt has a definite answer in time, the call
    /// fails, and objects that may exist are queued for deletion.
    ///
    /// Cancelling the call deletes the blobs that it has written, as an error does.
    ///
    /// # Errors
    /// The error reply to the request.
    pub(crate) async fn upload(
        &self,
        limiter: &TransferLimiter,
        values: Vec<LargeValue>,
    ) -> Result<Uploaded, ErrorReply> {
        let started = self.env.boot();
        let parts: Vec<Uploaded> = stream::iter(values)
            .map(|(index, value)| async move {
                // The semaphore is never closed.
                let _permit = limiter.calls.acquire().await;
                self.upload_one(index, &value, started).await
            })
            .buffered(OF_ONE_REQUEST)
            .try_collect()
            .await?;
        let mut uploaded = Uploaded::default();
        parts.into_iter().for_each(|part| uploaded.extend(part));
        Ok(uploaded)
    }

    /// Writes a blob from the staged file at `path`, and compares size and digest with the client's values. The blob is
    /// complete when the call returns.
    ///
    /// Cancelling the call deletes the blob that it has written, as an error does.
    ///
    /// # Errors
    /// `corrupt` if size or digest differ; otherwise the error reply to the request.
    pub(crate) async fn upload_file(
        &self,
        path: &Path,
        value: UploadedValue,
    ) -> Result<StoredValue, ErrorReply> {
        let mut backoff = Backoff::from(self.env.boot());
        loop {
            let name = BlobName { term: self.term, nonce: Nonce::new(self.env.ulid()) };
            let unreferenced =
                UnreferencedObject { name, keys: self.keys.clone(), garbage: Some(self.garbage.clone()) };
            let key = self.keys.blob(&name);
            let why = match self.bucket.put_file(&key, path, HeaderPatch::None).await {
                Ok(FileSummary { size_bytes, crc64 }) => {
                    if (size_bytes, crc64.to_u64()) == (value.size, value.digest.get()) {
                        return Ok(StoredValue { blob: BlobRef { name, size_bytes, crc64 }, unreferenced });
                    }
                    let what = format!(
                        "{size_bytes} bytes with digest {crc64} arrived, but {} bytes with digest {} were sent",
                        value.size, value.digest
                    );
                    return Err(ErrorReply::corrupt(format!("upload {}", value.upload), what));
                }
                // Without the local file, a retry cannot succeed.
                Err(error @ BucketError::LocalFile { .. }) => return Err(ErrorReply::from(&error)),
                Err(error) => ErrorReply::from(&error),
            };
            drop(unreferenced);
            let Some(pause) = backoff.pause(self.env.boot()) else { return Err(why) };
            tokio::time::sleep(pause).await;
        }
    }

    async fn upload_one(
        &self,
        index: usize,
        value: &Bytes,
        started: Duration,
    ) -> Result<Uploaded, ErrorReply> {
        let (size_bytes, crc64) = (value.len() as u64, Crc64::of(value));
        let mut backoff = Backoff::from(started);
        loop {
            let name = BlobName { term: self.term, nonce: Nonce::new(self.env.ulid()) };
            let unreferenced =
                UnreferencedObject { name, keys: self.keys.clone(), garbage: Some(self.garbage.clone()) };
            let why = match self.bucket.create(&self.keys.blob(&name), value.clone()).await {
                Ok(Created::New) => {
                    let blob = BlobRef { name, size_bytes, crc64 };
                    return Ok(Uploaded { blobs: vec![(index, blob)], unreferenced: vec![unreferenced] });
                }
                // No other process writes under this name. The object may be ours, if a retry inside the store lost the
                // first answer, or the store refused without reason. The next attempt uses another name.
                Ok(Created::Exists) => ErrorReply::unavailable("the bucket refused a fresh name"),
                Err(error) if error.is_unknown() => ErrorReply::from(&error),
                Err(error) => return Err(ErrorReply::from(&error)),
            };
            drop(unreferenced);
            let Some(pause) = backoff.pause(self.env.boot()) else { return Err(why) };
            tokio::time::sleep(pause).await;
        }
    }
}

/// Why a blob cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// There is no such object. It may have been deleted after its message was removed.
    #[error("{0} is missing")]
    Missing(BucketKey),
    /// The object differs from the size or checksum in the message.
    #[error("{object}: {what}")]
    Corrupt {
        /// The object.
        object: BucketKey,
        /// What is wrong.
        what: String,
    },
    /// The bucket failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

impl From<FetchError> for ErrorReply {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Missing(key) => missing(&key),
            FetchError::Corrupt { object, what } => Self::corrupt(object.to_string(), what),
            FetchError::Bucket(error) => Self::from(&error),
        }
    }
}

/// The error reply if a message refers to a missing object.
pub(crate) fn missing(key: &BucketKey) -> ErrorReply {
    ErrorReply::corrupt(key.to_string(), "the value of a message is missing")
}

/// Reads a blob, and checks its size and checksum.
///
/// Cancelling the call has no effect.
///
/// # Errors
/// [`FetchError`].
pub(crate) async fn fetch(
    bucket: &dyn Bucket,
    keys: &SubjectKeys,
    blob: &BlobRef,
) -> Result<Bytes, FetchError> {
    let key = keys.blob(&blob.name);
    let read = if blob.size_bytes > MAX_WHOLE_VALUE_BYTES as u64 {
        read_in_ranges(bucket, &key, blob.size_bytes).await?
    } else {
        bucket.get(&key).await?
    };
    let Some(value) = read else { return Err(FetchError::Missing(key)) };
    let (size_bytes, crc64) = (value.len() as u64, Crc64::of(&value));
    if (size_bytes, crc64) == (blob.size_bytes, blob.crc64) {
        return Ok(value);
    }
    let what = format!(
        "{size_bytes} bytes with checksum {crc64}, but the message names {} bytes with checksum {}",
        blob.size_bytes, blob.crc64
    );
    Err(FetchError::Corrupt { object: key, what })
}

/// Reads an object of `size_bytes` bytes range by range: one read has a limit, a value that was uploaded in chunks has
/// none. `None` if there is no object.
async fn read_in_ranges(
    bucket: &dyn Bucket,
    key: &BucketKey,
    size_bytes: u64,
) -> Result<Option<Bytes>, BucketError> {
    let mut value = BytesMut::new();
    let mut start = 0;
    while start < size_bytes {
        let end = size_bytes.min(start + RANGE_BYTES);
        let Some(range) = bucket.get_range(key, start..end).await? else { return Ok(None) };
        value.extend_from_slice(&range);
        start = end;
    }
    Ok(Some(value.freeze()))
}

impl TransferLimiter {
    /// Reads a range of a blob once the limiter allows it. The bytes are not verified: only the whole value has a
    /// checksum.
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    /// [`BucketError`].
    pub(crate) async fn fetch_range(
        &self,
        bucket: &dyn Bucket,
        key: &BucketKey,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, BucketError> {
        // The semaphore is never closed.
        let _permit = self.calls.acquire().await;
        bucket.get_range(key, range).await
    }

    /// As [`fetch`], once the limiter allows it.
    ///
    /// # Errors
    /// [`FetchError`].
    pub(crate) async fn fetch(
        &self,
        bucket: &dyn Bucket,
        keys: &SubjectKeys,
        blob: &BlobRef,
    ) -> Result<Bytes, FetchError> {
        // The semaphore is never closed.
        let _permit = self.calls.acquire().await;
        fetch(bucket, keys, blob).await
    }
}

#[cfg(test)]
mod tests {
    use dormouse_protocol::ErrorCode;
    use dormouse_protocol::data::{SetItem, SetRequest};

    use super::*;
    use dormouse_bucket::ObjectStoreBucket;

    fn value(bytes: usize) -> Bytes {
        vec![b'x'; bytes].into()
    }

    /// A value becomes a blob only if it exceeds the inline limit and does not exceed the whole-value limit.
    #[test]
    fn blob_is_used_only_between_inline_and_whole_value_limit() {
        let sizes =
            [INLINE_LIMIT_BYTES, INLINE_LIMIT_BYTES + 1, MAX_WHOLE_VALUE_BYTES, MAX_WHOLE_VALUE_BYTES + 1];
        let item = |bytes| SetItem { value: Some(value(bytes)), ..SetItem::default() };
        let sets = sizes.into_iter().map(item).chain([SetItem::default()]).collect();
        let request = SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() });
        let places: Vec<usize> = large_values(&request).into_iter().map(|(index, _)| index).collect();
        assert_eq!(places, [1, 2]);
        assert_eq!(large_values(&SubjectRequest::Info), []);
    }

    /// The transfer limiter rejects bytes over its limit as `overloaded`, releases dropped permits and admits an
    /// oversized value alone.
    #[test]
    fn transfer_limiter_bounds_bytes_and_releases_permits() {
        let limiter = TransferLimiter::new();
        let half = limiter.admit(MAX_BYTES_IN_TRANSFER / 2).unwrap();
        let rest = limiter.admit(MAX_BYTES_IN_TRANSFER / 2).unwrap();
        let refused = limiter.admit(1).unwrap_err();
        assert_eq!(
            (refused.code, refused.retry_after_ms),
            (ErrorCode::Overloaded, Some(OverloadCause::ValueBytesInTransfer.retry_after_ms()))
        );
        drop(half);
        drop(rest);
        // A transfer above the limit is admitted alone.
        let alone = limiter.admit(2 * MAX_BYTES_IN_TRANSFER).unwrap();
        assert!(limiter.admit(1).is_err());
        drop(alone);
        drop(limiter.admit(1).unwrap());
    }

    /// An uploaded blob can be fetched, and if it is dropped without a reference it is queued for deletion.
    #[tokio::test]
    async fn blob_without_reference_is_queued_for_collection() {
        let env = Env::system();
        let bucket = Arc::new(ObjectStoreBucket::in_memory(env.clone()));
        let (garbage, mut queue) = mpsc::channel(8);
        let keys = SubjectKeys::new(&"app.a".parse().unwrap());
        let uploader =
            Uploader { bucket: bucket.clone(), env, garbage, keys: keys.clone(), term: Term::new(3) };
        let uploaded =
            uploader.upload(&TransferLimiter::new(), vec![(4, value(9)), (7, value(8))]).await.unwrap();
        let places: Vec<_> = uploaded.blobs().iter().map(|(index, blob)| (*index, blob.size_bytes)).collect();
        assert_eq!(places, [(4, 9), (7, 8)]);
        let blob = uploaded.blobs()[0].1;
        assert_eq!(fetch(bucket.as_ref(), &keys, &blob).await.unwrap(), value(9));
        assert!(queue.try_recv().is_err());
        drop(uploaded);
        assert!(queue.try_recv().is_ok() && queue.try_recv().is_ok());
    }
}
