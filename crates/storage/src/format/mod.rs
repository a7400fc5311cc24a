//! The byte format of the log's objects. `docs/formats.md` describes it.
//!
//! | module | holds |
//! |---|---|
//! | [`frame`] | one stored entry |
//! | [`segment`] | one slot of a log: its birth, the entries of one segment, or its seal |
//! | [`index`] | the positions of each subject's entries in a sealed log |
//! | [`delta`] | one subject's entries since its snapshot |
//!
//! All functions are pure: bytes in, values out. Decoding any bytes costs memory in proportion to their number. The
//! bytes are either the exact output of some version, or an error.

pub mod delta;
pub mod frame;
pub mod index;
mod line;
mod read;
pub mod segment;

use std::fmt;

use crc_fast::CrcAlgorithm;
use dormouse_protocol::ErrorReply;

pub use segment::IndexLine;

/// The checksum of frames, headers and other small data: CRC-32C.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    // The algorithm's checksum has 32 bits.
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A decoding error, without the name of the object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeFault {
    /// The bytes are damaged.
    #[error("{0}")]
    Damaged(String),
    /// A newer version wrote the bytes.
    #[error("written in format {format}, the newest that this version reads is {newest}")]
    Newer {
        /// The format of the bytes.
        format: u32,
        /// The newest that this version reads.
        newest: u32,
    },
}

impl DecodeFault {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    /// The same error with the name of the object.
    #[must_use]
    pub fn of(self, object: impl fmt::Display) -> FormatError {
        let object = object.to_string();
        match self {
            Self::Damaged(what) => FormatError::Corrupt { object, what },
            Self::Newer { format, newest } => FormatError::UnsupportedVersion { object, format, newest },
        }
    }
}

/// Why an object cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The object is damaged.
    #[error("{object}: {what}")]
    Corrupt {
        /// The object's key, or the file's name.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// A newer version wrote the object, in a format that this version does not know.
    #[error("{object}: written in format {format}, the newest that this version reads is {newest}")]
    UnsupportedVersion {
        /// The object's key, or the file's name.
        object: String,
        /// The format of the object.
        format: u32,
        /// The newest that this version reads.
        newest: u32,
    },
}

/// The error reply to a caller of the engine. A newer object is no error of the request: a newer server can serve the
/// subject, this one cannot.
impl From<FormatError> for ErrorReply {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Corrupt { object, what } => Self::corrupt(object, what),
            FormatError::UnsupportedVersion { .. } => Self::unavailable(error.to_string()),
        }
    }
}
