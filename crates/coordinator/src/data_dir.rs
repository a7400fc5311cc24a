//! The data directory, which belongs to one process at a time.

use std::fs::{File, OpenOptions, TryLockError, create_dir_all};
use std::io;
use std::path::{Path, PathBuf};

/// A directory cannot be used as data directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoordinatorDataDirError {
    /// The directory cannot be created, or is not writable.
    #[error("cannot write to the data directory {}", path.display())]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// Another process holds the lock of the directory.
    #[error("the data directory {} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

/// A data directory with its exclusive lock. The process holds the lock until the value is dropped or the process ends.
#[derive(Debug)]
pub struct CoordinatorDataDir {
    path: PathBuf,
    _lock: File,
}

impl CoordinatorDataDir {
    /// Locks the directory. If it does not exist, it is created.
    ///
    /// # Errors
    /// [`CoordinatorDataDirError`].
    pub fn open(path: &Path) -> Result<Self, CoordinatorDataDirError> {
        let not_writable = |source| CoordinatorDataDirError::NotWritable { path: path.to_owned(), source };
        create_dir_all(path).map_err(not_writable)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(not_writable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(CoordinatorDataDirError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(not_writable(source)),
        }
    }

    /// The directory of the store's files.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data directory is created if missing, and a second open fails until the first user closes it.
    #[test]
    fn data_dir_has_one_user_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/when/missing");
        let held = CoordinatorDataDir::open(&path).unwrap();
        assert!(matches!(CoordinatorDataDir::open(&path), Err(CoordinatorDataDirError::InUse { .. })));
        drop(held);
        CoordinatorDataDir::open(&path).unwrap();
    }

    /// A path that is no writable directory is rejected with `NotWritable`.
    #[test]
    fn data_dir_not_writable_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "not a folder").unwrap();
        for path in [file.clone(), file.join("below")] {
            assert!(matches!(
                CoordinatorDataDir::open(&path),
                Err(CoordinatorDataDirError::NotWritable { .. })
            ));
        }
        // A virtual file system of Linux: even root cannot write there.
        assert!(matches!(
            CoordinatorDataDir::open(Path::new("/proc/self")),
            Err(CoordinatorDataDirError::NotWritable { .. })
        ));
    }
}
