//! Details of a subject for its operator.

use dormouse_protocol::data::InfoDetails;
use dormouse_protocol::{ErrorReply, Timestamp};

use super::{Database, DatabaseError, from_sql, to_sql};

/// The details that are not in memory. Of the messages it reads only the first and the last.
const DETAILS: &str = "SELECT
    (SELECT sessions FROM meta),
    (SELECT timestamp FROM messages WHERE seq > ?1 ORDER BY seq LIMIT 1),
    (SELECT timestamp FROM messages WHERE seq > ?1 ORDER BY seq DESC LIMIT 1)";

impl Database {
    /// The details that are in the file; the others have default values.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn details(&self) -> Result<InfoDetails, ErrorReply> {
        self.read_details().map_err(|error| self.unreadable(&error))
    }

    fn read_details(&self) -> Result<InfoDetails, DatabaseError> {
        let (sessions, oldest, newest): (i64, Option<i64>, Option<i64>) = self
            .connection
            .prepare_cached(DETAILS)?
            .query_row([to_sql(self.floor.seq.get())], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let time = |micros: Option<i64>| micros.map(|micros| Timestamp::from_micros(from_sql(micros)));
        Ok(InfoDetails {
            accept_time: self.state.accept_time,
            oldest_timestamp: time(oldest),
            newest_timestamp: time(newest),
            expiring: self.counts.expiring,
            next_expiry: self.next_expiry,
            large_values: self.counts.large_values,
            large_value_bytes: self.counts.large_value_bytes,
            sessions: from_sql(sessions),
            local_bytes: self.file_bytes(),
            ..InfoDetails::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use dormouse_format::record::RecordOp;
    use rusqlite::StatementStatus;

    use crate::database::fixture::fresh;

    /// The details query takes the same number of SQLite steps for few and for many messages.
    #[test]
    fn details_query_cost_is_independent_of_message_count() {
        let folder = tempfile::tempdir().unwrap();
        let mut database = fresh(&folder.path().join("s.sqlite3"));
        let mut steps = |messages: u64| {
            for n in 0..messages {
                let set = database.set(Some(&format!("{messages}-{n}")), b"x");
                database.run(vec![RecordOp::Set(set)]);
            }
            let statement = database.connection.prepare_cached(super::DETAILS).unwrap();
            statement.reset_status(StatementStatus::VmStep);
            drop(statement);
            database.details().unwrap();
            let statement = database.connection.prepare_cached(super::DETAILS).unwrap();
            statement.get_status(StatementStatus::VmStep)
        };
        let few = steps(10);
        assert_eq!(steps(500), few);
        assert!(few > 0);
    }
}
