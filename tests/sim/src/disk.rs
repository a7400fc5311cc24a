//! The folders that stand for the disks of machines, and what may befall a disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::dice::Dice;

/// What a disk writes at once, in bytes.
const SECTOR_BYTES: usize = 512;

/// A folder for the disks of one run, in memory where the machine has such a place.
///
/// # Errors
/// What the operating system says.
pub fn room() -> io::Result<TempDir> {
    let shared_memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("dormouse-sim-");
    if shared_memory.is_dir() { builder.tempdir_in(shared_memory) } else { builder.tempdir() }
}

/// Replaces `to` by a copy of `from`, or by nothing where `from` is not there: a server that was stopped in its first
/// step has not made its folder yet.
///
/// # Errors
/// What the operating system says.
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

/// Removes a folder with all that is in it, if there is one.
///
/// # Errors
/// What the operating system says.
pub fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The power goes: SQLite has synced nothing, so each of its files keeps a beginning, with random sectors of it zeroed.
///
/// # Errors
/// What the operating system says.
pub fn tear(subjects: &Path, dice: &Dice) -> io::Result<()> {
    for path in files(subjects)? {
        let mut bytes = fs::read(&path)?;
        bytes.truncate(usize::try_from(dice.below(bytes.len() as u64 + 1)).unwrap_or(usize::MAX));
        for sector in bytes.chunks_mut(SECTOR_BYTES) {
            if dice.below(4) == 0 {
                sector.fill(0);
            }
        }
        fs::write(&path, bytes)?;
    }
    Ok(())
}

/// The files in a folder and below it, in order of their names.
///
/// # Errors
/// What the operating system says.
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

    #[test]
    fn the_copy_of_a_folder_that_is_not_there_is_none() {
        let room = room().unwrap();
        let (from, to) = (room.path().join("from"), room.path().join("to"));
        fs::create_dir(&to).unwrap();
        copy(&from, &to).unwrap();
        assert!(!to.exists());
    }
}
