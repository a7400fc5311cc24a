//! The frame: the stored form of one entry in all files and objects.
//!
//! `length: u32 | crc32c: u32 | entry`, the numbers little-endian. The entry is MessagePack with named fields. The
//! checksum covers the four bytes of the length and the entry, so zeros are not a valid frame. An entry is encoded
//! once: the WAL, the segment and the delta contain the same bytes.

use bytes::Bytes;
use dormouse_protocol::limits::MAX_ATOMIC_BATCH_BYTES;
use dormouse_protocol::{ErrorReply, Term};

use crate::DecodeFault;
use crate::entry::LogEntry;
use crate::read::ByteReader;

/// Bytes before the entry.
pub const HEAD_BYTES: usize = 8;

/// Largest entry, in bytes of its encoding: the largest atomic batch, and space for the planned results.
pub const MAX_ENTRY_BYTES: usize = MAX_ATOMIC_BATCH_BYTES + 4 * 1_024 * 1_024;

/// Largest frame, in bytes.
pub const MAX_FRAME_BYTES: usize = HEAD_BYTES + MAX_ENTRY_BYTES;

/// Highest rev after a frame: the limit of SQLite's integers.
const MAX_REV: u64 = i64::MAX as u64;

const _: () = assert!(MAX_ENTRY_BYTES < u32::MAX as usize, "an entry's length must fit its field");

/// An entry is larger than [`MAX_ENTRY_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an entry of {size_bytes} bytes; at most {MAX_ENTRY_BYTES} are allowed")]
pub struct FrameTooLarge {
    /// The entry's size in bytes.
    pub size_bytes: usize,
}

impl From<FrameTooLarge> for ErrorReply {
    fn from(error: FrameTooLarge) -> Self {
        Self::too_large("entry", error.size_bytes, MAX_ENTRY_BYTES)
    }
}

/// Encodes the frame of an entry. The same entry always has the same frame.
///
/// # Errors
/// [`FrameTooLarge`] if the entry is larger than [`MAX_ENTRY_BYTES`].
pub fn encode(entry: &LogEntry) -> Result<Bytes, FrameTooLarge> {
    // It holds numbers, texts and byte strings under fixed names, so the encoding cannot fail.
    let body = dormouse_protocol::encode(entry).expect("an entry is always valid MessagePack");
    if body.len() > MAX_ENTRY_BYTES {
        return Err(FrameTooLarge { size_bytes: body.len() });
    }
    let length = (body.len() as u32).to_le_bytes();
    let mut frame = Vec::with_capacity(HEAD_BYTES + body.len());
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&body);
    let checksum = checksum(length, &body);
    frame[4..HEAD_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Ok(frame.into())
}

/// CRC-32C of the length's bytes and the entry's.
fn checksum(length: [u8; 4], body: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&length);
    digest.update(body);
    digest.finalize() as u32
}

/// Decodes consecutive frames. No other bytes are allowed.
///
/// # Errors
/// [`DecodeFault::Damaged`] if the bytes are not complete frames of [`encode`].
pub fn decode_all(bytes: &[u8]) -> Result<Vec<LogEntry>, DecodeFault> {
    let mut reader = ByteReader::new(bytes);
    let mut entries = Vec::new();
    while !reader.rest().is_empty() {
        entries.push(decode_next(&mut reader)?);
    }
    Ok(entries)
}

/// Decodes the first of consecutive frames. Returns the size of the frame, too.
///
/// # Errors
/// As [`decode_all`].
pub fn decode_first(bytes: &[u8]) -> Result<(LogEntry, usize), DecodeFault> {
    let mut reader = ByteReader::new(bytes);
    let entry = decode_next(&mut reader)?;
    Ok((entry, bytes.len() - reader.rest().len()))
}

/// The size of the first frame of `bytes`; `None` if they do not contain its length.
pub(crate) fn size_of_first(bytes: &[u8]) -> Result<Option<usize>, DecodeFault> {
    let Some(length) = bytes.first_chunk::<4>() else { return Ok(None) };
    let size_bytes = u32::from_le_bytes(*length) as usize;
    if size_bytes > MAX_ENTRY_BYTES {
        return Err(above_limit());
    }
    Ok(Some(HEAD_BYTES + size_bytes))
}

fn above_limit() -> DecodeFault {
    DecodeFault::damaged("has a frame above the size limit")
}

fn decode_next(reader: &mut ByteReader<'_>) -> Result<LogEntry, DecodeFault> {
    let length: [u8; 4] = reader.array()?;
    let stated = reader.u32()?;
    let size_bytes = u32::from_le_bytes(length) as usize;
    if size_bytes > MAX_ENTRY_BYTES {
        return Err(above_limit());
    }
    let body = reader.bytes(size_bytes)?;
    if checksum(length, body) != stated {
        return Err(DecodeFault::damaged("has a frame with a wrong checksum"));
    }
    let entry: LogEntry = dormouse_protocol::decode(body)
        .map_err(|error| DecodeFault::damaged(format!("has a frame without a valid entry: {error}")))?;
    let in_range =
        entry.after.get().checked_add(entry.operations.len() as u64).is_some_and(|rev| rev <= MAX_REV);
    if !in_range || entry.term == Term::default() {
        return Err(DecodeFault::damaged("has an entry without a term, or above the highest rev"));
    }
    Ok(entry)
}

/// Checks that entries have no gap: each begins at the rev where the entry before ends.
///
/// # Errors
/// [`DecodeFault::Damaged`] if there is a gap.
pub fn check_run(entries: &[LogEntry]) -> Result<(), DecodeFault> {
    match entries.windows(2).find(|pair| pair[0].last_rev() != pair[1].after) {
        None => Ok(()),
        Some(pair) => Err(DecodeFault::damaged(format!(
            "has an entry after {} behind one that ends at {}",
            pair[1].after,
            pair[0].last_rev()
        ))),
    }
}

/// Checks that entries match the count and revs in their header or index line.
pub(crate) fn check_promise(
    entries: &[LogEntry],
    count: u32,
    first_after: dormouse_protocol::Rev,
    last_rev: dormouse_protocol::Rev,
) -> Result<(), DecodeFault> {
    check_run(entries)?;
    let first = entries.first().map(|entry| entry.after);
    let last = entries.last().map(LogEntry::last_rev);
    if entries.len() == count as usize && first == Some(first_after) && last == Some(last_rev) {
        Ok(())
    } else {
        Err(DecodeFault::damaged("does not hold the entries that its header or index names"))
    }
}
