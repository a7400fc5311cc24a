//! Records to rows. No decision is taken here: a record says everything, and what it says is checked against the state.

use dormouse_protocol::limits::MAX_SEQ;
use dormouse_protocol::message::Removed;
use dormouse_protocol::{MessageId, Rev, Seq};
use rusqlite::{OptionalExtension, params};

use super::schema::{MAX_TOMBSTONES, TOMBSTONE_SLACK};
use super::{Database, DatabaseError, encode_config, from_sql, to_sql};
use crate::plan::{Operation, Record, SetOperation};

impl Database {
    /// Applies a record, which must be the one after the last. Within a transaction.
    ///
    /// # Errors
    /// [`DatabaseError::Diverged`] when the record does not follow from the state, otherwise what SQLite says. The
    /// transaction is then to be rolled back.
    pub fn apply(&mut self, record: &Record) -> Result<(), DatabaseError> {
        if record.term != self.state.term || record.rev != self.state.rev.next() {
            return Err(DatabaseError::Diverged(format!(
                "{} of {} after {}",
                record.rev,
                record.term,
                self.state.position()
            )));
        }
        self.changed = true;
        match &record.operation {
            Operation::Set(set) => self.apply_set(record, set)?,
            Operation::Batch { sets } => {
                for set in sets {
                    self.apply_set(record, set)?;
                }
            }
            Operation::Delete { removed, .. } => self.apply_delete(record.rev, removed)?,
            Operation::DeleteAll { end_seq, count } => {
                self.apply_delete_all(record.rev, *end_seq, *count)?;
            }
            Operation::Configure { config } => {
                let encoded = encode_config(config)?;
                self.connection.prepare_cached("UPDATE meta SET config = ?1")?.execute([encoded])?;
                self.state.config = config.clone();
            }
        }
        self.state.rev = record.rev;
        self.state.accept_time = self.state.accept_time.max(record.accept_time);
        Ok(())
    }

    fn apply_set(&mut self, record: &Record, set: &SetOperation) -> Result<(), DatabaseError> {
        if let Some(gone) = set.replaces {
            self.remove_one(gone)?;
        }
        if set.seq.get() == 0 || set.seq.get() > MAX_SEQ {
            return Err(DatabaseError::Diverged(format!("a message at {}", set.seq)));
        }
        let headers = if set.headers.is_empty() {
            None
        } else {
            let encoded = dormouse_protocol::encode(&set.headers)
                .map_err(|error| DatabaseError::Diverged(format!("headers: {error}")))?;
            Some(encoded)
        };
        let size = set.size_bytes();
        self.connection
            .prepare_cached(
                "INSERT INTO messages(seq, key, term, rev, timestamp, headers, value, size, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                to_sql(set.seq.get()),
                set.key,
                to_sql(record.term.get()),
                to_sql(record.rev.get()),
                to_sql(set.timestamp.as_micros()),
                headers.as_deref(),
                set.value.as_deref(),
                to_sql(size),
                set.expires_at.map(|at| to_sql(at.as_micros())),
            ])?;
        self.state.count += 1;
        self.state.bytes += size;
        self.state.next_seq = self.state.next_seq.max(set.seq.next());
        if self.state.last.is_none_or(|last| set.seq >= last.seq) {
            self.state.last = Some(MessageId { term: record.term, seq: set.seq });
        }
        Ok(())
    }

    fn apply_delete(&mut self, rev: Rev, removed: &[Removed]) -> Result<(), DatabaseError> {
        for one in removed {
            self.remove_one(one.seq)?;
            self.bury(rev, one.seq, one.key.as_deref(), false)?;
        }
        self.prune_tombstones()
    }

    fn apply_delete_all(&mut self, rev: Rev, end_seq: Seq, count: u64) -> Result<(), DatabaseError> {
        let end = to_sql(end_seq.get());
        let bytes: i64 = self
            .connection
            .prepare_cached("SELECT coalesce(SUM(size), 0) FROM messages WHERE seq <= ?1")?
            .query_row([end], |row| row.get(0))?;
        let removed =
            self.connection.prepare_cached("DELETE FROM messages WHERE seq <= ?1")?.execute([end])? as u64;
        if removed != count {
            return Err(DatabaseError::Diverged(format!("{removed} messages up to {end_seq}, not {count}")));
        }
        self.state.count -= removed;
        self.state.bytes = self.state.bytes.saturating_sub(from_sql(bytes));
        self.bury(rev, end_seq, None, true)?;
        self.prune_tombstones()
    }

    fn remove_one(&mut self, seq: Seq) -> Result<(), DatabaseError> {
        let size: Option<i64> = self
            .connection
            .prepare_cached("DELETE FROM messages WHERE seq = ?1 RETURNING size")?
            .query_row([to_sql(seq.get())], |row| row.get(0))
            .optional()?;
        let size = size.ok_or_else(|| DatabaseError::Diverged(format!("no message at {seq}")))?;
        self.state.count = self.state.count.saturating_sub(1);
        self.state.bytes = self.state.bytes.saturating_sub(from_sql(size));
        Ok(())
    }

    fn bury(
        &mut self,
        rev: Rev,
        seq: Seq,
        key: Option<&str>,
        everything_below: bool,
    ) -> Result<(), DatabaseError> {
        self.connection
            .prepare_cached(
                "INSERT INTO tombstones(rev, seq, key, everything_below) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![to_sql(rev.get()), to_sql(seq.get()), key, everything_below])?;
        self.tombstones += 1;
        Ok(())
    }

    /// Forgets the oldest tombstones once there are too many, whole revs only: half a rev would look like all of it.
    fn prune_tombstones(&mut self) -> Result<(), DatabaseError> {
        if self.tombstones <= MAX_TOMBSTONES + TOMBSTONE_SLACK {
            return Ok(());
        }
        let floor: i64 = self
            .connection
            .prepare_cached("SELECT rev FROM tombstones ORDER BY rev, seq LIMIT 1 OFFSET ?1")?
            .query_row([to_sql(self.tombstones - MAX_TOMBSTONES - 1)], |row| row.get(0))?;
        let gone =
            self.connection.prepare_cached("DELETE FROM tombstones WHERE rev <= ?1")?.execute([floor])?;
        self.tombstones = self.tombstones.saturating_sub(gone as u64);
        self.tombstone_floor = Rev::new(from_sql(floor));
        Ok(())
    }
}
