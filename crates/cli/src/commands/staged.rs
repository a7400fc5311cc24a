//! Files that appear complete or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Failure, FailureKind};

/// A temporary file in its own directory beside the target. It becomes the target in one step.
///
/// A drop before that removes the directory with the file and its SQLite sidecars.
#[derive(Debug)]
pub(super) struct StagedFile<'a> {
    folder: TempDir,
    file: &'a Path,
    force: bool,
}

impl<'a> StagedFile<'a> {
    /// Creates the directory, still empty. `force` allows to replace an existing file.
    ///
    /// # Errors
    /// The file exists and may not be replaced, or the directory cannot be created.
    pub(super) fn beside(file: &'a Path, force: bool) -> Result<Self, Failure> {
        refuse_existing(file, force)?;
        let folder = tempfile::Builder::new()
            .prefix(file.file_name().unwrap_or_default())
            .suffix(".partial")
            .tempdir_in(folder_of(file))
            .map_err(|error| cannot_write(file, &error))?;
        Ok(Self { folder, file, force })
    }

    /// The path to write to.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("file")
    }

    /// Moves the written file to the target, and returns its size in bytes.
    ///
    /// # Errors
    /// The target exists by now and may not be replaced, or cannot be written.
    pub(super) fn put_in_place(self) -> Result<u64, Failure> {
        let (staged, file) = (self.path(), self.file);
        // Neither the client nor SQLite has synced the file, and the user relies on the reported success.
        let whole = fs::File::open(&staged).and_then(|file| file.sync_all().and_then(|()| file.metadata()));
        let size_bytes = whole.map_err(|error| cannot_write(file, &error))?.len();
        self.place(&staged)?;
        fs::File::open(folder_of(file))
            .and_then(|folder| folder.sync_all())
            .map_err(|error| cannot_write(file, &error))?;
        Ok(size_bytes)
    }

    fn place(&self, staged: &Path) -> Result<(), Failure> {
        let file = self.file;
        if self.force {
            return fs::rename(staged, file).map_err(|error| cannot_write(file, &error));
        }
        // Unlike a rename, a link does not replace a file that was created meanwhile. Not every file system supports
        // links.
        let linked = match fs::hard_link(staged, file) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => copy_new(staged, file),
            linked => linked,
        };
        linked.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(file),
            _ => cannot_write(file, &error),
        })
    }
}

/// Rejects an existing file, unless it may be replaced.
///
/// # Errors
/// The file exists and may not be replaced.
pub(super) fn refuse_existing(file: &Path, force: bool) -> Result<(), Failure> {
    if !force && file.exists() { Err(exists(file)) } else { Ok(()) }
}

/// Listener for Ctrl-C and SIGTERM. Without it, these signals would leave a [`StagedFile`] behind.
#[derive(Debug)]
pub(super) struct Interruption {
    interrupt: Signal,
    terminate: Signal,
}

impl Interruption {
    /// Starts to listen.
    ///
    /// # Errors
    /// The operating system rejects the signal handler.
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::new(format!("cannot listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Runs `work`. A signal drops it.
    ///
    /// # Errors
    /// The errors of the work, or the interruption.
    pub(super) async fn or<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = work => done,
            _ = self.interrupt.recv() => Err(interrupted()),
            _ = self.terminate.recv() => Err(interrupted()),
        }
    }
}

fn interrupted() -> Failure {
    Failure::new("interrupted: nothing was written")
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Copies to a file that must not exist yet. A copy that fails is removed.
fn copy_new(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = fs::File::open(from)?;
    let mut copy = fs::File::create_new(to)?;
    io::copy(&mut source, &mut copy).and_then(|_| copy.sync_all()).inspect_err(|_| {
        // This call has created the file.
        let _ = fs::remove_file(to);
    })
}

fn cannot_write(file: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot write {}: {error}", file.display()))
}

fn exists(file: &Path) -> Failure {
    Failure::of(FailureKind::Conflict, format!("{} exists: --force replaces it", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A staged file replaces an existing file only with force, and leaves no other file behind.
    #[test]
    fn staged_file_replaces_existing_file_only_with_force() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("s.sqlite3");
        let write = |force| {
            let staged = StagedFile::beside(&file, force)?;
            assert_eq!(staged.path().parent().unwrap().parent(), file.parent());
            fs::write(staged.path(), "new").unwrap();
            Ok::<_, Failure>(staged)
        };
        let too_late = write(false).unwrap();
        fs::write(&file, "old").unwrap();
        assert_eq!(too_late.put_in_place().unwrap_err().kind(), FailureKind::Conflict);
        assert_eq!(write(false).unwrap_err().kind(), FailureKind::Conflict);
        let forced = write(true).unwrap();
        assert_eq!(copy_new(&forced.path(), &file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(forced.put_in_place().unwrap(), 3);
        assert_eq!(fs::read(&file).unwrap(), b"new");
        let copy = root.path().join("copy.sqlite3");
        copy_new(&file, &copy).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), b"new");
        // No other file is left.
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }
}
