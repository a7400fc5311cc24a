//! The spool: staging of chunked uploads. An upload is kept on the local disk until it is complete, then stored in the
//! bucket, then committed by a set that refers to it.
//!
//! ```text
//! begin ──> chunks, in any order ──> a file, in order ──> finish: the file becomes an object ──> commit: a set
//!    └── 30 s without a request, or cancel: the file and the unreferenced object are deleted
//! ```
//!
//! [`machine`] decides; this module holds the bytes, the files and the tasks. The files survive the process, so after a
//! restart an upload resumes at the end of its file. The content of a file is not trusted: the client's digest in
//! `finish` is compared with the bytes that were stored in the bucket.

mod commit;
mod disk;
mod fair_share;
mod machine;
mod store;
mod upload;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use dormouse_format::record::BlobRef;
use dormouse_protocol::transfer::{
    UploadBeginRequest, UploadCancelRequest, UploadChunkRequest, UploadPlace, UploadReply, UploadedValue,
};
use dormouse_protocol::{ErrorReply, OverloadCause, Subject, Term, UploadId};
use dormouse_runtime::{Env, Lock, Tasks};
use dormouse_subject_state::plan::UploadQuota;
use tokio::sync::{Notify, Semaphore};

use crate::api::{SubjectReply, TenantId};
use crate::values::StoredValue;

pub(crate) use commit::take;
pub(crate) use disk::{SpoolDisk, SpoolFiles};
use machine::{ChunkOutcome, ChunkWrite, UploadBegin, UploadTable};
pub(crate) use machine::{SpoolLimits, UploadKey};
pub(crate) use store::Finish;

/// Values stored in the bucket at the same time. Each holds a part of its file in memory.
const STORING: usize = 4;

/// Maximum number of callers that wait for one chunk, including those that have timed out and retried.
const MAX_WAITERS: usize = 8;

/// Takes the reply to a chunk.
type ChunkReplySender = Box<dyn FnOnce(Result<SubjectReply, ErrorReply>) + Send>;

/// A chunk that is not written yet, and the callers that wait for the write.
struct PendingChunk {
    bytes: Bytes,
    waiters: Vec<ChunkReplySender>,
}

/// The bytes, the stored value and the error of one upload. The machine holds its other state.
#[derive(Default)]
struct UploadBuffers {
    pending: BTreeMap<u64, PendingChunk>,
    /// The value in the bucket, until a set refers to it.
    stored: Option<StoredValue>,
    /// Why storing failed, reported once.
    failure: Option<ErrorReply>,
}

struct SpoolInner {
    uploads: UploadTable,
    parts: BTreeMap<UploadKey, UploadBuffers>,
}

impl SpoolInner {
    /// Drops the buffers of an upload that has ended, and replies to its waiting callers.
    fn drop_parts(&mut self, key: &UploadKey) {
        for pending in self.parts.remove(key).into_iter().flat_map(|parts| parts.pending.into_values()) {
            answer(pending.waiters, &Err(machine::unknown()));
        }
    }
}

/// See the [module](self).
pub(crate) struct Spool {
    folder: PathBuf,
    disk: Arc<dyn SpoolDisk>,
    env: Env,
    inner: Lock<SpoolInner>,
    storing: Semaphore,
    /// Notified when the time of the next expiry may have changed.
    begun: Notify,
}

impl Spool {
    /// Resumes the uploads of an earlier process in `folder`, as far as the limits allow, and removes all other files.
    /// Blocks.
    ///
    /// # Errors
    /// The operating system's error.
    pub(crate) fn open(
        folder: PathBuf,
        limits: SpoolLimits,
        disk: Arc<dyn SpoolDisk>,
        env: Env,
    ) -> io::Result<Self> {
        let mut uploads = UploadTable::new(limits);
        for (name, size) in disk.list(&folder)? {
            let resumed = key_of(&name).is_some_and(|key| uploads.resume(key, size, env.boot()));
            if !resumed {
                disk.remove(&folder.join(name))?;
            }
        }
        let inner = Lock::new(SpoolInner { uploads, parts: BTreeMap::new() });
        Ok(Self { folder, disk, env, inner, storing: Semaphore::new(STORING), begun: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, SpoolInner> {
        // The state is consistent after each step under the lock, so a panic elsewhere breaks nothing.
        self.inner.lock()
    }

    fn path(&self, key: &UploadKey) -> PathBuf {
        self.folder.join(name_of(key))
    }

    /// Begins an upload for `subject`, which is served here and has this quota, or returns the progress of an existing
    /// one.
    ///
    /// # Errors
    /// `too_large`, `limit_exceeded`, `overloaded`.
    pub(crate) fn begin(
        &self,
        subject: &Subject,
        request: &UploadBeginRequest,
        quota: UploadQuota,
        tenant: TenantId,
        max_of_tenant: Option<u64>,
    ) -> Result<UploadReply, ErrorReply> {
        let key = key(subject, request.upload);
        let (size, place) = (request.size, request.place.clone());
        let params = UploadBegin { size, place, quota, tenant, max_of_tenant };
        let reply = self.lock().uploads.begin(key, params, self.env.boot())?;
        self.begun.notify_one();
        Ok(reply)
    }

    /// Number of uploads of each tenant that has some.
    pub(crate) fn by_tenant(&self) -> BTreeMap<TenantId, u64> {
        self.lock().uploads.by_tenant().clone()
    }

    /// Accepts a chunk. The reply follows once the chunk is written.
    pub(crate) fn chunk(
        self: &Arc<Self>,
        tasks: &Tasks,
        subject: &Subject,
        request: UploadChunkRequest,
        respond: ChunkReplySender,
    ) {
        let key = key(subject, request.upload);
        let (offset, bytes) = (request.offset, request.bytes);
        let mut inner = self.lock();
        let waiting = inner.parts.get(&key).and_then(|parts| parts.pending.get(&offset));
        // Checked before the bytes are kept, so that a refused request holds no bytes.
        if waiting.is_some_and(|pending| pending.waiters.len() >= MAX_WAITERS) {
            return respond(Err(ErrorReply::from(OverloadCause::ChunkCopies)));
        }
        match inner.uploads.chunk(&key, offset, bytes.len() as u64, self.env.boot()) {
            Err(error) => return respond(Err(error)),
            Ok(ChunkOutcome::Known(reply)) => return respond(Ok(SubjectReply::Upload(reply))),
            Ok(ChunkOutcome::Held) => {}
        }
        let parts = inner.parts.entry(key.clone()).or_default();
        let pending = parts
            .pending
            .entry(offset)
            .or_insert_with(|| PendingChunk { bytes: Bytes::new(), waiters: Vec::new() });
        if bytes.len() > pending.bytes.len() {
            pending.bytes = bytes;
        }
        pending.waiters.push(respond);
        if let Some(next) = next_write(&mut inner, &key) {
            drop(inner);
            let spool = Arc::clone(self);
            tasks.spawn("write an upload", async move { spool.write(key, next).await });
        }
    }

    /// Writes chunks until there is no next write.
    async fn write(self: Arc<Self>, key: UploadKey, first: (ChunkWrite, u64, PendingChunk)) {
        let mut next = Some(first);
        while let Some((write, at, PendingChunk { bytes, waiters })) = next {
            let (disk, path) = (Arc::clone(&self.disk), self.path(&key));
            let rest = bytes.slice(usize::try_from(write.skip).unwrap_or(usize::MAX).min(bytes.len())..);
            let length = rest.len() as u64;
            let written = self.env.blocking(move || disk.append(&path, at, &rest)).await;
            next = self.finish_write(&key, write, written.map(|()| length), waiters);
        }
        // If the upload ended during a write, the write may have created its file again.
        if !self.lock().uploads.has(&key) {
            self.remove(vec![self.path(&key)]).await;
        }
        self.begun.notify_one();
    }

    /// Records the result of a write, and replies to the callers that waited for it. Returns the next write.
    fn finish_write(
        &self,
        key: &UploadKey,
        write: ChunkWrite,
        written: io::Result<u64>,
        waiters: Vec<ChunkReplySender>,
    ) -> Option<(ChunkWrite, u64, PendingChunk)> {
        let mut done = waiters;
        let mut inner = self.lock();
        let answered = match written {
            Ok(length) => match inner.uploads.written(key, write.generation, length) {
                Some((reply, known)) => {
                    let pending = inner.parts.get_mut(key).map(|parts| &mut parts.pending);
                    let known = pending
                        .into_iter()
                        .flat_map(|all| known.iter().filter_map(|at| all.remove(at)).collect::<Vec<_>>());
                    done.extend(known.flat_map(|pending| pending.waiters));
                    Ok(SubjectReply::Upload(reply))
                }
                None => Err(machine::unknown()),
            },
            Err(error) => {
                tracing::error!(path = %self.path(key).display(), %error, "upload write failed");
                if inner.uploads.fail(key, write.generation)
                    && let Some(parts) = inner.parts.get_mut(key)
                {
                    let waiting = std::mem::take(&mut parts.pending).into_values();
                    done.extend(waiting.flat_map(|pending| pending.waiters));
                }
                Err(ErrorReply::unavailable(format!(
                    "the upload cannot be written to the local disk: {error}"
                )))
            }
        };
        let next = next_write(&mut inner, key);
        drop(inner);
        answer(done, &answered);
        next
    }

    /// Cancels an upload.
    pub(crate) fn cancel(self: &Arc<Self>, tasks: &Tasks, subject: &Subject, request: UploadCancelRequest) {
        self.end(tasks, &[key(subject, request.upload)]);
    }

    /// Removes uploads that were committed, cancelled, or abandoned.
    pub(crate) fn end(self: &Arc<Self>, tasks: &Tasks, keys: &[UploadKey]) {
        let mut inner = self.lock();
        for key in keys {
            inner.uploads.end(key);
            inner.drop_parts(key);
        }
        drop(inner);
        let spool = Arc::clone(self);
        let paths: Vec<PathBuf> = keys.iter().map(|key| self.path(key)).collect();
        tasks.spawn("remove uploads", async move { spool.remove(paths).await });
    }

    async fn remove(&self, paths: Vec<PathBuf>) {
        let disk = Arc::clone(&self.disk);
        let remove = move || paths.iter().try_for_each(|path| disk.remove(path));
        if let Err(error) = self.env.blocking(remove).await {
            tracing::warn!(
                folder = %self.folder.display(),
                %error,
                impact = "the files of ended uploads stay until the next start",
                "upload files not removed"
            );
        }
    }

    /// The blob of an uploaded value, so that a set that refers to it can be planned. The upload keeps it.
    pub(crate) fn stored(&self, subject: &Subject, value: UploadedValue, term: Term) -> Option<BlobRef> {
        let key = key(subject, value.upload);
        let inner = self.lock();
        let is_stored = inner.uploads.is_stored(&key, value, term);
        inner.parts.get(&key)?.stored.as_ref().filter(|_| is_stored).map(StoredValue::blob)
    }

    /// Takes the blob of an uploaded value for a set that refers to it. If the log does not accept the set, the value
    /// must be stored again.
    pub(crate) fn take_stored(
        &self,
        subject: &Subject,
        value: UploadedValue,
        term: Term,
    ) -> Option<StoredValue> {
        let key = key(subject, value.upload);
        let mut inner = self.lock();
        if !inner.uploads.take_stored(&key, value, term) {
            return None;
        }
        inner.parts.get_mut(&key).and_then(|parts| parts.stored.take())
    }

    /// The message that will contain the upload, if its client has named it.
    pub(crate) fn place(&self, subject: &Subject, upload: UploadId) -> Option<UploadPlace> {
        self.lock().uploads.place(&key(subject, upload))
    }

    /// Number of uploads, and bytes that count against the limit.
    pub(crate) fn usage(&self) -> (usize, u64) {
        self.lock().uploads.usage()
    }

    /// Removes idle uploads, and returns them with the time of the next check.
    fn expire_idle(&self) -> (Vec<UploadKey>, Option<Duration>) {
        let mut inner = self.lock();
        let expired = inner.uploads.sweep(self.env.boot());
        expired.iter().for_each(|key| inner.drop_parts(key));
        (expired, inner.uploads.next_sweep())
    }

    /// Removes idle uploads while it runs.
    pub(crate) async fn sweep(&self) {
        // The time before requests could arrive does not count as idle time.
        self.lock().uploads.touch_all(self.env.boot());
        loop {
            let (expired, next) = self.expire_idle();
            if !expired.is_empty() {
                tracing::info!(uploads = expired.len(), "abandoned uploads removed");
                self.remove(expired.iter().map(|key| self.path(key)).collect()).await;
            }
            // An hour stands for "no expiry".
            let pause = next.map_or(Duration::from_secs(3_600), |next| next.saturating_sub(self.env.boot()));
            tokio::select! {
                biased;
                () = tokio::time::sleep(pause) => {}
                () = self.begun.notified() => {}
            }
        }
    }
}

/// The next write of an upload with its bytes, and their offset in the file.
fn next_write(inner: &mut SpoolInner, key: &UploadKey) -> Option<(ChunkWrite, u64, PendingChunk)> {
    let write = inner.uploads.write(key)?;
    let pending = inner.parts.get_mut(key).and_then(|parts| parts.pending.remove(&write.offset));
    debug_assert!(pending.is_some(), "the machine and the buffers hold the same chunks");
    pending.map(|pending| (write, write.offset + write.skip, pending))
}

fn answer(waiters: Vec<ChunkReplySender>, with: &Result<SubjectReply, ErrorReply>) {
    waiters.into_iter().for_each(|respond| respond(with.clone()));
}

fn key(subject: &Subject, upload: UploadId) -> UploadKey {
    UploadKey { subject: subject.escaped(), upload }
}

/// The file name of an upload.
fn name_of(key: &UploadKey) -> String {
    format!("{}.{}", key.subject, key.upload)
}

/// The upload whose file has this name.
fn key_of(name: &str) -> Option<UploadKey> {
    let (subject, upload) = name.rsplit_once('.')?;
    Subject::unescape(subject).ok()?;
    Some(UploadKey { subject: subject.to_owned(), upload: upload.parse().ok()? })
}

#[cfg(test)]
mod tests;
