//! The server's local directory: one process at a time. What must not be lost in it is `wal/` and `lost/`.

#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dormouse_protocol::{LogId, Subject, Term};

use crate::keys::Nonce;

const LOCK_FILE: &str = "lock";
const LOG_ID_FILE: &str = "log-id";
const SUBJECTS: &str = "subjects";
const LOST: &str = "lost";
const WAL: &str = "wal";
const DEAD: &str = "dead-logs";
const UPLOADS: &str = "uploads";
const BOOT_ID_FILE: &str = "boot-id";
const DISCARDED: &str = "discarded";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It does not exist and cannot be created, or something else has its name.
    #[error("the data directory {} cannot be created", path.display())]
    Create {
        /// The directory, or what is to lie in it.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It cannot be written to.
    #[error("the data directory {} is not writable", path.display())]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("the data directory {} is in use by another process: every server needs one of its own", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file in it could not be read or written.
    #[error("cannot access {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A data directory that this process has for itself, until the value is dropped or the process ends, however it
/// ends.
///
/// ```text
/// lock                        held while a process uses the directory
/// log-id                      the log of the process that used it last
/// boot-id                     the run of the machine in which the files in subjects/ were written
/// subjects/<escaped>.sqlite3  subjects, as far as this server has them
/// discarded/                  such files from an earlier run of the machine, until they are removed
/// wal/<log>/                  what was accepted and is not in the bucket yet
/// uploads/<escaped>.<upload>  values on their way up
/// dead-logs/<log>             logs that earlier processes wrote here and that still hold something
/// lost/<escaped>/             what was accepted here and never reached the bucket before somebody else went on
/// ```
///
/// Nothing is scanned: opening takes the same time however much there is.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    predecessor: Option<LogId>,
    _lock: File,
}

impl DataDir {
    /// Opens the directory at `path`, and creates it if there is none. Blocks.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        for folder in [path.to_owned(), path.join(SUBJECTS), path.join(LOST), path.join(WAL), path.join(DEAD)]
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

    /// Sets the subjects' files aside unless they were written in this run of the machine: nobody syncs them, so a loss of
    /// power may have taken any part of them. What they held is in the bucket and in the write-ahead logs. What was set
    /// aside lies in [`DataDir::discarded_dir`] and may be removed. Takes the same time however much it is, unless `subjects/` is a
    /// file system of its own, which is emptied at once. Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`].
    pub fn set_aside_unsynced(&self, boot_id: Option<&str>, nonce: Nonce) -> Result<(), DataDirError> {
        let (subjects, recorded) = (self.subjects_dir(), self.path.join(BOOT_ID_FILE));
        let known = fs::read_to_string(&recorded).ok();
        if boot_id.is_some() && known.as_deref().map(str::trim_end) == boot_id {
            return Ok(());
        }
        if boot_id.is_none() {
            tracing::warn!(
                "which run of the machine this is cannot be read: subjects' files are not used again by the next process"
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
        if known.is_some() {
            tracing::info!(
                folder = %subjects.display(),
                "the machine was started since these files were written: they are set aside, subjects come from the bucket"
            );
        }
        set_aside().map_err(|source| DataDirError::File { path: subjects.clone(), source })?;
        // Last: a process that dies in between leaves files that nobody trusts. Where this is lost with the power, the next
        // run of the machine has another name.
        let name = boot_id.map_or(String::new(), |boot_id| format!("{boot_id}\n"));
        fs::write(&recorded, name).map_err(|source| DataDirError::File { path: recorded.clone(), source })
    }

    /// The disk has lost something of a subject's file: the next process uses none of them. Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`].
    pub fn distrust_files(&self) -> Result<(), DataDirError> {
        let path = self.path.join(BOOT_ID_FILE);
        fs::write(&path, "").map_err(|source| DataDirError::File { path, source })
    }

    /// The folder of subjects' files that nobody uses any more. There may be none.
    #[must_use]
    pub fn discarded_dir(&self) -> PathBuf {
        self.path.join(DISCARDED)
    }

    /// The log of the process that used the directory before this one. That process has ended: its lock was free.
    #[must_use]
    pub const fn predecessor(&self) -> Option<&LogId> {
        self.predecessor.as_ref()
    }

    /// Records `log` as the one that uses the directory now: the next process will name it as its predecessor.
    /// [`DataDir::predecessor`] keeps its answer. Survives a loss of power. Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`].
    pub fn record_log(&self, log: &LogId) -> Result<(), DataDirError> {
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
    pub fn subjects_dir(&self) -> PathBuf {
        self.path.join(SUBJECTS)
    }

    /// Where the subject's file lies.
    #[must_use]
    pub fn subject_file(&self, subject: &Subject) -> PathBuf {
        self.path.join(SUBJECTS).join(format!("{}.sqlite3", subject.escaped()))
    }

    /// Where the subject's file as of `term` is to be kept when the subject has gone on without it. `nonce` is fresh.
    /// Its folder may have to be created.
    #[must_use]
    pub fn lost_file(&self, subject: &Subject, term: Term, nonce: Nonce) -> PathBuf {
        self.path.join(LOST).join(subject.escaped()).join(format!("{}-{nonce}.sqlite3", term.get()))
    }

    /// The folder of the write-ahead logs.
    #[must_use]
    pub fn wal_dir(&self) -> PathBuf {
        self.path.join(WAL)
    }

    /// Where the subject's file lies while a dead log is freed of it. `nonce` is fresh.
    #[must_use]
    pub fn drain_file(&self, subject: &Subject, nonce: Nonce) -> PathBuf {
        self.path.join(SUBJECTS).join(format!("{}.{nonce}.draining", subject.escaped()))
    }

    /// The folder of values on their way up. Made by whoever uses it.
    #[must_use]
    pub fn uploads_dir(&self) -> PathBuf {
        self.path.join(UPLOADS)
    }

    /// Where what cannot be used any more is kept.
    #[must_use]
    pub fn lost_dir(&self) -> PathBuf {
        self.path.join(LOST)
    }

    /// Takes note that a log has ended and is to be emptied from here. Survives a loss of power.
    /// Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`].
    pub fn mark_dead(&self, log: &LogId) -> Result<(), DataDirError> {
        let path = self.path.join(DEAD).join(log.to_string());
        let mark = || {
            File::create(&path)?;
            File::open(self.path.join(DEAD))?.sync_all()
        };
        mark().map_err(|source| DataDirError::File { path, source })
    }

    /// Whether a log is noted as dead. Asks the file system.
    #[must_use]
    pub fn is_marked_dead(&self, log: &LogId) -> bool {
        self.path.join(DEAD).join(log.to_string()).exists()
    }

    /// Takes note that a dead log is empty. Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`]; then it is looked through once more.
    pub fn unmark_dead(&self, log: &LogId) -> Result<(), DataDirError> {
        let path = self.path.join(DEAD).join(log.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DataDirError::File { path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// The dead logs that are to be emptied. Blocks.
    ///
    /// # Errors
    /// [`DataDirError::File`].
    pub fn dead_logs(&self) -> Result<Vec<LogId>, DataDirError> {
        let path = self.path.join(DEAD);
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

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Folders stay: a file system has some of its own.
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

/// Writes a file where the subjects will be, and removes it: permissions, a read-only or a full disk show here rather
/// than at the first request.
fn check_writable(path: &Path) -> Result<(), DataDirError> {
    let trial = path.join(SUBJECTS).join(".writable");
    let write = || {
        fs::write(&trial, b"dormouse")?;
        fs::remove_file(&trial)
    };
    write().map_err(|source| DataDirError::NotWritable { path: path.to_owned(), source })
}

/// The predecessor only spares a wait, so a file that makes no sense is as good as none.
fn read_log_id(path: &Path) -> Result<Option<LogId>, DataDirError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DataDirError::File { path: path.to_owned(), source }),
    };
    let log = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim_end().parse().ok());
    if log.is_none() {
        tracing::warn!(file = %path.display(), "this file does not hold the id of a log; it is replaced");
    }
    Ok(log)
}
