//! The store in production: sled 0.34, one tree.
//!
//! SUBTLE, all of it measured on 0.34.7:
//! - `flush_async` deadlocks with eight or more concurrent callers. Never use it: the coordinator has one writer, which
//!   groups its changes and calls `flush()` where blocking is allowed.
//! - `flush()` writes to the operating system; it does not fsync. The state survives kill -9, and may lose its last writes
//!   in a power failure.
//! - Damaged files do not open, or make sled panic. They are quarantined, and the coordinator learns the assignments again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;

use dormouse_protocol::{ServerName, Subject};
use dormouse_runtime::Lock;
use ulid::Ulid;

use super::record::{
    ASSIGNMENTS, COUNTS, LIMITS, MEMBERS, SCHEMA, SCHEMA_KEY, WAITS_KEY, assignment_key, count_key,
    decode_grace, decode_limits, decode_member, decode_server, decode_subject, decode_u32, decode_u64,
    encode_grace, encode_limits, encode_member, limits_key, member_key,
};
use super::{AssignmentCounts, Store, StoreChange, StoreError, StoredState};

/// The cache of sled, in bytes. The operating system caches the file as well.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// The sled files could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has the files open.
    #[error("the state in {} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The operating system returned an error; the state itself may be undamaged.
    #[error("cannot open the state in {}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The files are damaged.
    #[error("the state in {} is damaged: {what}", path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// The error of sled, or of the check of the values.
        what: String,
    },
    /// The state is undamaged, but this software cannot read it.
    #[error("cannot use the state in {}", path.display())]
    Store {
        /// The directory.
        path: PathBuf,
        /// The reason.
        #[source]
        source: StoreError,
    },
}

/// A store in sled files.
pub struct SledStore {
    tree: sled::Db,
    counts: Lock<AssignmentCounts>,
}

impl std::fmt::Debug for SledStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledStore").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl SledStore {
    /// Opens the files in the directory `path`, and creates them if there are none. Reads the state once, except the
    /// assignments.
    ///
    /// # Errors
    /// [`OpenError`]; then the files are unchanged.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        refuse_if_in_use(path)?;
        let config = sled::Config::default()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            // The coordinator flushes before it replies; periodic flushes are not needed.
            .flush_every_ms(None);
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
        let damaged = |what: String| OpenError::Damaged { path: path.to_owned(), what };
        let tree = match opened {
            Ok(Ok(tree)) => tree,
            // An error number means an error of the operating system; sled's own I/O errors have none.
            Ok(Err(sled::Error::Io(source))) if source.raw_os_error().is_some() => {
                return Err(OpenError::Io { path: path.to_owned(), source });
            }
            Ok(Err(error)) => return Err(damaged(error.to_string())),
            Err(_) => return Err(damaged("sled panicked while opening it".to_owned())),
        };
        let store = Self { tree, counts: Lock::default() };
        store.check_and_count().map_err(|error| match error {
            StoreError::NewerSchema { .. } => OpenError::Store { path: path.to_owned(), source: error },
            StoreError::Failed { .. } | StoreError::Damaged { .. } => damaged(error.to_string()),
        })?;
        Ok(store)
    }

    /// Like [`SledStore::open`], but quarantines damaged files: they are renamed to `<path>.broken-<ulid>`, with an error in
    /// the log, and the store starts empty.
    ///
    /// # Errors
    /// [`OpenError`] if the files are undamaged and cannot be used, or if they cannot be quarantined.
    pub fn open_or_quarantine(path: &Path, ulid: Ulid) -> Result<Self, OpenError> {
        let error = match Self::open(path) {
            Err(error @ OpenError::Damaged { .. }) => error,
            done => return done,
        };
        let mut quarantine = path.as_os_str().to_owned();
        quarantine.push(format!(".broken-{ulid}"));
        let quarantine = PathBuf::from(quarantine);
        std::fs::rename(path, &quarantine)
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        tracing::error!(
            %error,
            quarantine = %quarantine.display(),
            impact = "assignments are learned again from the servers",
            "coordinator state damaged, quarantined"
        );
        Self::open(path)
    }

    fn check_and_count(&self) -> Result<(), StoreError> {
        let found = self.get(SCHEMA_KEY)?.map(|value| decode_u32(SCHEMA_KEY, &value)).transpose()?;
        if let Some(found) = found.filter(|found| *found > SCHEMA) {
            return Err(StoreError::NewerSchema { found, newest: SCHEMA });
        }
        if found != Some(SCHEMA) {
            // Version 1 has nothing that version 2 stores in another way.
            self.tree
                .insert(SCHEMA_KEY, &SCHEMA.to_be_bytes())
                .map_err(|error| failed("write the schema version", error))?;
            self.flush()?;
        }
        self.load_state()?;
        let mut counts = AssignmentCounts::default();
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

    fn lock(&self) -> MutexGuard<'_, AssignmentCounts> {
        // The counts are replaced as a whole after a successful write.
        self.counts.lock()
    }
}

impl Store for SledStore {
    fn load_state(&self) -> Result<StoredState, StoreError> {
        let mut state = StoredState::default();
        for entry in self.tree.scan_prefix(MEMBERS) {
            let (key, value) = entry.map_err(|error| failed("read the members", error))?;
            let record = decode_member(&key, &value)?;
            state.members.insert(record.log.server().clone(), record);
        }
        for entry in self.tree.scan_prefix(LIMITS) {
            let (key, value) = entry.map_err(|error| failed("read the limits", error))?;
            let (tenant, limits) = decode_limits(&key, &value)?;
            state.limits.insert(tenant, limits);
        }
        state.startup_grace =
            self.get(WAITS_KEY)?.map(|value| decode_grace(WAITS_KEY, &value)).transpose()?;
        Ok(state)
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
        // The smallest key after another one is that key with a zero byte appended.
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

    fn counts(&self) -> AssignmentCounts {
        self.lock().clone()
    }

    fn write(&self, changes: &[StoreChange]) -> Result<(), StoreError> {
        let mut counts = self.lock();
        let mut updated = counts.clone();
        let mut batch = sled::Batch::default();
        for change in changes {
            updated.note(change);
            match change {
                StoreChange::Member(record) => {
                    batch.insert(member_key(record.log.server()), encode_member(record)?);
                }
                StoreChange::Assign { subject, previous, server } => {
                    batch.insert(assignment_key(subject), server.as_str());
                    for server in previous.iter().chain([server]) {
                        batch.insert(count_key(server), &updated.of(server).to_be_bytes());
                    }
                }
                StoreChange::Unassign { subject, previous } => {
                    batch.remove(assignment_key(subject));
                    batch.insert(count_key(previous), &updated.of(previous).to_be_bytes());
                }
                StoreChange::TenantLimits { tenant, limits } if limits.is_empty() => {
                    batch.remove(limits_key(tenant));
                }
                StoreChange::TenantLimits { tenant, limits } => {
                    batch.insert(limits_key(tenant), encode_limits(limits)?);
                }
                StoreChange::StartupGrace(waits) => batch.insert(WAITS_KEY, encode_grace(*waits)),
            }
        }
        self.tree.apply_batch(batch).map_err(|error| failed("write changes", error))?;
        *counts = updated;
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.tree.flush().map(|_| ()).map_err(|error| failed("flush changes", error))
    }
}

/// sled distinguishes a held lock from damage only in its error text, so the lock is tried here first.
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

    use super::super::{StartupGrace, contract};
    use super::*;

    fn waits(seconds: u64) -> StoreChange {
        let wait = Duration::from_secs(seconds);
        StoreChange::StartupGrace(StartupGrace { member: wait, unknown: wait })
    }

    fn ulid() -> Ulid {
        Ulid::from_string("01J9Z3ABCDEFGHJKMNPQRSTVWX").unwrap()
    }

    /// Closes a store and waits until its files are unlocked: sled's own threads may hold them a little longer.
    fn close(store: SledStore, path: &Path) {
        drop(store);
        wait_until_unlocked(path);
    }

    fn wait_until_unlocked(path: &Path) {
        if let Ok(file) = std::fs::File::open(path.join("db")) {
            file.lock().unwrap();
        }
    }

    /// The sled store passes the contract suite of all stores.
    #[test]
    fn sled_store_meets_contract() {
        contract::run(|| {
            let folder = tempfile::tempdir().unwrap();
            move || {
                let path = folder.path().join("state");
                wait_until_unlocked(&path);
                SledStore::open(&path).unwrap()
            }
        });
    }

    /// The store rejects a state directory with a newer schema and leaves it in place.
    #[test]
    fn sled_store_rejects_newer_schema_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let store = SledStore::open(&path).unwrap();
        store.tree.insert(SCHEMA_KEY, &(SCHEMA + 1).to_be_bytes()).unwrap();
        store.flush().unwrap();
        close(store, &path);
        let error = SledStore::open_or_quarantine(&path, ulid()).unwrap_err();
        let OpenError::Store { source: StoreError::NewerSchema { found, newest }, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((found, newest), (SCHEMA + 1, SCHEMA));
        assert!(path.exists());
    }

    /// The store reads a state of version 1, which has no limits of tenants, and continues it as version 2.
    #[test]
    fn sled_store_upgrades_older_schema() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let store = SledStore::open(&path).unwrap();
        store.tree.insert(SCHEMA_KEY, &1_u32.to_be_bytes()).unwrap();
        store.write(&[waits(7)]).unwrap();
        store.flush().unwrap();
        close(store, &path);
        let store = SledStore::open(&path).unwrap();
        assert_eq!(store.get(SCHEMA_KEY).unwrap().unwrap(), &2_u32.to_be_bytes());
        let state = store.load_state().unwrap();
        assert!(state.startup_grace.is_some() && state.limits.is_empty());
    }

    /// If another process uses the state directory, the store neither opens nor quarantines it.
    #[test]
    fn sled_store_in_use_is_neither_opened_nor_quarantined() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let _open = SledStore::open(&path).unwrap();
        let error = SledStore::open_or_quarantine(&path, ulid()).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    }

    /// The store quarantines a damaged state directory and starts empty.
    #[test]
    fn sled_store_quarantines_damaged_state_and_starts_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let store = SledStore::open(&path).unwrap();
        store.write(&[waits(7)]).unwrap();
        store.flush().unwrap();
        close(store, &path);
        // sled reads its configuration first; twenty inverted bytes in it are enough.
        let file = path.join("conf");
        let damaged: Vec<u8> = std::fs::read(&file).unwrap().iter().take(20).map(|byte| !byte).collect();
        std::fs::write(&file, damaged).unwrap();
        let error = SledStore::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        wait_until_unlocked(&path);
        let store = SledStore::open_or_quarantine(&path, ulid()).unwrap();
        assert_eq!(store.load_state().unwrap(), StoredState::default());
        assert!(folder.path().join("state.broken-01J9Z3ABCDEFGHJKMNPQRSTVWX").join("db").exists());
    }

    /// The store treats a value that does not decode as damage.
    #[test]
    fn sled_store_treats_invalid_value_as_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let store = SledStore::open(&path).unwrap();
        store.tree.insert(b"m/persist-1", b"\xc1").unwrap();
        store.flush().unwrap();
        close(store, &path);
        let error = SledStore::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    }

    /// The files of a store that never closed hold all flushed changes.
    #[test]
    fn sled_store_keeps_flushed_changes_after_kill() {
        let folder = tempfile::tempdir().unwrap();
        let (path, image) = (folder.path().join("state"), folder.path().join("image"));
        let store = SledStore::open(&path).unwrap();
        let subjects: Vec<Subject> = (0..100).map(|n| Subject::new(&format!("s.{n}")).unwrap()).collect();
        let server = ServerName::new("one").unwrap();
        for subject in &subjects {
            let (subject, server) = (subject.clone(), server.clone());
            store.write(&[StoreChange::Assign { subject, previous: None, server }, waits(7)]).unwrap();
            store.flush().unwrap();
        }
        // A kill leaves the files as they are while the store is open; closing the store would write more.
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
        assert_eq!(copy.load_state().unwrap(), store.load_state().unwrap());
    }
}
