//! The delta: all entries of one subject above a base, in order, without a gap.
//!
//! A delta is a sequence of blocks. [`DeltaEncoder`] makes one block at a time and [`DeltaDecoder`] takes the bytes in
//! pieces of any size, so neither holds more than one block, however large the delta is.

mod decoder;

use bytes::Bytes;
use dormouse_protocol::{Rev, Subject};

use crate::checksum::{Crc64, crc32c};
use crate::entry::LogEntry;
use crate::read::PutExt;
use crate::{DecodeFault, FormatError, frame};

pub use decoder::DeltaDecoder;

/// Magic bytes at the start of every delta.
pub const MAGIC: &[u8; 8] = b"DORMDELT";

/// The format that this version writes, and the newest that it reads. It reads format 1, too, which has no blocks.
pub const FORMAT: u32 = 2;

/// Largest block, in bytes of its frames. A larger frame has a block of its own.
pub const MAX_BLOCK_BYTES: usize = 4 * 1_024 * 1_024;

/// Bytes of a block before its frames, and of the end.
const BLOCK_HEAD_BYTES: usize = 20;
const END_BYTES: usize = 28;

/// An encoded delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedDelta {
    /// Its bytes.
    pub bytes: Bytes,
    /// The rev after its last entry.
    pub last_rev: Rev,
    /// Number of its entries.
    pub entries: u64,
    /// The checksum of its bytes, for the manifest that will refer to it.
    pub crc64: Crc64,
}

/// A decoded delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// The rev before its first entry.
    pub after: Rev,
    /// The rev after its last entry.
    pub last_rev: Rev,
    /// The entries, in order, without a gap. Never empty.
    pub entries: Vec<LogEntry>,
}

/// Encodes a delta one block at a time. The bytes of the delta are those of [`new`](Self::new), then of each
/// [`push`](Self::push), then of [`finish`](Self::finish).
#[derive(Debug)]
pub struct DeltaEncoder {
    /// The frames of the block that is being filled.
    block: Vec<u8>,
    block_entries: u32,
    entries: u64,
    last_rev: Rev,
}

impl DeltaEncoder {
    /// Begins a delta of entries that follow `after`. Returns the first bytes, too.
    #[must_use]
    pub fn new(subject: &Subject, after: Rev) -> (Self, Bytes) {
        let mut head = Vec::with_capacity(26 + subject.as_str().len());
        head.put(MAGIC);
        head.put(&FORMAT.to_le_bytes());
        head.put_subject(subject);
        head.put(&after.get().to_le_bytes());
        let checksum = crc32c(&head);
        head.put(&checksum.to_le_bytes());
        (Self { block: Vec::new(), block_entries: 0, entries: 0, last_rev: after }, head.into())
    }

    /// Adds the next entry, whose frame this is. Returns the block before it if that is complete.
    ///
    /// # Errors
    /// [`DecodeFault::Damaged`] if the entry does not follow the one before.
    pub fn push(&mut self, entry: &LogEntry, frame: &[u8]) -> Result<Option<Bytes>, DecodeFault> {
        if entry.after != self.last_rev {
            let (after, last_rev) = (entry.after, self.last_rev);
            return Err(DecodeFault::damaged(format!("an entry after {after} cannot follow {last_rev}")));
        }
        let is_complete = self.block_entries > 0 && self.block.len() + frame.len() > MAX_BLOCK_BYTES;
        let complete = is_complete.then(|| self.take_block());
        self.block.put(frame);
        self.block_entries += 1;
        self.entries += 1;
        self.last_rev = entry.last_rev();
        Ok(complete)
    }

    /// The last bytes; afterwards the encoder is spent.
    ///
    /// # Errors
    /// [`DecodeFault::Damaged`] if there is no entry: such a delta could not be read.
    pub fn finish(&mut self) -> Result<Bytes, DecodeFault> {
        if self.entries == 0 {
            return Err(DecodeFault::damaged("a delta without entries"));
        }
        let mut last = Vec::from(self.take_block());
        let end = last.len();
        last.put(&0_u32.to_le_bytes());
        last.put(&0_u32.to_le_bytes());
        last.put(&self.entries.to_le_bytes());
        last.put(&self.last_rev.get().to_le_bytes());
        let checksum = crc32c(&last[end..]);
        last.put(&checksum.to_le_bytes());
        Ok(last.into())
    }

    /// Number of entries so far.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// The rev after the last entry so far.
    #[must_use]
    pub const fn last_rev(&self) -> Rev {
        self.last_rev
    }

    fn take_block(&mut self) -> Bytes {
        let frames = std::mem::take(&mut self.block);
        let mut block = Vec::with_capacity(BLOCK_HEAD_BYTES + frames.len() + END_BYTES);
        // A frame has at most MAX_FRAME_BYTES, so the length of a block fits its field.
        block.put(&(frames.len() as u32).to_le_bytes());
        block.put(&std::mem::take(&mut self.block_entries).to_le_bytes());
        block.put(&Crc64::of(&frames).to_u64().to_le_bytes());
        let checksum = crc32c(&block);
        block.put(&checksum.to_le_bytes());
        block.put(&frames);
        block.into()
    }
}

/// Encodes a whole delta of frames that follow `after` without a gap. Each item holds one or several frames.
///
/// # Errors
/// [`DecodeFault::Damaged`] if there is no frame, or if the frames are incomplete or have a gap, because such a delta
/// could not be read.
pub fn encode(
    subject: &Subject,
    after: Rev,
    frames: impl IntoIterator<Item = Bytes>,
) -> Result<EncodedDelta, DecodeFault> {
    let (mut encoder, head) = DeltaEncoder::new(subject, after);
    let mut bytes = Vec::from(head);
    for frames in frames {
        let mut rest = &frames[..];
        while !rest.is_empty() {
            let (entry, size_bytes) = frame::decode_first(rest)?;
            let (frame, later) = rest.split_at(size_bytes);
            if let Some(block) = encoder.push(&entry, frame)? {
                bytes.put(&block);
            }
            rest = later;
        }
    }
    let (last_rev, entries) = (encoder.last_rev(), encoder.entries());
    bytes.put(&encoder.finish()?);
    Ok(EncodedDelta { crc64: Crc64::of(&bytes), bytes: bytes.into(), last_rev, entries })
}

/// Decodes a whole delta of `subject` whose name contains `last_rev`; `object` is its key.
///
/// # Errors
/// [`FormatError::Corrupt`] if the bytes are not the output of [`encode`] for this subject and rev,
/// [`FormatError::UnsupportedVersion`] if a newer version wrote them.
pub fn decode(
    subject: &Subject,
    last_rev: Rev,
    object: impl std::fmt::Display,
    bytes: &[u8],
) -> Result<Delta, FormatError> {
    let decoder = DeltaDecoder::expecting(subject, last_rev);
    decoder.read(bytes).map(|(_, delta)| delta).map_err(|fault| fault.of(object))
}

/// Decodes a whole delta of any subject.
///
/// # Errors
/// [`DecodeFault`] if the bytes are not the output of [`encode`].
pub fn read(bytes: &[u8]) -> Result<(Subject, Delta), DecodeFault> {
    DeltaDecoder::any().read(bytes)
}
