//! The floor: the seq up to which a `delete_all` has removed all messages.
//!
//! A `delete_all` may remove millions of messages. Its transaction sets the floor and the counters, so its cost does not
//! depend on the number of messages. From then on, no read, plan or count finds a message at or below the floor. Later
//! slices delete the rows, each in a transaction of its own. After the last slice there is no floor.

use dormouse_format::record::SetOperation;
use dormouse_protocol::{Rev, Seq};
use dormouse_runtime::injected_bug;
use rusqlite::{Connection, params};

use super::slice::{SLICE_ROWS, Slice};
use super::{Database, DatabaseError, from_sql, to_sql};

/// The floor of a file. The default hides nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Floor {
    /// Messages up to and including this seq are removed.
    pub(super) seq: Seq,
    /// The rev that set it. The objects of large values below the floor count as removed by this rev.
    pub(super) rev: Rev,
    /// All rows of earlier revs are below the floor: at this rev all messages were removed. 0: no such rev.
    pub(super) cleared_rev: Rev,
}

impl Floor {
    pub(super) fn read(connection: &Connection) -> Result<Self, rusqlite::Error> {
        connection.prepare_cached("SELECT row_floor, row_floor_rev, cleared_rev FROM meta")?.query_row(
            [],
            |row| {
                Ok(Self {
                    seq: Seq::new(from_sql(row.get(0)?)),
                    rev: Rev::new(from_sql(row.get(1)?)),
                    cleared_rev: Rev::new(from_sql(row.get(2)?)),
                })
            },
        )
    }

    /// Whether a message at `seq` is removed although its row may exist.
    pub(super) fn hides(self, seq: Seq) -> bool {
        seq <= self.seq && !injected_bug!(FloorIgnored)
    }

    /// The first seq that is not hidden.
    pub(super) fn next(self) -> Seq {
        if self.is_set() { self.seq.next() } else { Seq::default() }
    }

    fn is_set(self) -> bool {
        self.seq > Seq::default()
    }

    /// The change with `rev` removes all messages up to and including `end_seq`; `clears`: no message is above it.
    pub(super) fn raise(&mut self, end_seq: Seq, rev: Rev, clears: bool) {
        self.seq = self.seq.max(end_seq);
        self.rev = rev;
        if clears {
            self.cleared_rev = rev;
        }
    }
}

/// The rows that one slice deletes; `is_last`: all that are left.
struct HiddenRows {
    last: Seq,
    blobs: Vec<String>,
    is_last: bool,
}

impl Database {
    /// Whether rows of removed messages are left. A snapshot must have none.
    #[must_use]
    pub fn has_hidden_rows(&self) -> bool {
        self.floor.is_set()
    }

    /// Deletes one [slice](Slice) of the rows of removed messages, in a transaction of its own. Returns whether such rows
    /// are left.
    ///
    /// # Errors
    /// [`DatabaseError`]; then the file is unchanged.
    pub fn delete_hidden_rows(&mut self) -> Result<bool, DatabaseError> {
        self.delete_rows_below_floor(SLICE_ROWS)
    }

    /// The same for at most `max_rows` rows.
    pub(super) fn delete_rows_below_floor(&mut self, max_rows: usize) -> Result<bool, DatabaseError> {
        if !self.floor.is_set() {
            return Ok(false);
        }
        self.in_transaction(|database| {
            let slice = database.hidden_rows(max_rows)?;
            let rev = database.floor.rev;
            slice.blobs.iter().try_for_each(|blob| database.add_dead_blob(blob, rev))?;
            database
                .connection
                .prepare_cached("DELETE FROM messages WHERE seq <= ?1")?
                .execute([to_sql(slice.last.get())])?;
            if slice.is_last {
                database.floor = Floor::default();
                database.changed = true;
            }
            // These rows may have stood before the one that expires next.
            database.update_next_expiry()
        })?;
        Ok(self.floor.is_set())
    }

    fn hidden_rows(&self, max_rows: usize) -> Result<HiddenRows, DatabaseError> {
        let mut select = self
            .connection
            .prepare_cached("SELECT seq, size, blob FROM messages WHERE seq <= ?1 ORDER BY seq")?;
        let mut rows = select.query([to_sql(self.floor.seq.get())])?;
        let mut hidden = HiddenRows { last: Seq::default(), blobs: Vec::new(), is_last: true };
        let mut slice = Slice::new();
        while let Some(row) = rows.next()? {
            if slice.is_spent() || slice.rows() >= max_rows {
                hidden.is_last = false;
                break;
            }
            let blob: Option<String> = row.get(2)?;
            // The value of a blob is not in the file.
            let bytes = if blob.is_some() { 0 } else { from_sql(row.get(1)?) };
            slice.count(usize::try_from(bytes).unwrap_or(usize::MAX));
            hidden.last = Seq::new(from_sql(row.get(0)?));
            hidden.blobs.extend(blob);
        }
        Ok(hidden)
    }

    /// Deletes the row of a removed message that has the key of `set`: each key has at most one row.
    pub(super) fn free_hidden_key(&self, set: &SetOperation) -> Result<(), DatabaseError> {
        let (true, Some(key)) = (self.floor.is_set(), &set.key) else { return Ok(()) };
        let mut delete = self
            .connection
            .prepare_cached("DELETE FROM messages WHERE key = ?1 AND seq <= ?2 RETURNING blob")?;
        let mut rows = delete.query(params![key, to_sql(self.floor.seq.get())])?;
        while let Some(row) = rows.next()? {
            if let Some(blob) = row.get::<_, Option<String>>(0)? {
                self.add_dead_blob(&blob, self.floor.rev)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dormouse_format::record::RecordOp;
    use dormouse_protocol::data::{GetAllRequest, GetRequest};

    use super::super::fixture::fresh;
    use super::*;

    fn rows(database: &Database) -> u64 {
        let rows = database.connection.query_row("SELECT COUNT(*) FROM messages", [], |row| row.get(0));
        from_sql(rows.unwrap())
    }

    fn filled(folder: &tempfile::TempDir, values: impl IntoIterator<Item = Vec<u8>>) -> Database {
        let mut database = fresh(&folder.path().join("s.sqlite3"));
        for (n, value) in values.into_iter().enumerate() {
            let set = database.set(Some(&format!("k{n}")), &value);
            database.run(vec![RecordOp::Set(set)]);
        }
        database
    }

    /// A `delete_all` deletes no row, and hides all of them at once.
    #[test]
    fn floor_hides_rows_before_they_are_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let mut database = filled(&folder, (0..1_000).map(|_| vec![1]));
        database.run(vec![RecordOp::DeleteAll { end_seq: Seq::new(1_000), count: 1_000 }]);
        assert_eq!((rows(&database), database.has_hidden_rows()), (1_000, true));
        assert_eq!((database.state().count, database.state().bytes), (0, 0));
        let all = database.get_all(&GetAllRequest::default(), 1 << 20).unwrap();
        assert_eq!((all.messages, all.cursor), (vec![], None));
        // A new message takes over the key of a hidden row.
        let set = database.set(Some("k999"), b"new");
        database.run(vec![RecordOp::Set(set)]);
        drop(database);
        let mut database =
            Database::open(&folder.path().join("s.sqlite3"), &"app.orders".parse().unwrap()).unwrap();
        let mut slices = 0;
        loop {
            let got = database.get(&GetRequest::key("k999"), 1 << 20).unwrap().messages;
            assert_eq!(got.iter().map(|message| message.seq.get()).collect::<Vec<_>>(), [1_001]);
            assert!(database.get(&GetRequest::key("k998"), 1 << 20).unwrap().messages.is_empty());
            let before = rows(&database);
            let has_more = database.delete_hidden_rows().unwrap();
            slices += 1;
            assert!(before - rows(&database) <= SLICE_ROWS as u64);
            if !has_more {
                break;
            }
        }
        assert_eq!((slices, rows(&database), database.has_hidden_rows()), (4, 1, false));
        database.check_counts();
        database.check_integrity().unwrap();
    }

    /// A slice deletes at least one row, and otherwise no more bytes of values than its limit.
    #[test]
    fn floor_slice_is_bounded_by_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let sizes = [100, 40_000, 30_000, 200_000, 1];
        let mut database = filled(&folder, sizes.map(|size| vec![0; size]));
        database.run(vec![RecordOp::DeleteAll { end_seq: Seq::new(5), count: 5 }]);
        let mut left = vec![rows(&database)];
        while database.delete_hidden_rows().unwrap() {
            left.push(rows(&database));
        }
        left.push(rows(&database));
        assert_eq!(left, [5, 2, 1, 0]);
    }
}
