//! The file as each version wrote it: its tables, and what stands in them.

use std::path::PathBuf;

use bytes::Bytes;
use dormouse_protocol::data::{
    ConfigureReply, DeleteAllReply, DeleteReply, DestroyReply, SetOutcome, SetReply, SetResult,
};
use dormouse_protocol::message::Removed;
use dormouse_protocol::{ErrorReply, Headers, Position};

use super::fixture::*;
use super::*;
use crate::entry::{Entry, Outcome};
use crate::plan::{Memory, Operation, RemovalCause, SetOperation, SubjectView};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The tables and what marks the file, without comments and line breaks.
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

/// Something of everything.
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
    let answer = |results| Outcome::Set(SetReply { results });
    let mut write = |term, at, operations, id, outcome| {
        let entry = Entry { term: Term::new(term), accept_time: second(at), ..database.entry(operations) };
        database.commit_entry(&remembered(entry, request(1, id), outcome)).unwrap();
        database.set(None, b"x")
    };
    let mut next =
        write(1, 1, vec![Operation::Set(full)], 1, answer(vec![ok(1, 1, 3), refused.clone(), refused]));
    (next.value, next.blob) = (None, Some(blob(1, 7)));
    let other = SetOperation { seq: Seq::new(3), blob: Some(blob(1, 8)), ..next.clone() };
    let sets = vec![next, other];
    write(1, 2, vec![Operation::Batch { sets }], 2, answer(vec![ok(2, 2, 2), ok(3, 2, 4)]));
    let config = config("about this subject");
    let reply = ConfigureReply { position: Default::default(), duplicate: false };
    write(2, 3, vec![Operation::Configure { config }], 3, Outcome::Configure(reply));
    let removed = vec![Removed { seq: Seq::new(2), key: None }];
    let delete = Operation::Delete { removed, cause: RemovalCause::Asked };
    let reply = DeleteReply { position: Default::default(), seqs: vec![Seq::new(2)], duplicate: false };
    write(2, 4, vec![delete], 4, Outcome::Delete(reply));
    let delete_all = Operation::DeleteAll { end_seq: Seq::new(1), count: 1 };
    let reply = DeleteAllReply { position: Default::default(), count: 1, duplicate: false };
    let mut keyed = write(2, 5, vec![delete_all], 5, Outcome::DeleteAll(reply));
    (keyed.key, keyed.expires_at) = (Some(String::new()), Some(second(9)));
    keyed.headers = Headers(vec![("name".to_owned(), "value".to_owned())]);
    write(2, 6, vec![Operation::Set(keyed)], 6, refusal("never"));
    write(2, 7, Vec::new(), u64::MAX, refusal("no"));
}

#[test]
fn the_file_is_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    let mut database = fresh(&path);
    fill(&mut database);
    let rows = database.dump().join("\n") + "\n";
    let schema = schema(&database);
    database.close().unwrap();
    if std::env::var_os("DORMOUSE_WRITE_GOLDEN").is_some() {
        std::fs::write(golden("subject-4-schema.sql"), &schema).unwrap();
        std::fs::write(golden("subject-4-rows.txt"), &rows).unwrap();
        std::fs::copy(&path, golden("subject-4.sqlite3")).unwrap();
    }
    assert_eq!(schema, std::fs::read_to_string(golden("subject-4-schema.sql")).unwrap());
    assert_eq!(rows, std::fs::read_to_string(golden("subject-4-rows.txt")).unwrap());

    std::fs::copy(golden("subject-4.sqlite3"), &path).unwrap();
    let database = Database::open(&path, &subject()).unwrap();
    assert_eq!(database.dump().join("\n") + "\n", rows);
    goes_on(database);
}

/// A file that begins after a tombstone, with a request of the life before among its answers.
fn begun_again(path: &Path) -> Database {
    let mut before = fresh(path);
    fill(&mut before);
    let past = before.past_life(Some(request(2, 3)), second(7)).unwrap();
    drop(before);
    remove_files(path).unwrap();
    let origin = Origin { rev: past.position.rev, next_seq: Seq::new(5), past: Some(past) };
    let mut database = Database::create(path, &subject(), &origin).unwrap();
    database.take_over(&tenure(3, origin.rev.get())).unwrap();
    database
}

#[test]
fn a_file_that_remembers_a_destroy_is_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    let database = begun_again(&path);
    let rows = database.dump().join("\n") + "\n";
    database.close().unwrap();
    if std::env::var_os("DORMOUSE_WRITE_GOLDEN").is_some() {
        std::fs::write(golden("subject-4-begun-again-rows.txt"), &rows).unwrap();
        std::fs::copy(&path, golden("subject-4-begun-again.sqlite3")).unwrap();
    }
    assert_eq!(rows, std::fs::read_to_string(golden("subject-4-begun-again-rows.txt")).unwrap());

    std::fs::copy(golden("subject-4-begun-again.sqlite3"), &path).unwrap();
    let mut database = Database::open(&path, &subject()).unwrap();
    assert_eq!(database.dump().join("\n") + "\n", rows);
    let position = Position { term: Term::new(2), rev: Rev::new(7) };
    let ended = Outcome::Destroy(DestroyReply { position, duplicate: false });
    assert_eq!(database.remembered(request(2, 3)).unwrap(), Memory::Done(ended));
    assert_eq!(database.remembered(request(1, 6)).unwrap(), Memory::Forgotten);
    let set = Operation::Set(database.set(Some("k"), b"new"));
    database.run(vec![set]);
    database.check_whole().unwrap();
}

/// A file says what it said, and goes on.
fn goes_on(mut database: Database) {
    assert_eq!(database.provenance().log, Some(log()));
    assert_eq!(database.remembered(request(1, u64::MAX)).unwrap(), Memory::Done(refusal("no")));
    let Memory::Done(Outcome::Set(reply)) = database.remembered(request(1, 2)).unwrap() else { panic!() };
    assert_eq!(reply.results.len(), 2);
    assert_eq!(database.next_expiry(), Some(second(9)));
    let set = Operation::Set(database.set(Some(""), b"2"));
    database.run(vec![set]);
    database.check_whole().unwrap();
}

/// The words of a schema in whatever order: what was added later stands behind the rest.
fn in_order(schema: &str) -> Vec<&str> {
    let is_between = |character: char| character.is_whitespace() || "(),".contains(character);
    let mut words: Vec<_> = schema.split(is_between).filter(|word| !word.is_empty()).collect();
    words.sort_unstable();
    words
}

/// A row as a file of an earlier version had it: without what was not there yet.
fn as_before(row: &str, added: &[&str]) -> String {
    let is_added = |word: &&str| added.iter().any(|name| word.starts_with(&format!("{name}=")));
    let mut words: Vec<&str> = row.split(' ').filter(|word| !is_added(word)).collect();
    words.push("\n");
    words.join(" ").replace(" \n", "\n")
}

/// What version 3 has beside version 2.
const COUNTS: [&str; 4] = ["expiring", "large_values", "large_value_bytes", "sessions"];

/// The file is brought up to version 3, once and for all: its tables are those of a new one but for the index of keys, and
/// its rows what they were.
fn brought_up(name: &str, rows: &str, added: &[&str], check: impl Fn(&Database)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    std::fs::copy(golden(name), &path).unwrap();
    for _ in 0..2 {
        let database = Database::open(&path, &subject()).unwrap();
        let same = schema(&fresh(&folder.path().join("fresh.sqlite3")));
        std::fs::remove_file(folder.path().join("fresh.sqlite3")).unwrap();
        let by_constraint = same
            .replace("PRAGMA user_version = 4;", "PRAGMA user_version = 3;")
            .replace("key TEXT, term", "key TEXT UNIQUE, term")
            .replace("CREATE UNIQUE INDEX messages_by_key ON messages(key) WHERE key IS NOT NULL;\n", "");
        assert_eq!(in_order(&schema(&database)), in_order(&by_constraint));
        let before: String = database.dump().iter().map(|row| as_before(row, added)).collect();
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
    goes_on(database);
}

#[test]
fn a_file_of_the_first_version_is_brought_up_and_nothing_in_it_expires_too_early() {
    let added = [&COUNTS[..], &["accepted_at"]].concat();
    brought_up("subject.sqlite3", "subject-rows.txt", &added, |database| {
        assert_eq!(database.state().accept_time, second(7));
        let max_age = Some(1_000);
        assert_eq!(
            database.expired(second(8), max_age, 10).unwrap().len(),
            2,
            "accepted by 7 s at the latest, both of them"
        );
        assert_eq!(database.expired(Timestamp::from_micros(7_999_999), max_age, 10).unwrap(), []);
    });
}

#[test]
fn a_file_of_the_second_version_is_brought_up_and_counts_what_is_in_it() {
    brought_up("subject-2.sqlite3", "subject-2-rows.txt", &COUNTS, |_| ());
}

#[test]
fn a_file_of_the_third_version_stays_what_it_is() {
    brought_up("subject-3.sqlite3", "subject-3-rows.txt", &[], |_| ());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    std::fs::copy(golden("subject-3-begun-again.sqlite3"), &path).unwrap();
    let database = Database::open(&path, &subject()).unwrap();
    let rows = std::fs::read_to_string(golden("subject-3-begun-again-rows.txt")).unwrap();
    assert_eq!(database.dump().join("\n") + "\n", rows);
}

#[test]
fn a_key_is_searched_for_whatever_version_the_file_began_with() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old.sqlite3");
    std::fs::copy(golden("subject-3.sqlite3"), &old).unwrap();
    let files = [fresh(&folder.path().join("new.sqlite3")), Database::open(&old, &subject()).unwrap()];
    for database in &files {
        for sql in [read::BY_KEY, read::KEYS_FROM, read::KEYS_AFTER, view::UNDER_KEY] {
            let mut explain = database.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let steps = explain.query_map(["k"], |row| row.get::<_, String>("detail")).unwrap();
            let steps: Vec<_> = steps.map(Result::unwrap).collect();
            assert!(matches!(&steps[..], [step] if step.starts_with("SEARCH ")), "{sql}: {steps:?}");
        }
    }
}
