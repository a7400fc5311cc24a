//! Writing: groups of appends, markers, and the parts they go into.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dormouse_protocol::{LogId, Slot};

use super::error::is_full;
use super::record::{PartRecord, Place, encode_header, encode_record};
use super::{Lsn, Shipped, WalAppend, WalError, WalFile, WalStorage};

/// When a part is this long, the next one begins.
const PART_BYTES: u64 = 64 << 20;

/// What a buffer may keep between groups.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

/// The name of a part within its log's folder.
pub(super) fn part_name(number: u64) -> String {
    format!("{number:08}.wal")
}

/// The write-ahead log of this process. All methods block.
///
/// After [`WalError::DiskFull`] it is as it was before the call. After [`WalError::Poisoned`] nothing may be
/// acknowledged any more: what is on the disk is unknown.
#[derive(Debug)]
pub struct Wal {
    storage: Arc<dyn WalStorage>,
    folder: PathBuf,
    log: LogId,
    /// Parts that are complete and synced, oldest first.
    earlier: VecDeque<EarlierPart>,
    part: CurrentPart,
    part_bytes: u64,
    last: Lsn,
    shipped: Option<Shipped>,
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
    place: Place,
    path: PathBuf,
    file: Box<dyn WalFile>,
    length: u64,
    synced: u64,
    /// So far this very part says that the log was shipped.
    noted: Lsn,
}

impl CurrentPart {
    fn create(
        storage: &dyn WalStorage,
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
        let mut file = storage.create(&path).map_err(failed)?;
        let header = encode_header(log, number, before);
        write_all(file.as_mut(), &header).map_err(failed)?;
        let place = Place::new(log, number);
        Ok(Self { number, place, path, file, length: header.len() as u64, synced: 0, noted: Lsn::ZERO })
    }
}

/// Writes all of `bytes`, with as many writes as it takes.
pub(crate) fn write_all(file: &mut dyn WalFile, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::StorageFull.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Wal {
    /// Begins the write-ahead log of a fresh log: `dir/<log id>/`. Blocks.
    ///
    /// # Errors
    /// [`WalError::DiskFull`], [`WalError::Access`] (also when the log has one already).
    pub fn create(dir: &Path, log: &LogId, storage: Arc<dyn WalStorage>) -> Result<Self, WalError> {
        let folder = dir.join(log.to_string());
        storage.create_folder(&folder).map_err(WalError::access(&folder))?;
        let part = CurrentPart::create(storage.as_ref(), &folder, log, 1, Lsn::ZERO)?;
        Ok(Self {
            storage,
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

    /// Begins the next part at this length.
    #[cfg(test)]
    pub(super) fn with_part_bytes(mut self, part_bytes: u64) -> Self {
        self.part_bytes = part_bytes;
        self
    }

    /// Writes a group, all or nothing, with one write. It survives the end of the process, not yet a loss of power.
    /// Blocks.
    ///
    /// # Errors
    /// [`WalError::DiskFull`], [`WalError::Poisoned`]; [`WalError::Refused`] when an append is too long or its number
    /// not above the ones before.
    pub fn write(&mut self, group: &[WalAppend]) -> Result<(), WalError> {
        let mut last = self.last;
        for append in group {
            if append.lsn <= last {
                let what = format!("{} does not come after {last}", append.lsn);
                return Err(WalError::Refused { what });
            }
            last = append.lsn;
        }
        self.put(group.iter().map(|append| PartRecord::Append(append.clone())))?;
        self.last = last;
        Ok(())
    }

    /// What was written so far survives a loss of power. Blocks.
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

    /// Notes that everything up to `through` is in the bucket, in slots up to `slot`. A note that is lost costs
    /// nothing but a look into the bucket. Blocks.
    ///
    /// # Errors
    /// As [`Wal::write`]. The note may be missing; everything goes on.
    pub fn shipped(&mut self, through: Lsn, slot: Slot) -> Result<(), WalError> {
        let shipped = Shipped { through, slot };
        self.shipped = Some(shipped);
        self.note(shipped)
    }

    /// Notes that these appends were answered as failed: nobody will carry them out later. It survives a loss of
    /// power only after [`Wal::sync`]. Blocks.
    ///
    /// # Errors
    /// As [`Wal::write`]. Then they may be carried out after a restart, and the answer must be that nothing is known.
    pub fn failed(&mut self, lsns: &[Lsn]) -> Result<(), WalError> {
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

    /// Removes the parts that hold nothing that is not shipped. Blocks.
    ///
    /// # Errors
    /// [`WalError::Poisoned`], [`WalError::DiskFull`]; [`WalError::Access`] when a file cannot be removed. What is left
    /// goes next time.
    pub fn discard_shipped(&mut self) -> Result<(), WalError> {
        let Some(shipped) = self.shipped else { return Ok(()) };
        let done = |part: &&EarlierPart| part.last <= shipped.through;
        let Some(last) = self.earlier.iter().take_while(done).last().map(|part| part.last) else {
            return Ok(());
        };
        // Without a note that is on the disk, the missing part would look like a loss.
        if self.part.noted < last {
            self.note(shipped)?;
        }
        self.sync()?;
        while let Some(part) = self.earlier.front().filter(done) {
            self.storage.remove(&part.path).map_err(WalError::access(&part.path))?;
            self.earlier.pop_front();
        }
        Ok(())
    }

    fn note(&mut self, shipped: Shipped) -> Result<(), WalError> {
        self.put([PartRecord::Shipped(shipped)])?;
        self.part.noted = shipped.through;
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
            .all(|record| encode_record(&mut buffer, &part.place, part.length, part.synced, &record))
        {
            self.put_bytes(&buffer)
        } else {
            Err(WalError::Refused { what: "a record is too long".to_owned() })
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
        // Records of a group that failed must not come back, neither after the end of the process nor after a loss of
        // power.
        let part = &mut self.part;
        match part.file.set_len(part.length).and_then(|()| part.file.sync_data()) {
            Ok(()) => {
                part.synced = part.length;
                Err(WalError::DiskFull { path: part.path.clone(), source: error })
            }
            Err(error) => Err(self.poison("taking back a write", &error)),
        }
    }

    /// The part before is synced first: whatever is bad in a part that is not the last one is damage.
    fn begin_part(&mut self) -> Result<(), WalError> {
        self.sync()?;
        let number = self.part.number + 1;
        // What an attempt on a full disk may have left.
        let path = self.folder.join(part_name(number));
        self.storage.remove(&path).map_err(WalError::access(&path))?;
        let part = CurrentPart::create(self.storage.as_ref(), &self.folder, &self.log, number, self.last)?;
        let full = std::mem::replace(&mut self.part, part);
        self.earlier.push_back(EarlierPart { path: full.path, last: self.last });
        Ok(())
    }

    fn check(&self) -> Result<(), WalError> {
        self.poisoned.clone().map_or(Ok(()), |what| Err(WalError::Poisoned { what }))
    }

    fn poison(&mut self, doing: &str, error: &io::Error) -> WalError {
        let what = format!("{doing} failed on {}: {error}", self.part.path.display());
        tracing::error!(
            log = %self.log, what,
            "the write-ahead log cannot be trusted any more: nothing is acknowledged until a restart"
        );
        self.poisoned = Some(what.clone());
        WalError::Poisoned { what }
    }
}
