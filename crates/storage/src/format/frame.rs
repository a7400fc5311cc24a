//! The frame: one entry as it is stored everywhere.
//!
//! `length: u32 | crc32c: u32 | entry`, the numbers little-endian. The entry is MessagePack with named fields; the
//! checksum covers the four bytes of the length and the entry, so that zeros are no frame. An entry has one frame in
//! all its life: the bytes that were written to the local log are those in the segment and in the delta.

use bytes::Bytes;
use dormouse_protocol::limits::MAX_ATOMIC_BATCH_BYTES;
use dormouse_protocol::{ErrorReply, Term};

use super::Fault;
use super::read::Reader;
use crate::entry::Entry;

/// Bytes before the entry.
pub const HEAD_BYTES: usize = 8;

/// Largest entry, in bytes of its encoding: the largest atomic batch, and room for what is decided about it.
pub const MAX_ENTRY_BYTES: usize = MAX_ATOMIC_BATCH_BYTES + 4 * 1_024 * 1_024;

/// Largest frame, in bytes.
pub const MAX_FRAME_BYTES: usize = HEAD_BYTES + MAX_ENTRY_BYTES;

/// Highest rev that a frame may lead to: what SQLite's integers hold.
const MAX_REV: u64 = i64::MAX as u64;

const _: () = assert!(MAX_ENTRY_BYTES < u32::MAX as usize, "an entry's length must fit its field");

/// An entry is larger than a frame may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an entry of {size_bytes} bytes, where at most {MAX_ENTRY_BYTES} are allowed")]
pub struct FrameTooLarge {
    /// The entry's size in bytes.
    pub size_bytes: usize,
}

impl From<FrameTooLarge> for ErrorReply {
    fn from(error: FrameTooLarge) -> Self {
        Self::too_large("entry", error.size_bytes, MAX_ENTRY_BYTES)
    }
}

/// The frame of an entry. The same entry always has the same frame.
///
/// # Errors
/// [`FrameTooLarge`] when the entry is larger than [`MAX_ENTRY_BYTES`].
pub fn encode(entry: &Entry) -> Result<Bytes, FrameTooLarge> {
    // Numbers, texts and byte strings under fixed names: nothing in it can fail to become MessagePack.
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

/// Reads frames that stand one behind the other, and nothing else.
///
/// # Errors
/// [`Fault::Damaged`] when the bytes are not whole frames as [`encode`] writes them.
pub fn decode_all(bytes: &[u8]) -> Result<Vec<Entry>, Fault> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while !reader.rest().is_empty() {
        entries.push(decode_next(&mut reader)?);
    }
    Ok(entries)
}

fn decode_next(reader: &mut Reader<'_>) -> Result<Entry, Fault> {
    let length: [u8; 4] = reader.array()?;
    let stated = reader.u32()?;
    let size_bytes = u32::from_le_bytes(length) as usize;
    if size_bytes > MAX_ENTRY_BYTES {
        return Err(Fault::damaged("has a frame larger than any"));
    }
    let body = reader.bytes(size_bytes)?;
    if checksum(length, body) != stated {
        return Err(Fault::damaged("has a frame with a wrong checksum"));
    }
    let entry: Entry = dormouse_protocol::decode(body)
        .map_err(|error| Fault::damaged(format!("has a frame that holds no entry: {error}")))?;
    let in_range =
        entry.after.get().checked_add(entry.operations.len() as u64).is_some_and(|rev| rev <= MAX_REV);
    if !in_range || entry.term == Term::default() {
        return Err(Fault::damaged("has an entry of no term, or above the highest rev"));
    }
    Ok(entry)
}

/// Checks that entries follow each other without a hole: each begins where the one before ended.
///
/// # Errors
/// [`Fault::Damaged`] when one does not.
pub fn check_run(entries: &[Entry]) -> Result<(), Fault> {
    match entries.windows(2).find(|pair| pair[0].last_rev() != pair[1].after) {
        None => Ok(()),
        Some(pair) => Err(Fault::damaged(format!(
            "has an entry after {} behind one that ends at {}",
            pair[1].after,
            pair[0].last_rev()
        ))),
    }
}

/// Checks that entries are the whole run that some header or index line promised.
pub(super) fn check_promise(
    entries: &[Entry],
    count: u32,
    first_after: dormouse_protocol::Rev,
    last_rev: dormouse_protocol::Rev,
) -> Result<(), Fault> {
    check_run(entries)?;
    let first = entries.first().map(|entry| entry.after);
    let last = entries.last().map(Entry::last_rev);
    if entries.len() == count as usize && first == Some(first_after) && last == Some(last_rev) {
        Ok(())
    } else {
        Err(Fault::damaged("does not hold the entries that it announces"))
    }
}
