//! Which subjects need nothing any more from the write-ahead log of a dead process.

use std::collections::HashSet;
use std::path::Path;

use dormouse_protocol::{LogId, Subject};

use super::record::{PartRecord, Place, decode, encode_header, encode_record};
use super::write::write_all;
use super::{Lsn, WalError, WalFile, WalStorage};

const PREFIX: &str = "settled-";

/// The number of the `index`th such file in its header: no part comes that far.
const fn number(index: u64) -> u64 {
    u64::MAX - index
}

fn file_index(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.strip_suffix(".wal")?.parse().ok()
}

/// A damaged or torn file settles less: its subjects are looked at once more.
pub(super) fn read_settled(
    storage: &dyn WalStorage,
    folder: &Path,
    log: &LogId,
    names: &[String],
) -> Result<HashSet<Subject>, WalError> {
    let mut settled = HashSet::new();
    for name in names {
        let Some(index) = file_index(name) else { continue };
        let path = folder.join(name);
        let bytes = storage.read(&path).map_err(WalError::access(&path))?;
        let Ok(part) = decode(log, number(index), &bytes) else { continue };
        settled.extend(part.records.into_iter().filter_map(|record| match record {
            PartRecord::Settled(subject) => Some(subject),
            _ => None,
        }));
    }
    Ok(settled)
}

/// Notes, beside the write-ahead log of a dead process, which subjects are settled.
#[derive(Debug)]
pub struct SettledSubjects {
    file: Box<dyn WalFile>,
    path: std::path::PathBuf,
    place: Place,
    length: u64,
}

impl SettledSubjects {
    /// Begins a file for notes about `log`. Blocks.
    ///
    /// # Errors
    /// [`WalError::Access`].
    pub fn begin(storage: &dyn WalStorage, dir: &Path, log: &LogId) -> Result<Self, WalError> {
        let folder = dir.join(log.to_string());
        let names = storage.list(&folder).map_err(WalError::access(&folder))?;
        let index = names.iter().filter_map(|name| file_index(name)).max().unwrap_or(0) + 1;
        let path = folder.join(format!("{PREFIX}{index:08}.wal"));
        let header = encode_header(log, number(index), Lsn::ZERO);
        let create = || {
            let mut file = storage.create(&path)?;
            write_all(file.as_mut(), &header)?;
            Ok(file)
        };
        let file = create().map_err(WalError::access(&path))?;
        Ok(Self { file, path, place: Place::new(log, number(index)), length: header.len() as u64 })
    }

    /// Notes that `subject` is settled; survives a loss of power. Blocks.
    ///
    /// # Errors
    /// [`WalError::Access`]: the subject may be looked at once more after a restart, and this file takes no more notes
    /// that can be read.
    pub fn settle(&mut self, subject: &Subject) -> Result<(), WalError> {
        let mut bytes = Vec::new();
        encode_record(&mut bytes, &self.place, self.length, 0, &PartRecord::Settled(subject.clone()));
        write_all(self.file.as_mut(), &bytes)
            .and_then(|()| self.file.sync_data())
            .map_err(WalError::access(&self.path))?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}
