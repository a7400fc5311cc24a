//! Decodes numbers and names from untrusted bytes.

use std::ops::Range;

use dormouse_protocol::{LogId, Rev, Slot, Subject};

use crate::DecodeFault;
use crate::checksum::Crc64;
use crate::keys::Nonce;

/// Reads values from the front of a byte slice.
#[derive(Debug, Clone)]
pub(crate) struct ByteReader<'a> {
    rest: &'a [u8],
}

impl<'a> ByteReader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeFault> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or_else(|| DecodeFault::damaged("ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeFault> {
        let (taken, rest) =
            self.rest.split_first_chunk().ok_or_else(|| DecodeFault::damaged("ends too early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeFault> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeFault> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeFault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeFault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn rev(&mut self) -> Result<Rev, DecodeFault> {
        Ok(Rev::new(self.u64()?))
    }

    pub(crate) fn slot(&mut self) -> Result<Slot, DecodeFault> {
        Ok(Slot::new(self.u64()?))
    }

    pub(crate) fn crc64(&mut self) -> Result<Crc64, DecodeFault> {
        Ok(Crc64::from_u64(self.u64()?))
    }

    pub(crate) fn nonce(&mut self) -> Result<Nonce, DecodeFault> {
        Ok(Nonce::from_bytes(self.array()?))
    }

    /// A log's id: its length in one byte, and its text.
    pub(crate) fn log(&mut self) -> Result<LogId, DecodeFault> {
        let length = self.u8()?;
        let text = std::str::from_utf8(self.bytes(length.into())?).ok();
        text.and_then(|text| text.parse().ok()).ok_or_else(|| DecodeFault::damaged("has an invalid log id"))
    }

    /// A subject's unchecked name: its length in two bytes, and its text.
    pub(crate) fn subject_text(&mut self) -> Result<&'a str, DecodeFault> {
        let length = self.u16()?;
        std::str::from_utf8(self.bytes(length.into())?)
            .map_err(|_| DecodeFault::damaged("has an invalid subject name"))
    }

    pub(crate) fn subject(&mut self) -> Result<Subject, DecodeFault> {
        Subject::new(self.subject_text()?).map_err(|_| DecodeFault::damaged("has an invalid subject name"))
    }
}

/// Appends values to bytes: the counterpart of [`ByteReader`]. The limits on names keep their lengths within the
/// fields.
pub(crate) trait PutExt {
    fn put(&mut self, bytes: &[u8]);

    fn put_log(&mut self, log: &LogId) {
        let text = log.to_string();
        self.put(&[text.len() as u8]);
        self.put(text.as_bytes());
    }

    fn put_subject(&mut self, subject: &Subject) {
        self.put(&(subject.as_str().len() as u16).to_le_bytes());
        self.put(subject.as_str().as_bytes());
    }
}

impl PutExt for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Checks the start of an object: its magic, and its format.
pub(crate) fn check_start(
    reader: &mut ByteReader<'_>,
    magic: &[u8; 8],
    newest: u32,
) -> Result<(), DecodeFault> {
    if reader.array::<8>()? != *magic {
        return Err(DecodeFault::damaged("has a wrong magic at its start"));
    }
    check_version(reader.u32()?, newest)
}

pub(crate) fn check_version(format: u32, newest: u32) -> Result<(), DecodeFault> {
    match format {
        0 => Err(DecodeFault::damaged("format 0 never existed")),
        format if format > newest => Err(DecodeFault::Newer { format, newest }),
        _ => Ok(()),
    }
}

/// The bytes of an object at `range`.
pub(crate) fn slice(bytes: &[u8], range: Range<u64>) -> Option<&[u8]> {
    bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}
