//! Values on their way up, chunk by chunk: kept on the local disk until they are whole, then put in the bucket, then
//! committed by a set that refers to them.
//!
//! ```text
//! begin ──> chunks, in any order ──> a file, in order ──> finish: the file becomes an object ──> commit: a set
//!    └── 30 s without a word, or cancel: the file goes, and the object that nobody came to refer to
//! ```
//!
//! [`machine`] decides; here are the bytes, the files and the tasks. The files outlive the process, so that an upload goes
//! on after a restart from where its file ends. Nothing is promised about a file: the digest that the client gives with
//! `finish` is held against what went to the bucket.

mod commit;
mod disk;
mod machine;
mod shares;
mod store;
mod upload;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::transfer::{
    UploadBeginRequest, UploadCancelRequest, UploadChunkRequest, UploadPlace, UploadReply, UploadedValue,
};
use dormouse_protocol::{ErrorReply, Subject, Term, UploadId};
use dormouse_runtime::{Env, Tasks};
use tokio::sync::{Notify, Semaphore};

use crate::api::Reply;
use crate::plan::{BlobRef, UploadRoom};
use crate::values::StoredValue;

pub(crate) use commit::take;
pub(crate) use disk::{SpoolDisk, SpoolFiles};
use machine::{Beginning, Taken, Uploads, Write};
pub(crate) use machine::{SpoolLimits, UploadKey};
pub(crate) use store::Finish;

/// Values put in the bucket at the same time. Each holds a part of its file in memory.
const STORING: usize = 4;

/// Callers that wait for one chunk: those who asked and whose patience was over before.
const MOST_ASKERS: usize = 8;

/// When a caller that was turned away may come again.
const RETRY_AFTER_MS: u64 = 1_000;

/// Takes the answer to a chunk.
type Respond = Box<dyn FnOnce(Result<Reply, ErrorReply>) + Send>;

/// A chunk that is not written yet, and who waits for that.
struct Pending {
    bytes: Bytes,
    askers: Vec<Respond>,
}

/// What belongs to one upload beside what the machine knows.
#[derive(Default)]
struct Parts {
    pending: BTreeMap<u64, Pending>,
    /// The value in the bucket, as long as no set refers to it.
    stored: Option<StoredValue>,
    /// Why it did not get to the bucket, to be told once.
    failure: Option<ErrorReply>,
}

struct Inner {
    uploads: Uploads,
    parts: BTreeMap<UploadKey, Parts>,
}

impl Inner {
    /// Forgets what belongs to an upload that has ended, and says so to those who wait.
    fn drop_parts(&mut self, key: &UploadKey) {
        for pending in self.parts.remove(key).into_iter().flat_map(|parts| parts.pending.into_values()) {
            answer(pending.askers, &Err(machine::unknown()));
        }
    }
}

/// See the [module](self).
pub(crate) struct Spool {
    folder: PathBuf,
    disk: Arc<dyn SpoolDisk>,
    env: Env,
    inner: Mutex<Inner>,
    storing: Semaphore,
    /// Told when there is something new to sweep.
    begun: Notify,
}

impl Spool {
    /// Takes up what an earlier process has left in `folder`, as far as there is room, and removes the rest. Blocks.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn open(
        folder: PathBuf,
        limits: SpoolLimits,
        disk: Arc<dyn SpoolDisk>,
        env: Env,
    ) -> io::Result<Self> {
        let mut uploads = Uploads::new(limits);
        for (name, size) in disk.list(&folder)? {
            let taken = key_of(&name).is_some_and(|key| uploads.take_up(key, size, env.boot()));
            if !taken {
                disk.remove(&folder.join(name))?;
            }
        }
        let inner = Mutex::new(Inner { uploads, parts: BTreeMap::new() });
        Ok(Self { folder, disk, env, inner, storing: Semaphore::new(STORING), begun: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under the lock is complete at each step; a panic elsewhere breaks nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, key: &UploadKey) -> PathBuf {
        self.folder.join(name_of(key))
    }

    /// Begins an upload for `subject`, which is served here and has so much room, or says how far it is.
    ///
    /// # Errors
    /// `too_large`, `limit_exceeded`, `overloaded`.
    pub(crate) fn begin(
        &self,
        subject: &Subject,
        request: &UploadBeginRequest,
        room: UploadRoom,
    ) -> Result<UploadReply, ErrorReply> {
        let key = key(subject, request.upload);
        let beginning = Beginning { size: request.size, place: request.place.clone(), room };
        let reply = self.lock().uploads.begin(key, beginning, self.env.boot())?;
        self.begun.notify_one();
        Ok(reply)
    }

    /// Takes a chunk. It is answered once it is written.
    pub(crate) fn chunk(
        self: &Arc<Self>,
        tasks: &Tasks,
        subject: &Subject,
        request: UploadChunkRequest,
        respond: Respond,
    ) {
        let key = key(subject, request.upload);
        let (offset, bytes) = (request.offset, request.bytes);
        let mut inner = self.lock();
        let waiting = inner.parts.get(&key).and_then(|parts| parts.pending.get(&offset));
        // Before its bytes are kept: those of a request that was answered are nobody's.
        if waiting.is_some_and(|pending| pending.askers.len() >= MOST_ASKERS) {
            return respond(Err(ErrorReply::overloaded(
                "the chunk waits for those before it",
                RETRY_AFTER_MS,
            )));
        }
        match inner.uploads.chunk(&key, offset, bytes.len() as u64, self.env.boot()) {
            Err(error) => return respond(Err(error)),
            Ok(Taken::Known(reply)) => return respond(Ok(Reply::Upload(reply))),
            Ok(Taken::Held) => {}
        }
        let parts = inner.parts.entry(key.clone()).or_default();
        let pending = parts
            .pending
            .entry(offset)
            .or_insert_with(|| Pending { bytes: Bytes::new(), askers: Vec::new() });
        if bytes.len() > pending.bytes.len() {
            pending.bytes = bytes;
        }
        pending.askers.push(respond);
        if let Some(next) = next_write(&mut inner, &key) {
            drop(inner);
            let spool = Arc::clone(self);
            tasks.spawn("write an upload", async move { spool.write(key, next).await });
        }
    }

    /// Writes what is to be written, and goes on as long as there is more.
    async fn write(self: Arc<Self>, key: UploadKey, first: (Write, u64, Pending)) {
        let mut next = Some(first);
        while let Some((write, at, Pending { bytes, askers })) = next {
            let (disk, path) = (Arc::clone(&self.disk), self.path(&key));
            let rest = bytes.slice(usize::try_from(write.skip).unwrap_or(usize::MAX).min(bytes.len())..);
            let length = rest.len() as u64;
            let written = self.env.blocking(move || disk.append(&path, at, &rest)).await;
            next = self.wrote(&key, write, written.map(|()| length), askers);
        }
        // An upload may have ended while it was written to, and its file is there again.
        if !self.lock().uploads.has(&key) {
            self.remove(vec![self.path(&key)]).await;
        }
        self.begun.notify_one();
    }

    /// Takes down what became of a write, and answers those who waited for it. Returns the next.
    fn wrote(
        &self,
        key: &UploadKey,
        write: Write,
        written: io::Result<u64>,
        askers: Vec<Respond>,
    ) -> Option<(Write, u64, Pending)> {
        let mut done = askers;
        let mut inner = self.lock();
        let answered = match written {
            Ok(length) => match inner.uploads.written(key, write.life, length) {
                Some((reply, known)) => {
                    let pending = inner.parts.get_mut(key).map(|parts| &mut parts.pending);
                    let known = pending
                        .into_iter()
                        .flat_map(|all| known.iter().filter_map(|at| all.remove(at)).collect::<Vec<_>>());
                    done.extend(known.flat_map(|pending| pending.askers));
                    Ok(Reply::Upload(reply))
                }
                None => Err(machine::unknown()),
            },
            Err(error) => {
                tracing::error!(path = %self.path(key).display(), %error, "an upload cannot be written");
                if inner.uploads.fail(key, write.life)
                    && let Some(parts) = inner.parts.get_mut(key)
                {
                    let waiting = std::mem::take(&mut parts.pending).into_values();
                    done.extend(waiting.flat_map(|pending| pending.askers));
                }
                Err(ErrorReply::unavailable(format!("the local disk does not take the upload: {error}")))
            }
        };
        let next = next_write(&mut inner, key);
        drop(inner);
        answer(done, &answered);
        next
    }

    /// Forgets an upload.
    pub(crate) fn cancel(self: &Arc<Self>, tasks: &Tasks, subject: &Subject, request: UploadCancelRequest) {
        self.end(tasks, &[key(subject, request.upload)]);
    }

    /// Forgets uploads: they were committed, given up, or abandoned.
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
            tracing::warn!(folder = %self.folder.display(), %error, "a finished upload stays behind until the next start");
        }
    }

    /// The object of an uploaded value, so that a set can be planned that would refer to it. It stays the upload's.
    pub(crate) fn stored(&self, subject: &Subject, value: UploadedValue, term: Term) -> Option<BlobRef> {
        let key = key(subject, value.upload);
        let inner = self.lock();
        let is_there = inner.uploads.is_there(&key, value, term);
        inner.parts.get(&key)?.stored.as_ref().filter(|_| is_there).map(StoredValue::blob)
    }

    /// Takes the object of an uploaded value for a set that refers to it. Where the log does not take that, it has to be put
    /// there anew.
    pub(crate) fn use_up(&self, subject: &Subject, value: UploadedValue, term: Term) -> Option<StoredValue> {
        let key = key(subject, value.upload);
        let mut inner = self.lock();
        if !inner.uploads.use_up(&key, value, term) {
            return None;
        }
        inner.parts.get_mut(&key).and_then(|parts| parts.stored.take())
    }

    /// Which message an upload will be in, as far as its client has said so.
    pub(crate) fn place(&self, subject: &Subject, upload: UploadId) -> Option<UploadPlace> {
        self.lock().uploads.place(&key(subject, upload))
    }

    /// How many uploads there are, and the bytes that count against the limit.
    pub(crate) fn figures(&self) -> (usize, u64) {
        self.lock().uploads.figures()
    }

    /// Forgets uploads that were silent for too long, and says which, and when to look again.
    fn forget_silent(&self) -> (Vec<UploadKey>, Option<Duration>) {
        let mut inner = self.lock();
        let gone = inner.uploads.sweep(self.env.boot());
        gone.iter().for_each(|key| inner.drop_parts(key));
        (gone, inner.uploads.next_sweep())
    }

    /// Removes uploads that nobody speaks of any more, as long as it runs.
    pub(crate) async fn sweep(&self) {
        // The time before somebody could be heard was no silence.
        self.lock().uploads.hear_all(self.env.boot());
        loop {
            let (gone, next) = self.forget_silent();
            if !gone.is_empty() {
                tracing::info!(
                    uploads = gone.len(),
                    "uploads were abandoned by their clients and are removed"
                );
                self.remove(gone.iter().map(|key| self.path(key)).collect()).await;
            }
            // An hour: only to have a number.
            let pause = next.map_or(Duration::from_secs(3_600), |next| next.saturating_sub(self.env.boot()));
            tokio::select! {
                biased;
                () = tokio::time::sleep(pause) => {}
                () = self.begun.notified() => {}
            }
        }
    }
}

/// The next write of an upload with its bytes, and where in the file they go.
fn next_write(inner: &mut Inner, key: &UploadKey) -> Option<(Write, u64, Pending)> {
    let write = inner.uploads.write(key)?;
    let pending = inner.parts.get_mut(key).and_then(|parts| parts.pending.remove(&write.offset));
    debug_assert!(pending.is_some(), "the machine knows only chunks that are here");
    pending.map(|pending| (write, write.offset + write.skip, pending))
}

fn answer(askers: Vec<Respond>, with: &Result<Reply, ErrorReply>) {
    askers.into_iter().for_each(|respond| respond(with.clone()));
}

fn key(subject: &Subject, upload: UploadId) -> UploadKey {
    UploadKey { subject: subject.escaped(), upload }
}

/// What the file of an upload is called.
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
