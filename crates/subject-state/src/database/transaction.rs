//! A transaction of several entries, applied in slices.

use dormouse_format::entry::LogEntry;
use dormouse_format::record::{RecordOp, SetOperation};

use super::apply::{ApplyProgress, inline_bytes};
use super::slice::Slice;
use super::{Database, DatabaseError};

/// Entries that are applied to a file in one transaction, and how far. Between two slices the transaction is open:
/// nothing else may read or change the file, because it holds only a part of the entries.
#[derive(Debug)]
pub struct ApplyTransaction {
    entries: Vec<LogEntry>,
    next: usize,
    progress: ApplyProgress,
    begun: bool,
    /// Whether entries that the state contains are skipped.
    is_replay: bool,
}

impl ApplyTransaction {
    /// A transaction that has not begun. The entries are in order of rev.
    #[must_use]
    pub fn new(entries: Vec<LogEntry>) -> Self {
        Self { entries, next: 0, progress: ApplyProgress::default(), begun: false, is_replay: false }
    }

    /// The same, for entries of which the state may contain the first ones: they are skipped.
    #[must_use]
    pub fn replay(entries: Vec<LogEntry>) -> Self {
        Self { is_replay: true, ..Self::new(entries) }
    }

    /// Applies one slice; the last one commits. Returns whether all entries are in the file.
    ///
    /// # Errors
    /// As [`Database::apply`] and [`Database::commit`]. Nothing is committed then, and the caller must call
    /// [`Database::rollback`].
    pub fn apply_slice(&mut self, database: &mut Database, slice: &mut Slice) -> Result<bool, DatabaseError> {
        if !self.begun {
            database.begin()?;
            self.begun = true;
        }
        while let Some(entry) = self.entries.get(self.next) {
            if slice.is_spent() {
                return Ok(false);
            }
            if self.is_replay && self.progress.is_new() && database.contains(entry)? {
                slice.count(0);
                self.next += 1;
                continue;
            }
            if !database.apply_slice(entry, &mut self.progress, slice)? {
                return Ok(false);
            }
            self.progress = ApplyProgress::default();
            self.next += 1;
        }
        database.commit()?;
        Ok(true)
    }

    /// Whether one slice applies all of it, unless the values that it replaces or removes fill the slice: their sizes are
    /// only known to the file.
    #[must_use]
    pub fn fits_slice(&self) -> bool {
        let mut slice = Slice::new();
        let mut count = |set: &SetOperation| slice.count(inline_bytes(set));
        let mut other = 0;
        for operation in self.entries.iter().flat_map(|entry| &entry.operations) {
            match operation {
                RecordOp::Set(set) => count(set),
                RecordOp::Batch { sets } => sets.iter().for_each(&mut count),
                RecordOp::Delete { removed, .. } => other += removed.len(),
                RecordOp::DeleteAll { .. } => return false,
                RecordOp::Configure { .. } => other += 1,
            }
        }
        !slice.is_spent() && slice.fits(other, 0)
    }

    /// The entries.
    #[must_use]
    pub fn into_entries(self) -> Vec<LogEntry> {
        self.entries
    }
}

#[cfg(test)]
mod tests;
