//! Tests of the dedup window: its content, its duration, and that expiry is the same everywhere.

use dormouse_format::entry::LogEntry;
use dormouse_format::record::RecordOp;
use dormouse_protocol::limits::{MSG_ID_WINDOW_MS, SESSION_IDLE_MS, SESSION_RESULTS};

use super::super::fixture::*;
use super::super::*;
use crate::plan::{DedupLookup, SubjectView};

const HOUR: u64 = SESSION_IDLE_MS / 1_000;
const WINDOW: u64 = MSG_ID_WINDOW_MS / 1_000;

fn rows(database: &Database, table: &str) -> u64 {
    let count = format!("SELECT COUNT(*) FROM {table}");
    from_sql(database.connection.query_row(&count, [], |row| row.get(0)).unwrap())
}

/// A rejection of a session's request, at a time.
fn note(database: &Database, session: u128, counter: u64, at: Timestamp) -> LogEntry {
    let entry = LogEntry { accept_time: at, ..database.entry(Vec::new()) };
    remembered(entry, request(session, counter), refusal(&counter.to_string()))
}

/// A reply is recorded in the transaction of its change, so a rollback removes both and a commit keeps both.
#[test]
fn dedup_record_commits_together_with_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    let mut database = fresh(&path);
    let set = RecordOp::Set(database.set(Some("k"), b"1"));
    let entry = remembered(database.entry(vec![set]), request(1, 5), refusal("stands for an answer"));
    database.begin().unwrap();
    database.apply(&entry).unwrap();
    database.rollback().unwrap();
    assert_eq!(database.remembered(request(1, 5)).unwrap(), DedupLookup::New);
    database.commit_entry(&entry).unwrap();
    drop(database);
    let database = Database::open(&path, &subject()).unwrap();
    assert_eq!(
        database.remembered(request(1, 5)).unwrap(),
        DedupLookup::Done(refusal("stands for an answer"))
    );
    assert_eq!(database.remembered(request(1, 6)).unwrap(), DedupLookup::New);
    assert_eq!(database.remembered(request(1, 4)).unwrap(), DedupLookup::New, "the request may still arrive");
    assert_eq!(database.remembered(request(2, 5)).unwrap(), DedupLookup::New);
}

/// The dedup window keeps the latest results of each session and recognizes older requests as forgotten.
#[test]
fn dedup_keeps_latest_results_of_each_session() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = fresh(&folder.path().join("s.sqlite3"));
    let most = SESSION_RESULTS as u64;
    // Not in order: requests of one session run concurrently.
    for counter in (1..=most + 10).map(|n| n ^ 1) {
        database.commit_entry(&note(&database, 1, counter, second(1))).unwrap();
    }
    database.commit_entry(&note(&database, 2, 1, second(1))).unwrap();
    assert_eq!(rows(&database, "results"), most + 1);
    let lowest = most + 11 - most;
    for counter in 0..lowest {
        assert_eq!(database.remembered(request(1, counter)).unwrap(), DedupLookup::Forgotten, "{counter}");
    }
    for counter in [lowest, most + 11] {
        assert_eq!(
            database.remembered(request(1, counter)).unwrap(),
            DedupLookup::Done(refusal(&counter.to_string()))
        );
    }
    assert_eq!(database.remembered(request(1, most + 12)).unwrap(), DedupLookup::New);
    assert_eq!(database.remembered(request(2, 1)).unwrap(), DedupLookup::Done(refusal("1")));
}

/// The dedup window accepts any request counter, and a used counter never counts as new again.
#[test]
fn dedup_accepts_any_counter_and_never_repeats_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = fresh(&folder.path().join("s.sqlite3"));
    for counter in [u64::MAX, 0, 1 << 63, (1 << 63) - 1] {
        assert_eq!(database.remembered(request(1, counter)).unwrap(), DedupLookup::New);
        database.commit_entry(&note(&database, 1, counter, second(1))).unwrap();
    }
    for counter in 1..2_000 {
        database.commit_entry(&note(&database, 1, counter, second(1))).unwrap();
    }
    for counter in [u64::MAX, 0, 1 << 63, (1 << 63) - 1] {
        assert_ne!(database.remembered(request(1, counter)).unwrap(), DedupLookup::New);
    }
}

/// A session expires after one idle hour and no sooner, and each write removes only a bounded number of results.
#[test]
fn dedup_session_expires_after_one_idle_hour() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    let mut database = fresh(&path);
    for counter in 1..=300 {
        database.commit_entry(&note(&database, 1, counter, second(0))).unwrap();
    }
    // Used again, but too soon to update its last use.
    database.commit_entry(&note(&database, 1, 301, second(59))).unwrap();
    database.commit_entry(&note(&database, 2, 1, second(100))).unwrap();
    database.commit_entry(&note(&database, 3, 1, second(59 + HOUR))).unwrap();
    assert_eq!(database.remembered(request(1, 1)).unwrap(), DedupLookup::Done(refusal("1")));

    // Much later its results expire a few at a time, and a repeat of an expired one is never new.
    let mut counter = 1;
    while database.remembered(request(1, 301)).unwrap() != DedupLookup::New {
        assert_ne!(database.remembered(request(1, 1)).unwrap(), DedupLookup::New);
        let before = rows(&database, "results");
        counter += 1;
        database.commit_entry(&note(&database, 3, counter, second(1_000 + HOUR))).unwrap();
        assert!(rows(&database, "results") + 64 > before, "one write expires too much");
        assert!(counter < 20);
        drop(database);
        database = Database::open(&path, &subject()).unwrap();
    }
    assert_eq!(database.remembered(request(1, 1)).unwrap(), DedupLookup::New);
    database.commit_entry(&note(&database, 3, 50, second(1_000 + HOUR))).unwrap();
    assert_eq!((rows(&database, "sessions"), rows(&database, "results")), (1, u64::from(counter as u32) + 1));
}

/// A message id is known within its window, and later writes remove it from the file.
#[test]
fn dedup_msg_id_is_known_for_window_then_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = fresh(&folder.path().join("s.sqlite3"));
    let write = |database: &mut Database, msg_id: String, at: u64| {
        let mut set = database.set(None, b"");
        set.msg_id = Some(msg_id);
        let entry = LogEntry { accept_time: second(at), ..database.entry(vec![RecordOp::Set(set)]) };
        database.commit_entry(&entry).unwrap();
    };
    write(&mut database, "a".to_owned(), 10);
    let (result, accept_time) = database.by_msg_id("a").unwrap().unwrap();
    assert_eq!((result.seq, result.rev, result.term), (Seq::new(1), Rev::new(1), Term::new(1)));
    assert_eq!((accept_time, result.duplicate), (second(10), false));
    assert_eq!(database.by_msg_id("b").unwrap(), None);
    write(&mut database, "b".to_owned(), 60);
    write(&mut database, "c".to_owned(), 10 + WINDOW);
    assert!(database.by_msg_id("a").unwrap().is_some());
    write(&mut database, "d".to_owned(), 11 + WINDOW);
    assert_eq!(database.by_msg_id("a").unwrap(), None);
    assert!(database.by_msg_id("b").unwrap().is_some());

    // Message ids of a large batch do not accumulate.
    let mut sets = Vec::new();
    for n in 0..5_000_u64 {
        let mut set = database.set(None, b"");
        set.seq = Seq::new(set.seq.get() + n);
        set.msg_id = Some(format!("batch-{n}"));
        sets.push(set);
    }
    database.run(vec![RecordOp::Batch { sets }]);
    let mut written = 0;
    while rows(&database, "msg_ids") > 1 {
        write(&mut database, "e".to_owned(), 1_000);
        written += 1;
        assert!(written < 100);
    }
}

/// Applying recorded replies again changes nothing, and a missed record below the current rev is skipped or rejected.
#[test]
fn dedup_record_applied_again_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = fresh(&folder.path().join("s.sqlite3"));
    database.run(vec![RecordOp::Set(database.set(None, b""))]);
    // The last of them expires one session, and some results of another.
    let early = std::iter::once((7, 0)).chain((0..200).map(|n| (8, n)));
    let late = [(1, 1), (2, 2), (1, 3), (2, 4)];
    let notes: Vec<_> = early
        .map(|(session, n)| note(&database, session, n, second(session as u64)))
        .chain(late.map(|(session, n)| note(&database, session, n, second(n * HOUR))))
        .collect();
    for note in &notes {
        assert!(database.in_transaction(|database| database.apply_if_new(note).map(drop)).is_ok());
    }
    let before = database.dump();
    assert_eq!(database.remembered(request(7, 0)).unwrap(), DedupLookup::New);
    assert_eq!(database.remembered(request(8, 0)).unwrap(), DedupLookup::Forgotten);
    for note in &notes {
        database.begin().unwrap();
        assert!(!database.apply_if_new(note).unwrap());
        database.apply(note).unwrap();
        database.commit().unwrap();
    }
    assert_eq!(database.dump(), before);
    // An entry before an applied change has been applied too, or never will be.
    database.run(vec![RecordOp::Set(database.set(None, b""))]);
    let missed = LogEntry { after: Rev::new(1), ..note(&database, 9, 9, second(0)) };
    assert!(!database.apply_if_new(&missed).unwrap());
    assert!(matches!(database.apply(&missed), Err(DatabaseError::Diverged(_))));
}
