//! Applies entries to rows. No decision is made here: an entry contains everything, and is checked against
//! the state.

use std::sync::LazyLock;

use dormouse_format::entry::LogEntry;
use dormouse_format::record::{RecordOp, SetOperation};
use dormouse_protocol::limits::MAX_SEQ;
use dormouse_protocol::{MessageId, Rev, Seq, Timestamp};
use rusqlite::{OptionalExtension, Statement, ToSql, params};

use super::counts::MessageCounts;
use super::schema::{MAX_REMOVAL_RECORDS, REMOVAL_RECORD_SLACK};
use super::slice::Slice;
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

/// How far an entry has been applied, within a transaction.
#[derive(Debug, Default)]
pub struct ApplyProgress {
    /// Whether the entry has been checked against the state, and its application has begun.
    begun: bool,
    /// The next operation, and the next message within it.
    operation: usize,
    within: usize,
    /// Number of message ids so far.
    msg_ids: u64,
    /// The messages that the current [`RecordOp::DeleteAll`] removes, as far as they are counted.
    removed: Removal,
}

impl ApplyProgress {
    /// Whether the application has not begun.
    pub(super) const fn is_new(&self) -> bool {
        !self.begun
    }
}

#[derive(Debug, Default)]
struct Removal {
    messages: u64,
    bytes: u64,
    counts: MessageCounts,
    counted_to: Seq,
}

impl Database {
    /// Applies an entry, which must follow the last one. Within a transaction. An entry without operations
    /// has no further effect if it has been applied before.
    ///
    /// # Errors
    /// [`DatabaseError::Diverged`] if the entry does not follow from the state, otherwise SQLite's error. The
    /// caller must then roll the transaction back.
    pub fn apply(&mut self, entry: &LogEntry) -> Result<(), DatabaseError> {
        let mut progress = ApplyProgress::default();
        while !self.apply_slice(entry, &mut progress, &mut Slice::new())? {}
        Ok(())
    }

    /// Applies one slice of an entry, as [`Database::apply`] does. Returns whether the entry is complete. Before it is,
    /// nothing else may read or change the file: it holds a part of the entry.
    ///
    /// # Errors
    /// As [`Database::apply`].
    pub fn apply_slice(
        &mut self,
        entry: &LogEntry,
        progress: &mut ApplyProgress,
        slice: &mut Slice,
    ) -> Result<bool, DatabaseError> {
        if !progress.begun {
            if self.begin_entry(entry)? {
                return Ok(true);
            }
            progress.begun = true;
        }
        while let Some(operation) = entry.operations.get(progress.operation) {
            if slice.is_spent() {
                return Ok(false);
            }
            let left = entry.operations.get(progress.operation..).unwrap_or_default();
            if let Some(sets) = new_messages(left).filter(|sets| fits(*slice, sets)) {
                progress.msg_ids += self.insert(entry, self.state.rev.next(), &sets)?;
                self.state.rev = Rev::new(self.state.rev.get() + ROWS as u64);
                progress.operation += ROWS;
                sets.iter().for_each(|set| slice.count(inline_bytes(set)));
            } else if self.apply_operation(entry, operation, progress, slice)? {
                self.state.rev = self.state.rev.next();
                progress.operation += 1;
                progress.within = 0;
            } else {
                return Ok(false);
            }
        }
        if entry.operations.is_empty() {
            slice.count(0);
        }
        self.state.accept_time = self.state.accept_time.max(entry.accept_time);
        if let Some(request) = &entry.request {
            self.record_reply(entry, request)?;
        }
        self.expire_dedup(progress.msg_ids)?;
        Ok(true)
    }

    /// Checks that the entry follows from the state. Returns whether it has no further effect.
    fn begin_entry(&mut self, entry: &LogEntry) -> Result<bool, DatabaseError> {
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
            return Ok(true);
        }
        self.changed = true;
        if entry.term > self.state.term {
            self.enter_term(entry.term)?;
        }
        Ok(false)
    }

    /// Whether the state contains the entry already. Only the next entries may be applied.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn contains(&self, entry: &LogEntry) -> Result<bool, DatabaseError> {
        let rev = self.state.rev;
        if entry.operations.is_empty() {
            // An entry at exactly this rev may be missing; applying it again has no further effect.
            Ok(entry.after < rev || (entry.after == rev && self.is_recorded(entry)?))
        } else {
            Ok(entry.last_rev() <= rev)
        }
    }

    /// Applies an entry unless the state contains it already; returns whether it was applied. Within a
    /// transaction.
    ///
    /// # Errors
    /// As [`Database::apply`]; [`DatabaseError::Diverged`] also if an earlier entry is missing, or if the
    /// state contains only a part of it.
    pub fn apply_if_new(&mut self, entry: &LogEntry) -> Result<bool, DatabaseError> {
        if self.contains(entry)? {
            return Ok(false);
        }
        self.apply(entry).map(|()| true)
    }

    /// Applies one slice of an operation; returns whether the operation is complete.
    fn apply_operation(
        &mut self,
        entry: &LogEntry,
        operation: &RecordOp,
        progress: &mut ApplyProgress,
        slice: &mut Slice,
    ) -> Result<bool, DatabaseError> {
        let rev = self.state.rev.next();
        match operation {
            RecordOp::Set(set) => self.apply_set(entry, rev, set, progress, slice)?,
            RecordOp::Batch { sets } => {
                while let Some(set) = sets.get(progress.within) {
                    if slice.is_spent() {
                        return Ok(false);
                    }
                    self.apply_set(entry, rev, set, progress, slice)?;
                    progress.within += 1;
                }
            }
            RecordOp::Delete { removed, .. } => {
                while let Some(one) = removed.get(progress.within) {
                    if slice.is_spent() {
                        return Ok(false);
                    }
                    let size = self.remove_one(one.seq, rev)?;
                    slice.count(size);
                    self.add_removal_row(rev, one.seq, one.key.as_deref(), None)?;
                    progress.within += 1;
                }
                self.prune_removal_records()?;
            }
            RecordOp::DeleteAll { end_seq, count } => {
                if !self.count_removed(*end_seq, &mut progress.removed, slice)? {
                    return Ok(false);
                }
                let removed = std::mem::take(&mut progress.removed);
                self.finish_delete_all(rev, *end_seq, *count, &removed)?;
            }
            RecordOp::Configure { config } => {
                let encoded = encode_config(config)?;
                self.connection.prepare_cached("UPDATE meta SET config = ?1")?.execute([encoded])?;
                self.state.config = config.clone();
                self.config_rev = rev;
                slice.count(0);
            }
        }
        Ok(true)
    }

    fn apply_set(
        &mut self,
        entry: &LogEntry,
        rev: Rev,
        set: &SetOperation,
        progress: &mut ApplyProgress,
        slice: &mut Slice,
    ) -> Result<(), DatabaseError> {
        let mut bytes = inline_bytes(set);
        if let Some(gone) = set.replaces {
            bytes += self.remove_one(gone, rev)?;
        }
        slice.count(bytes);
        progress.msg_ids += self.insert(entry, rev, &[set])?;
        Ok(())
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
        for set in sets {
            self.free_hidden_key(set)?;
        }
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

    /// Counts the next messages that a removal up to `end_seq` hides, as many as fit the slice. Returns whether all are
    /// counted. If it removes all messages, the state has the counts.
    fn count_removed(
        &self,
        end_seq: Seq,
        removed: &mut Removal,
        slice: &mut Slice,
    ) -> Result<bool, DatabaseError> {
        if end_seq >= self.newest_seq() {
            let (messages, bytes) = (self.state.count, self.state.bytes);
            *removed = Removal { messages, bytes, counts: self.counts, counted_to: end_seq };
            slice.count(0);
            return Ok(true);
        }
        let from = removed.counted_to.max(self.floor.seq);
        let mut select = self.connection.prepare_cached(
            "SELECT seq, size, expires_at IS NOT NULL, blob IS NOT NULL FROM messages
             WHERE seq > ?1 AND seq <= ?2 ORDER BY seq",
        )?;
        let mut rows = select.query([to_sql(from.get()), to_sql(end_seq.get())])?;
        while let Some(row) = rows.next()? {
            if slice.is_spent() {
                return Ok(false);
            }
            // The value is not read.
            slice.count(0);
            let (size, is_blob) = (from_sql(row.get(1)?), row.get::<_, bool>(3)?);
            removed.messages += 1;
            removed.bytes += size;
            removed.counts.add(MessageCounts::of(row.get(2)?, is_blob.then_some(size)));
            removed.counted_to = Seq::new(from_sql(row.get(0)?));
        }
        Ok(true)
    }

    /// The highest seq that a message has had.
    fn newest_seq(&self) -> Seq {
        Seq::new(self.state.next_seq.get().saturating_sub(1))
    }

    fn finish_delete_all(
        &mut self,
        rev: Rev,
        end_seq: Seq,
        count: u64,
        removed: &Removal,
    ) -> Result<(), DatabaseError> {
        if removed.messages != count {
            let found = removed.messages;
            return Err(DatabaseError::Diverged(format!("{found} messages up to {end_seq}, not {count}")));
        }
        self.state.count -= count;
        self.state.bytes = self.state.bytes.saturating_sub(removed.bytes);
        self.counts.take(removed.counts);
        // The next message must be above the floor.
        let newest = self.newest_seq();
        self.floor.raise(end_seq.min(newest), rev, end_seq >= newest);
        self.add_removal_row(rev, end_seq, None, Some(count))?;
        self.prune_removal_records()
    }

    /// Returns the bytes of its value in the file.
    fn remove_one(&mut self, seq: Seq, rev: Rev) -> Result<usize, DatabaseError> {
        if self.floor.hides(seq) {
            return Err(DatabaseError::Diverged(format!("no message at {seq}")));
        }
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
        let is_blob = blob.is_some();
        if let Some(blob) = blob {
            self.add_dead_blob(&blob, rev)?;
        }
        self.state.count = self.state.count.saturating_sub(1);
        self.state.bytes = self.state.bytes.saturating_sub(from_sql(size));
        Ok(if is_blob { 0 } else { usize::try_from(from_sql(size)).unwrap_or(usize::MAX) })
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

/// The first operations, if they are [`ROWS`] messages that replace no other.
fn new_messages(operations: &[RecordOp]) -> Option<[&SetOperation; ROWS]> {
    let first = operations.first_chunk::<ROWS>()?;
    let mut sets = Vec::with_capacity(ROWS);
    for operation in first {
        match operation {
            RecordOp::Set(set) if set.replaces.is_none() => sets.push(set),
            _ => return None,
        }
    }
    sets.try_into().ok()
}

fn fits(slice: Slice, sets: &[&SetOperation; ROWS]) -> bool {
    slice.fits(ROWS, sets.iter().map(|set| inline_bytes(set)).sum())
}

/// The bytes of a message's value in the file.
pub(super) fn inline_bytes(set: &SetOperation) -> usize {
    set.value.as_ref().map_or(0, bytes::Bytes::len)
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
