//! The store in production: sled 0.34, one tree.
//!
//! SUBTLE, all of it measured on 0.34.7:
//! - `flush_async` with eight or more callers at once deadlocks for ever. Never use it: the coordinator has one writer,
//!   which groups its changes and calls `flush()` where blocking is allowed.
//! - `flush()` hands the bytes to the operating system; it is no fsync. The state survives kill -9, and may lose its
//!   last moments with the power.
//! - Damaged files do not open, or make it panic. Then they are set aside and the coordinator learns again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dormouse_protocol::{ServerName, Subject};
use ulid::Ulid;

use super::record::{
    ASSIGNMENTS, COUNTS, MEMBERS, SCHEMA, SCHEMA_KEY, WAITS_KEY, assignment_key, count_key, decode_member,
    decode_server, decode_subject, decode_u32, decode_u64, decode_waits, encode_member, encode_waits,
    member_key,
};
use super::{Change, Counts, Remembered, Store, StoreError};

/// What sled keeps in memory, in bytes. The operating system caches the file once more.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// Why sled files could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Somebody else has the files open.
    #[error("the state in {} is in use by another process", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The operating system refused something; the state itself may be sound.
    #[error("cannot open the state in {}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// The files are damaged.
    #[error("the state in {} is damaged: {what}", path.display())]
    Broken {
        /// The folder.
        path: PathBuf,
        /// What sled or the check of the values says.
        what: String,
    },
    /// The state is sound, and not ours to read.
    #[error("cannot use the state in {}", path.display())]
    Store {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// A store in sled files.
pub struct SledStore {
    tree: sled::Db,
    counts: Mutex<Counts>,
}

impl std::fmt::Debug for SledStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledStore").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl SledStore {
    /// Opens the files in the folder `path`, making them if there are none, and reads everything but the
    /// assignments once.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is changed then.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        refuse_if_in_use(path)?;
        let config = sled::Config::default()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            // What is written is flushed before anybody is told of it; flushing in between gains nothing.
            .flush_every_ms(None);
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
        let broken = |what: String| OpenError::Broken { path: path.to_owned(), what };
        let tree = match opened {
            Ok(Ok(tree)) => tree,
            // An error number means that the operating system refused; sled makes up its own errors without one.
            Ok(Err(sled::Error::Io(source))) if source.raw_os_error().is_some() => {
                return Err(OpenError::Io { path: path.to_owned(), source });
            }
            Ok(Err(error)) => return Err(broken(error.to_string())),
            Err(_) => return Err(broken("sled panicked while opening it".to_owned())),
        };
        let store = Self { tree, counts: Mutex::default() };
        store.check_and_count().map_err(|error| match error {
            StoreError::NewerSchema { .. } => OpenError::Store { path: path.to_owned(), source: error },
            StoreError::Failed { .. } | StoreError::Damaged { .. } => broken(error.to_string()),
        })?;
        Ok(store)
    }

    /// Like [`SledStore::open`], but damaged files are renamed to `<path>.broken-<ulid>`, with an error in the log,
    /// and the store begins empty.
    ///
    /// # Errors
    /// [`OpenError`] when the files are sound and cannot be used, or cannot be set aside.
    pub fn open_or_set_aside(path: &Path, ulid: Ulid) -> Result<Self, OpenError> {
        let error = match Self::open(path) {
            Err(error @ OpenError::Broken { .. }) => error,
            done => return done,
        };
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".broken-{ulid}"));
        let aside = PathBuf::from(aside);
        std::fs::rename(path, &aside).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        tracing::error!(
            %error,
            set_aside = %aside.display(),
            "the coordinator's state is damaged and was set aside; assignments are learned again from the servers"
        );
        Self::open(path)
    }

    fn check_and_count(&self) -> Result<(), StoreError> {
        match self.get(SCHEMA_KEY)? {
            Some(value) => {
                let found = decode_u32(SCHEMA_KEY, &value)?;
                if found > SCHEMA {
                    return Err(StoreError::NewerSchema { found, newest: SCHEMA });
                }
            }
            None => {
                self.tree
                    .insert(SCHEMA_KEY, &SCHEMA.to_be_bytes())
                    .map_err(|error| failed("write the schema version", error))?;
                self.flush()?;
            }
        }
        self.remembered()?;
        let mut counts = Counts::default();
        for entry in self.tree.scan_prefix(COUNTS) {
            let (key, value) = entry.map_err(|error| failed("read the counts", error))?;
            let server = decode_server(&key, &key[COUNTS.len()..])?;
            counts.set(server, decode_u64(&key, &value)?);
        }
        *self.lock() = counts;
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, StoreError> {
        self.tree.get(key).map_err(|error| failed("read a value", error))
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // The counts are replaced in one go after a write that succeeded.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for SledStore {
    fn remembered(&self) -> Result<Remembered, StoreError> {
        let mut remembered = Remembered::default();
        for entry in self.tree.scan_prefix(MEMBERS) {
            let (key, value) = entry.map_err(|error| failed("read the members", error))?;
            let record = decode_member(&key, &value)?;
            remembered.members.insert(record.log.server().clone(), record);
        }
        remembered.waits = self.get(WAITS_KEY)?.map(|value| decode_waits(WAITS_KEY, &value)).transpose()?;
        Ok(remembered)
    }

    fn assignments(&self, subjects: &[Subject]) -> Result<Vec<Option<ServerName>>, StoreError> {
        let assignment = |subject: &Subject| {
            let key = assignment_key(subject);
            self.get(&key)?.map(|name| decode_server(&key, &name)).transpose()
        };
        subjects.iter().map(assignment).collect()
    }

    fn assigned_after(
        &self,
        prefix: &str,
        after: Option<&Subject>,
        rows: usize,
    ) -> Result<Vec<(Subject, ServerName)>, StoreError> {
        let prefix = [ASSIGNMENTS, prefix.as_bytes()].concat();
        // The first key behind another one is that with a zero at its end.
        let start = after.map(|after| [assignment_key(after).as_slice(), b"\0"].concat());
        let start = start.map_or_else(|| prefix.clone(), |start| start.max(prefix.clone()));
        let mut found = Vec::new();
        for entry in self.tree.range(start..).take(rows) {
            let (key, name) = entry.map_err(|error| failed("read assignments", error))?;
            if !key.starts_with(&prefix) {
                break;
            }
            found.push((decode_subject(&key)?, decode_server(&key, &name)?));
        }
        Ok(found)
    }

    fn counts(&self) -> Counts {
        self.lock().clone()
    }

    fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut counts = self.lock();
        let mut counted = counts.clone();
        let mut batch = sled::Batch::default();
        for change in changes {
            counted.note(change);
            match change {
                Change::Member(record) => {
                    batch.insert(member_key(record.log.server()), encode_member(record)?);
                }
                Change::Assign { subject, previous, server } => {
                    batch.insert(assignment_key(subject), server.as_str());
                    for server in previous.iter().chain([server]) {
                        batch.insert(count_key(server), &counted.of(server).to_be_bytes());
                    }
                }
                Change::Unassign { subject, previous } => {
                    batch.remove(assignment_key(subject));
                    batch.insert(count_key(previous), &counted.of(previous).to_be_bytes());
                }
                Change::Waits(waits) => batch.insert(WAITS_KEY, encode_waits(*waits)),
            }
        }
        self.tree.apply_batch(batch).map_err(|error| failed("write changes", error))?;
        *counts = counted;
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.tree.flush().map(|_| ()).map_err(|error| failed("flush changes", error))
    }
}

/// sled tells a lock that somebody holds from damage only in the text of its error, so the lock is tried here first.
fn refuse_if_in_use(path: &Path) -> Result<(), OpenError> {
    let file = match std::fs::File::open(path.join("db")) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
    };
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(OpenError::Io { path: path.to_owned(), source }),
    }
}

fn failed(what: &'static str, source: sled::Error) -> StoreError {
    StoreError::Failed { what, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Waits, contract};
    use super::*;

    fn waits(seconds: u64) -> Change {
        let wait = Duration::from_secs(seconds);
        Change::Waits(Waits { member: wait, stranger: wait })
    }

    fn ulid() -> Ulid {
        Ulid::from_string("01J9Z3ABCDEFGHJKMNPQRSTVWX").unwrap()
    }

    /// Ends a store and waits until it has let go of its files: sled's own threads may hold them a little longer.
    fn close(store: SledStore, path: &Path) {
        drop(store);
        released(path);
    }

    fn released(path: &Path) {
        if let Ok(file) = std::fs::File::open(path.join("db")) {
            file.lock().unwrap();
        }
    }

    #[test]
    fn keeps_the_contract_of_a_store() {
        contract::run(|| {
            let folder = tempfile::tempdir().unwrap();
            move || {
                let path = folder.path().join("state");
                released(&path);
                SledStore::open(&path).unwrap()
            }
        });
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let store = SledStore::open(&path).unwrap();
        store.tree.insert(SCHEMA_KEY, &(SCHEMA + 1).to_be_bytes()).unwrap();
        store.flush().unwrap();
        close(store, &path);
        let error = SledStore::open_or_set_aside(&path, ulid()).unwrap_err();
        let OpenError::Store { source: StoreError::NewerSchema { found, newest }, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((found, newest), (SCHEMA + 1, SCHEMA));
        assert!(path.exists());
    }

    #[test]
    fn state_that_is_in_use_is_neither_opened_nor_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let _held = SledStore::open(&path).unwrap();
        let error = SledStore::open_or_set_aside(&path, ulid()).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    }

    #[test]
    fn damaged_state_is_set_aside_and_learning_begins_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let store = SledStore::open(&path).unwrap();
        store.write(&[waits(7)]).unwrap();
        store.flush().unwrap();
        close(store, &path);
        // sled reads its configuration first; twenty flipped bytes in it are enough.
        let file = path.join("conf");
        let damaged: Vec<u8> = std::fs::read(&file).unwrap().iter().take(20).map(|byte| !byte).collect();
        std::fs::write(&file, damaged).unwrap();
        let error = SledStore::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Broken { .. }), "{error}");
        released(&path);
        let store = SledStore::open_or_set_aside(&path, ulid()).unwrap();
        assert_eq!(store.remembered().unwrap(), Remembered::default());
        assert!(folder.path().join("state.broken-01J9Z3ABCDEFGHJKMNPQRSTVWX").join("db").exists());
    }

    #[test]
    fn a_value_that_makes_no_sense_counts_as_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let store = SledStore::open(&path).unwrap();
        store.tree.insert(b"m/persist-1", b"\xc1").unwrap();
        store.flush().unwrap();
        close(store, &path);
        let error = SledStore::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Broken { .. }), "{error}");
    }

    #[test]
    fn what_was_flushed_is_in_the_files_of_a_process_that_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, image) = (folder.path().join("state"), folder.path().join("image"));
        let store = SledStore::open(&path).unwrap();
        let subjects: Vec<Subject> = (0..100).map(|n| Subject::new(&format!("s.{n}")).unwrap()).collect();
        let server = ServerName::new("one").unwrap();
        for subject in &subjects {
            let (subject, server) = (subject.clone(), server.clone());
            store.write(&[Change::Assign { subject, previous: None, server }, waits(7)]).unwrap();
            store.flush().unwrap();
        }
        // What the files hold while the store is open is what a kill leaves; closing it would write more.
        std::fs::create_dir(&image).unwrap();
        for entry in std::fs::read_dir(&path).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), image.join(entry.file_name())).unwrap();
            }
        }
        let copy = SledStore::open(&image).unwrap();
        assert!(
            copy.assignments(&subjects).unwrap().iter().all(|assigned| *assigned == Some(server.clone()))
        );
        assert_eq!(copy.counts().of(&server), 100);
        assert_eq!(copy.remembered().unwrap(), store.remembered().unwrap());
    }
}
