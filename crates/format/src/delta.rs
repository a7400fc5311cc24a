//! The delta: all entries of one subject above a base, in order, without a gap.

use bytes::Bytes;
use dormouse_protocol::{Rev, Subject};

use crate::checksum::{Crc64, crc32c};
use crate::entry::LogEntry;
use crate::read::{ByteReader, PutExt, check_start};
use crate::{DecodeFault, FormatError, frame};

/// Magic bytes at the start of every delta.
pub const MAGIC: &[u8; 8] = b"DORMDELT";

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// An encoded delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedDelta {
    /// Its bytes.
    pub bytes: Bytes,
    /// The rev after its last entry.
    pub last_rev: Rev,
    /// Number of its entries.
    pub entries: u32,
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

/// Encodes a delta of frames that follow `after` without a gap. Each item holds one or several frames.
///
/// # Errors
/// [`DecodeFault::Damaged`] if there is no frame, or if the frames are incomplete or have a gap, because such a delta
/// could not be read.
pub fn encode(
    subject: &Subject,
    after: Rev,
    frames: impl IntoIterator<Item = Bytes>,
) -> Result<EncodedDelta, DecodeFault> {
    let mut body = Vec::new();
    let (mut entries, mut last_rev) = (0_u32, after);
    for frames in frames {
        for entry in frame::decode_all(&frames)? {
            if entry.after != last_rev {
                return Err(DecodeFault::damaged(format!(
                    "an entry after {} cannot follow {last_rev}",
                    entry.after
                )));
            }
            last_rev = entry.last_rev();
            entries = entries.checked_add(1).ok_or_else(|| DecodeFault::damaged("too many entries"))?;
        }
        body.put(&frames);
    }
    if entries == 0 {
        return Err(DecodeFault::damaged("a delta without entries"));
    }
    let mut bytes = Vec::with_capacity(body.len() + 512);
    bytes.put(MAGIC);
    bytes.put(&FORMAT.to_le_bytes());
    bytes.put_subject(subject);
    bytes.put(&after.get().to_le_bytes());
    bytes.put(&last_rev.get().to_le_bytes());
    bytes.put(&entries.to_le_bytes());
    bytes.put(&(body.len() as u64).to_le_bytes());
    bytes.put(&Crc64::of(&body).to_u64().to_le_bytes());
    let checksum = crc32c(&bytes);
    bytes.put(&checksum.to_le_bytes());
    bytes.put(&body);
    Ok(EncodedDelta { crc64: Crc64::of(&bytes), bytes: bytes.into(), last_rev, entries })
}

/// Decodes a delta of `subject` whose name contains `last_rev`; `object` is its key.
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
    read(bytes)
        .and_then(|(found, delta)| {
            if found != *subject {
                return Err(DecodeFault::damaged(format!("belongs to the subject {found}")));
            }
            if delta.last_rev != last_rev {
                return Err(DecodeFault::damaged(format!("ends at {}, not at {last_rev}", delta.last_rev)));
            }
            Ok(delta)
        })
        .map_err(|fault| fault.of(object))
}

/// Decodes a delta of any subject.
///
/// # Errors
/// [`DecodeFault`] if the bytes are not the output of [`encode`].
pub fn read(bytes: &[u8]) -> Result<(Subject, Delta), DecodeFault> {
    let mut reader = ByteReader::new(bytes);
    check_start(&mut reader, MAGIC, FORMAT)?;
    let subject = reader.subject()?;
    let (after, last_rev) = (reader.rev()?, reader.rev()?);
    let entries = reader.u32()?;
    let body_bytes = reader.u64()?;
    let body_checksum = reader.crc64()?;
    let head = &bytes[..bytes.len() - reader.rest().len()];
    if reader.u32()? != crc32c(head) {
        return Err(DecodeFault::damaged("has a header with a wrong checksum"));
    }
    let body = reader.rest();
    if body.len() as u64 != body_bytes {
        return Err(DecodeFault::damaged(format!(
            "has {} bytes of frames instead of {body_bytes}",
            body.len()
        )));
    }
    if Crc64::of(body) != body_checksum {
        return Err(DecodeFault::damaged("has frames with a wrong checksum"));
    }
    let delta = Delta { after, last_rev, entries: frame::decode_all(body)? };
    frame::check_promise(&delta.entries, entries, after, last_rev)?;
    Ok((subject, delta))
}
