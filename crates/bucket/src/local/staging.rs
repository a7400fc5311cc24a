//! Atomic creation of a file, and removal of the leftovers of a crash.
//!
//! A file is written under a staged name, `<key>#<number>`, and then linked to its final name, which fails if that
//! exists. A process that ends in between leaves the staged file. No lock shows whether its writer still runs: it may
//! be suspended, on another machine. So the removal of a staged file must be safe for a live writer; for that, the
//! number is random. If a staged name could occur twice, a suspended writer could link another writer's partial file
//! under its own key. With a unique name it finds no file, and retries.

use std::fs::{self, DirEntry, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_format::keys::BucketKey;
use dormouse_runtime::disk::sync_folder;

use super::LocalDirectory;
use crate::Created;

/// Age since the last write after which a staged file counts as a leftover.
const LEFTOVER_AGE: Duration = Duration::from_secs(3_600);

/// Length of the key's prefix in the staged name, so that the name stays legal for a file. In bytes.
const SHOWN_BYTES: usize = 200;

/// How often a folder may be removed during a create before the create fails.
const ATTEMPTS: usize = 3;

impl LocalDirectory {
    /// Creates an object unless one of this name exists. When the call returns, the object survives a power loss.
    /// `number` must be random. Blocks.
    pub(crate) fn create(&self, key: &BucketKey, bytes: &[u8], number: u64) -> io::Result<Created> {
        self.check_present()?;
        let target = self.root().join(key.as_str());
        let (folder, name) = key.as_str().rsplit_once('/').unwrap_or(("", key.as_str()));
        let shown = &name[..name.len().min(SHOWN_BYTES)];
        let staged = self.root().join(folder).join(format!("{shown}#{number}"));
        let (file, staged) = self.stage(folder, staged)?;
        let created = fill(file, bytes).and_then(|()| link(&staged, &target));
        // If the removal fails, the file becomes a leftover.
        fs::remove_file(&staged).ok();
        // Also if it existed: it may be our own object, linked by an attempt that ended before the sync.
        let created = created?;
        if created == Created::Exists {
            self.check_existing(key.as_str())?;
        }
        // The object exists, so no error kind may count as a refusal.
        sync_folder(&self.root().join(folder)).map_err(io::Error::other)?;
        Ok(created)
    }

    fn stage(&self, folder: &str, path: PathBuf) -> io::Result<(File, PathBuf)> {
        let mut attempts = 0..ATTEMPTS;
        loop {
            match File::create_new(&path) {
                // Another process may remove an empty folder of its conformance check.
                Err(error) if error.kind() == ErrorKind::NotFound && attempts.next().is_some() => {
                    self.create_folders(folder)?;
                }
                opened => return opened.map(|file| (file, path)),
            }
        }
    }

    /// Creates the folders down to this one; never the bucket's own directory.
    fn create_folders(&self, folder: &str) -> io::Result<()> {
        let mut path = self.root().to_owned();
        for part in folder.split('/') {
            let above = path.clone();
            path.push(part);
            match fs::create_dir(&path) {
                Ok(()) => sync_folder(&above)?,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                // Another process removed the parent: the next attempt creates it.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn fill(mut file: File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

fn link(staged: &Path, target: &Path) -> io::Result<Created> {
    match fs::hard_link(staged, target) {
        Ok(()) => Ok(Created::New),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Created::Exists),
        Err(error) => Err(error),
    }
}

/// Removes a file that a listing has found if it is a leftover: staged, and not written for a long time at `wall`, the
/// time since the Unix epoch. If the removal fails, the next listing retries it.
pub(super) fn sweep(entry: &DirEntry, wall: Duration) {
    let name = entry.file_name();
    // The part before the number is a key or its beginning. A name such as `to do #3` is no staged file.
    let is_staged = name.to_str().and_then(|name| name.rsplit_once('#')).is_some_and(|(shown, number)| {
        BucketKey::new(shown).is_ok()
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    if !is_staged {
        return;
    }
    let modified =
        entry.metadata().ok().filter(fs::Metadata::is_file).and_then(|found| found.modified().ok());
    let modified = modified.and_then(|modified| modified.duration_since(std::time::UNIX_EPOCH).ok());
    if modified.is_some_and(|modified| modified + LEFTOVER_AGE <= wall) {
        let path = entry.path();
        match fs::remove_file(&path) {
            Ok(()) => {
                tracing::info!(file = %path.display(), "leftover of an unfinished upload removed");
            }
            Err(error) => {
                tracing::debug!(file = %path.display(), %error, "leftover of an unfinished upload not removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// If a staged file is swept, its suspended writer links nothing, and a new create succeeds.
    #[test]
    fn staged_file_swept_before_link_creates_no_object() {
        let folder = TempDir::new().unwrap();
        let directory = LocalDirectory::open(folder.path().to_owned()).unwrap();
        let key = BucketKey::new("logs/a/1").unwrap();
        let target = folder.path().join(key.as_str());
        let (file, staged) = {
            directory.create_folders("logs/a").unwrap();
            directory.stage("logs/a", target.with_file_name("1#77")).unwrap()
        };
        // The writer is suspended; its file is removed; another writer of the same key has a partial file.
        fs::remove_file(&staged).unwrap();
        let (_partial, _) = directory.stage("logs/a", target.with_file_name("1#78")).unwrap();
        let resumed = fill(file, b"resumed").and_then(|()| link(&staged, &target));
        assert_eq!(resumed.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!target.exists());
        assert_eq!(directory.create(&key, b"retried", 79).unwrap(), Created::New);
        assert_eq!(fs::read(&target).unwrap(), b"retried");
    }

    /// A create with a staged name that exists fails and leaves the other writer's staged file unchanged.
    #[test]
    fn staged_file_name_collision_fails_the_create() {
        let folder = TempDir::new().unwrap();
        let directory = LocalDirectory::open(folder.path().to_owned()).unwrap();
        let key = BucketKey::new("slot").unwrap();
        fs::write(folder.path().join("slot#5"), "partial file of another writer").unwrap();
        assert_eq!(directory.create(&key, b"ours", 5).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(!folder.path().join("slot").exists());
        assert_eq!(fs::read(folder.path().join("slot#5")).unwrap(), b"partial file of another writer");
        assert_eq!(directory.create(&key, b"ours", 6).unwrap(), Created::New);
    }

    /// A create leaves the first object and no staged file, even if the key exists already.
    #[test]
    fn local_create_leaves_object_and_no_staged_file() {
        let folder = TempDir::new().unwrap();
        let directory = LocalDirectory::open(folder.path().to_owned()).unwrap();
        let long = "k".repeat(255);
        for (number, name) in [(1, "deep/er/slot"), (2, "slot"), (u64::MAX, long.as_str())] {
            let key = BucketKey::new(name).unwrap();
            assert_eq!(directory.create(&key, b"first", number).unwrap(), Created::New);
            assert_eq!(directory.create(&key, b"second", number).unwrap(), Created::Exists);
            let target = folder.path().join(name);
            assert_eq!(fs::read(&target).unwrap(), b"first");
            let staged =
                |entry: io::Result<DirEntry>| entry.unwrap().file_name().to_str().unwrap().contains('#');
            assert!(!fs::read_dir(target.parent().unwrap()).unwrap().any(staged), "{name}");
        }
    }
}
