//! Golden files of each version: their tables and rows.

use std::path::PathBuf;

use bytes::Bytes;
use dormouse_format::entry::{LogEntry, WriteOutcome};
use dormouse_format::record::{RecordOp, RemovalCause, SetOperation};
use dormouse_protocol::data::{
    ConfigureReply, DeleteAllReply, DeleteReply, DestroyReply, SetOutcome, SetReply, SetResult,
};
use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorReply, Headers, Position};

use super::super::fixture::*;
use super::super::*;
use crate::plan::{DedupLookup, ExpiryCursor, SubjectView};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The tables and the file's header values, without comments and line breaks.
fn schema(database: &Database) -> String {
    let mut text = String::new();
    for pragma in ["application_id", "user_version", "encoding", "page_size", "auto_vacuum", "journal_mode"] {
        let value: String = database
            .connection
            .query_row(&format!("SELECT CAST({pragma} AS TEXT) FROM pragma_{pragma}"), [], |row| row.get(0))
            .unwrap();
        text.push_str(&format!("PRAGMA {pragma} = {value};\n"));
    }
    let mut select = database
        .connection
        .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
        .unwrap();
    let mut rows = select.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let sql: String = row.get(0).unwrap();
        let lines = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
        let words: Vec<_> = lines.flat_map(str::split_whitespace).collect();
        text.push_str(&format!("{};\n", words.join(" ")));
    }
    text
}

/// Writes rows to every table.
fn fill(database: &mut Database) {
    let mut full = database.set(Some("k"), b"");
    full.value = Some(Bytes::from_static(b"\0\xff"));
    full.timestamp = second(3);
    full.msg_id = Some("order-1".to_owned());
    let result = |seq, rev, at| SetResult {
        seq: Seq::new(seq),
        term: Term::new(1),
        rev: Rev::new(rev),
        timestamp: second(at),
        duplicate: false,
    };
    let ok = |seq, rev, at| SetOutcome::Ok(result(seq, rev, at));
    let refused = SetOutcome::Error(ErrorReply::bad_request("no"));
    let answer = |results| WriteOutcome::Set(SetReply { results });
    let mut write = |term, at, operations, id, outcome| {
        let entry = LogEntry { term: Term::new(term), accept_time: second(at), ..database.entry(operations) };
        database.commit_entry(&remembered(entry, request(1, id), outcome)).unwrap();
        database.set(None, b"x")
    };
    let mut next =
        write(1, 1, vec![RecordOp::Set(full)], 1, answer(vec![ok(1, 1, 3), refused.clone(), refused]));
    (next.value, next.blob) = (None, Some(blob(1, 7)));
    let other = SetOperation { seq: Seq::new(3), blob: Some(blob(1, 8)), ..next.clone() };
    let sets = vec![next, other];
    write(1, 2, vec![RecordOp::Batch { sets }], 2, answer(vec![ok(2, 2, 2), ok(3, 2, 4)]));
    let config = config("about this subject");
    let reply = ConfigureReply { position: Default::default(), duplicate: false };
    write(2, 3, vec![RecordOp::Configure { config }], 3, WriteOutcome::Configure(reply));
    let removed = vec![Removed { seq: Seq::new(2), key: None }];
    let delete = RecordOp::Delete { removed, cause: RemovalCause::Asked };
    let reply = DeleteReply { position: Default::default(), seqs: vec![Seq::new(2)], duplicate: false };
    write(2, 4, vec![delete], 4, WriteOutcome::Delete(reply));
    let delete_all = RecordOp::DeleteAll { end_seq: Seq::new(1), count: 1 };
    let reply = DeleteAllReply { position: Default::default(), count: 1, duplicate: false };
    let mut keyed = write(2, 5, vec![delete_all], 5, WriteOutcome::DeleteAll(reply));
    (keyed.key, keyed.expires_at) = (Some(String::new()), Some(second(9)));
    keyed.headers = Headers(vec![("name".to_owned(), "value".to_owned())]);
    write(2, 6, vec![RecordOp::Set(keyed)], 6, refusal("never"));
    write(2, 7, Vec::new(), u64::MAX, refusal("no"));
}

/// A new file has the schema and rows of the golden files, and the golden file opens and takes writes.
#[test]
fn database_schema_and_rows_match_golden_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    let mut database = fresh(&path);
    fill(&mut database);
    let rows = database.dump().join("\n") + "\n";
    let schema = schema(&database);
    database.close().unwrap();
    if std::env::var_os("DORMOUSE_WRITE_GOLDEN").is_some() {
        std::fs::write(golden("subject-5-schema.sql"), &schema).unwrap();
        std::fs::write(golden("subject-5-rows.txt"), &rows).unwrap();
        std::fs::copy(&path, golden("subject-5.sqlite3")).unwrap();
    }
    assert_eq!(schema, std::fs::read_to_string(golden("subject-5-schema.sql")).unwrap());
    assert_eq!(rows, std::fs::read_to_string(golden("subject-5-rows.txt")).unwrap());

    std::fs::copy(golden("subject-5.sqlite3"), &path).unwrap();
    let database = Database::open(&path, &subject()).unwrap();
    assert_eq!(database.dump().join("\n") + "\n", rows);
    takes_writes(database);
}

/// A file that starts after a tombstone, with a request of the predecessor among its results.
fn created_after_destroy(path: &Path) -> Database {
    let mut before = fresh(path);
    fill(&mut before);
    let past = before.tombstone_state(Some(request(2, 3)), second(7)).unwrap();
    drop(before);
    remove_files(path).unwrap();
    let origin = InitialState { rev: past.position.rev, next_seq: Seq::new(5), tombstone: Some(past) };
    let mut database = Database::create(path, &subject(), &origin).unwrap();
    database.take_over(&owner_of_term(3, origin.rev.get())).unwrap();
    database
}

/// A file created after a destroy has the golden rows, keeps its dedup window and takes writes.
#[test]
fn database_after_destroy_matches_golden_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    let database = created_after_destroy(&path);
    let rows = database.dump().join("\n") + "\n";
    database.close().unwrap();
    if std::env::var_os("DORMOUSE_WRITE_GOLDEN").is_some() {
        std::fs::write(golden("subject-5-begun-again-rows.txt"), &rows).unwrap();
        std::fs::copy(&path, golden("subject-5-begun-again.sqlite3")).unwrap();
    }
    assert_eq!(rows, std::fs::read_to_string(golden("subject-5-begun-again-rows.txt")).unwrap());

    std::fs::copy(golden("subject-5-begun-again.sqlite3"), &path).unwrap();
    let mut database = Database::open(&path, &subject()).unwrap();
    assert_eq!(database.dump().join("\n") + "\n", rows);
    let position = Position { term: Term::new(2), rev: Rev::new(7) };
    let ended = WriteOutcome::Destroy(DestroyReply { position, duplicate: false });
    assert_eq!(database.remembered(request(2, 3)).unwrap(), DedupLookup::Done(ended));
    assert_eq!(database.remembered(request(1, 6)).unwrap(), DedupLookup::Forgotten);
    let set = RecordOp::Set(database.set(Some("k"), b"new"));
    database.run(vec![set]);
    database.check_integrity().unwrap();
}

/// The file has its content and takes writes.
fn takes_writes(mut database: Database) {
    assert_eq!(database.provenance().log, Some(log()));
    assert_eq!(database.remembered(request(1, u64::MAX)).unwrap(), DedupLookup::Done(refusal("no")));
    let DedupLookup::Done(WriteOutcome::Set(reply)) = database.remembered(request(1, 2)).unwrap() else {
        panic!()
    };
    assert_eq!(reply.results.len(), 2);
    assert_eq!(database.next_expiry(), Some(second(9)));
    let set = RecordOp::Set(database.set(Some(""), b"2"));
    database.run(vec![set]);
    database.check_integrity().unwrap();
}

/// The words of a schema, sorted: columns that were added later come last in the file.
fn in_order(schema: &str) -> Vec<&str> {
    let is_between = |character: char| character.is_whitespace() || "(),".contains(character);
    let mut words: Vec<_> = schema.split(is_between).filter(|word| !word.is_empty()).collect();
    words.sort_unstable();
    words
}

/// A row as in a file of an earlier version: without later columns.
fn as_before(row: &str, added: &[&str]) -> String {
    let is_added = |word: &&str| added.iter().any(|name| word.starts_with(&format!("{name}=")));
    let mut words: Vec<&str> = row.split(' ').filter(|word| !is_added(word)).collect();
    words.push("\n");
    words.join(" ").replace(" \n", "\n")
}

/// The additions of version 3 to version 2, of version 5, and of both.
const COUNTS: [&str; 4] = ["expiring", "large_values", "large_value_bytes", "sessions"];
const FLOOR: [&str; 3] = ["row_floor", "row_floor_rev", "cleared_rev"];

/// The index of keys of a new file, which files of version 3 and less lack.
const KEY_INDEX: &str = "CREATE UNIQUE INDEX messages_by_key ON messages(key) WHERE key IS NOT NULL;\n";

/// The file is upgraded once: its tables are those of a new file, except that files of version 3 and less have a
/// `UNIQUE` key column in place of the index of keys. Its rows are unchanged.
fn upgraded(name: &str, rows: &str, added: &[&str], check: impl Fn(&Database)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    std::fs::copy(golden(name), &path).unwrap();
    for _ in 0..2 {
        let database = Database::open(&path, &subject()).unwrap();
        let same = schema(&fresh(&folder.path().join("fresh.sqlite3")));
        std::fs::remove_file(folder.path().join("fresh.sqlite3")).unwrap();
        let by_constraint = same.replace("key TEXT, term", "key TEXT UNIQUE, term").replace(KEY_INDEX, "");
        let has_index = schema(&database).contains(KEY_INDEX);
        let expected = if has_index { &same } else { &by_constraint };
        assert_eq!(in_order(&schema(&database)), in_order(expected));
        assert_eq!(has_index, name.starts_with("subject-4"));
        let added = [added, &FLOOR].concat();
        let before: String = database.dump().iter().map(|row| as_before(row, &added)).collect();
        assert_eq!(before, std::fs::read_to_string(golden(rows)).unwrap());
        database.check_counts();
        let details = database.details().unwrap();
        assert_eq!((details.expiring, details.large_values, details.sessions), (1, 1, 1));
        check(&database);
        database.close().unwrap();
    }
    let mut database = Database::open(&path, &subject()).unwrap();
    let another = database.entry(Vec::new());
    database.commit_entry(&remembered(another, request(2, 1), refusal("no"))).unwrap();
    assert_eq!(database.details().unwrap().sessions, 2);
    takes_writes(database);
}

/// A version 1 file is upgraded once, keeps its rows and expires no message too early.
#[test]
fn database_v1_file_is_upgraded_without_early_expiry() {
    let added = [&COUNTS[..], &["accepted_at"]].concat();
    upgraded("subject.sqlite3", "subject-rows.txt", &added, |database| {
        assert_eq!(database.state().accept_time, second(7));
        let max_age = Some(1_000);
        assert_eq!(
            database.expired(second(8), max_age, &mut ExpiryCursor::default(), 10).unwrap().len(),
            2,
            "both were accepted by 7 s at the latest"
        );
        let early = Timestamp::from_micros(7_999_999);
        assert_eq!(database.expired(early, max_age, &mut ExpiryCursor::default(), 10).unwrap(), []);
    });
}

/// A version 2 file is upgraded once, keeps its rows and gets correct counts.
#[test]
fn database_v2_file_is_upgraded_and_counted() {
    upgraded("subject-2.sqlite3", "subject-2-rows.txt", &COUNTS, |_| ());
}

/// Version 3 and version 4 files are upgraded once, keep their rows and have no floor.
#[test]
fn database_v3_and_v4_files_are_upgraded_without_floor() {
    for version in ["subject-3", "subject-4"] {
        let (file, rows) = (format!("{version}.sqlite3"), format!("{version}-rows.txt"));
        upgraded(&file, &rows, &[], |database| assert!(!database.has_hidden_rows()));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sqlite3");
        std::fs::copy(golden(&format!("{version}-begun-again.sqlite3")), &path).unwrap();
        let database = Database::open(&path, &subject()).unwrap();
        let rows = std::fs::read_to_string(golden(&format!("{version}-begun-again-rows.txt"))).unwrap();
        let before: String = database.dump().iter().map(|row| as_before(row, &FLOOR)).collect();
        assert_eq!(before, rows);
    }
}

/// Key lookups use an index search in new files and in version 3 files.
#[test]
fn database_key_lookup_uses_index_in_v3_and_new_files() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old.sqlite3");
    std::fs::copy(golden("subject-3.sqlite3"), &old).unwrap();
    let files = [fresh(&folder.path().join("new.sqlite3")), Database::open(&old, &subject()).unwrap()];
    for database in &files {
        for sql in [read::BY_KEY, read::KEYS_FROM, read::KEYS_AFTER, view::ID_BY_KEY] {
            let mut explain = database.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let steps = explain.query_map(["k"], |row| row.get::<_, String>("detail")).unwrap();
            let steps: Vec<_> = steps.map(Result::unwrap).collect();
            assert!(matches!(&steps[..], [step] if step.starts_with("SEARCH ")), "{sql}: {steps:?}");
        }
    }
}
