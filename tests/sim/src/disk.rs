//! The folders that act as the disks of machines, and the faults of a disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::rng::SeededRng;

/// The size of an atomic disk write, in bytes.
const SECTOR_BYTES: usize = 512;

/// Creates a folder for the disks of one run, in memory if the machine has a memory file system.
///
/// # Errors
/// If the operating system reports one.
pub fn temp_folder() -> io::Result<TempDir> {
    let shared_memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("dormouse-sim-");
    if shared_memory.is_dir() { builder.tempdir_in(shared_memory) } else { builder.tempdir() }
}

/// Replaces `to` by a copy of `from`. If `from` does not exist, `to` is removed: a server that was stopped in its first
/// step has no folder yet.
///
/// # Errors
/// If the operating system reports one.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    remove(to)?;
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    fs::create_dir_all(to)?;
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Removes a folder with its contents, if it exists.
///
/// # Errors
/// If the operating system reports one.
pub fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Simulates a loss of power. SQLite has synced nothing, so each of its files keeps a prefix, with random sectors of it
/// zeroed.
///
/// # Errors
/// If the operating system reports one.
pub fn tear(subjects: &Path, rng: &SeededRng) -> io::Result<()> {
    for path in files(subjects)? {
        let mut bytes = fs::read(&path)?;
        bytes.truncate(usize::try_from(rng.below(bytes.len() as u64 + 1)).unwrap_or(usize::MAX));
        for sector in bytes.chunks_mut(SECTOR_BYTES) {
            if rng.below(4) == 0 {
                sector.fill(0);
            }
        }
        fs::write(&path, bytes)?;
    }
    Ok(())
}

/// Returns the files in a folder and its subfolders, in order of their names.
///
/// # Errors
/// If the operating system reports one.
pub fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copying a missing folder removes the target folder.
    #[test]
    fn folder_copy_of_missing_source_removes_the_target() {
        let folder = temp_folder().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir(&to).unwrap();
        copy(&from, &to).unwrap();
        assert!(!to.exists());
    }
}
