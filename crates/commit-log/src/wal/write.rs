//! Writing: groups of appends, markers, and the parts that hold them.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dormouse_protocol::{LogId, Slot};
use dormouse_runtime::disk::{Disk, DiskFile, write_all};

use super::error::is_full;
use super::record::{PartRecord, RecordContext, encode_header, encode_record};
use super::{Lsn, ShippedUpTo, WalAppend, WalError};

/// Length at which the next part is created.
const PART_BYTES: u64 = 64 << 20;

/// Maximum size of the buffer kept between groups.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

/// The name of a part within its log's folder.
pub(super) fn part_name(number: u64) -> String {
    format!("{number:08}.wal")
}

/// The write-ahead log of this process. All methods block.
///
/// After [`WalError::DiskFull`] its state is as before the call. After [`WalError::Poisoned`] nothing more may be
/// acknowledged: the disk's content is unknown.
#[derive(Debug)]
pub struct Wal {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    log: LogId,
    /// Parts that are complete and synced, oldest first.
    earlier: VecDeque<EarlierPart>,
    part: CurrentPart,
    part_bytes: u64,
    last: Lsn,
    shipped: Option<ShippedUpTo>,
    buffer: Vec<u8>,
    poisoned: Option<String>,
}

#[derive(Debug)]
struct EarlierPart {
    path: PathBuf,
    last: Lsn,
}

#[derive(Debug)]
struct CurrentPart {
    number: u64,
    context: RecordContext,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    length: u64,
    synced: u64,
    /// The shipped position that this part itself records.
    marked: Lsn,
}

impl CurrentPart {
    fn create(
        disk: &dyn Disk,
        folder: &Path,
        log: &LogId,
        number: u64,
        before: Lsn,
    ) -> Result<Self, WalError> {
        let path = folder.join(part_name(number));
        let failed = |source: io::Error| {
            if is_full(&source) {
                WalError::DiskFull { path: path.clone(), source }
            } else {
                WalError::Access { path: path.clone(), source }
            }
        };
        let mut file = disk.create(&path).map_err(failed)?;
        let header = encode_header(log, number, before);
        write_all(file.as_mut(), &header).map_err(failed)?;
        let context = RecordContext::new(log, number);
        Ok(Self { number, context, path, file, length: header.len() as u64, synced: 0, marked: Lsn::ZERO })
    }
}

impl Wal {
    /// Creates the write-ahead log of a new log: `dir/<log id>/`. Blocks.
    ///
    /// # Errors
    /// [`WalError::DiskFull`], [`WalError::Access`] (also if the log has one already).
    pub fn create(dir: &Path, log: &LogId, disk: Arc<dyn Disk>) -> Result<Self, WalError> {
        let folder = dir.join(log.to_string());
        disk.create_folder(&folder).map_err(WalError::access(&folder))?;
        let part = CurrentPart::create(disk.as_ref(), &folder, log, 1, Lsn::ZERO)?;
        Ok(Self {
            disk,
            folder,
            log: log.clone(),
            earlier: VecDeque::new(),
            part,
            part_bytes: PART_BYTES,
            last: Lsn::ZERO,
            shipped: None,
            buffer: Vec::new(),
            poisoned: None,
        })
    }

    /// The log.
    #[must_use]
    pub const fn log(&self) -> &LogId {
        &self.log
    }

    /// Sets the length at which the next part is created.
    #[cfg(test)]
    pub(super) fn with_part_bytes(mut self, part_bytes: u64) -> Self {
        self.part_bytes = part_bytes;
        self
    }

    /// Writes a group atomically, with one write. It survives the end of the process, not yet a loss of power. Blocks.
    ///
    /// # Errors
    /// [`WalError::DiskFull`], [`WalError::Poisoned`]; [`WalError::Refused`] when an append is too long or its number
    /// is not above the earlier ones.
    pub fn write(&mut self, group: &[WalAppend]) -> Result<(), WalError> {
        let mut last = self.last;
        for append in group {
            if append.lsn <= last {
                let reason = format!("{} does not come after {last}", append.lsn);
                return Err(WalError::Refused { reason });
            }
            last = append.lsn;
        }
        self.put(group.iter().map(|append| PartRecord::Append(append.clone())))?;
        self.last = last;
        Ok(())
    }

    /// Makes all writes so far survive a loss of power. Blocks.
    ///
    /// # Errors
    /// [`WalError::Poisoned`].
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.check()?;
        if self.part.synced == self.part.length {
            return Ok(());
        }
        match self.part.file.sync_data() {
            Ok(()) => {
                self.part.synced = self.part.length;
                Ok(())
            }
            Err(error) => Err(self.poison("a sync", &error)),
        }
    }

    /// Records that everything up to `through` is in the bucket, in slots up to `slot`. A lost marker costs only a
    /// bucket read. Blocks.
    ///
    /// # Errors
    /// As [`Wal::write`]. The marker may be missing; the log continues.
    pub fn mark_shipped(&mut self, through: Lsn, slot: Slot) -> Result<(), WalError> {
        let shipped = ShippedUpTo { through, slot };
        self.shipped = Some(shipped);
        self.write_marker(shipped)
    }

    /// Records that these appends were reported as failed: no later run applies them. The record survives a loss of
    /// power only after [`Wal::sync`]. Blocks.
    ///
    /// # Errors
    /// As [`Wal::write`]. Then the appends may be applied after a restart, and their outcome must be reported as
    /// unknown.
    pub fn mark_failed(&mut self, lsns: &[Lsn]) -> Result<(), WalError> {
        let mut sorted = lsns.to_vec();
        sorted.sort_unstable();
        let mut ranges: Vec<(Lsn, Lsn)> = Vec::new();
        for lsn in sorted {
            match ranges.last_mut() {
                Some((_, last)) if lsn <= last.next() => *last = lsn,
                _ => ranges.push((lsn, lsn)),
            }
        }
        if ranges.is_empty() { Ok(()) } else { self.put([PartRecord::Failed(ranges)]) }
    }

    /// Removes the parts in which everything is shipped. Blocks.
    ///
    /// # Errors
    /// [`WalError::Poisoned`], [`WalError::DiskFull`]; [`WalError::Access`] when a file cannot be removed. The next
    /// call removes the rest.
    pub fn discard_shipped(&mut self) -> Result<(), WalError> {
        let Some(shipped) = self.shipped else { return Ok(()) };
        let done = |part: &&EarlierPart| part.last <= shipped.through;
        let Some(last) = self.earlier.iter().take_while(done).last().map(|part| part.last) else {
            return Ok(());
        };
        // Without a marker on the disk, the missing part would count as lost.
        if self.part.marked < last {
            self.write_marker(shipped)?;
        }
        self.sync()?;
        while let Some(part) = self.earlier.front().filter(done) {
            self.disk.remove(&part.path).map_err(WalError::access(&part.path))?;
            self.earlier.pop_front();
        }
        Ok(())
    }

    fn write_marker(&mut self, shipped: ShippedUpTo) -> Result<(), WalError> {
        self.put([PartRecord::Shipped(shipped)])?;
        self.part.marked = shipped.through;
        Ok(())
    }

    fn put(&mut self, records: impl IntoIterator<Item = PartRecord>) -> Result<(), WalError> {
        self.check()?;
        if self.part.length >= self.part_bytes {
            self.begin_part()?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut records = records.into_iter();
        let part = &self.part;
        let written = if records
            .all(|record| encode_record(&mut buffer, &part.context, part.length, part.synced, &record))
        {
            self.put_bytes(&buffer)
        } else {
            Err(WalError::Refused { reason: "a record is too long".to_owned() })
        };
        if buffer.capacity() <= KEPT_BUFFER_BYTES {
            self.buffer = buffer;
        }
        written
    }

    fn put_bytes(&mut self, bytes: &[u8]) -> Result<(), WalError> {
        let error = match write_all(self.part.file.as_mut(), bytes) {
            Ok(()) => {
                self.part.length += bytes.len() as u64;
                return Ok(());
            }
            Err(error) => error,
        };
        if !is_full(&error) {
            return Err(self.poison("a write", &error));
        }
        // Records of a failed group must not reappear, neither after the end of the process nor after a loss of power.
        let part = &mut self.part;
        match part.file.set_len(part.length).and_then(|()| part.file.sync_data()) {
            Ok(()) => {
                part.synced = part.length;
                Err(WalError::DiskFull { path: part.path.clone(), source: error })
            }
            Err(error) => Err(self.poison("removal of a partial write", &error)),
        }
    }

    /// The previous part is synced first: bad bytes in a part other than the last are damage.
    fn begin_part(&mut self) -> Result<(), WalError> {
        self.sync()?;
        let number = self.part.number + 1;
        // A file left by an attempt on a full disk.
        let path = self.folder.join(part_name(number));
        self.disk.remove(&path).map_err(WalError::access(&path))?;
        let part = CurrentPart::create(self.disk.as_ref(), &self.folder, &self.log, number, self.last)?;
        let full = std::mem::replace(&mut self.part, part);
        self.earlier.push_back(EarlierPart { path: full.path, last: self.last });
        Ok(())
    }

    fn check(&self) -> Result<(), WalError> {
        self.poisoned.clone().map_or(Ok(()), |reason| Err(WalError::Poisoned { reason }))
    }

    fn poison(&mut self, doing: &str, error: &io::Error) -> WalError {
        let reason = format!("{doing} failed on {}: {error}", self.part.path.display());
        tracing::error!(
            log = %self.log, reason, impact = "no acknowledgements until restart",
            "WAL poisoned"
        );
        self.poisoned = Some(reason.clone());
        WalError::Poisoned { reason }
    }
}
