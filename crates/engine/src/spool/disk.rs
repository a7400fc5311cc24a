//! The files of uploads, as a port: the file system, or a fake disk that is full.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Stores uploads until they are in the bucket. All methods block. Nothing is synced: the digest check detects bytes
/// that a power loss has destroyed.
pub(crate) trait SpoolDisk: fmt::Debug + Send + Sync {
    /// Makes `bytes` the content of the file from `at` on. The file ends at `at`, or did before a failed write. Creates
    /// the file if it does not exist.
    fn append(&self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Removes a file; a missing file is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The files in `folder` and their sizes, ascending by name. Creates the folder if it does not exist.
    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>>;
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SpoolFiles;

impl SpoolDisk for SpoolFiles {
    fn append(&self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        // Not `append`: a failed write may have left the file longer, so it is truncated first.
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        file.set_len(at)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(at))?;
        file.write_all(bytes)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>> {
        fs::create_dir_all(folder)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // The spool creates only files; a file system has folders of its own at its root.
            if !entry.file_type()?.is_file() {
                continue;
            }
            files.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()));
        }
        files.sort_unstable();
        Ok(files)
    }
}
