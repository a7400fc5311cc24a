//! The segment: one slot of a log.
//!
//! A header names the log and the slot. One block per subject holds that subject's frames. An index sorted by subject
//! holds the position of each block, and a footer of fixed size holds the position of the index. So a reader needs two
//! or three range requests for one subject's entries: the end of the object, the index if that did not contain it, the
//! block.

mod decode;

use bytes::Bytes;
use dormouse_protocol::{LogId, Rev, Slot, Subject};

use crate::checksum::{Crc64, Crc64Digest, crc32c};
use crate::keys::Nonce;
use crate::line::{self, LINE_BYTES};
use crate::read::{self, PutExt};

pub use crate::line::IndexLine;
pub use decode::{Footer, SlotObject, decode, decode_block, decode_header};

/// Magic bytes at the start of every slot object.
pub const MAGIC: &[u8; 8] = b"DORMSEGM";

/// Magic bytes at the end of every slot object.
pub const END_MAGIC: &[u8; 8] = b"DORMSEGE";

/// The format that this version writes, and the newest that it reads. In every future format too, it follows the first
/// magic and precedes the last one.
pub const FORMAT: u32 = 1;

/// Bytes of the footer.
pub const FOOTER_BYTES: usize = 8 + 8 + 4 + 4 + 8 + 4 + 4 + 8;

/// Maximum size of a header: so many bytes from the front of an object contain it completely.
pub const MAX_HEADER_BYTES: usize = 8 + 4 + 1 + 8 + 16 + 8 + (1 + 255) + 4;

/// The checksum in a header that names no previous object.
pub const NO_PREVIOUS: Crc64 = Crc64::from_u64(0);

/// The kind of a slot object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotKind {
    /// The log's first object, in slot 0. Holds no entries.
    Birth,
    /// A segment: entries of many subjects.
    Data,
    /// The end of the log, if no slot above it exists. Holds no entries.
    Seal,
}

impl SlotKind {
    const fn code(self) -> u8 {
        match self {
            Self::Birth => 0,
            Self::Data => 1,
            Self::Seal => 2,
        }
    }

    const fn of_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Birth),
            1 => Some(Self::Data),
            2 => Some(Self::Seal),
            _ => None,
        }
    }
}

/// The header of a slot object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotHeader {
    /// The kind of the object.
    pub kind: SlotKind,
    /// The log.
    pub log: LogId,
    /// The slot.
    pub slot: Slot,
    /// Distinguishes it from any other object that was meant for this slot.
    pub nonce: Nonce,
    /// The checksum of the object in the slot before; [`NO_PREVIOUS`] in a birth, and in a seal whose writer has not
    /// read that object.
    pub previous: Crc64,
}

/// Frames of one subject, without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The subject.
    pub subject: Subject,
    /// The rev before the first entry.
    pub first_after: Rev,
    /// The rev after the last entry.
    pub last_rev: Rev,
    /// Number of entries.
    pub entries: u32,
    /// The frames, concatenated.
    pub frames: Bytes,
}

/// An encoded slot object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedSlot {
    /// Its bytes.
    pub bytes: Bytes,
    /// Its checksum, which the next slot's header contains: that of all bytes before the footer's own checksums.
    pub checksum: Crc64,
    /// The position of each subject's block, sorted by subject.
    pub lines: Vec<IndexLine>,
}

/// Encodes a slot object. Blocks may have any order. The blocks of one subject are joined in the given order, and must
/// have no gap. Only a data slot has blocks.
#[must_use]
pub fn encode(header: &SlotHeader, mut blocks: Vec<Block>) -> EncodedSlot {
    debug_assert_eq!(header.kind == SlotKind::Data, !blocks.is_empty(), "only a data slot has blocks");
    // A stable sort keeps the append order of each subject.
    blocks.sort_by(|one, next| one.subject.cmp(&next.subject));
    let frames_bytes: usize = blocks.iter().map(|block| block.frames.len()).sum();
    let index_bytes: usize = blocks.iter().map(|block| 2 + block.subject.as_str().len() + LINE_BYTES).sum();
    let mut bytes = Vec::with_capacity(MAX_HEADER_BYTES + frames_bytes + index_bytes + FOOTER_BYTES);
    put_header(&mut bytes, header);
    let lines = put_blocks(&mut bytes, blocks);
    let checksum = put_index_and_footer(&mut bytes, &lines);
    EncodedSlot { bytes: bytes.into(), checksum, lines }
}

fn put_header(bytes: &mut Vec<u8>, header: &SlotHeader) {
    bytes.put(MAGIC);
    bytes.put(&FORMAT.to_le_bytes());
    bytes.put(&[header.kind.code()]);
    bytes.put(&header.slot.get().to_le_bytes());
    bytes.put(&header.nonce.to_bytes());
    bytes.put(&header.previous.to_u64().to_le_bytes());
    bytes.put_log(&header.log);
    let checksum = crc32c(bytes);
    bytes.put(&checksum.to_le_bytes());
}

fn put_blocks(bytes: &mut Vec<u8>, blocks: Vec<Block>) -> Vec<IndexLine> {
    let mut lines: Vec<IndexLine> = Vec::with_capacity(blocks.len());
    for block in blocks {
        let offset = bytes.len() as u64;
        bytes.put(&block.frames);
        let length = block.frames.len() as u64;
        match lines.last_mut() {
            Some(line) if line.subject == block.subject => {
                debug_assert_eq!(line.last_rev, block.first_after, "{} has a gap", block.subject);
                line.length += length;
                line.entries += block.entries;
                line.last_rev = block.last_rev;
            }
            _ => lines.push(IndexLine {
                subject: block.subject,
                offset,
                length,
                entries: block.entries,
                first_after: block.first_after,
                last_rev: block.last_rev,
                crc32c: 0,
            }),
        }
    }
    for line in &mut lines {
        line.crc32c = read::slice(bytes, line.range()).map(crc32c).unwrap_or_default();
    }
    lines
}

fn put_index_and_footer(bytes: &mut Vec<u8>, lines: &[IndexLine]) -> Crc64 {
    let index = bytes.len();
    for each in lines {
        bytes.put_subject(&each.subject);
        line::put(bytes, each);
    }
    let index_checksum = crc32c(&bytes[index..]);
    let footer = bytes.len();
    bytes.put(&(index as u64).to_le_bytes());
    bytes.put(&((footer - index) as u64).to_le_bytes());
    bytes.put(&(lines.len() as u32).to_le_bytes());
    bytes.put(&index_checksum.to_le_bytes());
    let mut digest = Crc64Digest::new();
    digest.update(bytes);
    let checksum = digest.finish();
    bytes.put(&checksum.to_u64().to_le_bytes());
    let footer_checksum = crc32c(&bytes[footer..]);
    bytes.put(&footer_checksum.to_le_bytes());
    bytes.put(&FORMAT.to_le_bytes());
    bytes.put(END_MAGIC);
    checksum
}
