//! Why bytes cannot be decoded.

use std::fmt;

use dormouse_protocol::ErrorReply;

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
