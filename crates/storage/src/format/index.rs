//! The index of a sealed log: for each subject, in which slots and where its entries are.

use std::cmp::Ordering;

use bytes::Bytes;
use dormouse_protocol::{LogId, Slot, Subject};

use super::line::{self, LINE_BYTES};
use super::read::{Reader, Write, check_start, slice};
use super::segment::IndexLine;
use super::{Fault, FormatError, crc32c};
use crate::checksum::Crc64;
use crate::keys::{LogKeys, Nonce};

/// What every index begins with.
pub const MAGIC: &[u8; 8] = b"DORMINDX";

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// Bytes of the end: where the table of subjects is, how many they are, and the checksums.
const END_BYTES: usize = 8 + 8 + 8 + 4;

/// Bytes of a subject's place in the table.
const PLACE_BYTES: usize = 8;

/// Whose an index is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexHeader {
    /// The log.
    pub log: LogId,
    /// The slot of the seal that ends it: the index knows every data slot that existed below it.
    pub seal: Slot,
    /// Tells it from any other index of the same log.
    pub nonce: Nonce,
}

/// Writes an index of the given lines, in any order; a subject has at most one line per slot.
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
    let mut places = Vec::new();
    for group in lines.chunk_by(|(_, line), (_, next)| line.subject == next.subject) {
        places.push(bytes.len() as u64);
        bytes.put_subject(&group[0].1.subject);
        bytes.put(&(group.len() as u32).to_le_bytes());
        for (slot, each) in group {
            bytes.put(&slot.get().to_le_bytes());
            line::put(&mut bytes, each);
        }
    }
    let table = bytes.len() as u64;
    for place in &places {
        bytes.put(&place.to_le_bytes());
    }
    let end = bytes.len();
    bytes.put(&table.to_le_bytes());
    bytes.put(&(places.len() as u64).to_le_bytes());
    let checksum = Crc64::of(&bytes);
    bytes.put(&checksum.to_u64().to_le_bytes());
    let end_checksum = crc32c(&bytes[end..]);
    bytes.put(&end_checksum.to_le_bytes());
    bytes.into()
}

/// An index as it was read. It stays in its bytes, and everything in it was looked at once: so a large one costs no
/// more memory than its size, and looking something up cannot fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogIndex {
    header: IndexHeader,
    bytes: Bytes,
    table: usize,
    subjects: usize,
}

impl LogIndex {
    /// Reads the index of `log`.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] when the bytes are not what [`encode`] wrote for this log,
    /// [`FormatError::UnsupportedVersion`] when a newer version wrote them.
    pub fn decode(log: &LogId, bytes: Bytes) -> Result<Self, FormatError> {
        Self::read(log, bytes).map_err(|fault| fault.of(LogKeys::new(log).index()))
    }

    fn read(log: &LogId, bytes: Bytes) -> Result<Self, Fault> {
        let mut reader = Reader::new(&bytes);
        check_start(&mut reader, MAGIC, FORMAT)?;
        let header = IndexHeader { seal: reader.slot()?, nonce: reader.nonce()?, log: reader.log()? };
        let first = bytes.len() - reader.rest().len();
        let end_at = bytes.len().checked_sub(END_BYTES).filter(|at| *at >= first);
        let end_at = end_at.ok_or_else(|| Fault::damaged("ends too early"))?;
        let mut end = Reader::new(&bytes[end_at..]);
        let (table, subjects) = (end.u64()?, end.u64()?);
        let checksum = end.crc64()?;
        if end.u32()? != crc32c(&bytes[end_at..bytes.len() - 4])
            || checksum != Crc64::of(&bytes[..end_at + 2 * PLACE_BYTES])
        {
            return Err(Fault::damaged("has a wrong checksum"));
        }
        if header.log != *log {
            return Err(Fault::damaged(format!("belongs to the log {}", header.log)));
        }
        let table_bytes = slice(&bytes, table..end_at as u64)
            .filter(|places| table >= first as u64 && (places.len() / PLACE_BYTES) as u64 == subjects);
        let places = table_bytes.ok_or_else(|| Fault::damaged("has no table of subjects where it says"))?;
        let table = end_at - places.len();
        check_groups(&bytes[first..table], first as u64, places, header.seal)?;
        let subjects = places.len() / PLACE_BYTES;
        Ok(Self { header, table, subjects, bytes })
    }

    /// Whose it is.
    #[must_use]
    pub const fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// How many subjects have entries in the log.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.subjects
    }

    /// Whether no subject has.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.subjects == 0
    }

    /// The subjects that have entries in the log, sorted.
    pub fn subjects(&self) -> impl Iterator<Item = Subject> {
        (0..self.subjects).filter_map(|at| self.group(at).subject().ok())
    }

    /// The first subject after `after`, by name; the very first without one.
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

    /// Where a subject's entries are, by slot; empty when it has none.
    #[must_use]
    pub fn lines_of(&self, subject: &Subject) -> Vec<(Slot, IndexLine)> {
        let (mut low, mut high) = (0, self.subjects);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut group = self.group(middle);
            match group.subject_text().unwrap_or_default().cmp(subject.as_str()) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                // Everything in it was read once already.
                Ordering::Equal => return read_lines(&mut group, subject).unwrap_or_default(),
            }
        }
        Vec::new()
    }

    fn group(&self, at: usize) -> Reader<'_> {
        let place = Reader::new(&self.bytes[self.table + at * PLACE_BYTES..]).u64().unwrap_or_default();
        Reader::new(slice(&self.bytes, place..self.table as u64).unwrap_or_default())
    }
}

fn read_lines(group: &mut Reader<'_>, subject: &Subject) -> Result<Vec<(Slot, IndexLine)>, Fault> {
    let count = group.u32()?;
    let mut lines: Vec<(Slot, IndexLine)> =
        Vec::with_capacity((count as usize).min(group.rest().len() / LINE_BYTES));
    for _ in 0..count {
        let slot = group.slot()?;
        if lines.last().is_some_and(|(before, _)| *before >= slot) {
            return Err(Fault::damaged("has lines that are not sorted"));
        }
        lines.push((slot, line::read(group, subject.clone())?));
    }
    Ok(lines)
}

/// Walks over all groups: they are sorted, each is where the table says, and nothing else is there.
fn check_groups(groups: &[u8], first: u64, places: &[u8], seal: Slot) -> Result<(), Fault> {
    let (mut groups, mut places) = (Reader::new(groups), Reader::new(places));
    let length = groups.rest().len();
    let mut before: Option<Subject> = None;
    while !places.rest().is_empty() {
        let place = places.u64()?;
        if place != first + (length - groups.rest().len()) as u64 {
            return Err(Fault::damaged("has a subject that is not where its table says"));
        }
        let subject = groups.subject()?;
        if before.is_some_and(|before| before >= subject) {
            return Err(Fault::damaged("has subjects that are not sorted"));
        }
        let lines = read_lines(&mut groups, &subject)?;
        if lines.last().is_none_or(|(slot, _)| *slot >= seal) {
            return Err(Fault::damaged("has a subject without entries below the seal"));
        }
        before = Some(subject);
    }
    if groups.rest().is_empty() { Ok(()) } else { Err(Fault::damaged("has more than its table says")) }
}
