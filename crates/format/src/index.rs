//! The index of a sealed log: for each subject, the slots and positions of its entries.

use std::cmp::Ordering;

use bytes::Bytes;
use dormouse_protocol::{LogId, Slot, Subject};

use crate::checksum::{Crc64, crc32c};
use crate::keys::{LogKeys, Nonce};
use crate::line::{self, IndexLine, LINE_BYTES};
use crate::read::{ByteReader, PutExt, check_start, slice};
use crate::{DecodeFault, FormatError};

/// Magic bytes at the start of every index.
pub const MAGIC: &[u8; 8] = b"DORMINDX";

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// Bytes of the end: position of the table of subjects, number of subjects, and the checksums.
const END_BYTES: usize = 8 + 8 + 8 + 4;

/// Bytes of a subject's offset in the table.
const OFFSET_BYTES: usize = 8;

/// The header of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexHeader {
    /// The log.
    pub log: LogId,
    /// The slot of the seal that ends the log: the index covers every data slot that existed below it.
    pub seal: Slot,
    /// Distinguishes it from any other index of the same log.
    pub nonce: Nonce,
}

/// Encodes an index of the given lines, in any order; a subject has at most one line per slot.
#[must_use]
pub fn encode(header: &IndexHeader, mut lines: Vec<(Slot, IndexLine)>) -> Bytes {
    lines
        .sort_by(|(slot, line), (next_slot, next)| line.subject.cmp(&next.subject).then(slot.cmp(next_slot)));
    let mut bytes = Vec::with_capacity(256 + lines.len() * (8 + LINE_BYTES));
    bytes.put(MAGIC);
    bytes.put(&FORMAT.to_le_bytes());
    bytes.put(&header.seal.get().to_le_bytes());
    bytes.put(&header.nonce.to_bytes());
    bytes.put_log(&header.log);
    let mut offsets = Vec::new();
    for group in lines.chunk_by(|(_, line), (_, next)| line.subject == next.subject) {
        offsets.push(bytes.len() as u64);
        bytes.put_subject(&group[0].1.subject);
        bytes.put(&(group.len() as u32).to_le_bytes());
        for (slot, each) in group {
            bytes.put(&slot.get().to_le_bytes());
            line::put(&mut bytes, each);
        }
    }
    let table = bytes.len() as u64;
    for offset in &offsets {
        bytes.put(&offset.to_le_bytes());
    }
    let end = bytes.len();
    bytes.put(&table.to_le_bytes());
    bytes.put(&(offsets.len() as u64).to_le_bytes());
    let checksum = Crc64::of(&bytes);
    bytes.put(&checksum.to_u64().to_le_bytes());
    let end_checksum = crc32c(&bytes[end..]);
    bytes.put(&end_checksum.to_le_bytes());
    bytes.into()
}

/// A decoded index. It stays in its encoded form, and decoding has checked all of it. So an index costs no more memory
/// than its size, and a lookup cannot fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogIndex {
    header: IndexHeader,
    bytes: Bytes,
    table: usize,
    subjects: usize,
}

impl LogIndex {
    /// Decodes the index of `log`.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] if the bytes are not the output of [`encode`] for this log,
    /// [`FormatError::UnsupportedVersion`] if a newer version wrote them.
    pub fn decode(log: &LogId, bytes: Bytes) -> Result<Self, FormatError> {
        Self::read(log, bytes).map_err(|fault| fault.of(LogKeys::new(log).index()))
    }

    fn read(log: &LogId, bytes: Bytes) -> Result<Self, DecodeFault> {
        let mut reader = ByteReader::new(&bytes);
        check_start(&mut reader, MAGIC, FORMAT)?;
        let header = IndexHeader { seal: reader.slot()?, nonce: reader.nonce()?, log: reader.log()? };
        let first = bytes.len() - reader.rest().len();
        let end_at = bytes.len().checked_sub(END_BYTES).filter(|at| *at >= first);
        let end_at = end_at.ok_or_else(|| DecodeFault::damaged("ends too early"))?;
        let mut end = ByteReader::new(&bytes[end_at..]);
        let (table, subjects) = (end.u64()?, end.u64()?);
        let checksum = end.crc64()?;
        if end.u32()? != crc32c(&bytes[end_at..bytes.len() - 4])
            || checksum != Crc64::of(&bytes[..end_at + 2 * OFFSET_BYTES])
        {
            return Err(DecodeFault::damaged("has a wrong checksum"));
        }
        if header.log != *log {
            return Err(DecodeFault::damaged(format!("belongs to the log {}", header.log)));
        }
        let table_bytes = slice(&bytes, table..end_at as u64)
            .filter(|offsets| table >= first as u64 && (offsets.len() / OFFSET_BYTES) as u64 == subjects);
        let offsets = table_bytes
            .ok_or_else(|| DecodeFault::damaged("has no table of subjects at its stated position"))?;
        let table = end_at - offsets.len();
        check_groups(&bytes[first..table], first as u64, offsets, header.seal)?;
        let subjects = offsets.len() / OFFSET_BYTES;
        Ok(Self { header, table, subjects, bytes })
    }

    /// The header of the index.
    #[must_use]
    pub const fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// Number of subjects with entries in the log.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.subjects
    }

    /// Whether no subject has entries in the log.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.subjects == 0
    }

    /// The subjects that have entries in the log, sorted.
    pub fn subjects(&self) -> impl Iterator<Item = Subject> {
        (0..self.subjects).filter_map(|at| self.group(at).subject().ok())
    }

    /// The first subject after `after`, by name; without `after`, the first of all.
    #[must_use]
    pub fn subject_after(&self, after: Option<&Subject>) -> Option<Subject> {
        let (mut low, mut high) = (0, self.subjects);
        while let Some(after) = after.filter(|_| low < high) {
            let middle = low + (high - low) / 2;
            if self.group(middle).subject_text().unwrap_or_default() <= after.as_str() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (low < self.subjects).then(|| self.group(low).subject().ok()).flatten()
    }

    /// The positions of a subject's entries, by slot; empty if it has none.
    #[must_use]
    pub fn lines_of(&self, subject: &Subject) -> Vec<(Slot, IndexLine)> {
        let (mut low, mut high) = (0, self.subjects);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut group = self.group(middle);
            match group.subject_text().unwrap_or_default().cmp(subject.as_str()) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                // Decoding has checked the group already.
                Ordering::Equal => return read_lines(&mut group, subject).unwrap_or_default(),
            }
        }
        Vec::new()
    }

    fn group(&self, at: usize) -> ByteReader<'_> {
        let offset = ByteReader::new(&self.bytes[self.table + at * OFFSET_BYTES..]).u64().unwrap_or_default();
        ByteReader::new(slice(&self.bytes, offset..self.table as u64).unwrap_or_default())
    }
}

fn read_lines(group: &mut ByteReader<'_>, subject: &Subject) -> Result<Vec<(Slot, IndexLine)>, DecodeFault> {
    let count = group.u32()?;
    let mut lines: Vec<(Slot, IndexLine)> =
        Vec::with_capacity((count as usize).min(group.rest().len() / LINE_BYTES));
    for _ in 0..count {
        let slot = group.slot()?;
        if lines.last().is_some_and(|(before, _)| *before >= slot) {
            return Err(DecodeFault::damaged("has lines that are not sorted"));
        }
        lines.push((slot, line::read(group, subject.clone())?));
    }
    Ok(lines)
}

/// Checks all groups: they are sorted, each is at its offset in the table, and there are no other bytes.
fn check_groups(groups: &[u8], first: u64, offsets: &[u8], seal: Slot) -> Result<(), DecodeFault> {
    let (mut groups, mut offsets) = (ByteReader::new(groups), ByteReader::new(offsets));
    let length = groups.rest().len();
    let mut before: Option<Subject> = None;
    while !offsets.rest().is_empty() {
        let offset = offsets.u64()?;
        if offset != first + (length - groups.rest().len()) as u64 {
            return Err(DecodeFault::damaged("has a subject that is not at its offset in the table"));
        }
        let subject = groups.subject()?;
        if before.is_some_and(|before| before >= subject) {
            return Err(DecodeFault::damaged("has subjects that are not sorted"));
        }
        let lines = read_lines(&mut groups, &subject)?;
        if lines.last().is_none_or(|(slot, _)| *slot >= seal) {
            return Err(DecodeFault::damaged("has a subject without entries below the seal"));
        }
        before = Some(subject);
    }
    if groups.rest().is_empty() {
        Ok(())
    } else {
        Err(DecodeFault::damaged("has bytes that are not in its table"))
    }
}
