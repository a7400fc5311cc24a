//! A bucket whose calls and answers an observer sees.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_bucket::{Bucket, BucketError, Created, FileSummary, HeaderPatch};
use dormouse_format::keys::{BucketEntry, BucketKey, BucketPrefix};

/// A call of a bucket.
#[derive(Debug, Clone, Copy)]
pub enum BucketCall<'a> {
    /// [`Bucket::create`], with the bytes of the object.
    Create(&'a BucketKey, &'a Bytes),
    /// [`Bucket::get`].
    Get(&'a BucketKey),
    /// [`Bucket::get_range`].
    GetRange(&'a BucketKey),
    /// [`Bucket::get_tail`].
    GetTail(&'a BucketKey),
    /// [`Bucket::put_file`].
    PutFile(&'a BucketKey),
    /// [`Bucket::get_file`].
    GetFile(&'a BucketKey),
    /// [`Bucket::list`].
    List(&'a BucketPrefix),
    /// [`Bucket::delete`].
    Delete(&'a BucketKey),
}

/// The answer to a [`BucketCall`].
#[derive(Debug, Clone, Copy)]
pub enum BucketAnswer<'a> {
    /// The answer to a create.
    Created(Created),
    /// The answer to a get of an object, a range or a tail: the bytes, if the object exists.
    Bytes(Option<&'a Bytes>),
    /// The answer to a transfer of a file; `None` if the object does not exist.
    File(Option<FileSummary>),
    /// The answer to a list.
    Entries(&'a [BucketEntry]),
    /// The answer to a delete.
    Deleted,
}

/// Sees the calls of an [`ObservedBucket`].
pub trait BucketObserver: Send + Sync + 'static {
    /// The call is about to be sent to the bucket.
    fn before(&self, call: BucketCall<'_>) {
        let _ = call;
    }

    /// The call has ended. A cancelled call has no end.
    fn after(&self, call: BucketCall<'_>, outcome: Result<BucketAnswer<'_>, &BucketError>);
}

/// Counts the bytes that are read from an [`ObservedBucket`].
#[derive(Debug, Default)]
pub struct ReadCounter(AtomicU64);

impl ReadCounter {
    /// The bytes read since the last call.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl BucketObserver for ReadCounter {
    fn after(&self, call: BucketCall<'_>, outcome: Result<BucketAnswer<'_>, &BucketError>) {
        let read = match (call, outcome) {
            (_, Ok(BucketAnswer::Bytes(Some(bytes)))) => bytes.len() as u64,
            (BucketCall::GetFile(_), Ok(BucketAnswer::File(Some(file)))) => file.size_bytes,
            _ => 0,
        };
        self.0.fetch_add(read, Ordering::SeqCst);
    }
}

/// A bucket that passes all calls on to another one, and tells an observer about them.
pub struct ObservedBucket {
    inner: Arc<dyn Bucket>,
    observer: Arc<dyn BucketObserver>,
}

impl ObservedBucket {
    /// `inner`, observed.
    #[must_use]
    pub fn new(inner: Arc<dyn Bucket>, observer: Arc<dyn BucketObserver>) -> Self {
        Self { inner, observer }
    }
}

fn bytes(found: &Option<Bytes>) -> BucketAnswer<'_> {
    BucketAnswer::Bytes(found.as_ref())
}

#[async_trait]
impl Bucket for ObservedBucket {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        self.observer.before(BucketCall::Create(key, &bytes));
        let outcome = self.inner.create(key, bytes.clone()).await;
        let answer = outcome.as_ref().map(|created| BucketAnswer::Created(*created));
        self.observer.after(BucketCall::Create(key, &bytes), answer);
        outcome
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        self.observer.before(BucketCall::Get(key));
        let outcome = self.inner.get(key).await;
        self.observer.after(BucketCall::Get(key), outcome.as_ref().map(bytes));
        outcome
    }

    async fn get_range(&self, key: &BucketKey, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        self.observer.before(BucketCall::GetRange(key));
        let outcome = self.inner.get_range(key, range).await;
        self.observer.after(BucketCall::GetRange(key), outcome.as_ref().map(bytes));
        outcome
    }

    async fn get_tail(&self, key: &BucketKey, count: u64) -> Result<Option<Bytes>, BucketError> {
        self.observer.before(BucketCall::GetTail(key));
        let outcome = self.inner.get_tail(key, count).await;
        self.observer.after(BucketCall::GetTail(key), outcome.as_ref().map(bytes));
        outcome
    }

    async fn put_file(
        &self,
        key: &BucketKey,
        path: &Path,
        patch: HeaderPatch,
    ) -> Result<FileSummary, BucketError> {
        self.observer.before(BucketCall::PutFile(key));
        let outcome = self.inner.put_file(key, path, patch).await;
        let answer = outcome.as_ref().map(|summary| BucketAnswer::File(Some(*summary)));
        self.observer.after(BucketCall::PutFile(key), answer);
        outcome
    }

    async fn get_file(&self, key: &BucketKey, path: &Path) -> Result<Option<FileSummary>, BucketError> {
        self.observer.before(BucketCall::GetFile(key));
        let outcome = self.inner.get_file(key, path).await;
        self.observer
            .after(BucketCall::GetFile(key), outcome.as_ref().map(|summary| BucketAnswer::File(*summary)));
        outcome
    }

    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        self.observer.before(BucketCall::List(prefix));
        let outcome = self.inner.list(prefix).await;
        self.observer
            .after(BucketCall::List(prefix), outcome.as_ref().map(|entries| BucketAnswer::Entries(entries)));
        outcome
    }

    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.observer.before(BucketCall::Delete(key));
        let outcome = self.inner.delete(key).await;
        self.observer.after(BucketCall::Delete(key), outcome.as_ref().map(|()| BucketAnswer::Deleted));
        outcome
    }
}
