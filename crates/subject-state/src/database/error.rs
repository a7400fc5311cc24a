//! Errors of a subject's file.

use dormouse_protocol::{ErrorReply, Subject};

/// A subject's file could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The file was written by a newer version of this software.
    #[error("the file has schema version {found}, this version understands up to {understood}")]
    NewerSchema {
        /// The version the file has.
        found: i32,
        /// The newest version understood.
        understood: i32,
    },
    /// The file is an SQLite database of another application.
    #[error("the file belongs to another application (application id {0:#x})")]
    ForeignFile(i32),
    /// The file holds another subject.
    #[error("the file holds the subject {0}")]
    OtherSubject(String),
    /// The file has no content.
    #[error("the file is empty")]
    Empty,
    /// The file contains something that this software does not write.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// A record does not follow from the state it is applied to.
    #[error("a record does not follow from the state: {0}")]
    Diverged(String),
    /// The local disk is full.
    #[error("the local disk is full")]
    DiskFull(#[source] rusqlite::Error),
    /// SQLite failed before anything was changed.
    #[error("SQLite failed before anything was written: {0}")]
    NotStarted(#[source] rusqlite::Error),
    /// SQLite failed.
    #[error("SQLite failed: {0}")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
        match error.sqlite_error_code() {
            Some(DiskFull) => Self::DiskFull(error),
            Some(DatabaseCorrupt | NotADatabase) => Self::Damaged(error.to_string()),
            _ => Self::Sqlite(error),
        }
    }
}

impl DatabaseError {
    /// Marks the error as one that occurred before any request can have changed anything.
    #[must_use]
    pub fn not_started(self) -> Self {
        match self {
            Self::Sqlite(error) => Self::NotStarted(error),
            other => other,
        }
    }

    /// Whether the file itself is unusable. A machine that fails to read or write it, or software that is too
    /// old for it, does not count.
    #[must_use]
    pub const fn is_unfit_file(&self) -> bool {
        match self {
            Self::ForeignFile(_)
            | Self::OtherSubject(_)
            | Self::Empty
            | Self::Damaged(_)
            | Self::Diverged(_) => true,
            Self::NewerSchema { .. } | Self::DiskFull(_) | Self::NotStarted(_) | Self::Sqlite(_) => false,
        }
    }

    /// The reply to a request on `subject` that failed with this error of the local file.
    #[must_use]
    pub fn reply(&self, subject: &Subject) -> ErrorReply {
        match self {
            Self::DiskFull(_) => {
                ErrorReply::unavailable("the server's local disk is full; nothing was written")
            }
            Self::Sqlite(_) => ErrorReply::internal(format_args!("the local file of {subject}: {self}")),
            Self::NotStarted(_) | Self::NewerSchema { .. } => {
                ErrorReply::unavailable(format!("the local file of {subject}: {self}"))
            }
            Self::ForeignFile(_)
            | Self::OtherSubject(_)
            | Self::Empty
            | Self::Damaged(_)
            | Self::Diverged(_) => ErrorReply::corrupt(format!("the local file of {subject}"), self),
        }
    }
}
