//! The local disk as an input: the file system, or an unreliable one in tests.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;

/// Folders and files whose names and bytes must survive a loss of power. All methods block.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Creates a folder and its parents; succeeds if it exists. Its name survives a loss of power.
    ///
    /// # Errors
    /// The operating system's error.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;

    /// Creates a file that must not exist. Its name survives a loss of power.
    ///
    /// # Errors
    /// The operating system's error.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// The names of the files and folders in `folder`, in no order; none if there is no such folder. Names that are not
    /// Unicode are left out.
    ///
    /// # Errors
    /// The operating system's error.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Reads a whole file.
    ///
    /// # Errors
    /// The operating system's error.
    fn read(&self, path: &Path) -> io::Result<Bytes>;

    /// Removes a file; succeeds if there is none.
    ///
    /// # Errors
    /// The operating system's error.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Renames a folder; the new name survives a loss of power.
    ///
    /// # Errors
    /// The operating system's error.
    fn rename_folder(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes an empty folder; succeeds if there is none.
    ///
    /// # Errors
    /// The operating system's error.
    fn remove_folder(&self, folder: &Path) -> io::Result<()>;
}

/// A file, open for appending. All methods block.
pub trait DiskFile: fmt::Debug + Send {
    /// Appends some of `bytes`, at least one, and returns how many.
    ///
    /// # Errors
    /// The operating system's error; nothing was written.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Makes everything written so far survive a loss of power.
    ///
    /// # Errors
    /// The operating system's error. The disk's content is unknown from then on.
    fn sync_data(&mut self) -> io::Result<()>;

    /// Truncates the file.
    ///
    /// # Errors
    /// The operating system's error.
    fn set_len(&mut self, bytes: u64) -> io::Result<()>;
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        if let Some(above) = folder.parent() {
            self.create_folder(above)?;
        }
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        folder.parent().map_or(Ok(()), sync_folder)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().append(true).create_new(true).open(path)?;
        path.parent().map_or(Ok(()), sync_folder)?;
        Ok(Box::new(file))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = entries
            .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
            .collect::<io::Result<Vec<String>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn read(&self, path: &Path) -> io::Result<Bytes> {
        fs::read(path).map(Bytes::from)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        none_is_fine(fs::remove_file(path))
    }

    fn rename_folder(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)?;
        to.parent().map_or(Ok(()), sync_folder)
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        none_is_fine(fs::remove_dir(folder))
    }
}

fn none_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl DiskFile for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(self, bytes)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn set_len(&mut self, bytes: u64) -> io::Result<()> {
        Self::set_len(self, bytes)
    }
}

/// Writes all of `bytes`, with as many writes as it takes.
///
/// # Errors
/// The error of a write; `StorageFull` if a write takes no byte.
pub fn write_all(file: &mut dyn DiskFile, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::StorageFull.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Syncs a folder, so that its names survive a power loss.
///
/// # Errors
/// The error of the operating system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
