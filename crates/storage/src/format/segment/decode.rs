//! Reading a slot object: whole, or the parts that range requests bring.

use std::ops::Range;

use bytes::Bytes;
use dormouse_protocol::{LogId, Slot, Subject};

use super::{END_MAGIC, FOOTER_BYTES, FORMAT, IndexLine, MAGIC, SlotHeader, SlotKind};
use crate::checksum::Crc64;
use crate::entry::Entry;
use crate::format::line::{self, LINE_BYTES};
use crate::format::read::{Reader, check_start, check_version, slice};
use crate::format::{Fault, FormatError, crc32c, frame};
use crate::keys::LogKeys;

/// A slot object as it was read: all of its checksums are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotObject {
    /// Whose it is.
    pub header: SlotHeader,
    /// Its checksum, as the next slot's header names it.
    pub checksum: Crc64,
    /// Where each subject's block is, sorted by subject.
    pub lines: Vec<IndexLine>,
    /// All of it.
    pub bytes: Bytes,
}

impl SlotObject {
    /// Where the subject's block is; `None` when it has none.
    #[must_use]
    pub fn line_of(&self, subject: &Subject) -> Option<&IndexLine> {
        self.lines.binary_search_by(|line| line.subject.cmp(subject)).ok().map(|at| &self.lines[at])
    }

    /// The entries of a subject, in order; none when it has no block.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] when its block does not hold what the index says.
    pub fn entries_of(&self, subject: &Subject) -> Result<Vec<Entry>, FormatError> {
        match self.line_of(subject) {
            None => Ok(Vec::new()),
            Some(line) => {
                let block = self.frames_of(line);
                decode_block(&self.header.log, self.header.slot, line, &block)
            }
        }
    }

    /// The frames of one of its [`SlotObject::lines`], without a copy.
    #[must_use]
    pub fn frames_of(&self, line: &IndexLine) -> Bytes {
        slice(&self.bytes, line.range()).map(|block| self.bytes.slice_ref(block)).unwrap_or_default()
    }
}

/// Reads a whole slot object and checks everything but what the frames hold.
///
/// # Errors
/// [`FormatError::Corrupt`] when the bytes are not what [`encode`](super::encode) wrote for this log and slot,
/// [`FormatError::UnsupportedVersion`] when a newer version wrote them.
pub fn decode(log: &LogId, slot: Slot, bytes: Bytes) -> Result<SlotObject, FormatError> {
    read(log, slot, bytes).map_err(|fault| fault.of(LogKeys::new(log).slot(slot)))
}

fn read(log: &LogId, slot: Slot, bytes: Bytes) -> Result<SlotObject, Fault> {
    let mut reader = Reader::new(&bytes);
    let header = read_header(&mut reader, log, slot)?;
    let header_bytes = bytes.len() - reader.rest().len();
    let footer = read_footer(&bytes)?;
    let footer_at = bytes.len() - FOOTER_BYTES;
    if footer.index.end != footer_at as u64 || footer.index.start < header_bytes as u64 {
        return Err(Fault::damaged("has an index that is not where its footer says"));
    }
    // The footer's own checksums are not part of what it sums up.
    if Crc64::of(&bytes[..footer_at + CHECKSUM_AT]) != footer.checksum {
        return Err(Fault::damaged("has a wrong checksum"));
    }
    let index = slice(&bytes, footer.index.clone()).ok_or_else(|| Fault::damaged("ends too early"))?;
    let lines = read_lines(&footer, index)?;
    let mut at = header_bytes as u64;
    for line in &lines {
        let block = slice(&bytes, line.range()).filter(|_| line.offset == at);
        if block.map(crc32c) != Some(line.crc32c) {
            return Err(Fault::damaged(format!("has no sound block of {}", line.subject)));
        }
        at = line.range().end;
    }
    if at != footer.index.start || (header.kind == SlotKind::Data) == lines.is_empty() {
        return Err(Fault::damaged("has blocks that are not in its index, or should have some"));
    }
    Ok(SlotObject { header, checksum: footer.checksum, lines, bytes })
}

/// Reads the header from the front of a slot object:
/// [`MAX_HEADER_BYTES`](super::MAX_HEADER_BYTES) of it, or as many as it has.
///
/// # Errors
/// [`FormatError::Corrupt`] when no such header stands there, [`FormatError::UnsupportedVersion`] when a newer version
/// wrote it.
pub fn decode_header(log: &LogId, slot: Slot, front: &[u8]) -> Result<SlotHeader, FormatError> {
    read_header(&mut Reader::new(front), log, slot).map_err(|fault| fault.of(LogKeys::new(log).slot(slot)))
}

fn read_header(reader: &mut Reader<'_>, log: &LogId, slot: Slot) -> Result<SlotHeader, Fault> {
    let front = reader.rest();
    check_start(reader, MAGIC, FORMAT)?;
    let kind = reader.u8()?;
    let found = reader.slot()?;
    let (nonce, previous, owner) = (reader.nonce()?, reader.crc64()?, reader.log()?);
    let head = &front[..front.len() - reader.rest().len()];
    if reader.u32()? != crc32c(head) {
        return Err(Fault::damaged("has a header with a wrong checksum"));
    }
    let kind = SlotKind::of_code(kind).ok_or_else(|| Fault::damaged("is of no known kind"))?;
    if owner != *log || found != slot {
        return Err(Fault::damaged(format!("says that it is {found} of {owner}")));
    }
    let first = slot == Slot::new(0);
    if (kind == SlotKind::Birth && !first) || (kind == SlotKind::Data && first) {
        return Err(Fault::damaged("is in a slot where such an object cannot be"));
    }
    Ok(SlotHeader { kind, log: owner, slot, nonce, previous })
}

/// Where in the footer its checksums begin: what is before them is summed up in the first.
const CHECKSUM_AT: usize = 8 + 8 + 4 + 4;

/// The end of a slot object: says where the index is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// The bytes of the object that hold the index. They end where the footer begins.
    pub index: Range<u64>,
    /// The object's checksum.
    pub checksum: Crc64,
    lines: u32,
    index_crc32c: u32,
}

impl Footer {
    /// Reads the footer from the end of a slot object: its last [`FOOTER_BYTES`], or more.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] when no footer stands there, [`FormatError::UnsupportedVersion`] when a newer version
    /// wrote it.
    pub fn decode(log: &LogId, slot: Slot, tail: &[u8]) -> Result<Self, FormatError> {
        read_footer(tail).map_err(|fault| fault.of(LogKeys::new(log).slot(slot)))
    }

    /// Reads the index: the bytes of [`Footer::index`].
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] when they are not the index that this footer sums up.
    pub fn decode_index(&self, log: &LogId, slot: Slot, index: &[u8]) -> Result<Vec<IndexLine>, FormatError> {
        read_lines(self, index).map_err(|fault| fault.of(LogKeys::new(log).slot(slot)))
    }

    /// The object's size in bytes.
    #[must_use]
    pub const fn object_bytes(&self) -> u64 {
        self.index.end + FOOTER_BYTES as u64
    }
}

fn read_footer(tail: &[u8]) -> Result<Footer, Fault> {
    let footer: &[u8; FOOTER_BYTES] = tail.last_chunk().ok_or_else(|| Fault::damaged("ends too early"))?;
    let mut reader = Reader::new(footer);
    let (start, length) = (reader.u64()?, reader.u64()?);
    let (lines, index_crc32c) = (reader.u32()?, reader.u32()?);
    let checksum = reader.crc64()?;
    let summed = &footer[..FOOTER_BYTES - reader.rest().len()];
    let stated = reader.u32()?;
    let format = reader.u32()?;
    if reader.array::<8>()? != *END_MAGIC {
        return Err(Fault::damaged("does not end as a slot does"));
    }
    check_version(format, FORMAT)?;
    if stated != crc32c(summed) {
        return Err(Fault::damaged("has a footer with a wrong checksum"));
    }
    let end = start
        .checked_add(length)
        .filter(|end| end.checked_add(FOOTER_BYTES as u64).is_some())
        .ok_or_else(|| Fault::damaged("has an index beyond its end"))?;
    Ok(Footer { index: start..end, checksum, lines, index_crc32c })
}

fn read_lines(footer: &Footer, index: &[u8]) -> Result<Vec<IndexLine>, Fault> {
    if index.len() as u64 != footer.index.end - footer.index.start || crc32c(index) != footer.index_crc32c {
        return Err(Fault::damaged("has an index with a wrong checksum"));
    }
    let mut reader = Reader::new(index);
    // Not more lines than there can be in so many bytes, whatever their number is said to be.
    let mut lines: Vec<IndexLine> = Vec::with_capacity((footer.lines as usize).min(index.len() / LINE_BYTES));
    while !reader.rest().is_empty() {
        let subject = reader.subject()?;
        if lines.last().is_some_and(|before| before.subject >= subject) {
            return Err(Fault::damaged("has an index that is not sorted"));
        }
        lines.push(line::read(&mut reader, subject)?);
    }
    if lines.len() != footer.lines as usize {
        return Err(Fault::damaged("has another number of index lines than it says"));
    }
    Ok(lines)
}

/// Reads one block: the bytes of [`IndexLine::range`].
///
/// # Errors
/// [`FormatError::Corrupt`] when they are not the entries that the line announces.
pub fn decode_block(
    log: &LogId,
    slot: Slot,
    line: &IndexLine,
    block: &[u8],
) -> Result<Vec<Entry>, FormatError> {
    read_block(line, block).map_err(|fault| fault.of(LogKeys::new(log).slot(slot)))
}

fn read_block(line: &IndexLine, block: &[u8]) -> Result<Vec<Entry>, Fault> {
    if block.len() as u64 != line.length || crc32c(block) != line.crc32c {
        return Err(Fault::damaged(format!("has no sound block of {}", line.subject)));
    }
    let entries = frame::decode_all(block)?;
    frame::check_promise(&entries, line.entries, line.first_after, line.last_rev)?;
    Ok(entries)
}
