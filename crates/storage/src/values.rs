//! Large values as objects of their own: written before anything refers to them, read back and checked.
//!
//! An object's name is fresh for every attempt to write it, so whatever becomes of an attempt, nothing else is touched,
//! and what nobody came to refer to can be deleted at once.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::limits::{INLINE_LIMIT_BYTES, MAX_ATOMIC_BATCH_BYTES};
use dormouse_protocol::transfer::UploadedValue;
use dormouse_protocol::{ErrorReply, Term};
use dormouse_runtime::Env;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::api::Request;
use crate::bucket::{Bucket, BucketError, BucketKey, Created, FileSummary, HeaderPatch};
use crate::checksum::Crc64;
use crate::entry::Entry;
use crate::keys::{BlobName, Nonce, SubjectKeys};
use crate::patience::Patience;
use crate::plan::{BlobRef, Operation};
use crate::subject::garbage::Garbage;

/// The largest value that is brought here, or from here, in one piece. In bytes.
pub(crate) const MAX_WHOLE_VALUE_BYTES: usize = MAX_ATOMIC_BATCH_BYTES;

/// Most bytes of large values under way in one direction. Beyond it whoever comes is turned away.
const MAX_BYTES_UNDER_WAY: u64 = 128 * 1_024 * 1_024;

/// Bytes are counted in pieces of this size.
const PIECE_BYTES: u64 = 4 * 1_024;

/// Large values under way in one direction at the same time; the others wait.
const AT_ONCE: usize = 32;

/// Large values of one request under way at the same time.
const OF_ONE_REQUEST: usize = 4;

/// When a caller that was turned away may come again.
const RETRY_AFTER_MS: u64 = 200;

const _: () = {
    // One value must fit, or it would be turned away for ever.
    assert!(MAX_WHOLE_VALUE_BYTES as u64 <= MAX_BYTES_UNDER_WAY);
    assert!(MAX_BYTES_UNDER_WAY / PIECE_BYTES <= u32::MAX as u64);
};

/// The large values of all subjects that are under way in one direction.
#[derive(Debug)]
pub(crate) struct Traffic {
    pieces: Arc<Semaphore>,
    calls: Semaphore,
}

impl Traffic {
    pub(crate) fn new() -> Self {
        let pieces = usize::try_from(MAX_BYTES_UNDER_WAY / PIECE_BYTES).unwrap_or(usize::MAX);
        Self { pieces: Arc::new(Semaphore::new(pieces)), calls: Semaphore::new(AT_ONCE) }
    }

    /// Lets values of so many bytes begin their way, which ends when the permit is dropped. More than may ever be under
    /// way goes alone.
    ///
    /// # Errors
    /// `overloaded`.
    pub(crate) fn admit(&self, bytes: u64) -> Result<OwnedSemaphorePermit, ErrorReply> {
        let pieces = bytes.min(MAX_BYTES_UNDER_WAY).div_ceil(PIECE_BYTES);
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        Arc::clone(&self.pieces).try_acquire_many_owned(pieces).map_err(|_| {
            ErrorReply::overloaded("too many bytes of large values are under way", RETRY_AFTER_MS)
        })
    }
}

/// A value that is to become an object, and the place of its set in the request.
pub(crate) type LargeValue = (usize, Bytes);

/// Whether a request brings a value that is an object of its own.
pub(crate) fn is_large(request: &Request) -> bool {
    let Request::Set(request) = request else { return false };
    let is_large = |value: &Bytes| value.len() > INLINE_LIMIT_BYTES;
    request.sets.iter().any(|item| item.uploaded.is_some() || item.value.as_ref().is_some_and(is_large))
}

/// The values of a request that were uploaded before it, each with the place of its set.
pub(crate) fn uploaded_before(request: &Request) -> impl Iterator<Item = (usize, UploadedValue)> {
    let sets = match request {
        Request::Set(request) => request.sets.as_slice(),
        _ => &[],
    };
    sets.iter().enumerate().filter_map(|(place, item)| item.uploaded.map(|value| (place, value)))
}

/// The values of a request that belong into objects of their own.
pub(crate) fn of_request(request: &Request) -> Vec<LargeValue> {
    let Request::Set(request) = request else { return Vec::new() };
    let sets = request.sets.iter().enumerate();
    sets.filter_map(|(place, item)| {
        let value = item.value.as_ref()?;
        // What is larger still is refused for its size, as it is in the log.
        let is_large = value.len() > INLINE_LIMIT_BYTES && value.len() <= MAX_WHOLE_VALUE_BYTES;
        is_large.then(|| (place, value.clone()))
    })
    .collect()
}

/// Stands for an object that is not written yet, so that a request can be planned as if it were. Nothing else is ever
/// called so: a nonce holds the time at which it was drawn.
pub(crate) fn stand_in(place: usize, size_bytes: u64) -> BlobRef {
    let nonce = Nonce::from_bytes((place as u128).to_be_bytes());
    let name = BlobName { term: Term::default(), nonce };
    BlobRef { name, size_bytes, crc64: Crc64::of(&[]) }
}

/// The objects that an entry refers to.
pub(crate) fn of_entry(entry: &Entry) -> impl Iterator<Item = BlobRef> {
    let sets = entry.operations.iter().flat_map(|operation| match operation {
        Operation::Set(set) => std::slice::from_ref(set),
        Operation::Batch { sets } => sets,
        Operation::Delete { .. } | Operation::DeleteAll { .. } | Operation::Configure { .. } => &[],
    });
    sets.filter_map(|set| set.blob)
}

/// An object that nothing refers to yet. When it is dropped so, it is deleted.
#[derive(Debug)]
struct Stray {
    name: BlobName,
    keys: SubjectKeys,
    /// `None`: it has found a home.
    garbage: Option<mpsc::Sender<Garbage>>,
}

impl Drop for Stray {
    fn drop(&mut self) {
        if let Some(garbage) = self.garbage.take() {
            // Where the queue is full it stays, until the owner of a later term finds it.
            let _ = garbage.try_send(Garbage::blobs(self.keys.clone(), vec![self.name]));
        }
    }
}

/// An uploaded value that is complete in the bucket. When it is dropped, it is deleted there.
#[derive(Debug)]
pub(crate) struct StoredValue {
    blob: BlobRef,
    stray: Stray,
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
    strays: Vec<Stray>,
}

impl Uploaded {
    /// Adds the value of the set at this place of the request.
    pub(crate) fn add(&mut self, place: usize, value: StoredValue) {
        self.blobs.push((place, value.blob));
        self.strays.push(value.stray);
    }

    /// The place of each set in the request, and its value's object.
    pub(crate) fn blobs(&self) -> &[(usize, BlobRef)] {
        &self.blobs
    }

    pub(crate) fn extend(&mut self, more: Self) {
        self.blobs.extend(more.blobs);
        self.strays.extend(more.strays);
    }

    /// The entry is on its way into the log: what it refers to is no longer deleted from here.
    pub(crate) fn keep(&mut self, entry: &Entry) {
        let kept: Vec<_> = of_entry(entry).map(|blob| blob.name).collect();
        for stray in self.strays.iter_mut().filter(|stray| kept.contains(&stray.name)) {
            stray.garbage = None;
        }
    }
}

/// Writes objects for the large values of one subject.
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
    /// Writes `values`, each complete when this returns. Where no attempt has a definite answer in time, nothing is
    /// acknowledged, and what may lie there is deleted.
    ///
    /// Cancelling the call deletes what it has written, as an error does.
    ///
    /// # Errors
    /// What the caller of the request is told.
    pub(crate) async fn upload(
        &self,
        traffic: &Traffic,
        values: Vec<LargeValue>,
    ) -> Result<Uploaded, ErrorReply> {
        let started = self.env.boot();
        let parts: Vec<Uploaded> = stream::iter(values)
            .map(|(place, value)| async move {
                // The semaphore is never closed.
                let _permit = traffic.calls.acquire().await;
                self.upload_one(place, &value, started).await
            })
            .buffered(OF_ONE_REQUEST)
            .try_collect()
            .await?;
        let mut uploaded = Uploaded::default();
        parts.into_iter().for_each(|part| uploaded.extend(part));
        Ok(uploaded)
    }

    /// Writes an object for a value that was uploaded to the file at `path`, complete when this returns, and holds its
    /// digest against what the client says.
    ///
    /// Cancelling the call deletes what it has written, as an error does.
    ///
    /// # Errors
    /// `corrupt` when size or digest are other ones; else what the caller of the request is told.
    pub(crate) async fn upload_file(
        &self,
        path: &Path,
        value: UploadedValue,
    ) -> Result<StoredValue, ErrorReply> {
        let mut patience = Patience::from(self.env.boot());
        loop {
            let name = BlobName { term: self.term, nonce: Nonce::new(self.env.ulid()) };
            let stray = Stray { name, keys: self.keys.clone(), garbage: Some(self.garbage.clone()) };
            let key = self.keys.blob(&name);
            let why = match self.bucket.put_file(&key, path, HeaderPatch::None).await {
                Ok(FileSummary { size_bytes, crc64 }) => {
                    if (size_bytes, crc64.to_u64()) == (value.size, value.digest.get()) {
                        return Ok(StoredValue { blob: BlobRef { name, size_bytes, crc64 }, stray });
                    }
                    let what = format!(
                        "{size_bytes} bytes with digest {crc64} arrived where {} bytes with digest {} were sent",
                        value.size, value.digest
                    );
                    return Err(ErrorReply::corrupt(format!("upload {}", value.upload), what));
                }
                // Without its file there is nothing to try again.
                Err(error @ BucketError::LocalFile { .. }) => return Err(ErrorReply::from(&error)),
                Err(error) => ErrorReply::from(&error),
            };
            drop(stray);
            let Some(pause) = patience.pause(self.env.boot()) else { return Err(why) };
            tokio::time::sleep(pause).await;
        }
    }

    async fn upload_one(
        &self,
        place: usize,
        value: &Bytes,
        started: Duration,
    ) -> Result<Uploaded, ErrorReply> {
        let (size_bytes, crc64) = (value.len() as u64, Crc64::of(value));
        let mut patience = Patience::from(started);
        loop {
            let name = BlobName { term: self.term, nonce: Nonce::new(self.env.ulid()) };
            let stray = Stray { name, keys: self.keys.clone(), garbage: Some(self.garbage.clone()) };
            let why = match self.bucket.create(&self.keys.blob(&name), value.clone()).await {
                Ok(Created::New) => {
                    let blob = BlobRef { name, size_bytes, crc64 };
                    return Ok(Uploaded { blobs: vec![(place, blob)], strays: vec![stray] });
                }
                // Nobody else writes under this name. It may be ours, with the answer lost on its way inside the store, or
                // a refusal without reason. Another name is as good.
                Ok(Created::Exists) => ErrorReply::unavailable("the bucket refused a fresh name"),
                Err(error) if error.is_unknown() => ErrorReply::from(&error),
                Err(error) => return Err(ErrorReply::from(&error)),
            };
            drop(stray);
            let Some(pause) = patience.pause(self.env.boot()) else { return Err(why) };
            tokio::time::sleep(pause).await;
        }
    }
}

/// Why a value cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// There is no such object. Whoever removed the message may have deleted it.
    #[error("{0} is missing")]
    Missing(BucketKey),
    /// The object is not what the message says.
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

/// A message refers to an object that is not there.
pub(crate) fn missing(key: &BucketKey) -> ErrorReply {
    ErrorReply::corrupt(key.to_string(), "the value of a message is missing")
}

/// Reads a large value, and checks that it is the one that was written.
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
    let Some(value) = bucket.get(&key).await? else { return Err(FetchError::Missing(key)) };
    let (size_bytes, crc64) = (value.len() as u64, Crc64::of(&value));
    if (size_bytes, crc64) == (blob.size_bytes, blob.crc64) {
        return Ok(value);
    }
    let what = format!(
        "{size_bytes} bytes with checksum {crc64} where the message says {} bytes with checksum {}",
        blob.size_bytes, blob.crc64
    );
    Err(FetchError::Corrupt { object: key, what })
}

impl Traffic {
    /// Reads a part of a large value, when it is its turn. Whether the bytes are those that were written, the whole value's
    /// checksum says.
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

    /// As [`fetch`], when it is its turn.
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
    use crate::bucket::ObjectStoreBucket;

    fn value(bytes: usize) -> Bytes {
        vec![b'x'; bytes].into()
    }

    #[test]
    fn only_values_above_the_limit_and_not_beyond_a_batch_are_large() {
        let sizes =
            [INLINE_LIMIT_BYTES, INLINE_LIMIT_BYTES + 1, MAX_WHOLE_VALUE_BYTES, MAX_WHOLE_VALUE_BYTES + 1];
        let item = |bytes| SetItem { value: Some(value(bytes)), ..SetItem::default() };
        let sets = sizes.into_iter().map(item).chain([SetItem::default()]).collect();
        let request = Request::Set(SetRequest { sets, ..SetRequest::default() });
        let places: Vec<usize> = of_request(&request).into_iter().map(|(place, _)| place).collect();
        assert_eq!(places, [1, 2]);
        assert_eq!(of_request(&Request::Info), []);
    }

    #[test]
    fn bytes_under_way_are_bounded_and_given_back() {
        let traffic = Traffic::new();
        let half = traffic.admit(MAX_BYTES_UNDER_WAY / 2).unwrap();
        let rest = traffic.admit(MAX_BYTES_UNDER_WAY / 2).unwrap();
        let refused = traffic.admit(1).unwrap_err();
        assert_eq!((refused.code, refused.retry_after_ms), (ErrorCode::Overloaded, Some(RETRY_AFTER_MS)));
        drop(half);
        drop(rest);
        // What is larger than everything goes alone.
        let alone = traffic.admit(2 * MAX_BYTES_UNDER_WAY).unwrap();
        assert!(traffic.admit(1).is_err());
        drop(alone);
        drop(traffic.admit(1).unwrap());
    }

    #[tokio::test]
    async fn an_object_that_nobody_came_to_refer_to_is_given_away_for_deletion() {
        let env = Env::system();
        let bucket = Arc::new(ObjectStoreBucket::in_memory(env.clone()));
        let (garbage, mut queue) = mpsc::channel(8);
        let keys = SubjectKeys::new(&"app.a".parse().unwrap());
        let uploader =
            Uploader { bucket: bucket.clone(), env, garbage, keys: keys.clone(), term: Term::new(3) };
        let uploaded = uploader.upload(&Traffic::new(), vec![(4, value(9)), (7, value(8))]).await.unwrap();
        let places: Vec<_> = uploaded.blobs().iter().map(|(place, blob)| (*place, blob.size_bytes)).collect();
        assert_eq!(places, [(4, 9), (7, 8)]);
        let blob = uploaded.blobs()[0].1;
        assert_eq!(fetch(bucket.as_ref(), &keys, &blob).await.unwrap(), value(9));
        assert!(queue.try_recv().is_err());
        drop(uploaded);
        assert!(queue.try_recv().is_ok() && queue.try_recv().is_ok());
    }
}
