//! What a file can tell whoever looks after the subject.

use dormouse_protocol::data::InfoDetails;
use dormouse_protocol::{ErrorReply, Timestamp};

use super::{Database, from_sql};

const COUNTS: &str = "SELECT
    (SELECT COUNT(*) FROM messages WHERE expires_at IS NOT NULL),
    (SELECT COUNT(*) FROM messages WHERE blob IS NOT NULL),
    (SELECT coalesce(SUM(size), 0) FROM messages WHERE blob IS NOT NULL),
    (SELECT COUNT(*) FROM sessions),
    (SELECT timestamp FROM messages ORDER BY seq LIMIT 1),
    (SELECT timestamp FROM messages ORDER BY seq DESC LIMIT 1)";

impl Database {
    /// What there is to tell that stands in the file; the rest is as by default.
    ///
    /// # Errors
    /// That the file cannot be read.
    pub fn details(&self) -> Result<InfoDetails, ErrorReply> {
        let read = || -> Result<InfoDetails, rusqlite::Error> {
            self.connection.prepare_cached(COUNTS)?.query_row([], |row| {
                let number = |column: usize| row.get::<_, i64>(column).map(from_sql);
                let time = |column: usize| {
                    let micros: Option<i64> = row.get(column)?;
                    Ok::<_, rusqlite::Error>(micros.map(|micros| Timestamp::from_micros(from_sql(micros))))
                };
                Ok(InfoDetails {
                    accept_time: self.state.accept_time,
                    oldest_timestamp: time(4)?,
                    newest_timestamp: time(5)?,
                    expiring: number(0)?,
                    next_expiry: self.next_expiry,
                    large_values: number(1)?,
                    large_value_bytes: number(2)?,
                    sessions: number(3)?,
                    local_bytes: self.file_bytes(),
                    ..InfoDetails::default()
                })
            })
        };
        read().map_err(|error| self.unreadable(&error.into()))
    }
}
