//! The index line: position and content of a block, in segments and indexes, without the subject's name.

use dormouse_protocol::{Rev, Subject};

use crate::DecodeFault;
use crate::read::{ByteReader, PutExt};

/// Bytes of a line without the subject.
pub(crate) const LINE_BYTES: usize = 8 + 8 + 4 + 8 + 8 + 4;

/// Position and content of a subject's block in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexLine {
    /// The subject.
    pub subject: Subject,
    /// Start of the block, in bytes from the front of the object.
    pub offset: u64,
    /// Length of the block in bytes.
    pub length: u64,
    /// Number of entries in the block.
    pub entries: u32,
    /// The rev before the first entry.
    pub first_after: Rev,
    /// The rev after the last entry.
    pub last_rev: Rev,
    /// The checksum of the block.
    pub crc32c: u32,
}

impl IndexLine {
    /// The bytes of the object that hold the block.
    #[must_use]
    pub const fn range(&self) -> std::ops::Range<u64> {
        // The sum cannot overflow: encoding and decoding check it.
        self.offset..self.offset + self.length
    }
}

pub(crate) fn put(bytes: &mut Vec<u8>, line: &IndexLine) {
    bytes.put(&line.offset.to_le_bytes());
    bytes.put(&line.length.to_le_bytes());
    bytes.put(&line.entries.to_le_bytes());
    bytes.put(&line.first_after.get().to_le_bytes());
    bytes.put(&line.last_rev.get().to_le_bytes());
    bytes.put(&line.crc32c.to_le_bytes());
}

pub(crate) fn read(reader: &mut ByteReader<'_>, subject: Subject) -> Result<IndexLine, DecodeFault> {
    let line = IndexLine {
        subject,
        offset: reader.u64()?,
        length: reader.u64()?,
        entries: reader.u32()?,
        first_after: reader.rev()?,
        last_rev: reader.rev()?,
        crc32c: reader.u32()?,
    };
    let ends = line.offset.checked_add(line.length).is_some();
    if ends && line.length > 0 && line.entries > 0 && line.first_after <= line.last_rev {
        Ok(line)
    } else {
        Err(DecodeFault::damaged("has an index line that contradicts itself"))
    }
}
