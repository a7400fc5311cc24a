//! Entries for tests, built by hand: they follow from the state, but are not planned.

use std::path::Path;

use bytes::Bytes;
use dormouse_format::checksum::Crc64;
use dormouse_format::entry::{DedupRecord, LogEntry, WriteOutcome};
use dormouse_format::keys::{BlobName, Nonce};
use dormouse_format::record::{BlobRef, RecordOp, RemovalCause, SetOperation};
use dormouse_protocol::message::{Removed, SubjectConfig};
use dormouse_protocol::{ErrorReply, LogId, RequestId, SessionId, Subject, Term, Timestamp};
use rusqlite::types::ValueRef;
use ulid::Ulid;

use super::*;
use crate::plan::SubjectView;

pub(super) fn subject() -> Subject {
    "app.orders".parse().unwrap()
}

pub(super) fn log() -> LogId {
    "persist-1-01J9Z3ABCDEFGHJKMNPQRSTVWX".parse().unwrap()
}

pub(super) fn owner_of_term(term: u64, term_base: u64) -> FileOwner {
    FileOwner {
        log: log(),
        term: Term::new(term),
        term_base: Rev::new(term_base),
        manifest: ManifestNumber::new(term),
        bucket_rev: Rev::new(term_base),
    }
}

/// A file under its first term.
pub(super) fn fresh(path: &Path) -> Database {
    let mut database = Database::create(path, &subject(), &InitialState::default()).unwrap();
    database.take_over(&owner_of_term(1, 0)).unwrap();
    database
}

pub(super) fn second(seconds: u64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

pub(super) fn request(session: u128, counter: u64) -> RequestId {
    RequestId { session: SessionId::new(Ulid::from(session)), counter }
}

pub(super) fn blob(term: u64, n: u128) -> BlobRef {
    let name = BlobName { term: Term::new(term), nonce: Nonce::new(Ulid::from(n)) };
    BlobRef { name, size_bytes: 1 << 40, crc64: Crc64::of(&n.to_le_bytes()) }
}

/// A rejection: a reply that changes nothing but is recorded.
pub(super) fn refusal(why: &str) -> WriteOutcome {
    WriteOutcome::Refused(ErrorReply::bad_request(why))
}

impl Database {
    /// An entry that follows from this state, under its term and at its accept time.
    pub(super) fn entry(&self, operations: Vec<RecordOp>) -> LogEntry {
        LogEntry {
            term: self.state.term,
            after: self.state.rev,
            accept_time: self.state.accept_time,
            request: None,
            operations,
        }
    }

    /// A set that follows from this state: at the next seq, replacing the message of its key.
    pub(super) fn set(&self, key: Option<&str>, value: &[u8]) -> SetOperation {
        SetOperation {
            seq: self.state.next_seq,
            key: key.map(str::to_owned),
            value: Some(Bytes::copy_from_slice(value)),
            blob: None,
            headers: Default::default(),
            timestamp: self.state.accept_time,
            replaces: key.and_then(|key| self.by_key(key).unwrap()).map(|id| id.seq),
            expires_at: None,
            msg_id: None,
        }
    }

    pub(super) fn delete(&self, seqs: &[u64]) -> RecordOp {
        let removed = seqs.iter().map(|&seq| {
            let seq = Seq::new(seq);
            Removed { seq, key: self.at(seq).unwrap().unwrap().key }
        });
        RecordOp::Delete { removed: removed.collect(), cause: RemovalCause::Asked }
    }

    pub(super) fn delete_all(&self, end_seq: u64) -> RecordOp {
        let end_seq = Seq::new(end_seq);
        RecordOp::DeleteAll { end_seq, count: self.count_up_to(end_seq).unwrap() }
    }

    /// Applies an entry in a separate transaction.
    pub(super) fn commit_entry(&mut self, entry: &LogEntry) -> Result<(), DatabaseError> {
        self.in_transaction(|database| database.apply(entry))
    }

    /// Applies these operations in a separate entry.
    pub(super) fn run(&mut self, operations: Vec<RecordOp>) -> LogEntry {
        let entry = self.entry(operations);
        self.commit_entry(&entry).unwrap();
        entry
    }

    /// Checks that the counters equal the rows.
    pub(super) fn check_counts(&self) {
        let number = |sql: &str| {
            let number: i64 = self.connection.query_row(sql, [], |row| row.get(0)).unwrap();
            from_sql(number)
        };
        let details = self.details().unwrap();
        let counted = [
            self.state.count,
            self.state.bytes,
            details.expiring,
            details.large_values,
            details.large_value_bytes,
            details.sessions,
        ];
        let stored = [
            number("SELECT COUNT(*) FROM messages WHERE seq > (SELECT row_floor FROM meta)"),
            number("SELECT coalesce(SUM(size), 0) FROM messages WHERE seq > (SELECT row_floor FROM meta)"),
            number(
                "SELECT COUNT(*) FROM messages WHERE expires_at IS NOT NULL AND seq > (SELECT row_floor FROM meta)",
            ),
            number(
                "SELECT COUNT(*) FROM messages WHERE blob IS NOT NULL AND seq > (SELECT row_floor FROM meta)",
            ),
            number(
                "SELECT coalesce(SUM(size), 0) FROM messages WHERE blob IS NOT NULL AND seq > (SELECT row_floor FROM meta)",
            ),
            number("SELECT COUNT(*) FROM sessions"),
        ];
        assert_eq!(counted, stored);
    }

    /// All content of the file that entries determine, row by row.
    pub(super) fn dump(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut tables = self
            .connection
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
            .unwrap();
        let tables: Vec<String> =
            tables.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        for table in tables {
            let mut select =
                self.connection.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).unwrap();
            let columns: Vec<String> = select.column_names().map(str::to_owned).collect();
            let mut rows = select.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let mut line = table.clone();
                for (index, column) in columns.iter().enumerate() {
                    // Entries do not determine these three columns.
                    if table != "meta" || !["log", "manifest", "bucket_rev"].contains(&column.as_str()) {
                        line.push_str(&format!(" {column}={}", literal(row.get_ref(index).unwrap())));
                    }
                }
                lines.push(line);
            }
        }
        lines
    }
}

pub(super) fn remembered(entry: LogEntry, id: RequestId, outcome: WriteOutcome) -> LogEntry {
    LogEntry { request: Some(DedupRecord { id, outcome }), ..entry }
}

pub(super) fn config(metadata: &str) -> SubjectConfig {
    SubjectConfig { metadata: [("note".to_owned(), metadata.to_owned())].into(), ..SubjectConfig::default() }
}

/// A value as an SQL literal.
fn literal(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) => format!("'{}'", String::from_utf8_lossy(text)),
        ValueRef::Blob(bytes) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("x'{digits}'")
        }
    }
}
