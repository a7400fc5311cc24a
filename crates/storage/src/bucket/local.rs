//! What a local directory (or a mount) needs beside object_store: listings that exclude deletions, deletions that
//! cannot outlive their lock, and the certainty that the directory is still the one that was opened.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::{BucketEntry, BucketKey, BucketPrefix};

/// Lies in the bucket's directory. Listings hold it shared and deletions exclusively, across processes: reading a
/// directory while objects are created and deleted could miss both an old manifest and the newer one that replaced
/// it. It also tells the directory from the empty one that a lost mount leaves behind.
const LOCK_FILE: &str = "dormouse.lock";

/// A bucket's directory. All methods block.
#[derive(Debug, Clone)]
pub(super) struct LocalDirectory {
    root: PathBuf,
}

impl LocalDirectory {
    /// Opens a directory that exists, and puts the lock file there if it is missing.
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        if !fs::metadata(&root)?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        OpenOptions::new().create(true).truncate(false).write(true).open(root.join(LOCK_FILE))?;
        Ok(Self { root })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Fails when the directory is not the one that was opened (any more).
    pub(super) fn check_present(&self) -> io::Result<()> {
        fs::metadata(self.root.join(LOCK_FILE)).map(drop).map_err(|error| self.explain(error))
    }

    /// Everything below `prefix`, in no particular order, as it was at one moment as far as deletions go.
    pub(super) fn list(&self, prefix: &BucketPrefix) -> io::Result<Vec<BucketEntry>> {
        let lock = File::open(self.root.join(LOCK_FILE)).map_err(|error| self.explain(error))?;
        lock.lock_shared()?;
        let mut entries = Vec::new();
        self.list_folder(prefix.as_str(), &mut entries)?;
        Ok(entries)
    }

    fn list_folder(&self, prefix: &str, entries: &mut Vec<BucketEntry>) -> io::Result<()> {
        let folder = match fs::read_dir(self.root.join(prefix)) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in folder {
            let entry = entry?;
            let name = entry.file_name();
            // Names that no key has are not objects: uploads in progress (`key#1`) and what others put there.
            let Some(Ok(key)) = name.to_str().map(|name| BucketKey::new(&format!("{prefix}{name}"))) else {
                continue;
            };
            let metadata = match fs::metadata(entry.path()) {
                Ok(metadata) => metadata,
                // Taken away by somebody who does not know our lock.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if metadata.is_dir() {
                self.list_folder(&format!("{key}/"), entries)?;
            } else if key.as_str() != LOCK_FILE {
                entries.push(BucketEntry { key, size_bytes: metadata.len() });
            }
        }
        Ok(())
    }

    /// Deletes an object, if it is there, while nobody lists. Runs to its end on the thread that began it, so the
    /// lock is never released before the file is gone.
    pub(super) fn delete(&self, key: &BucketKey) -> io::Result<()> {
        let lock = OpenOptions::new()
            .write(true)
            .open(self.root.join(LOCK_FILE))
            .map_err(|error| self.explain(error))?;
        lock.lock()?;
        match fs::remove_file(self.root.join(key.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn explain(&self, error: io::Error) -> io::Error {
        if error.kind() != io::ErrorKind::NotFound {
            return error;
        }
        let root = self.root.display();
        let text = format!(
            "the bucket's directory {root} has gone (its {LOCK_FILE} is missing): is it still mounted?"
        );
        io::Error::new(io::ErrorKind::NotFound, text)
    }
}
