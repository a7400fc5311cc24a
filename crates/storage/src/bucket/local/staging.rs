//! Creating a file whole or not at all, and what a crash half way leaves behind.
//!
//! A file is written under a staged name, `<key>#<number>`, and then linked to its own, which fails if that is taken.
//! A process that ends in between leaves the staged file. No lock tells whether its writer still lives: it may be
//! suspended, on another machine. So what is taken away must not matter to a living writer, and that is why the number
//! is random. A name that came back would let a writer that slept link another's half-written file under its own key;
//! a name that never comes back lets it find nothing, and try again.

use std::fs::{self, DirEntry, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::LocalDirectory;
use crate::bucket::{BucketKey, Created};

/// How long nobody may have written to a staged file before it is taken for a leftover.
const LEFTOVER_AGE: Duration = Duration::from_secs(3_600);

/// How much of a key its staged name shows, so that the name stays legal for a file. In bytes.
const SHOWN_BYTES: usize = 200;

/// How often a folder may be taken away under a create before it gives up.
const ATTEMPTS: usize = 3;

impl LocalDirectory {
    /// Creates an object unless one of this name exists. When it returns, what is there outlives a loss of power.
    /// `number` must be random. Blocks.
    pub(in crate::bucket) fn create(
        &self,
        key: &BucketKey,
        bytes: &[u8],
        number: u64,
    ) -> io::Result<Created> {
        self.check_present()?;
        let target = self.root().join(key.as_str());
        let (folder, name) = key.as_str().rsplit_once('/').unwrap_or(("", key.as_str()));
        let shown = &name[..name.len().min(SHOWN_BYTES)];
        let staged = self.root().join(folder).join(format!("{shown}#{number}"));
        let (file, staged) = self.stage(folder, staged)?;
        let created = fill(file, bytes).and_then(|()| link(&staged, &target));
        // If it stays, it is a leftover like any other.
        fs::remove_file(&staged).ok();
        // Also where it existed: it may be our own, linked a moment ago by an attempt that did not get this far.
        let created = created?;
        // No longer a refusal, whatever kind of error it is: the object is there.
        sync_folder(&self.root().join(folder)).map_err(io::Error::other)?;
        Ok(created)
    }

    fn stage(&self, folder: &str, path: PathBuf) -> io::Result<(File, PathBuf)> {
        let mut attempts = 0..ATTEMPTS;
        loop {
            match File::create_new(&path) {
                // Empty probe folders are removed by whoever empties them.
                Err(error) if error.kind() == ErrorKind::NotFound && attempts.next().is_some() => {
                    self.create_folders(folder)?;
                }
                opened => return opened.map(|file| (file, path)),
            }
        }
    }

    /// Makes the folders down to this one; never the bucket's own directory.
    fn create_folders(&self, folder: &str) -> io::Result<()> {
        let mut path = self.root().to_owned();
        for part in folder.split('/') {
            let above = path.clone();
            path.push(part);
            match fs::create_dir(&path) {
                Ok(()) => sync_folder(&above)?,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                // Taken away again from under us: the next attempt makes it.
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

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes a file that a listing came across if it is a leftover: staged, and long untouched at `wall`, the time since
/// the Unix epoch. That fails or not; the next listing sees it again.
pub(super) fn sweep(entry: &DirEntry, wall: Duration) {
    let name = entry.file_name();
    // What comes before the number is always (the beginning of) a key: `to do #3` is a person's.
    let is_staged = name.to_str().and_then(|name| name.rsplit_once('#')).is_some_and(|(shown, number)| {
        BucketKey::new(shown).is_ok()
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    if !is_staged {
        return;
    }
    let touched = entry.metadata().ok().filter(fs::Metadata::is_file).and_then(|found| found.modified().ok());
    let touched = touched.and_then(|touched| touched.duration_since(std::time::UNIX_EPOCH).ok());
    if touched.is_some_and(|touched| touched + LEFTOVER_AGE <= wall) {
        let path = entry.path();
        match fs::remove_file(&path) {
            Ok(()) => {
                tracing::info!(file = %path.display(), "removed what an unfinished upload had left behind");
            }
            Err(error) => {
                tracing::debug!(file = %path.display(), %error, "what an unfinished upload left behind stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_writer_whose_staged_file_was_swept_links_nothing() {
        let folder = TempDir::new().unwrap();
        let directory = LocalDirectory::open(folder.path().to_owned()).unwrap();
        let key = BucketKey::new("logs/a/1").unwrap();
        let target = folder.path().join(key.as_str());
        let (file, staged) = {
            directory.create_folders("logs/a").unwrap();
            directory.stage("logs/a", target.with_file_name("1#77")).unwrap()
        };
        // It is suspended; its file is taken away; another writer of the same key is half way.
        fs::remove_file(&staged).unwrap();
        let (_half_way, _) = directory.stage("logs/a", target.with_file_name("1#78")).unwrap();
        let resumed = fill(file, b"slept").and_then(|()| link(&staged, &target));
        assert_eq!(resumed.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!target.exists());
        assert_eq!(directory.create(&key, b"awake", 79).unwrap(), Created::New);
        assert_eq!(fs::read(&target).unwrap(), b"awake");
    }

    #[test]
    fn a_staged_name_that_is_taken_is_not_shared() {
        let folder = TempDir::new().unwrap();
        let directory = LocalDirectory::open(folder.path().to_owned()).unwrap();
        let key = BucketKey::new("slot").unwrap();
        fs::write(folder.path().join("slot#5"), "another's, half writ").unwrap();
        assert_eq!(directory.create(&key, b"ours", 5).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(!folder.path().join("slot").exists());
        assert_eq!(fs::read(folder.path().join("slot#5")).unwrap(), b"another's, half writ");
        assert_eq!(directory.create(&key, b"ours", 6).unwrap(), Created::New);
    }

    #[test]
    fn a_create_leaves_its_object_and_nothing_else() {
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
