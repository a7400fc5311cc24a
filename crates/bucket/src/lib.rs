//! The bucket: the only durable store, whose content must not be lost.
//!
//! [`Bucket`] is the complete interface that the other crates need. One operation is conditional, [`Bucket::create`]. Every
//! claim depends on it, on reads that return the written bytes, and on listings that show every completed create. There
//! is no conditional update and no rename, because a local directory and some S3 servers have neither.

mod backoff;
mod conformance;
mod create;
mod error;
mod local;
mod metered;
mod multipart;
mod open;
mod operations;
mod range;
mod reader;
mod store;
mod transfer;

use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_format::checksum::Crc64;
use dormouse_format::keys::{BucketEntry, BucketKey, BucketPrefix};

pub use backoff::Backoff;
pub use conformance::{ConformanceError, RaceProbe, probe, probe_races, sample_races};
pub use create::{CreateOutcome, create_once};
pub use error::{BucketError, BucketOperation};
pub use metered::{BucketCall, BucketInstruments, CallOutcome, MeteredBucket};
pub use open::{OpenBucketError, open_bucket};
pub use store::ObjectStoreBucket;

/// The definite answers to [`Bucket::create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The call created the object.
    New,
    /// An object of this name existed already, or the store refused because of a concurrent create. It may be our own,
    /// from an attempt whose answer was lost: read it back.
    Exists,
}

/// Size and checksum of an object that was written from, or into, a local file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSummary {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Checksum of the object's bytes in the bucket, so after a [`HeaderPatch`].
    pub crc64: Crc64,
}

/// The change that [`Bucket::put_file`] makes to the uploaded bytes. The local file is never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderPatch {
    /// Nothing: the object is the file.
    None,
    /// Bytes 18 and 19 of an SQLite header become 1: the object has the mode "rollback journal", the file has "WAL". So
    /// the main file of a database in WAL mode, taken directly after a checkpoint that left the WAL empty, opens
    /// anywhere, also read-only. A file without an SQLite header is refused as [`BucketError::Corrupt`].
    RollbackJournal,
}

/// An object store with the properties that all guarantees depend on.
///
/// - [`create`](Self::create) has at most one winner per key, and the winner's object stays.
/// - Reads and listings show an object from the end of its write on.
/// - A [listing](Self::list) shows every object whose write was complete before it began and that was not deleted. It
///   never misses both of two objects if the second was written before the first was deleted.
///
/// Every call has a time limit on its progress, and none on its whole: a transfer of any size over any link ends as long as
/// it proceeds. If an error [is unknown](BucketError::is_unknown), the call may have taken
/// effect, or may still do so.
#[async_trait]
pub trait Bucket: Send + Sync + 'static {
    /// Writes an object unless one of this name exists. `bytes` must contain a fresh nonce, so that the caller can
    /// distinguish its own object from another one; [`create_once`] interprets the answer.
    ///
    /// Cancelling the call leaves its outcome unknown.
    ///
    /// # Errors
    /// [`BucketError`]; unknown errors leave the outcome unknown.
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError>;

    /// Reads a whole object into memory, `None` if there is none. For small objects only.
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    /// [`BucketError`]; [`BucketError::Corrupt`] for an object too large to be one of ours.
    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError>;

    /// Reads the bytes of `range` of an object into memory, always all of them; `None` if there is no object.
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    /// [`BucketError`]; [`BucketError::Corrupt`] if the object ends before the range does, and if the range is longer
    /// than the limit of [`get`](Self::get).
    async fn get_range(&self, key: &BucketKey, range: Range<u64>) -> Result<Option<Bytes>, BucketError>;

    /// Reads the last `count` bytes of an object into memory, or all of it if it has fewer; `None` if there is no
    /// object.
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    /// [`BucketError`]; [`BucketError::Corrupt`] for more bytes than the limit of [`get`](Self::get).
    async fn get_tail(&self, key: &BucketKey, count: u64) -> Result<Option<Bytes>, BucketError>;

    /// Writes an object from a local file, which must not change meanwhile. `key` must be fresh and is used for one
    /// call only, with any result: a retry needs a new key. The object appears whole or not at all.
    ///
    /// Cancelling the call leaves the outcome unknown. This is safe, because nothing refers to the key yet.
    ///
    /// # Errors
    /// [`BucketError`]; [`BucketError::LocalFile`] if the file cannot be read.
    async fn put_file(
        &self,
        key: &BucketKey,
        path: &Path,
        patch: HeaderPatch,
    ) -> Result<FileSummary, BucketError>;

    /// Reads an object into a new local file, `None` (and no file) if there is no object. Nothing is synced. The
    /// caller compares the summary with what it expects.
    ///
    /// Cancelling the call may leave a partial file at `path`, which may still be written or removed for a while. After
    /// an error there is no file.
    ///
    /// # Errors
    /// [`BucketError`]; [`BucketError::LocalFile`] if the file exists or cannot be written.
    async fn get_file(&self, key: &BucketKey, path: &Path) -> Result<Option<FileSummary>, BucketError>;

    /// Every object whose key begins with `prefix`, at any depth, sorted by key.
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    /// [`BucketError`].
    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError>;

    /// Removes an object; a missing object is no error.
    ///
    /// Cancelling the call leaves its outcome unknown.
    ///
    /// # Errors
    /// [`BucketError`]; unknown errors leave the outcome unknown.
    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError>;
}
