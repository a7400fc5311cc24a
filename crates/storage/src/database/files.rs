//! The files of a database, as files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Removes a database file and its companions. What is not there is fine.
///
/// # Errors
/// The first error of the operating system.
pub fn remove_files(path: &Path) -> io::Result<()> {
    // The companion must never outlive the file beside a new file of the same name: SQLite would replay it. So
    // whoever puts a file in place calls this first.
    for file in
        [path.to_owned(), companion(path, "-wal"), companion(path, "-shm"), companion(path, "-journal")]
    {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Lets the file at `incoming` take the place of the database at `path`, if there is one. Nothing is synced.
///
/// # Errors
/// The first error of the operating system. There may then be no file at `path`.
pub fn put_in_place(incoming: &Path, path: &Path) -> io::Result<()> {
    remove_files(path)?;
    fs::rename(incoming, path)
}

/// Makes the names in a folder survive a loss of power.
///
/// # Errors
/// What the operating system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The path of a file that SQLite keeps beside the database at `path`.
#[must_use]
pub fn companion(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
