use std::path::Path;

use dormouse_format::record::RemovalCause;
use dormouse_protocol::Seq;
use dormouse_protocol::message::Removed;

use super::super::fixture::{fresh, subject};
use super::*;
use crate::database::{SLICE_BYTES, SLICE_ROWS};

/// A file with 700 messages.
fn filled(path: &Path) -> Database {
    let mut database = fresh(path);
    let sets = (1..=700)
        .map(|number| SetOperation {
            seq: Seq::new(number),
            ..database.set(Some(&format!("k{number}")), b"before")
        })
        .collect();
    database.run(vec![RecordOp::Batch { sets }]);
    database
}

/// Entries on top of it: a batch of 600 messages, of which 300 replace others, a removal of 300, 40 messages of 10 kB,
/// a removal of everything, and three messages.
fn entries(database: &Database) -> Vec<LogEntry> {
    let replacing = |number: u64| SetOperation {
        seq: Seq::new(700 + number),
        replaces: (number <= 300).then(|| Seq::new(number)),
        key: Some(if number <= 300 { format!("k{number}") } else { format!("new{number}") }),
        ..database.set(None, b"after")
    };
    let at = |seq: u64, bytes: usize| SetOperation {
        seq: Seq::new(seq),
        ..database.set(None, &vec![b'v'; bytes])
    };
    let removed =
        (301..=600).map(|number| Removed { seq: Seq::new(number), key: Some(format!("k{number}")) });
    let operations = [
        vec![RecordOp::Batch { sets: (1..=600).map(replacing).collect() }],
        vec![RecordOp::Delete { removed: removed.collect(), cause: RemovalCause::Asked }],
        (0..40).map(|number| RecordOp::Set(at(1_301 + number, 10_000))).collect(),
        vec![RecordOp::DeleteAll { end_seq: Seq::new(1_340), count: 740 }],
        (0..3).map(|number| RecordOp::Set(at(1_341 + number, 10))).collect(),
    ];
    let mut after = database.state().rev;
    operations
        .into_iter()
        .map(|operations| {
            let entry = LogEntry { after, ..database.entry(operations) };
            after = entry.last_rev();
            entry
        })
        .collect()
}

/// Applies up to `slices` slices; returns how many it has taken, and whether the transaction is complete.
fn apply(database: &mut Database, transaction: &mut ApplyTransaction, slices: usize) -> (usize, bool) {
    for number in 1..=slices {
        let mut slice = Slice::new();
        let complete = transaction.apply_slice(database, &mut slice).unwrap();
        assert!(slice.rows() <= SLICE_ROWS && slice.bytes() < SLICE_BYTES + 10_000, "{slice:?}");
        assert!(complete || slice.is_spent(), "a slice that ends early makes more slices");
        if complete {
            return (number, true);
        }
    }
    (slices, false)
}

/// A crash after any slice of a transaction leaves the state before it or the state after it, and the number of rows and
/// bytes of each slice is bounded.
#[test]
fn batch_is_atomic_between_slices() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: String| folder.path().join(name);
    let mut whole = filled(&path("whole".to_owned()));
    let (before, entries) = (whole.dump(), entries(&whole));
    for entry in &entries {
        whole.commit_entry(entry).unwrap();
    }
    whole.check_counts();
    assert_eq!(whole.state().count, 3);
    let mut slices = 0;
    loop {
        let name = path(format!("crash-{slices}"));
        let mut database = filled(&name);
        let mut transaction = ApplyTransaction::new(entries.clone());
        assert!(!transaction.fits_slice());
        let (_, complete) = apply(&mut database, &mut transaction, slices);
        drop(database);
        let database = Database::open(&name, &subject()).unwrap();
        assert_eq!(
            database.dump(),
            if complete { whole.dump() } else { before.clone() },
            "after {slices} slices"
        );
        database.check_counts();
        if complete {
            break;
        }
        slices += 1;
    }
    // 600 + 300 rows, and 400 kB; a removal of all messages counts none.
    assert!((6..30).contains(&slices), "{slices} slices");
}

/// A transaction that fails in a later slice is rolled back as a whole, and a replay skips what the state contains.
#[test]
fn transaction_rolled_back_after_slices_can_be_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = filled(&folder.path().join("s"));
    let (before, entries) = (database.dump(), entries(&database));
    let mut transaction = ApplyTransaction::new(entries.clone());
    assert_eq!(apply(&mut database, &mut transaction, 5), (5, false));
    database.rollback().unwrap();
    assert_eq!(database.dump(), before);
    assert_eq!(transaction.into_entries(), entries);
    database.commit_entry(&entries[0]).unwrap();
    let mut transaction = ApplyTransaction::replay(entries);
    assert!(apply(&mut database, &mut transaction, usize::MAX).1);
    assert_eq!(database.state().count, 3);
    database.check_counts();
    database.check_integrity().unwrap();
}

/// Only a transaction that one slice applies claims to fit one.
#[test]
fn transaction_that_fits_slice_is_applied_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = filled(&folder.path().join("s"));
    for (number, fits) in [(1, true), (200, true), (255, true), (256, false), (600, false)] {
        let sets = (0..number).map(|offset| {
            RecordOp::Set(SetOperation {
                seq: Seq::new(database.state().next_seq.get() + offset),
                ..database.set(None, b"v")
            })
        });
        let mut transaction = ApplyTransaction::new(vec![database.entry(sets.collect())]);
        assert_eq!(transaction.fits_slice(), fits, "{number}");
        let (slices, complete) = apply(&mut database, &mut transaction, usize::MAX);
        assert!(complete && (slices == 1 || !fits), "{number} in {slices} slices");
    }
    let all = database.delete_all(10);
    assert!(!ApplyTransaction::new(vec![database.entry(vec![all])]).fits_slice());
}
