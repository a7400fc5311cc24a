//! Applies entries to rows. No decision is made here: an entry contains everything, and is checked against
//! the state.

use std::sync::LazyLock;

use dormouse_format::entry::LogEntry;
use dormouse_format::record::{RecordOp, SetOperation};
use dormouse_protocol::limits::MAX_SEQ;
use dormouse_protocol::message::Removed;
use dormouse_protocol::{MessageId, Rev, Seq, Timestamp};
use rusqlite::{OptionalExtension, Statement, ToSql, params};

use super::counts::MessageCounts;
use super::schema::{MAX_REMOVAL_RECORDS, REMOVAL_RECORD_SLACK};
use super::{Database, DatabaseError, encode_config, from_sql, to_sql};

/// If this many new messages follow each other, one statement inserts them: half of the cost of an insert is
/// its statement.
const ROWS: usize = 16;

/// The columns of a message, in the order of [`bind`].
const INSERT: &str = "INSERT INTO messages(seq, key, term, rev, timestamp, headers, value, blob, blob_crc64, size, expires_at, accepted_at) VALUES";
const ROW: &str = "(?,?,?,?,?,?,?,?,?,?,?,?)";
const COLUMNS: usize = 12;

static INSERT_ONE: LazyLock<String> = LazyLock::new(|| format!("{INSERT} {ROW}"));
static INSERT_ROWS: LazyLock<String> = LazyLock::new(|| format!("{INSERT} {}", [ROW; ROWS].join(",")));

impl Database {
    /// Applies an entry, which must follow the last one. Within a transaction. An entry without operations
    /// has no further effect if it has been applied before.
    ///
    /// # Errors
    /// [`DatabaseError::Diverged`] if the entry does not follow from the state, otherwise SQLite's error. The
    /// caller must then roll the transaction back.
    pub fn apply(&mut self, entry: &LogEntry) -> Result<(), DatabaseError> {
        let is_reply_only = entry.operations.is_empty();
        let earlier_term = entry.term < self.state.term;
        if entry.after != self.state.rev || (earlier_term && !is_reply_only) {
            return Err(DatabaseError::Diverged(format!(
                "an entry of {} that comes after {} where the state is {}",
                entry.term,
                entry.after,
                self.state.position()
            )));
        }
        if is_reply_only && self.is_recorded(entry)? {
            return Ok(());
        }
        self.changed = true;
        if entry.term > self.state.term {
            self.enter_term(entry.term)?;
        }
        let mut msg_ids = 0;
        let mut operations = entry.operations.as_slice();
        while let Some((operation, rest)) = operations.split_first() {
            if let Some((sets, rest)) = new_messages(operations) {
                msg_ids += self.insert(entry, self.state.rev.next(), &sets)?;
                self.state.rev = Rev::new(self.state.rev.get() + ROWS as u64);
                operations = rest;
            } else {
                msg_ids += self.apply_operation(entry, operation)?;
                operations = rest;
            }
        }
        self.state.accept_time = self.state.accept_time.max(entry.accept_time);
        if let Some(request) = &entry.request {
            self.record_reply(entry, request)?;
        }
        self.expire_dedup(msg_ids)
    }

    /// Applies an entry unless the state contains it already; returns whether it was applied. Within a
    /// transaction.
    ///
    /// # Errors
    /// As [`Database::apply`]; [`DatabaseError::Diverged`] also if an earlier entry is missing, or if the
    /// state contains only a part of it.
    pub fn apply_if_new(&mut self, entry: &LogEntry) -> Result<bool, DatabaseError> {
        let rev = self.state.rev;
        let applied = if entry.operations.is_empty() {
            // An entry at exactly this rev may be missing; applying it again has no further effect.
            entry.after < rev || (entry.after == rev && self.is_recorded(entry)?)
        } else {
            entry.last_rev() <= rev
        };
        if applied {
            return Ok(false);
        }
        self.apply(entry).map(|()| true)
    }

    /// Returns the number of its message ids.
    fn apply_operation(&mut self, entry: &LogEntry, operation: &RecordOp) -> Result<u64, DatabaseError> {
        let rev = self.state.rev.next();
        let mut msg_ids = 0;
        match operation {
            RecordOp::Set(set) => msg_ids += self.apply_set(entry, rev, set)?,
            RecordOp::Batch { sets } => {
                for set in sets {
                    msg_ids += self.apply_set(entry, rev, set)?;
                }
            }
            RecordOp::Delete { removed, .. } => self.apply_delete(rev, removed)?,
            RecordOp::DeleteAll { end_seq, count } => self.apply_delete_all(rev, *end_seq, *count)?,
            RecordOp::Configure { config } => {
                let encoded = encode_config(config)?;
                self.connection.prepare_cached("UPDATE meta SET config = ?1")?.execute([encoded])?;
                self.state.config = config.clone();
                self.config_rev = rev;
            }
        }
        self.state.rev = rev;
        Ok(msg_ids)
    }

    fn apply_set(&mut self, entry: &LogEntry, rev: Rev, set: &SetOperation) -> Result<u64, DatabaseError> {
        if let Some(gone) = set.replaces {
            self.remove_one(gone, rev)?;
        }
        self.insert(entry, rev, &[set])
    }

    /// Inserts one message, or [`ROWS`] of them, each at the rev after the one before. Returns the number of
    /// their message ids.
    fn insert<const N: usize>(
        &mut self,
        entry: &LogEntry,
        first_rev: Rev,
        sets: &[&SetOperation; N],
    ) -> Result<u64, DatabaseError> {
        let numbered = || sets.iter().zip(first_rev.get()..).map(|(set, rev)| (*set, Rev::new(rev)));
        let sql = if N == 1 { &*INSERT_ONE } else { &*INSERT_ROWS };
        let mut statement = self.connection.prepare_cached(sql)?;
        // Never decreases with rev, whatever an entry contains.
        let accepted_at = entry.accept_time.max(self.state.accept_time);
        for (row, (set, rev)) in numbered().enumerate() {
            bind(&mut statement, row * COLUMNS, entry, set, (rev, accepted_at))?;
        }
        statement.raw_execute()?;
        drop(statement);
        let mut msg_ids = 0;
        for (set, rev) in numbered() {
            let size = set.size_bytes();
            self.state.count += 1;
            self.state.bytes += size;
            self.counts.add(MessageCounts::of(set.expires_at.is_some(), set.blob.map(|_| size)));
            self.state.next_seq = self.state.next_seq.max(set.seq.next());
            if self.state.last.is_none_or(|last| set.seq >= last.seq) {
                self.state.last = Some(MessageId { term: entry.term, seq: set.seq });
            }
            self.record_msg_id(entry, rev, set)?;
            msg_ids += u64::from(set.msg_id.is_some());
        }
        Ok(msg_ids)
    }

    fn apply_delete(&mut self, rev: Rev, removed: &[Removed]) -> Result<(), DatabaseError> {
        for one in removed {
            self.remove_one(one.seq, rev)?;
            self.add_removal_row(rev, one.seq, one.key.as_deref(), None)?;
        }
        self.prune_removal_records()
    }

    fn apply_delete_all(&mut self, rev: Rev, end_seq: Seq, count: u64) -> Result<(), DatabaseError> {
        // There is no message above the highest seq, and SQLite would read the number as negative.
        let end = to_sql(end_seq.get().min(MAX_SEQ));
        self.add_dead_blobs_up_to(end, rev)?;
        let (bytes, counts): (i64, MessageCounts) = self
            .connection
            .prepare_cached(
                "SELECT coalesce(SUM(size), 0), COUNT(expires_at), COUNT(blob),
                        coalesce(SUM(size) FILTER (WHERE blob IS NOT NULL), 0)
                 FROM messages WHERE seq <= ?1",
            )?
            .query_row([end], |row| Ok((row.get(0)?, MessageCounts::from_row(row, 1)?)))?;
        let removed =
            self.connection.prepare_cached("DELETE FROM messages WHERE seq <= ?1")?.execute([end])? as u64;
        if removed != count {
            return Err(DatabaseError::Diverged(format!("{removed} messages up to {end_seq}, not {count}")));
        }
        self.state.count -= removed;
        self.state.bytes = self.state.bytes.saturating_sub(from_sql(bytes));
        self.counts.take(counts);
        self.add_removal_row(rev, end_seq, None, Some(count))?;
        self.prune_removal_records()
    }

    fn remove_one(&mut self, seq: Seq, rev: Rev) -> Result<(), DatabaseError> {
        let gone: Option<(i64, Option<String>, bool)> = self
            .connection
            .prepare_cached(
                "DELETE FROM messages WHERE seq = ?1 RETURNING size, blob, expires_at IS NOT NULL",
            )?
            .query_row([to_sql(seq.get())], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let (size, blob, expires) =
            gone.ok_or_else(|| DatabaseError::Diverged(format!("no message at {seq}")))?;
        self.counts.take(MessageCounts::of(expires, blob.as_ref().map(|_| from_sql(size))));
        if let Some(blob) = blob {
            self.add_dead_blob(&blob, rev)?;
        }
        self.state.count = self.state.count.saturating_sub(1);
        self.state.bytes = self.state.bytes.saturating_sub(from_sql(size));
        Ok(())
    }

    fn add_removal_row(
        &mut self,
        rev: Rev,
        seq: Seq,
        key: Option<&str>,
        all_below: Option<u64>,
    ) -> Result<(), DatabaseError> {
        self.connection
            .prepare_cached("INSERT INTO tombstones(rev, seq, key, count) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![to_sql(rev.get()), to_sql(seq.get()), key, all_below.map(to_sql)])?;
        self.removal_records += 1;
        Ok(())
    }

    /// Deletes the oldest removal records once there are too many. It deletes whole revs only: a part of a
    /// rev would look like all of it.
    fn prune_removal_records(&mut self) -> Result<(), DatabaseError> {
        if self.removal_records <= MAX_REMOVAL_RECORDS + REMOVAL_RECORD_SLACK {
            return Ok(());
        }
        let floor: i64 = self
            .connection
            .prepare_cached("SELECT rev FROM tombstones ORDER BY rev, seq LIMIT 1 OFFSET ?1")?
            .query_row([to_sql(self.removal_records - MAX_REMOVAL_RECORDS - 1)], |row| row.get(0))?;
        let gone =
            self.connection.prepare_cached("DELETE FROM tombstones WHERE rev <= ?1")?.execute([floor])?;
        self.removal_records = self.removal_records.saturating_sub(gone as u64);
        self.removal_floor = Rev::new(from_sql(floor));
        Ok(())
    }
}

/// The first operations, if they are [`ROWS`] messages that replace no other, and the operations after them.
fn new_messages(operations: &[RecordOp]) -> Option<([&SetOperation; ROWS], &[RecordOp])> {
    let (first, rest) = operations.split_first_chunk::<ROWS>()?;
    let mut sets = Vec::with_capacity(ROWS);
    for operation in first {
        match operation {
            RecordOp::Set(set) if set.replaces.is_none() => sets.push(set),
            _ => return None,
        }
    }
    Some((sets.try_into().ok()?, rest))
}

/// Binds the columns of one message, after `before` other columns.
fn bind(
    statement: &mut Statement<'_>,
    before: usize,
    entry: &LogEntry,
    set: &SetOperation,
    (rev, accepted_at): (Rev, Timestamp),
) -> Result<(), DatabaseError> {
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
    let columns: [&dyn ToSql; COLUMNS] = [
        &to_sql(set.seq.get()),
        &set.key,
        &to_sql(entry.term.get()),
        &to_sql(rev.get()),
        &to_sql(set.timestamp.as_micros()),
        &headers.as_deref(),
        &set.value.as_deref(),
        &set.blob.map(|blob| blob.name.to_string()),
        &set.blob.map(|blob| blob.crc64.to_string()),
        &to_sql(set.size_bytes()),
        &set.expires_at.map(|at| to_sql(at.as_micros())),
        &to_sql(accepted_at.as_micros()),
    ];
    for (column, value) in columns.into_iter().enumerate() {
        statement.raw_bind_parameter(before + column + 1, value)?;
    }
    Ok(())
}
