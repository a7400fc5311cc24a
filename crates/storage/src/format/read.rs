//! Numbers and names out of bytes that may be anything.

use std::ops::Range;

use dormouse_protocol::{LogId, Rev, Slot, Subject};

use super::Fault;
use crate::checksum::Crc64;
use crate::keys::Nonce;

/// Takes values off the front of bytes.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or_else(|| Fault::damaged("ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| Fault::damaged("ends too early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Fault> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Fault> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn rev(&mut self) -> Result<Rev, Fault> {
        Ok(Rev::new(self.u64()?))
    }

    pub(crate) fn slot(&mut self) -> Result<Slot, Fault> {
        Ok(Slot::new(self.u64()?))
    }

    pub(crate) fn crc64(&mut self) -> Result<Crc64, Fault> {
        Ok(Crc64::from_u64(self.u64()?))
    }

    pub(crate) fn nonce(&mut self) -> Result<Nonce, Fault> {
        Ok(Nonce::from_bytes(self.array()?))
    }

    /// A log's id: its length in one byte, and its text.
    pub(crate) fn log(&mut self) -> Result<LogId, Fault> {
        let length = self.u8()?;
        let text = std::str::from_utf8(self.bytes(length.into())?).ok();
        text.and_then(|text| text.parse().ok()).ok_or_else(|| Fault::damaged("names no log"))
    }

    /// A subject's name as it stands: its length in two bytes, and its text.
    pub(crate) fn subject_text(&mut self) -> Result<&'a str, Fault> {
        let length = self.u16()?;
        std::str::from_utf8(self.bytes(length.into())?).map_err(|_| Fault::damaged("names no subject"))
    }

    pub(crate) fn subject(&mut self) -> Result<Subject, Fault> {
        Subject::new(self.subject_text()?).map_err(|_| Fault::damaged("names no subject"))
    }
}

/// The opposite, for the few values that are not plain numbers. The limits on names keep their lengths in bounds.
pub(crate) trait Write {
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

impl Write for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Checks what every object begins with: its magic, and the format it is written in.
pub(crate) fn check_start(reader: &mut Reader<'_>, magic: &[u8; 8], newest: u32) -> Result<(), Fault> {
    if reader.array::<8>()? != *magic {
        return Err(Fault::damaged("does not begin as such an object does"));
    }
    check_version(reader.u32()?, newest)
}

pub(crate) fn check_version(format: u32, newest: u32) -> Result<(), Fault> {
    match format {
        0 => Err(Fault::damaged("format 0 never existed")),
        format if format > newest => Err(Fault::Newer { format, newest }),
        _ => Ok(()),
    }
}

/// The bytes of an object at `range`.
pub(crate) fn slice(bytes: &[u8], range: Range<u64>) -> Option<&[u8]> {
    bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}
