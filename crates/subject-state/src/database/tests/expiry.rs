//! Tests of expiry in the file.

use dormouse_format::record::RecordOp;
use dormouse_protocol::message::SubjectConfig;

use super::super::fixture::*;
use super::super::*;
use crate::plan::{ExpiryCursor, SubjectView};

/// A file with three messages, accepted at 1, 2 and 3 s; the second expires at 9 s, and the third at 5 s.
fn three(path: &Path) -> Database {
    let mut database = fresh(path);
    for (at, expires_at) in [(1, None), (2, Some(9)), (3, Some(5))] {
        let mut set = database.set(None, b"v");
        set.expires_at = expires_at.map(second);
        let entry = dormouse_format::entry::LogEntry {
            accept_time: second(at),
            ..database.entry(vec![RecordOp::Set(set)])
        };
        database.commit_entry(&entry).unwrap();
    }
    database
}

fn seqs(database: &Database, now: u64, max_age_ms: Option<u64>, limit: usize) -> Vec<u64> {
    let mut seqs: Vec<_> = database
        .expired(second(now), max_age_ms, &mut ExpiryCursor::default(), limit)
        .unwrap()
        .iter()
        .map(|held| held.id.seq.get())
        .collect();
    seqs.sort_unstable();
    seqs.dedup();
    seqs
}

/// The database finds messages due by time to live or maximum age, longest overdue first, up to the limit.
#[test]
fn retention_finds_due_messages_by_ttl_and_age() {
    let folder = tempfile::tempdir().unwrap();
    let database = three(&folder.path().join("s.sqlite3"));
    assert_eq!(seqs(&database, 4, None, 9), [] as [u64; 0]);
    assert_eq!(seqs(&database, 5, None, 9), [3]);
    assert_eq!(seqs(&database, 9, None, 9), [2, 3]);
    assert_eq!(seqs(&database, 9, None, 1), [3], "the one that is longest overdue");
    assert_eq!(seqs(&database, 3, Some(1_000), 9), [1, 2]);
    assert_eq!(seqs(&database, 3, Some(1_001), 9), [1]);
    assert_eq!(seqs(&database, 5, Some(1_000), 9), [1, 2, 3]);
    assert_eq!(seqs(&database, 9, Some(1_000), 2).len(), 2);
    assert_eq!(database.details().unwrap().expiring, 2);
}

/// A search that continues finds each due message once by each rule, whatever the number found at once.
#[test]
fn retention_search_continues_after_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = fresh(&folder.path().join("s.sqlite3"));
    for at in 1..=3 {
        // Many messages have the same rev and the same expiry.
        let sets = (0..5).map(|n| {
            let mut set = database.set(None, b"v");
            set.seq = Seq::new(at * 5 - 4 + n);
            set.expires_at = (n > 1).then_some(second(9 - at));
            set
        });
        let operations = vec![RecordOp::Batch { sets: sets.collect() }];
        let entry =
            dormouse_format::entry::LogEntry { accept_time: second(at), ..database.entry(operations) };
        database.commit_entry(&entry).unwrap();
    }
    let found = |limit| {
        let (mut cursor, mut found) = (ExpiryCursor::default(), Vec::new());
        while !cursor.has_ended() {
            let page = database.expired(second(7), Some(5_000), &mut cursor, limit).unwrap();
            assert!(page.len() <= limit);
            found.extend(page.iter().map(|held| held.id.seq.get()));
        }
        found
    };
    // By their time to live those of the last two batches, then all of the first two by their age.
    let expected: Vec<u64> = [13, 14, 15, 8, 9, 10].into_iter().chain(1..=10).collect();
    for limit in 1..20 {
        assert_eq!(found(limit), expected, "{limit}");
    }
}

/// The next expiry time is correct after sets, a configure, deletes, a reopen and a rollback.
#[test]
fn retention_next_expiry_is_always_current() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sqlite3");
    let mut database = three(&path);
    assert_eq!(database.next_expiry(), Some(second(5)));
    let config = SubjectConfig { max_age_ms: Some(3_500), ..SubjectConfig::default() };
    database.run(vec![RecordOp::Configure { config }]);
    assert_eq!(database.next_expiry(), Some(Timestamp::from_micros(4_500_000)));
    database.run(vec![database.delete(&[1])]);
    assert_eq!(database.next_expiry(), Some(second(5)));
    database.close().unwrap();
    let mut database = Database::open(&path, &subject()).unwrap();
    assert_eq!(database.next_expiry(), Some(second(5)));
    // A rolled back change does not count.
    database.begin().unwrap();
    let all = database.entry(vec![database.delete_all(3)]);
    database.apply(&all).unwrap();
    database.rollback().unwrap();
    assert_eq!(database.next_expiry(), Some(second(5)));
    database.run(vec![database.delete_all(3)]);
    assert_eq!(database.next_expiry(), None);
}

/// Whatever is below the floor, finding the next expiry and the expired messages passes over a bounded number of rows. A
/// message behind more of them expires when they are deleted.
#[test]
fn retention_passes_over_bounded_number_of_hidden_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = fresh(&folder.path().join("s.sqlite3"));
    let hidden = 2 * SLICE_ROWS as u64;
    let with_ttl = |database: &mut Database, expires_at| {
        let mut set = database.set(None, b"v");
        set.expires_at = Some(second(expires_at));
        database.run(vec![RecordOp::Set(set)]);
    };
    (0..hidden).for_each(|_| with_ttl(&mut database, 5));
    with_ttl(&mut database, 9);
    database.run(vec![RecordOp::DeleteAll { end_seq: Seq::new(hidden), count: hidden }]);
    let mut before = 0;
    while database.has_hidden_rows() && database.next_expiry().is_none() {
        assert_eq!(seqs(&database, 9, None, 9), [] as [u64; 0]);
        assert_eq!(seqs(&database, 9, Some(1), 9), [] as [u64; 0]);
        database.delete_hidden_rows().unwrap();
        before += 1;
    }
    assert_eq!(before, 1, "one slice leaves no more rows than one call passes over");
    assert_eq!(database.next_expiry(), Some(second(9)));
    assert_eq!(seqs(&database, 9, None, 9), [hidden + 1]);
    assert_eq!(seqs(&database, 9, Some(1), 9), [hidden + 1]);
}

/// No query of retention sorts rows: each reads an index in order.
#[test]
fn retention_queries_read_indexes_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let database = fresh(&folder.path().join("s.sqlite3"));
    for sql in expiry::QUERIES {
        let mut plan = database.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let parameters = vec![0_i64; plan.parameter_count()];
        let steps = plan.query_map(rusqlite::params_from_iter(parameters), |row| row.get::<_, String>(3));
        let steps: Vec<String> = steps.unwrap().map(Result::unwrap).collect();
        assert!(
            matches!(&steps[..], [step] if step.contains("USING") && step.contains("INDEX")),
            "{steps:?}"
        );
    }
}
