//! The bucket on top of object_store.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_format::keys::{BucketEntry, BucketKey, BucketPrefix};
use dormouse_runtime::Env;
use futures::TryStreamExt;
use object_store::multipart::MultipartStore;
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use super::local::LocalDirectory;
use super::{Bucket, BucketError, BucketOperation, Created, FileSummary, HeaderPatch};
use super::{range, transfer};

/// Timeout of one request, including the retries of object_store; for large files, of each part.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a call waits for a lock on a local directory that another process holds. A process holds it for
/// microseconds, or it is stuck: a suspended process, a hanging mount.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_LOCK_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Largest object, or range of one, that [`Bucket::get`] and the range reads load into memory. This crate creates no
/// larger object in one piece.
pub(super) const MAX_SMALL_OBJECT_BYTES: u64 = 32 * 1_024 * 1_024;

/// A bucket in one of object_store's stores. Cloning is cheap and shares the store.
#[derive(Clone)]
pub struct ObjectStoreBucket {
    store: Arc<dyn ObjectStore>,
    /// The same store for creates, which object_store must not retry by itself.
    creating: Arc<dyn ObjectStore>,
    root: ObjectPath,
    /// The same store, if it supports multipart uploads with numbered parts.
    parts: Option<Arc<dyn MultipartStore>>,
    /// Only for a local directory.
    directory: Option<LocalDirectory>,
    url: Arc<str>,
    env: Env,
}

impl fmt::Debug for ObjectStoreBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStoreBucket").field("url", &self.url).finish_non_exhaustive()
    }
}

/// The operation and the key or prefix of a call, for error messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallInfo<'a> {
    pub(super) operation: BucketOperation,
    pub(super) name: &'a str,
}

impl CallInfo<'_> {
    /// Waits for an answer of the store, up to `timeout`.
    pub(super) async fn within<T>(
        self,
        timeout: Duration,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<Result<T, StoreError>, BucketError> {
        tokio::time::timeout(timeout, answer).await.map_err(|_| BucketError::Timeout {
            operation: self.operation,
            name: self.name.to_owned(),
            timeout,
        })
    }

    /// As [`CallInfo::within`], if no error of the store has a special meaning.
    pub(super) async fn complete<T>(
        self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, BucketError> {
        self.within(CALL_TIMEOUT, answer).await?.map_err(|error| self.failed(error))
    }

    /// Converts an error of the store.
    pub(super) fn failed(self, error: StoreError) -> BucketError {
        let (operation, name) = (self.operation, self.name.to_owned());
        match error {
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
                BucketError::Denied { operation, name, source: error.into() }
            }
            StoreError::NotSupported { .. }
            | StoreError::NotImplemented { .. }
            | StoreError::InvalidPath { .. }
            | StoreError::UnknownConfigurationKey { .. } => {
                BucketError::Unsupported { operation, name, source: error.into() }
            }
            _ => BucketError::Unreachable { operation, name, source: error.into() },
        }
    }

    /// Converts an error of a read from the directory: not definite, as with any other store.
    pub(super) fn unread(self, error: io::Error) -> BucketError {
        BucketError::Unreachable {
            operation: self.operation,
            name: self.name.to_owned(),
            source: error.into(),
        }
    }

    /// The error of a call that has exceeded its timeout.
    pub(super) fn timed_out(self) -> BucketError {
        let (operation, name, timeout) = (self.operation, self.name.to_owned(), CALL_TIMEOUT);
        BucketError::Timeout { operation, name, timeout }
    }

    /// Converts an error of the directory.
    fn directory_failed(self, error: io::Error) -> BucketError {
        let (operation, name) = (self.operation, self.name.to_owned());
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                BucketError::Denied { operation, name, source: error.into() }
            }
            _ => BucketError::Unreachable { operation, name, source: error.into() },
        }
    }
}

impl ObjectStoreBucket {
    pub(super) fn new(store: Arc<dyn ObjectStore>, root: ObjectPath, url: String, env: Env) -> Self {
        let creating = Arc::clone(&store);
        Self { store, creating, root, parts: None, directory: None, url: url.into(), env }
    }

    /// Adds the multipart interface of the same store.
    pub(super) fn with_parts(self, parts: Arc<dyn MultipartStore>) -> Self {
        Self { parts: Some(parts), ..self }
    }

    /// Adds a separate client for creates, which sends each create once. If a client retried by itself, the refusal of
    /// a retry would look as if nothing was written, although the first attempt took effect and its answer was lost.
    pub(super) fn with_creating(self, creating: Arc<dyn ObjectStore>) -> Self {
        Self { creating, ..self }
    }

    pub(super) fn local(
        store: Arc<dyn ObjectStore>,
        directory: LocalDirectory,
        url: String,
        env: Env,
    ) -> Self {
        Self { directory: Some(directory), ..Self::new(store, ObjectPath::ROOT, url, env) }
    }

    /// The bucket's URL. Holds no credentials.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    pub(super) fn store(&self) -> &dyn ObjectStore {
        &*self.store
    }

    pub(super) const fn parts(&self) -> Option<&Arc<dyn MultipartStore>> {
        self.parts.as_ref()
    }

    pub(super) fn locate(&self, call: CallInfo<'_>) -> Result<ObjectPath, BucketError> {
        let path = if self.root.as_ref().is_empty() {
            ObjectPath::parse(call.name)
        } else {
            ObjectPath::parse(format!("{}/{}", self.root, call.name))
        };
        path.map_err(|error| call.failed(error.into()))
    }

    /// Runs blocking work on the local directory.
    async fn on_directory<T: Send + 'static>(
        &self,
        directory: &LocalDirectory,
        call: CallInfo<'_>,
        work: impl FnOnce(&LocalDirectory) -> io::Result<T> + Send + 'static,
    ) -> Result<T, BucketError> {
        let directory = directory.clone();
        let done = self.env.blocking(move || work(&directory));
        match tokio::time::timeout(CALL_TIMEOUT, done).await {
            Ok(result) => result.map_err(|error| call.directory_failed(error)),
            Err(_) => Err(call.timed_out()),
        }
    }

    /// As [`Self::on_directory`], repeated while another process holds the lock that `work` needs. The waits block no
    /// thread.
    async fn on_locked_directory<T: Send + 'static>(
        &self,
        directory: &LocalDirectory,
        call: CallInfo<'_>,
        work: impl Fn(&LocalDirectory) -> io::Result<T> + Clone + Send + 'static,
    ) -> Result<T, BucketError> {
        let (mut waited, mut pause) = (Duration::ZERO, FIRST_LOCK_PAUSE);
        loop {
            let work = work.clone();
            // A lock that is held elsewhere is an answer of the work, not a failure.
            let attempt = move |directory: &LocalDirectory| match work(directory) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Err(error)),
                done => done.map(Ok),
            };
            match self.on_directory(directory, call, attempt).await? {
                Ok(done) => return Ok(done),
                Err(taken) if waited >= LOCK_TIMEOUT => return Err(call.directory_failed(taken)),
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    waited += pause;
                    pause = (pause * 2).min(LONGEST_LOCK_PAUSE);
                }
            }
        }
    }

    /// Checks that a local directory still exists. Otherwise object_store would create it again, and every object would
    /// look absent.
    pub(super) async fn check_present(&self, call: CallInfo<'_>) -> Result<(), BucketError> {
        match &self.directory {
            None => Ok(()),
            Some(directory) => self.on_directory(directory, call, LocalDirectory::check_present).await,
        }
    }

    async fn list_store(
        &self,
        prefix: &BucketPrefix,
        call: CallInfo<'_>,
    ) -> Result<Vec<BucketEntry>, BucketError> {
        let folder = prefix.as_str().trim_end_matches('/');
        let path = if folder.is_empty() {
            self.root.clone()
        } else {
            self.locate(CallInfo { name: folder, ..call })?
        };
        let mut listing = self.store.list(Some(&path));
        let mut entries = Vec::new();
        while let Some(object) = call.complete(listing.try_next()).await? {
            let location = object.location.as_ref();
            let key = if self.root.as_ref().is_empty() {
                Some(location)
            } else {
                location.strip_prefix(self.root.as_ref()).and_then(|rest| rest.strip_prefix('/'))
            };
            // Names that are not valid keys are not ours.
            if let Some(Ok(key)) = key.map(BucketKey::new) {
                entries.push(BucketEntry { key, size_bytes: object.size });
            }
        }
        Ok(entries)
    }
}

#[async_trait]
impl Bucket for ObjectStoreBucket {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        let call = CallInfo { operation: BucketOperation::Create, name: key.as_str() };
        if let Some(directory) = &self.directory {
            let (key, number) = (key.clone(), self.env.random_u64());
            let create = move |directory: &LocalDirectory| directory.create(&key, &bytes, number);
            return self.on_directory(directory, call, create).await;
        }
        let path = self.locate(call)?;
        let put = self.creating.put_opts(&path, PutPayload::from_bytes(bytes), PutMode::Create.into());
        match call.within(CALL_TIMEOUT, put).await? {
            Ok(_) => Ok(Created::New),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(Created::Exists),
            Err(error) => Err(call.failed(error)),
        }
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        let call = CallInfo { operation: BucketOperation::Get, name: key.as_str() };
        let too_large = |size_bytes: u64| {
            let what = format!("{size_bytes} bytes, but at most {MAX_SMALL_OBJECT_BYTES} are expected");
            BucketError::Corrupt { object: key.to_string(), what }
        };
        if let Some(directory) = &self.directory {
            let name = key.to_string();
            let read =
                move |directory: &LocalDirectory| Ok(directory.read_object(&name, MAX_SMALL_OBJECT_BYTES));
            let found =
                self.on_directory(directory, call, read).await?.map_err(|error| call.unread(error))?;
            return found.transpose().map(|found| found.map(Bytes::from)).map_err(too_large);
        }
        let path = self.locate(call)?;
        let found = match call.within(CALL_TIMEOUT, self.store.get(&path)).await? {
            Ok(found) => found,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(call.failed(error)),
        };
        if found.meta.size > MAX_SMALL_OBJECT_BYTES {
            return Err(too_large(found.meta.size));
        }
        call.complete(found.bytes()).await.map(Some)
    }

    async fn get_range(&self, key: &BucketKey, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        range::read(self, key, range).await
    }

    async fn get_tail(&self, key: &BucketKey, count: u64) -> Result<Option<Bytes>, BucketError> {
        range::read_tail(self, key, count).await
    }

    async fn put_file(
        &self,
        key: &BucketKey,
        path: &Path,
        patch: HeaderPatch,
    ) -> Result<FileSummary, BucketError> {
        let call = CallInfo { operation: BucketOperation::PutFile, name: key.as_str() };
        self.check_present(call).await?;
        transfer::upload(self, call, path, patch).await
    }

    async fn get_file(&self, key: &BucketKey, path: &Path) -> Result<Option<FileSummary>, BucketError> {
        let call = CallInfo { operation: BucketOperation::GetFile, name: key.as_str() };
        match &self.directory {
            Some(directory) => transfer::copy(self, directory, call, path).await,
            None => transfer::download(self, call, path).await,
        }
    }

    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        let call = CallInfo { operation: BucketOperation::List, name: prefix.as_str() };
        let mut entries = match &self.directory {
            None => self.list_store(prefix, call).await?,
            Some(directory) => {
                let (prefix, wall) = (prefix.clone(), Duration::from_micros(self.env.wall_micros()));
                self.on_locked_directory(directory, call, move |directory| directory.try_list(&prefix, wall))
                    .await?
            }
        };
        entries.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        Ok(entries)
    }

    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError> {
        let call = CallInfo { operation: BucketOperation::Delete, name: key.as_str() };
        if let Some(directory) = &self.directory {
            let key = key.clone();
            return self
                .on_locked_directory(directory, call, move |directory| directory.try_delete(&key))
                .await;
        }
        let path = self.locate(call)?;
        match call.within(CALL_TIMEOUT, self.store.delete(&path)).await? {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(call.failed(error)),
        }
    }
}
