//! Counters that are updated with each change, so that a query of totals does not scan the whole subject.
//!
//! Messages and bytes are in the [state](crate::plan::SubjectState), because limits apply to them. Sessions
//! change rarely: triggers in the file count them.

use rusqlite::Connection;

use super::from_sql;

/// Counters over the existing messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct MessageCounts {
    /// Number of messages with their own expiry time.
    pub(super) expiring: u64,
    /// Number of messages with a blob.
    pub(super) large_values: u64,
    /// Bytes of those blobs.
    pub(super) large_value_bytes: u64,
}

impl MessageCounts {
    /// The counts of one message: whether it has its own expiry time, and the bytes of its blob if it has
    /// one.
    pub(super) const fn of(expires: bool, blob_bytes: Option<u64>) -> Self {
        let (large_values, large_value_bytes) = match blob_bytes {
            Some(bytes) => (1, bytes),
            None => (0, 0),
        };
        Self { expiring: expires as u64, large_values, large_value_bytes }
    }

    pub(super) const fn add(&mut self, more: Self) {
        self.expiring = self.expiring.saturating_add(more.expiring);
        self.large_values = self.large_values.saturating_add(more.large_values);
        self.large_value_bytes = self.large_value_bytes.saturating_add(more.large_value_bytes);
    }

    pub(super) const fn take(&mut self, less: Self) {
        self.expiring = self.expiring.saturating_sub(less.expiring);
        self.large_values = self.large_values.saturating_sub(less.large_values);
        self.large_value_bytes = self.large_value_bytes.saturating_sub(less.large_value_bytes);
    }

    /// Reads the counters from the file.
    pub(super) fn read(connection: &Connection) -> Result<Self, rusqlite::Error> {
        connection
            .prepare_cached("SELECT expiring, large_values, large_value_bytes FROM meta")?
            .query_row([], |row| Self::from_row(row, 0))
    }

    /// From three columns of a row, starting at `first`.
    pub(super) fn from_row(row: &rusqlite::Row<'_>, first: usize) -> Result<Self, rusqlite::Error> {
        let number = |column: usize| row.get::<_, i64>(first + column).map(from_sql);
        Ok(Self { expiring: number(0)?, large_values: number(1)?, large_value_bytes: number(2)? })
    }
}
