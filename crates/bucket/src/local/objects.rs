//! Reads of objects in a local directory. Another program can put anything in place of an object: a folder, a named pipe,
//! a symbolic link that leads nowhere. Each is an error that names it. None blocks a thread.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use dormouse_format::keys::BucketKey;
use rustix::fs::OFlags;

use super::LocalDirectory;

/// Opening a named pipe returns at once. For a regular file the flag has no effect.
pub(super) const NEVER_WAIT: i32 = OFlags::NONBLOCK.bits().cast_signed();

const LOOP: &str = "a symbolic link that leads in a circle";

/// What a listing finds under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    /// A folder, with objects below it.
    Folder,
    /// An object, or anything else in place of one: a read of it reports what it is.
    Object {
        /// Its size in bytes; 0 if it is no regular file.
        size_bytes: u64,
    },
}

/// The result of a read of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RangeRead {
    /// The bytes of the range.
    Bytes(Vec<u8>),
    /// The object ends before the range does: its size in bytes.
    TooShort(u64),
}

impl LocalDirectory {
    /// Opens an object for reading and returns its size; `None` if there is no such object.
    pub(crate) fn open_object(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        let path = self.root().join(name);
        let file = match OpenOptions::new().read(true).custom_flags(NEVER_WAIT).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Anything else at the path was created since.
                if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink()) {
                    return Err(damaged(name, "a symbolic link that leads nowhere"));
                }
                return self.check_present().map(|()| None);
            }
            Err(error) => return Err(named(name, &path, error)),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(damaged(name, kind_of(&metadata)));
        }
        Ok(Some((file, metadata.len())))
    }

    /// Reads an object into memory; returns only its size if that is above `most_bytes`.
    pub(crate) fn read_object(
        &self,
        name: &str,
        most_bytes: u64,
    ) -> io::Result<Option<Result<Vec<u8>, u64>>> {
        let Some((file, size_bytes)) = self.open_object(name)? else { return Ok(None) };
        if size_bytes > most_bytes {
            return Ok(Some(Err(size_bytes)));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0));
        file.take(most_bytes).read_to_end(&mut bytes)?;
        Ok(Some(Ok(bytes)))
    }

    /// Reads a range of an object, which the caller has limited; `None` if there is no such object.
    pub(crate) fn read_range(&self, name: &str, range: &Range<u64>) -> io::Result<Option<RangeRead>> {
        let Some((file, size_bytes)) = self.open_object(name)? else { return Ok(None) };
        if size_bytes < range.end {
            return Ok(Some(RangeRead::TooShort(size_bytes)));
        }
        let mut bytes = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(Some(RangeRead::Bytes(bytes)))
    }

    /// Explains the refusal of a create because something of this name exists.
    pub(super) fn check_existing(&self, name: &str) -> io::Result<()> {
        // A folder, a pipe or a broken link is an error. An object that was deleted since is none.
        self.open_object(name).map(drop)
    }
}

/// What a listing finds at `path`; `None` if it is gone.
pub(super) fn listed(path: &Path, key: &BucketKey) -> io::Result<Option<Listed>> {
    let entry = |metadata: fs::Metadata| {
        if metadata.is_dir() && !is_object(key.as_str()) {
            Listed::Folder
        } else {
            Listed::Object { size_bytes: if metadata.is_file() { metadata.len() } else { 0 } }
        }
    };
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(entry(metadata))),
        // A symbolic link that leads nowhere, or in a circle; or an entry that was created since.
        Err(error) => match fs::symlink_metadata(path) {
            Ok(metadata) => Ok(Some(entry(metadata))),
            Err(_) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(_) => Err(error),
        },
    }
}

/// Whether the layout of a bucket has an object under this name, and so no folder.
fn is_object(key: &str) -> bool {
    let mut parts = key.split('/');
    let (top, _, name, below) = (parts.next(), parts.next(), parts.next(), parts.next());
    match (top, name, below) {
        (Some("subjects"), Some("blobs"), below) => below.is_some(),
        (Some("subjects" | "logs" | "lost"), name, _) => name.is_some(),
        _ => false,
    }
}

/// Explains why a folder cannot be listed.
pub(super) fn explain_folder(prefix: &str, error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::NotADirectory => damaged(prefix, "something that is not a folder"),
        _ if is_loop(&error) => damaged(prefix, LOOP),
        _ => error,
    }
}

fn is_loop(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

fn kind_of(metadata: &fs::Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// An error of the operating system that means that something is in place of an object, or of one of its folders.
fn named(name: &str, path: &Path, error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::NotADirectory => damaged(name, "below something that is not a folder"),
        _ if is_loop(&error) => damaged(name, LOOP),
        // A socket cannot be opened.
        _ => match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => damaged(name, kind_of(&metadata)),
            _ => error,
        },
    }
}

/// Logs that something is in place of an object, and returns the error.
fn damaged(name: &str, what: &str) -> io::Error {
    tracing::error!(name, found = what, "bucket entry has the wrong type");
    io::Error::new(ErrorKind::InvalidData, format!("{what} is in its place"))
}

#[cfg(test)]
mod tests;
