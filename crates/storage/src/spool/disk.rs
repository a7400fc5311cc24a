//! The files of uploads, as a port: the file system, or one without room.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Where uploads are kept until they are in the bucket. All methods block. Nothing is synced: what a loss of power takes,
/// the digest finds out.
pub(crate) trait SpoolDisk: fmt::Debug + Send + Sync {
    /// Makes `bytes` the content of the file from `at` on, where it ends now or ended before a write that failed. Creates
    /// the file if there is none.
    fn append(&self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Removes a file; that there is none is fine.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The files in `folder` and their sizes, ascending by name. Makes the folder if there is none.
    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>>;
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SpoolFiles;

impl SpoolDisk for SpoolFiles {
    fn append(&self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        // Not `append`: a file that a failed write has left longer is cut first.
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
            // What is no file is none of ours: a file system has a folder of its own at its top.
            if !entry.file_type()?.is_file() {
                continue;
            }
            files.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()));
        }
        files.sort_unstable();
        Ok(files)
    }
}
