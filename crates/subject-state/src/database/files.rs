//! File operations on a database and its sidecars.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Removes a database file and its sidecars. Missing files are not an error.
///
/// # Errors
/// The first error of the operating system.
pub fn remove_files(path: &Path) -> io::Result<()> {
    // A sidecar must never remain beside a new file of the same name: SQLite would replay it. So a caller
    // that puts a file in place calls this first.
    for file in [
        path.to_owned(),
        sidecar_path(path, "-wal"),
        sidecar_path(path, "-shm"),
        sidecar_path(path, "-journal"),
    ] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Moves the file at `incoming` to `path` and replaces any database there. Nothing is synced.
///
/// # Errors
/// The first error of the operating system. There may then be no file at `path`.
pub fn put_in_place(incoming: &Path, path: &Path) -> io::Result<()> {
    remove_files(path)?;
    fs::rename(incoming, path)
}

/// The path of a sidecar of the database at `path`.
#[must_use]
pub fn sidecar_path(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
