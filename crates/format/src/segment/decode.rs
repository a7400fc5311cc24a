//! Decodes a slot object: whole, or in the parts that range requests return.

use std::ops::Range;

use bytes::Bytes;
use dormouse_protocol::{LogId, Slot, Subject};

use super::{END_MAGIC, FOOTER_BYTES, FORMAT, IndexLine, MAGIC, SlotHeader, SlotKind};
use crate::checksum::{Crc64, crc32c};
use crate::entry::LogEntry;
use crate::keys::LogKeys;
use crate::line::{self, LINE_BYTES};
use crate::read::{ByteReader, check_start, check_version, slice};
use crate::{DecodeFault, FormatError, frame};

/// A decoded slot object: all of its checksums are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotObject {
    /// Its header.
    pub header: SlotHeader,
    /// Its checksum, which the next slot's header contains.
    pub checksum: Crc64,
    /// The position of each subject's block, sorted by subject.
    pub lines: Vec<IndexLine>,
    /// All bytes of the object.
    pub bytes: Bytes,
}

impl SlotObject {
    /// The position of the subject's block; `None` if it has none.
    #[must_use]
    pub fn line_of(&self, subject: &Subject) -> Option<&IndexLine> {
        self.lines.binary_search_by(|line| line.subject.cmp(subject)).ok().map(|at| &self.lines[at])
    }

    /// The entries of a subject, in order; none if it has no block.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] if its block does not match the index.
    pub fn entries_of(&self, subject: &Subject) -> Result<Vec<LogEntry>, FormatError> {
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

/// Decodes a whole slot object and checks all of it except the content of the frames.
///
/// # Errors
/// [`FormatError::Corrupt`] if the bytes are not the output of [`encode`](super::encode) for this log and slot,
/// [`FormatError::UnsupportedVersion`] if a newer version wrote them.
pub fn decode(log: &LogId, slot: Slot, bytes: Bytes) -> Result<SlotObject, FormatError> {
    read(log, slot, bytes).map_err(|fault| fault.of(LogKeys::new(log).slot(slot)))
}

fn read(log: &LogId, slot: Slot, bytes: Bytes) -> Result<SlotObject, DecodeFault> {
    let mut reader = ByteReader::new(&bytes);
    let header = read_header(&mut reader, log, slot)?;
    let header_bytes = bytes.len() - reader.rest().len();
    let footer = read_footer(&bytes)?;
    let footer_at = bytes.len() - FOOTER_BYTES;
    if footer.index.end != footer_at as u64 || footer.index.start < header_bytes as u64 {
        return Err(DecodeFault::damaged("has an index that is not at the position in its footer"));
    }
    // The checksum does not cover the footer's own checksums.
    if Crc64::of(&bytes[..footer_at + CHECKSUM_AT]) != footer.checksum {
        return Err(DecodeFault::damaged("has a wrong checksum"));
    }
    let index = slice(&bytes, footer.index.clone()).ok_or_else(|| DecodeFault::damaged("ends too early"))?;
    let lines = read_lines(&footer, index)?;
    let mut at = header_bytes as u64;
    for line in &lines {
        let block = slice(&bytes, line.range()).filter(|_| line.offset == at);
        if block.map(crc32c) != Some(line.crc32c) {
            return Err(DecodeFault::damaged(format!("has a damaged block of {}", line.subject)));
        }
        at = line.range().end;
    }
    if at != footer.index.start || (header.kind == SlotKind::Data) == lines.is_empty() {
        return Err(DecodeFault::damaged("has blocks that are not in its index, or lacks blocks"));
    }
    Ok(SlotObject { header, checksum: footer.checksum, lines, bytes })
}

/// Decodes the header from the front of a slot object: its first [`MAX_HEADER_BYTES`](super::MAX_HEADER_BYTES), or all
/// bytes of a shorter object.
///
/// # Errors
/// [`FormatError::Corrupt`] if the header is not that of this log and slot, [`FormatError::UnsupportedVersion`] if a
/// newer version wrote it.
pub fn decode_header(log: &LogId, slot: Slot, front: &[u8]) -> Result<SlotHeader, FormatError> {
    read_header(&mut ByteReader::new(front), log, slot)
        .map_err(|fault| fault.of(LogKeys::new(log).slot(slot)))
}

fn read_header(reader: &mut ByteReader<'_>, log: &LogId, slot: Slot) -> Result<SlotHeader, DecodeFault> {
    let front = reader.rest();
    check_start(reader, MAGIC, FORMAT)?;
    let kind = reader.u8()?;
    let found = reader.slot()?;
    let (nonce, previous, owner) = (reader.nonce()?, reader.crc64()?, reader.log()?);
    let head = &front[..front.len() - reader.rest().len()];
    if reader.u32()? != crc32c(head) {
        return Err(DecodeFault::damaged("has a header with a wrong checksum"));
    }
    let kind = SlotKind::of_code(kind).ok_or_else(|| DecodeFault::damaged("is of an unknown kind"))?;
    if owner != *log || found != slot {
        return Err(DecodeFault::damaged(format!("belongs to {found} of {owner}")));
    }
    let first = slot == Slot::new(0);
    if (kind == SlotKind::Birth && !first) || (kind == SlotKind::Data && first) {
        return Err(DecodeFault::damaged("is of a kind that is not allowed in this slot"));
    }
    Ok(SlotHeader { kind, log: owner, slot, nonce, previous })
}

/// Offset of the checksums in the footer: the first checksum covers the bytes before them.
const CHECKSUM_AT: usize = 8 + 8 + 4 + 4;

/// The end of a slot object: contains the position of the index.
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
    /// Decodes the footer from the end of a slot object: its last [`FOOTER_BYTES`], or more.
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] if there is no valid footer, [`FormatError::UnsupportedVersion`] if a newer version
    /// wrote it.
    pub fn decode(log: &LogId, slot: Slot, tail: &[u8]) -> Result<Self, FormatError> {
        read_footer(tail).map_err(|fault| fault.of(LogKeys::new(log).slot(slot)))
    }

    /// Decodes the index: the bytes of [`Footer::index`].
    ///
    /// # Errors
    /// [`FormatError::Corrupt`] if they do not match the footer's checksum.
    pub fn decode_index(&self, log: &LogId, slot: Slot, index: &[u8]) -> Result<Vec<IndexLine>, FormatError> {
        read_lines(self, index).map_err(|fault| fault.of(LogKeys::new(log).slot(slot)))
    }

    /// The object's size in bytes.
    #[must_use]
    pub const fn object_bytes(&self) -> u64 {
        self.index.end + FOOTER_BYTES as u64
    }
}

fn read_footer(tail: &[u8]) -> Result<Footer, DecodeFault> {
    let footer: &[u8; FOOTER_BYTES] =
        tail.last_chunk().ok_or_else(|| DecodeFault::damaged("ends too early"))?;
    let mut reader = ByteReader::new(footer);
    let (start, length) = (reader.u64()?, reader.u64()?);
    let (lines, index_crc32c) = (reader.u32()?, reader.u32()?);
    let checksum = reader.crc64()?;
    let summed = &footer[..FOOTER_BYTES - reader.rest().len()];
    let stated = reader.u32()?;
    let format = reader.u32()?;
    if reader.array::<8>()? != *END_MAGIC {
        return Err(DecodeFault::damaged("has a wrong magic at its end"));
    }
    check_version(format, FORMAT)?;
    if stated != crc32c(summed) {
        return Err(DecodeFault::damaged("has a footer with a wrong checksum"));
    }
    let end = start
        .checked_add(length)
        .filter(|end| end.checked_add(FOOTER_BYTES as u64).is_some())
        .ok_or_else(|| DecodeFault::damaged("has an index beyond its end"))?;
    Ok(Footer { index: start..end, checksum, lines, index_crc32c })
}

fn read_lines(footer: &Footer, index: &[u8]) -> Result<Vec<IndexLine>, DecodeFault> {
    if index.len() as u64 != footer.index.end - footer.index.start || crc32c(index) != footer.index_crc32c {
        return Err(DecodeFault::damaged("has an index with a wrong checksum"));
    }
    let mut reader = ByteReader::new(index);
    // The stated number of lines is untrusted, so the capacity is limited by the number of bytes.
    let mut lines: Vec<IndexLine> = Vec::with_capacity((footer.lines as usize).min(index.len() / LINE_BYTES));
    while !reader.rest().is_empty() {
        let subject = reader.subject()?;
        if lines.last().is_some_and(|before| before.subject >= subject) {
            return Err(DecodeFault::damaged("has an index that is not sorted"));
        }
        lines.push(line::read(&mut reader, subject)?);
    }
    if lines.len() != footer.lines as usize {
        return Err(DecodeFault::damaged("has another number of index lines than its footer states"));
    }
    Ok(lines)
}

/// Decodes one block: the bytes of [`IndexLine::range`].
///
/// # Errors
/// [`FormatError::Corrupt`] if the entries do not match the line.
pub fn decode_block(
    log: &LogId,
    slot: Slot,
    line: &IndexLine,
    block: &[u8],
) -> Result<Vec<LogEntry>, FormatError> {
    read_block(line, block).map_err(|fault| fault.of(LogKeys::new(log).slot(slot)))
}

fn read_block(line: &IndexLine, block: &[u8]) -> Result<Vec<LogEntry>, DecodeFault> {
    if block.len() as u64 != line.length || crc32c(block) != line.crc32c {
        return Err(DecodeFault::damaged(format!("has a damaged block of {}", line.subject)));
    }
    let entries = frame::decode_all(block)?;
    frame::check_promise(&entries, line.entries, line.first_after, line.last_rev)?;
    Ok(entries)
}
