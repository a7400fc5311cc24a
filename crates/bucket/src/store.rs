//! The store of a bucket on top of object_store, and the errors of its calls. `operations` has the operations of
//! [`Bucket`](crate::Bucket).

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dormouse_runtime::Env;
use object_store::multipart::MultipartStore;
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, ObjectStore};

use super::local::LocalDirectory;
use super::{BucketError, BucketOperation};

/// How long a call waits for progress: for the answer to a request, including the retries of object_store, and for each
/// piece of a long answer. No limit applies to a whole transfer.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The slowest link that can carry an upload. Only the answer shows the progress of a request with a body, so a request
/// has this much more time for its bytes. In bytes per second.
const SLOWEST_UPLOAD: u64 = 64 * 1_024;

/// How long a call waits for the answer to a request with a body of this size.
pub(super) const fn upload_timeout(body_bytes: usize) -> Duration {
    CALL_TIMEOUT.saturating_add(Duration::from_millis(body_bytes as u64 * 1_000 / SLOWEST_UPLOAD))
}

/// How long a call waits for a lock on a local directory that another process holds. A process holds it for
/// microseconds, or it is stuck: a suspended process, a hanging mount.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_LOCK_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Largest object, or range of one, that [`Bucket::get`](crate::Bucket::get) and the range reads load into memory. This crate creates no
/// larger object in one piece.
pub(super) const MAX_SMALL_OBJECT_BYTES: u64 = 32 * 1_024 * 1_024;

/// A bucket in one of object_store's stores. Cloning is cheap and shares the store.
#[derive(Clone)]
pub struct ObjectStoreBucket {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The same store for creates, which object_store must not retry by itself.
    pub(super) creating: Arc<dyn ObjectStore>,
    pub(super) root: ObjectPath,
    /// The same store, if it supports multipart uploads with numbered parts.
    parts: Option<Arc<dyn MultipartStore>>,
    /// Only for a local directory.
    pub(super) directory: Option<LocalDirectory>,
    url: Arc<str>,
    pub(super) env: Env,
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

    /// An error of the store or of the network that the client noticed.
    pub(super) fn unreachable(self, why: &'static str) -> BucketError {
        BucketError::Unreachable { operation: self.operation, name: self.name.to_owned(), source: why.into() }
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

    /// Converts an error of a read from the directory: not definite, as with any other store. Only an entry of a wrong
    /// type is definite.
    pub(super) fn unread(self, error: io::Error) -> BucketError {
        if error.kind() == io::ErrorKind::InvalidData {
            return BucketError::Corrupt { object: self.name.to_owned(), what: error.to_string() };
        }
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
            _ => self.unread(error),
        }
    }
}

impl ObjectStoreBucket {
    /// Whether the bucket is a local directory, where a create is one hard link.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.directory.is_some()
    }

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
    pub(super) async fn on_directory<T: Send + 'static>(
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
    pub(super) async fn on_locked_directory<T: Send + 'static>(
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
}
