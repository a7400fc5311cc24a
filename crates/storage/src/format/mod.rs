//! What the log's objects look like, byte for byte: `docs/formats.md` says the same in words.
//!
//! | module | holds |
//! |---|---|
//! | [`frame`] | one entry, wherever it is stored |
//! | [`segment`] | one slot of a log: its birth, the entries of one flush, or its seal |
//! | [`index`] | where each subject's entries are in a sealed log |
//! | [`delta`] | one subject's entries since its snapshot |
//!
//! Pure: bytes in, values out. Whatever the bytes are, reading them costs memory in proportion to their number, and
//! they are either exactly what some version wrote or an error.

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

/// The checksum of small things: CRC-32C.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    // The algorithm's checksum has 32 bits.
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// What is wrong with bytes, as long as it is not known which object they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// They are not what was written.
    #[error("{0}")]
    Damaged(String),
    /// A newer version wrote them.
    #[error("written in format {format}, the newest that this version reads is {newest}")]
    Newer {
        /// The format that they are written in.
        format: u32,
        /// The newest that this version reads.
        newest: u32,
    },
}

impl Fault {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    /// The same, once it is known of which object.
    #[must_use]
    pub fn of(self, object: impl fmt::Display) -> FormatError {
        let object = object.to_string();
        match self {
            Self::Damaged(what) => FormatError::Corrupt { object, what },
            Self::Newer { format, newest } => FormatError::UnsupportedVersion { object, format, newest },
        }
    }
}

/// Why an object cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The object is not what was written.
    #[error("{object}: {what}")]
    Corrupt {
        /// The object's key, or the file's name.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// A newer version wrote the object, in a format that this one must not guess at.
    #[error("{object}: written in format {format}, the newest that this version reads is {newest}")]
    UnsupportedVersion {
        /// The object's key, or the file's name.
        object: String,
        /// The format that it is written in.
        format: u32,
        /// The newest that this version reads.
        newest: u32,
    },
}

/// What a caller of the engine is told. A newer object is no fault of the request: a newer server can serve the
/// subject, this one cannot.
impl From<FormatError> for ErrorReply {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Corrupt { object, what } => Self::corrupt(object, what),
            FormatError::UnsupportedVersion { .. } => Self::unavailable(error.to_string()),
        }
    }
}
