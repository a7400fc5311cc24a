//! The delta: every entry of one subject above a base, in order, nothing left out.

use bytes::Bytes;
use dormouse_protocol::{Rev, Subject};

use super::read::{Reader, Write, check_start};
use super::{Fault, FormatError, crc32c, frame};
use crate::checksum::Crc64;
use crate::entry::Entry;

/// What every delta begins with.
pub const MAGIC: &[u8; 8] = b"DORMDELT";

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// A delta about to be put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedDelta {
    /// Its bytes.
    pub bytes: Bytes,
    /// The rev up to which it leads.
    pub last_rev: Rev,
    /// How many entries it holds.
    pub entries: u32,
    /// The checksum of its bytes, for the manifest that will refer to it.
    pub crc64: Crc64,
}

/// A delta as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// The rev before its first entry.
    pub after: Rev,
    /// The rev after its last.
    pub last_rev: Rev,
    /// The entries, in order, without a hole. Never empty.
    pub entries: Vec<Entry>,
}

/// Makes a delta of frames, each item one or several, that follow `after` without a hole.
///
/// # Errors
/// [`Fault::Damaged`] when there is no frame, or when the frames are not whole, or not such a run: what nobody could
/// read again is not written.
pub fn encode(
    subject: &Subject,
    after: Rev,
    frames: impl IntoIterator<Item = Bytes>,
) -> Result<EncodedDelta, Fault> {
    let mut body = Vec::new();
    let (mut entries, mut last_rev) = (0_u32, after);
    for frames in frames {
        for entry in frame::decode_all(&frames)? {
            if entry.after != last_rev {
                return Err(Fault::damaged(format!(
                    "an entry after {} cannot follow {last_rev}",
                    entry.after
                )));
            }
            last_rev = entry.last_rev();
            entries = entries.checked_add(1).ok_or_else(|| Fault::damaged("too many entries"))?;
        }
        body.put(&frames);
    }
    if entries == 0 {
        return Err(Fault::damaged("a delta without entries"));
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

/// Reads a delta of `subject` that leads to `last_rev`, as its name says; `object` is its key.
///
/// # Errors
/// [`FormatError::Corrupt`] when the bytes are not what [`encode`] wrote for this subject and rev,
/// [`FormatError::UnsupportedVersion`] when a newer version wrote them.
pub fn decode(
    subject: &Subject,
    last_rev: Rev,
    object: impl std::fmt::Display,
    bytes: &[u8],
) -> Result<Delta, FormatError> {
    read(bytes)
        .and_then(|(found, delta)| {
            if found != *subject {
                return Err(Fault::damaged(format!("belongs to the subject {found}")));
            }
            if delta.last_rev != last_rev {
                return Err(Fault::damaged(format!("leads to {}, not to {last_rev}", delta.last_rev)));
            }
            Ok(delta)
        })
        .map_err(|fault| fault.of(object))
}

/// Reads a delta without knowing whose it is.
///
/// # Errors
/// [`Fault`] when the bytes are not what [`encode`] wrote.
pub fn read(bytes: &[u8]) -> Result<(Subject, Delta), Fault> {
    let mut reader = Reader::new(bytes);
    check_start(&mut reader, MAGIC, FORMAT)?;
    let subject = reader.subject()?;
    let (after, last_rev) = (reader.rev()?, reader.rev()?);
    let entries = reader.u32()?;
    let body_bytes = reader.u64()?;
    let body_checksum = reader.crc64()?;
    let head = &bytes[..bytes.len() - reader.rest().len()];
    if reader.u32()? != crc32c(head) {
        return Err(Fault::damaged("has a header with a wrong checksum"));
    }
    let body = reader.rest();
    if body.len() as u64 != body_bytes {
        return Err(Fault::damaged(format!("has {} bytes of frames instead of {body_bytes}", body.len())));
    }
    if Crc64::of(body) != body_checksum {
        return Err(Fault::damaged("has frames with a wrong checksum"));
    }
    let delta = Delta { after, last_rev, entries: frame::decode_all(body)? };
    frame::check_promise(&delta.entries, entries, after, last_rev)?;
    Ok((subject, delta))
}
