//! The server's local data directory, used by one process at a time. Only `wal/` and `lost/` hold data that must
//! survive.

#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dormouse_format::keys::Nonce;
use dormouse_protocol::{LogId, Subject, Term};

const LOCK_FILE: &str = "lock";
const LOG_ID_FILE: &str = "log-id";
const SUBJECTS: &str = "subjects";
const LOST: &str = "lost";
const WAL: &str = "wal";
const ORPHANED: &str = "dead-logs";
const UPLOADS: &str = "uploads";
const BOOT_ID_FILE: &str = "boot-id";
const DISCARDED: &str = "discarded";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It does not exist and cannot be created, or its path is not a directory.
    #[error("the data directory {} cannot be created", path.display())]
    Create {
        /// The directory, or a folder in it.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// It cannot be written to.
    #[error("the data directory {} is not writable", path.display())]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("the data directory {} is in use by another process: every server needs its own", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file in it could not be read or written.
    #[error("cannot access {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

/// A data directory that this process uses exclusively, until the value is dropped or the process ends in any way.
///
/// ```text
/// lock                        held while a process uses the directory
/// log-id                      the log of the process that used the directory last
/// boot-id                     the boot of the machine in which the files in subjects/ were written
/// subjects/<escaped>.sqlite3  subjects' local files
/// discarded/                  such files from an earlier boot, until they are removed
/// wal/<log>/                  accepted writes that are not yet in the bucket
/// uploads/<escaped>.<upload>  staged values of chunked uploads
/// dead-logs/<log>             orphaned logs that this server has to reclaim
/// lost/<escaped>/             diverged writes: accepted here, not in the bucket before another claim
/// ```
///
/// Opening scans nothing, so its time does not depend on the amount of data.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    predecessor: Option<LogId>,
    _lock: File,
}

impl DataDir {
    /// Opens the directory at `path`, and creates it if it does not exist. Blocks.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        for folder in
            [path.to_owned(), path.join(SUBJECTS), path.join(LOST), path.join(WAL), path.join(ORPHANED)]
        {
            fs::create_dir_all(&folder).map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if path.is_dir() => {
                    DataDirError::NotWritable { path: path.to_owned(), source }
                }
                _ => DataDirError::Create { path: folder, source },
            })?;
        }
        let lock = lock(path)?;
        check_writable(path)?;
        let predecessor = read_log_id(&path.join(LOG_ID_FILE))?;
        Ok(Self { path: path.to_owned(), predecessor, _lock: lock })
    }

    /// Moves the subjects' files to [`DataDir::discarded_dir`] unless they were written in this boot of the machine.
    /// The files are a cache that is never synced, so a power loss may have damaged any part of them. Their content is
    /// in the bucket and in the write-ahead logs, so the moved files may be removed. The time does not depend on their
    /// number, unless `subjects/` is a file system of its own: then its files are removed at once. Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`].
    pub(crate) fn set_aside_unsynced(&self, boot_id: Option<&str>, nonce: Nonce) -> Result<(), DataDirError> {
        let (subjects, recorded) = (self.subjects_dir(), self.path.join(BOOT_ID_FILE));
        let recorded_boot = fs::read_to_string(&recorded).ok();
        if boot_id.is_some() && recorded_boot.as_deref().map(str::trim_end) == boot_id {
            return Ok(());
        }
        if boot_id.is_none() {
            tracing::warn!(
                impact = "the next process discards the local subject files",
                "boot id unreadable"
            );
        }
        let set_aside = || {
            let discarded = self.discarded_dir();
            fs::create_dir_all(&discarded)?;
            match fs::rename(&subjects, discarded.join(nonce.to_string())) {
                Ok(()) => fs::create_dir(&subjects),
                // It is a file system of its own.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices
                    ) =>
                {
                    remove_files_in(&subjects)
                }
                Err(error) => Err(error),
            }
        };
        if recorded_boot.is_some() {
            tracing::info!(
                folder = %subjects.display(),
                action = "subjects are restored from the bucket",
                "local subject files discarded after reboot"
            );
        }
        set_aside().map_err(|source| DataDirError::File { path: subjects.clone(), source })?;
        // Last: if the process ends in between, the next one discards the files. If a power loss undoes this write, the
        // next boot has another id.
        let name = boot_id.map_or(String::new(), |boot_id| format!("{boot_id}\n"));
        fs::write(&recorded, name).map_err(|source| DataDirError::File { path: recorded.clone(), source })
    }

    /// Makes the next process discard the subjects' files, because the disk has lost a part of one. Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`].
    pub(crate) fn discard_on_next_start(&self) -> Result<(), DataDirError> {
        let path = self.path.join(BOOT_ID_FILE);
        fs::write(&path, "").map_err(|source| DataDirError::File { path, source })
    }

    /// The folder of discarded subject files. It may not exist.
    #[must_use]
    pub(crate) fn discarded_dir(&self) -> PathBuf {
        self.path.join(DISCARDED)
    }

    /// The log of the process that used the directory before this one. That process has ended, because the lock was
    /// free.
    #[must_use]
    pub(crate) const fn predecessor(&self) -> Option<&LogId> {
        self.predecessor.as_ref()
    }

    /// Records `log` as the current user of the directory: it becomes the predecessor of the next process.
    /// [`DataDir::predecessor`] does not change. Survives a power loss. Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`].
    pub(crate) fn record_log(&self, log: &LogId) -> Result<(), DataDirError> {
        let path = self.path.join(LOG_ID_FILE);
        let staged = self.path.join(format!("{LOG_ID_FILE}.new"));
        let write = || {
            let mut file = File::create(&staged)?;
            file.write_all(format!("{log}\n").as_bytes())?;
            file.sync_all()?;
            fs::rename(&staged, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| DataDirError::File { path, source })
    }

    /// The folder of the subjects' files.
    #[must_use]
    pub(crate) fn subjects_dir(&self) -> PathBuf {
        self.path.join(SUBJECTS)
    }

    /// The path of the subject's file.
    #[must_use]
    pub(crate) fn subject_file(&self, subject: &Subject) -> PathBuf {
        self.path.join(SUBJECTS).join(format!("{}.sqlite3", subject.escaped()))
    }

    /// The path under `lost/` for the subject's file of `term` if the file holds diverged writes. `nonce` is fresh. Its
    /// folder may not exist yet.
    #[must_use]
    pub(crate) fn lost_file(&self, subject: &Subject, term: Term, nonce: Nonce) -> PathBuf {
        self.path.join(LOST).join(subject.escaped()).join(format!("{}-{nonce}.sqlite3", term.get()))
    }

    /// The folder of the write-ahead logs.
    #[must_use]
    pub(crate) fn wal_dir(&self) -> PathBuf {
        self.path.join(WAL)
    }

    /// The path of the subject's file while an orphaned log is reclaimed. `nonce` is fresh.
    #[must_use]
    pub(crate) fn reclaim_file(&self, subject: &Subject, nonce: Nonce) -> PathBuf {
        self.path.join(SUBJECTS).join(format!("{}.{nonce}.draining", subject.escaped()))
    }

    /// The folder of chunked uploads. The spool creates it.
    #[must_use]
    pub(crate) fn uploads_dir(&self) -> PathBuf {
        self.path.join(UPLOADS)
    }

    /// The folder of diverged writes and quarantined files.
    #[must_use]
    pub(crate) fn lost_dir(&self) -> PathBuf {
        self.path.join(LOST)
    }

    /// Marks a log as orphaned, so that this server reclaims it. Survives a power loss. Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`].
    pub(crate) fn mark_orphaned(&self, log: &LogId) -> Result<(), DataDirError> {
        let path = self.path.join(ORPHANED).join(log.to_string());
        let mark = || {
            File::create(&path)?;
            File::open(self.path.join(ORPHANED))?.sync_all()
        };
        mark().map_err(|source| DataDirError::File { path, source })
    }

    /// Whether a log is marked as orphaned. Asks the file system.
    #[must_use]
    pub(crate) fn is_marked_orphaned(&self, log: &LogId) -> bool {
        self.path.join(ORPHANED).join(log.to_string()).exists()
    }

    /// Removes the mark of an orphaned log after its reclamation. Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`]; then the log is reclaimed once more.
    pub(crate) fn unmark_orphaned(&self, log: &LogId) -> Result<(), DataDirError> {
        let path = self.path.join(ORPHANED).join(log.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DataDirError::File { path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// The orphaned logs that this server has to reclaim. Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`].
    pub(crate) fn orphaned_logs(&self) -> Result<Vec<LogId>, DataDirError> {
        let path = self.path.join(ORPHANED);
        let read = || {
            let names =
                fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect::<io::Result<Vec<String>>>()
        };
        let names = read().map_err(|source| DataDirError::File { path: path.clone(), source })?;
        let mut logs: Vec<LogId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        logs.sort_unstable();
        Ok(logs)
    }
}

/// Removes files only: a file system has folders of its own.
fn remove_files_in(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let lock_path = path.join(LOCK_FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|source| DataDirError::NotWritable { path: path.to_owned(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataDirError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(DataDirError::File { path: lock_path, source }),
    }
}

/// Writes a file into the subjects' folder and removes it, to detect wrong permissions, a read-only disk or a full disk
/// before the first request.
fn check_writable(path: &Path) -> Result<(), DataDirError> {
    let trial = path.join(SUBJECTS).join(".writable");
    let write = || {
        fs::write(&trial, b"dormouse")?;
        fs::remove_file(&trial)
    };
    write().map_err(|source| DataDirError::NotWritable { path: path.to_owned(), source })
}

/// The predecessor only saves a wait, so an invalid file counts as absent.
fn read_log_id(path: &Path) -> Result<Option<LogId>, DataDirError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DataDirError::File { path: path.to_owned(), source }),
    };
    let log = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim_end().parse().ok());
    if log.is_none() {
        tracing::warn!(file = %path.display(), action = "the file is replaced", "log id file invalid");
    }
    Ok(log)
}
