//! What of a subject is counted as it changes, so that nobody has to look at all of it who only asks how much there is.
//!
//! Messages and bytes stand in the [state](crate::plan::SubjectState), because limits are held against them. Sessions come
//! and go seldom: triggers of the file count them.

use rusqlite::Connection;

use super::from_sql;

/// Of the messages that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// How many expire by a time of their own.
    pub(super) expiring: u64,
    /// How many have their value elsewhere.
    pub(super) large_values: u64,
    /// Bytes of those values.
    pub(super) large_value_bytes: u64,
}

impl Counts {
    /// One message: whether it expires by itself, and the bytes of its value where that is elsewhere.
    pub(super) const fn of(expires: bool, elsewhere: Option<u64>) -> Self {
        let (large_values, large_value_bytes) = match elsewhere {
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

    /// What the file says.
    pub(super) fn read(connection: &Connection) -> Result<Self, rusqlite::Error> {
        connection
            .prepare_cached("SELECT expiring, large_values, large_value_bytes FROM meta")?
            .query_row([], |row| Self::from_row(row, 0))
    }

    /// From three columns of a row, of which this is the first.
    pub(super) fn from_row(row: &rusqlite::Row<'_>, first: usize) -> Result<Self, rusqlite::Error> {
        let number = |column: usize| row.get::<_, i64>(first + column).map(from_sql);
        Ok(Self { expiring: number(0)?, large_values: number(1)?, large_value_bytes: number(2)? })
    }
}
