//! The resolved subjects of an orphaned log: they need nothing from its write-ahead log any more.

use std::collections::HashSet;
use std::path::Path;

use dormouse_protocol::{LogId, Subject};
use dormouse_runtime::disk::{Disk, DiskFile, write_all};

use super::record::{PartRecord, RecordContext, decode, encode_header, encode_record};
use super::{Lsn, WalError};

const PREFIX: &str = "settled-";

/// The number in the header of the `index`th such file: no part number reaches it.
const fn number(index: u64) -> u64 {
    u64::MAX - index
}

fn file_index(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.strip_suffix(".wal")?.parse().ok()
}

/// A damaged or torn file resolves fewer subjects: the others are checked once more.
pub(super) fn read_resolved(
    disk: &dyn Disk,
    folder: &Path,
    log: &LogId,
    names: &[String],
) -> Result<HashSet<Subject>, WalError> {
    let mut resolved = HashSet::new();
    for name in names {
        let Some(index) = file_index(name) else { continue };
        let path = folder.join(name);
        let bytes = disk.read(&path).map_err(WalError::access(&path))?;
        let Ok(part) = decode(log, number(index), &bytes) else { continue };
        resolved.extend(part.records.into_iter().filter_map(|record| match record {
            PartRecord::Resolved(subject) => Some(subject),
            _ => None,
        }));
    }
    Ok(resolved)
}

/// Records, beside the write-ahead log of an ended process, which subjects are resolved.
#[derive(Debug)]
pub struct ResolvedSubjects {
    file: Box<dyn DiskFile>,
    path: std::path::PathBuf,
    context: RecordContext,
    length: u64,
}

impl ResolvedSubjects {
    /// Creates a file of resolved subjects of `log`. Blocks.
    ///
    /// # Errors
    /// [`WalError::Access`].
    pub fn create(disk: &dyn Disk, dir: &Path, log: &LogId) -> Result<Self, WalError> {
        let folder = dir.join(log.to_string());
        let names = disk.list(&folder).map_err(WalError::access(&folder))?;
        let index = names.iter().filter_map(|name| file_index(name)).max().unwrap_or(0) + 1;
        let path = folder.join(format!("{PREFIX}{index:08}.wal"));
        let header = encode_header(log, number(index), Lsn::ZERO);
        let create = || {
            let mut file = disk.create(&path)?;
            write_all(file.as_mut(), &header)?;
            Ok(file)
        };
        let file = create().map_err(WalError::access(&path))?;
        Ok(Self { file, path, context: RecordContext::new(log, number(index)), length: header.len() as u64 })
    }

    /// Records that `subject` is resolved; the record survives a loss of power. Blocks.
    ///
    /// # Errors
    /// [`WalError::Access`]: after a restart the subject may be checked once more, and later records in this file are
    /// not readable.
    pub fn mark_resolved(&mut self, subject: &Subject) -> Result<(), WalError> {
        let mut bytes = Vec::new();
        encode_record(&mut bytes, &self.context, self.length, 0, &PartRecord::Resolved(subject.clone()));
        write_all(self.file.as_mut(), &bytes)
            .and_then(|()| self.file.sync_data())
            .map_err(WalError::access(&self.path))?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}
