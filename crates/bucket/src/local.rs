//! Additions to object_store for a local directory or a mount: creates whose leftovers can be removed, listings that
//! exclude concurrent deletions, and deletions that cannot outlive their lock. It also detects that the directory is no
//! longer the one that was opened, and reads a whole object with one thread switch.

mod objects;
mod staging;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_format::checksum::Crc64;
use dormouse_format::keys::{BucketEntry, BucketKey, BucketPrefix};

use objects::Listed;

pub(super) use objects::RangeRead;

/// A file in the bucket's directory that distinguishes it from the empty directory of a lost mount.
const MARKER: &str = "dormouse.lock";

/// Folder of the lock files, which are empty and named by two hexadecimal digits. Across processes, a listing holds a
/// lock shared and a deletion holds it exclusively. Otherwise a listing during creates and deletes could miss both an
/// old manifest and the newer one that replaced it.
const LOCKS: &str = "dormouse.locks";

/// Number of locks. The lock of a folder depends on this number, so all processes must use the same one.
const STRIPES: u64 = 64;

/// Depth of the folders that have a lock, for instance those of subjects (`subjects/<subject>/`). A listing of a folder
/// above that depth takes every lock.
const LOCKED_DEPTH: usize = 2;

/// Permissions of the lock files and of their folder. If another user could lock a file, that user could stop every
/// listing and deletion.
const LOCK_FILE_MODE: u32 = 0o600;
const LOCK_FOLDER_MODE: u32 = 0o700;

/// Prefix of the objects of [`probe`](super::probe), in folders that are used once.
const PROBES: &str = "probe/";

/// A lock that is held until it is dropped; the operating system releases it when the process ends.
type Lock = File;

/// The lock of the folder that contains `name` (a key or a prefix), or that `name` is; `None` if several folders with
/// their own locks may be below it.
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
    /// Opens an existing directory, and creates the marker and the lock folder if they are missing.
    pub(super) fn open(root: PathBuf) -> io::Result<Self> {
        if !fs::metadata(&root)?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        create_lock_folder(&root.join(LOCKS))?;
        let marker = lock_file_options().open(root.join(MARKER))?;
        if !marker.metadata()?.is_file() {
            let text = format!("{MARKER} in it is not a regular file");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self { root })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Fails if the directory is no longer the one that was opened.
    pub(super) fn check_present(&self) -> io::Result<()> {
        fs::metadata(self.root.join(MARKER)).map(drop).map_err(|error| self.explain(error))
    }

    /// All objects below `prefix`, unsorted, consistent with respect to deletions. Never waits: returns
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) while a deletion runs there. Also removes leftovers of unfinished
    /// uploads that are long older than `wall`, the time since the Unix epoch.
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
        let file = lock_file_options().open(self.root.join(&name)).map_err(|error| self.explain(error))?;
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
            Err(error) => return Err(objects::explain_folder(prefix, error)),
        };
        for entry in folder {
            let entry = entry?;
            let name = entry.file_name();
            // Names that are not valid keys are not objects: uploads in progress (`key#1`), and files of other
            // programs.
            let Some(Ok(key)) = name.to_str().map(|name| BucketKey::new(&format!("{prefix}{name}"))) else {
                staging::sweep(&entry, wall);
                continue;
            };
            if key.as_str() == LOCKS || key.as_str() == MARKER {
                continue;
            }
            match objects::listed(&entry.path(), &key)? {
                Some(Listed::Folder) => self.list_folder(&format!("{key}/"), wall, entries)?,
                Some(Listed::Object { size_bytes }) => entries.push(BucketEntry { key, size_bytes }),
                // Removed by a program that does not use our lock.
                None => {}
            }
        }
        Ok(())
    }

    /// Deletes an object, if it exists, while no listing of its folder runs. Runs on one thread, so the lock is never
    /// released before the file is removed. Never waits: returns [`WouldBlock`](io::ErrorKind::WouldBlock) while a
    /// listing or deletion runs there.
    pub(super) fn try_delete(&self, key: &BucketKey) -> io::Result<()> {
        // A key above the depth of the locks is listed only with every lock held, so any lock is sufficient.
        let _lock = self.lock(stripe_of(key.as_str()).unwrap_or(0), File::try_lock)?;
        match fs::remove_file(self.root.join(key.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.remove_empty_probe_folders(key);
        Ok(())
    }

    /// Removes empty folders of the conformance check, because every start of a server creates new ones. All other
    /// folders stay, because a process may be about to write into them.
    fn remove_empty_probe_folders(&self, key: &BucketKey) {
        let mut folder = key.as_str();
        while let Some((parent, _)) = folder.rsplit_once('/')
            && parent.starts_with(PROBES)
        {
            // Usually the folder is not empty yet.
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
            format!("the bucket's directory {root} is missing (no {MARKER} in it): is it still mounted?");
        io::Error::new(io::ErrorKind::NotFound, text)
    }
}

/// How a lock file, or the marker, is opened. Even for a shared lock, some network file systems need a writable file.
fn lock_file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    options.mode(LOCK_FILE_MODE).custom_flags(objects::NEVER_WAIT);
    options
}

/// Creates the folder of the lock files, or closes an existing one to other users.
fn create_lock_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(LOCK_FOLDER_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        created => return created,
    }
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0
        && let Err(error) = fs::set_permissions(path, Permissions::from_mode(LOCK_FOLDER_MODE))
    {
        // Some mounts have fixed permissions.
        let folder = path.display();
        tracing::warn!(%folder, %error, impact = "other users can block listings", "lock folder not restricted");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All keys of one subject folder use the same lock stripe, and broader prefixes use none.
    #[test]
    fn local_bucket_folder_and_objects_share_lock() {
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

    /// A read returns a file, or its size if over the limit; a missing bucket directory is an error, not an absent
    /// object.
    #[test]
    fn local_bucket_reads_only_files_and_detects_missing_root() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("bucket");
        fs::create_dir(&root).unwrap();
        let directory = LocalDirectory::open(root.clone()).unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/c"), "1234").unwrap();
        assert_eq!(directory.read_object("a/c", 4).unwrap(), Some(Ok(b"1234".to_vec())));
        assert_eq!(directory.read_object("a/c", 3).unwrap(), Some(Err(4)));
        assert!(directory.read_object("a/b", 4).is_err(), "a folder");
        assert_eq!(directory.read_object("a/d", 4).unwrap(), None);
        fs::remove_dir_all(&root).unwrap();
        let error = directory.read_object("a/c", 4).unwrap_err();
        assert!(error.to_string().contains("is it still mounted?"), "{error}");
    }

    /// The lock stripe of a folder is a fixed value that all versions share.
    #[test]
    fn local_bucket_lock_stripe_is_stable_across_versions() {
        assert_eq!(
            stripe_of("subjects/app.orders/").map(|stripe| format!("{stripe:02x}")).as_deref(),
            Some("19")
        );
    }

    /// A thousand subject folders use every lock stripe.
    #[test]
    fn local_bucket_lock_stripes_are_all_used() {
        let used: std::collections::BTreeSet<_> =
            (0..1_000).map(|n| stripe_of(&format!("subjects/app.{n}/"))).collect();
        assert_eq!(used.len() as u64, STRIPES);
    }
}
