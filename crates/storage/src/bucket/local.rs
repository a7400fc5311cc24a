//! What a local directory (or a mount) needs beside object_store: creates whose leftovers can be swept, listings that
//! exclude deletions, deletions that cannot outlive their lock, the certainty that the directory is still the one
//! that was opened, and reads of whole objects
//! that are handed to another thread once.

mod staging;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{BucketEntry, BucketKey, BucketPrefix};
use crate::checksum::Crc64;

/// Lies in the bucket's directory and tells it from the empty one that a lost mount leaves behind.
const MARKER: &str = "dormouse.lock";

/// Holds the lock files, which are empty and named by two hexadecimal digits. Listings hold one shared and deletions
/// hold one exclusively, across processes: reading a directory while objects are created and deleted could miss both
/// an old manifest and the newer one that replaced it.
const LOCKS: &str = "dormouse.locks";

/// How many locks there are. Which one belongs to a folder depends on this number, so all processes must agree on it.
const STRIPES: u64 = 64;

/// How deep the folders lie that have a lock, subjects among them (`subjects/<subject>/`). A listing of less takes
/// every lock.
const LOCKED_DEPTH: usize = 2;

/// Everything below it is made by [`probe`](super::probe), in folders that are used once.
const PROBES: &str = "probe/";

/// Held until it is dropped; the operating system lets go of it when the process ends.
type Lock = File;

/// The lock of the folder that `name`, a key or a prefix, lies in or is; `None` where several folders with locks of
/// their own may lie below it.
fn stripe_of(name: &str) -> Option<u64> {
    let folders = &name[..name.rfind('/').map_or(0, |end| end + 1)];
    let end = folders.match_indices('/').nth(LOCKED_DEPTH - 1)?.0;
    Some(Crc64::of(&folders.as_bytes()[..end]).to_u64() % STRIPES)
}

/// A bucket's directory. All methods block.
#[derive(Debug, Clone)]
pub(super) struct LocalDirectory {
    root: PathBuf,
}

impl LocalDirectory {
    /// Opens a directory that exists, and puts what this process needs there if it is missing.
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        if !fs::metadata(&root)?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        fs::create_dir_all(root.join(LOCKS))?;
        OpenOptions::new().create(true).truncate(false).write(true).open(root.join(MARKER))?;
        Ok(Self { root })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Fails when the directory is not the one that was opened (any more).
    pub(super) fn check_present(&self) -> io::Result<()> {
        fs::metadata(self.root.join(MARKER)).map(drop).map_err(|error| self.explain(error))
    }

    /// Opens an object to be read, and tells its size; `None` where there is none of this name.
    pub(super) fn open_object(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        let file = match File::open(self.root.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.check_present().map(|()| None);
            }
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        // A folder is no object.
        Ok((!metadata.is_dir()).then_some((file, metadata.len())))
    }

    /// Reads an object into memory; its size alone where that is more than `most_bytes`.
    pub(super) fn read_object(
        &self,
        name: &str,
        most_bytes: u64,
    ) -> io::Result<Option<Result<Vec<u8>, u64>>> {
        let Some((file, size_bytes)) = self.open_object(name)? else { return Ok(None) };
        if size_bytes > most_bytes {
            return Ok(Some(Err(size_bytes)));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0));
        file.take(most_bytes).read_to_end(&mut bytes)?;
        Ok(Some(Ok(bytes)))
    }

    /// Everything below `prefix`, in no particular order, as it was at one moment as far as deletions go. Never waits:
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) while somebody deletes there. What unfinished uploads left there long
    /// before `wall`, the time since the Unix epoch, is removed on the way.
    pub(super) fn try_list(&self, prefix: &BucketPrefix, wall: Duration) -> io::Result<Vec<BucketEntry>> {
        let stripes = match stripe_of(prefix.as_str()) {
            Some(stripe) => stripe..stripe + 1,
            None => 0..STRIPES,
        };
        let _locks: Vec<Lock> =
            stripes.map(|stripe| self.lock(stripe, File::try_lock_shared)).collect::<io::Result<_>>()?;
        let mut entries = Vec::new();
        self.list_folder(prefix.as_str(), wall, &mut entries)?;
        Ok(entries)
    }

    fn lock(&self, stripe: u64, try_lock: impl Fn(&File) -> Result<(), TryLockError>) -> io::Result<Lock> {
        let name = format!("{LOCKS}/{stripe:02x}");
        // Shared or not, some network file systems want a file that may be written.
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(self.root.join(&name))
            .map_err(|error| self.explain(error))?;
        match try_lock(&file) {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                let text =
                    format!("another process holds the lock {name} in the bucket's directory; is it stuck?");
                Err(io::Error::new(io::ErrorKind::WouldBlock, text))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn list_folder(&self, prefix: &str, wall: Duration, entries: &mut Vec<BucketEntry>) -> io::Result<()> {
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
                staging::sweep(&entry, wall);
                continue;
            };
            let metadata = match fs::metadata(entry.path()) {
                Ok(metadata) => metadata,
                // Taken away by somebody who does not know our lock.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if key.as_str() == LOCKS {
                continue;
            }
            if metadata.is_dir() {
                self.list_folder(&format!("{key}/"), wall, entries)?;
            } else if key.as_str() != MARKER {
                entries.push(BucketEntry { key, size_bytes: metadata.len() });
            }
        }
        Ok(())
    }

    /// Deletes an object, if it is there, while nobody lists its folder. Runs to its end on the thread that began it,
    /// so the lock is never released before the file is gone. Never waits:
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) while somebody lists or deletes there.
    pub(super) fn try_delete(&self, key: &BucketKey) -> io::Result<()> {
        // A key that lies less deep than what has a lock is listed only with every lock held, so any of them will do.
        let _lock = self.lock(stripe_of(key.as_str()).unwrap_or(0), File::try_lock)?;
        match fs::remove_file(self.root.join(key.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.remove_empty_probe_folders(key);
        Ok(())
    }

    /// Every start of a server makes folders that nobody needs again. All others stay: somebody may be about to write
    /// into them.
    fn remove_empty_probe_folders(&self, key: &BucketKey) {
        let mut folder = key.as_str();
        while let Some((parent, _)) = folder.rsplit_once('/')
            && parent.starts_with(PROBES)
        {
            // Not empty yet, most of the time.
            if fs::remove_dir(self.root.join(parent)).is_err() {
                return;
            }
            folder = parent;
        }
    }

    fn explain(&self, error: io::Error) -> io::Error {
        if error.kind() != io::ErrorKind::NotFound {
            return error;
        }
        let root = self.root.display();
        let text =
            format!("the bucket's directory {root} has gone (its {MARKER} is missing): is it still mounted?");
        io::Error::new(io::ErrorKind::NotFound, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_everything_in_it_share_a_lock() {
        let lock = stripe_of("subjects/app.orders/");
        assert!(lock.is_some());
        for name in [
            "subjects/app.orders/000000000001.manifest",
            "subjects/app.orders/deep/er/",
            "subjects/app.orders/a/b",
        ] {
            assert_eq!(stripe_of(name), lock, "{name}");
        }
        for several in ["", "subjects/", "subjects/app.orders", "app.orders"] {
            assert_eq!(stripe_of(several), None, "{several}");
        }
    }

    #[test]
    fn only_what_is_an_object_is_read_and_without_the_directory_nothing_is_called_absent() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("bucket");
        fs::create_dir(&root).unwrap();
        let directory = LocalDirectory::open(root.clone()).unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/c"), "1234").unwrap();
        assert_eq!(directory.read_object("a/c", 4).unwrap(), Some(Ok(b"1234".to_vec())));
        assert_eq!(directory.read_object("a/c", 3).unwrap(), Some(Err(4)));
        assert_eq!(directory.read_object("a/b", 4).unwrap(), None, "a folder");
        assert_eq!(directory.read_object("a/d", 4).unwrap(), None);
        fs::remove_dir_all(&root).unwrap();
        let error = directory.read_object("a/c", 4).unwrap_err();
        assert!(error.to_string().contains("is it still mounted?"), "{error}");
    }

    #[test]
    fn every_version_takes_the_same_lock() {
        assert_eq!(
            stripe_of("subjects/app.orders/").map(|stripe| format!("{stripe:02x}")).as_deref(),
            Some("19")
        );
    }

    #[test]
    fn the_locks_are_spread() {
        let used: std::collections::BTreeSet<_> =
            (0..1_000).map(|n| stripe_of(&format!("subjects/app.{n}/"))).collect();
        assert_eq!(used.len() as u64, STRIPES);
    }
}
