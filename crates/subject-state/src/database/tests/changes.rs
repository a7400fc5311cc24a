//! Tests of changes since a position: the content of a page, and when a resync is needed.

use bytes::Bytes;
use dormouse_format::entry::LogEntry;
use dormouse_format::manifest::TermBase;
use dormouse_format::record::RecordOp;
use dormouse_protocol::data::{ChangesReply, ChangesRequest, GetRequest};
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::{Change, ErrorCode, Position};
use tempfile::TempDir;

use super::super::fixture::*;
use super::super::*;

fn file() -> (TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    let database = fresh(&folder.path().join("s.sqlite3"));
    (folder, database)
}

fn ask(database: &Database, term: u64, rev: u64) -> ChangesReply {
    page(database, rev, None, 1 << 20, term)
}

fn page(database: &Database, rev: u64, limit: Option<u64>, bytes: usize, term: u64) -> ChangesReply {
    let after = Position { term: Term::new(term), rev: Rev::new(rev) };
    let request = ChangesRequest { after, limit, ..ChangesRequest::default() };
    let reply = database.changes(&request, bytes).unwrap();
    assert!(dormouse_protocol::encode(&reply).unwrap().len() <= bytes);
    reply
}

fn revs(reply: &ChangesReply) -> Vec<u64> {
    reply.changes.iter().map(|change| change.rev().get()).collect()
}

fn set(database: &mut Database, key: &str) {
    database.run(vec![RecordOp::Set(database.set(Some(key), b"v"))]);
}

/// Changes since a position omit overwritten messages and configurations and report removed messages.
#[test]
fn changes_omit_overwritten_and_report_removed_messages() {
    let (_folder, mut database) = file();
    set(&mut database, "a");
    set(&mut database, "b");
    set(&mut database, "a");
    database.run(vec![database.delete(&[2])]);
    database.run(vec![RecordOp::Configure { config: config("first") }]);
    database.run(vec![RecordOp::Configure { config: config("second") }]);
    let mut in_place = database.set(Some("a"), b"new");
    in_place.seq = Seq::new(3);
    database.run(vec![RecordOp::Set(in_place)]);
    let reply = ask(&database, 0, 0);
    assert_eq!((revs(&reply), reply.more, reply.resync), (vec![4, 6, 7], false, false));
    assert_eq!((reply.position, reply.term_base), (database.state().position(), Rev::new(0)));
    let [Change::Delete(delete), Change::Configure(configure), Change::Set(set)] = reply.changes.as_slice()
    else {
        panic!("{reply:?}");
    };
    assert_eq!((delete.removed[0].seq, delete.removed[0].key.as_deref()), (Seq::new(2), Some("b")));
    assert_eq!(configure.config, config("second"));
    assert_eq!((set.message.seq, set.message.value.as_deref()), (Seq::new(3), Some(&b"new"[..])));
    let nothing = ask(&database, 1, 7);
    assert_eq!((nothing.changes.len(), nothing.more, nothing.resync), (0, false, false));

    database.run(vec![database.delete_all(3)]);
    let reply = ask(&database, 1, 7);
    let [Change::DeleteAll(gone)] = reply.changes.as_slice() else { panic!("{reply:?}") };
    assert_eq!((gone.end_seq, gone.count, gone.rev), (Seq::new(3), 1, Rev::new(8)));
}

/// A position outside the subject's history of terms and revs gets a resync; any other position gets the later changes.
#[test]
fn changes_from_position_off_history_need_resync() {
    let (_folder, mut database) = file();
    (0..5).for_each(|n| set(&mut database, &n.to_string()));
    database.inherit(&[TermBase { term: Term::new(3), term_base: Rev::new(5) }]).unwrap();
    let set_in = |database: &mut Database, term| {
        let set = RecordOp::Set(database.set(None, b""));
        let entry = LogEntry { term: Term::new(term), ..database.entry(vec![set]) };
        database.commit_entry(&entry).unwrap();
    };
    set_in(&mut database, 4);
    set_in(&mut database, 4);
    set_in(&mut database, 9);
    assert_eq!((database.state().rev, database.state().term_base), (Rev::new(8), Rev::new(7)));
    for (term, rev, resync) in [
        (1, 3, false),
        (1, 5, false),
        (1, 6, true), // its rev 6 was different
        (3, 5, false),
        (3, 6, true),
        (4, 7, false),
        (4, 8, true),
        (9, 8, false),
        (9, 4, false),
        (9, 9, true), // no process has reached it
        (10, 8, true),
        (2, 5, true), // an unknown term
        (0, 0, false),
        (2, 0, false),
        (0, 1, true),
    ] {
        let reply = ask(&database, term, rev);
        assert_eq!(reply.resync, resync, "term {term} rev {rev}");
        assert_eq!(reply.position, database.state().position());
        if !resync {
            assert_eq!(revs(&reply), (rev + 1..=8).collect::<Vec<_>>());
        }
    }
}

/// A position older than the kept removal records gets a resync; the oldest covered position does not.
#[test]
fn changes_before_oldest_removal_record_need_resync() {
    let (_folder, mut database) = file();
    for round in 0..12_u64 {
        let sets = (1..=1_000).map(|n| {
            let mut set = database.set(None, b"");
            set.seq = Seq::new(round * 1_000 + n);
            set
        });
        let sets = sets.collect();
        database.run(vec![RecordOp::Batch { sets }]);
        let seqs: Vec<u64> = (1..=1_000).map(|n| round * 1_000 + n).collect();
        database.run(vec![database.delete(&seqs)]);
    }
    let floor = database.removal_floor.get();
    assert!(floor > 0);
    assert!(ask(&database, 1, floor - 1).resync);
    assert!(!ask(&database, 1, floor).resync);
}

/// After a destroy, positions of the earlier subject get a resync, and the new term's positions get changes.
#[test]
fn changes_from_before_destroy_need_resync() {
    let folder = tempfile::tempdir().unwrap();
    let origin = InitialState { rev: Rev::new(7), next_seq: Seq::new(3), tombstone: None };
    let mut database = Database::create(&folder.path().join("s.sqlite3"), &subject(), &origin).unwrap();
    database.take_over(&owner_of_term(5, 7)).unwrap();
    set(&mut database, "a");
    assert!(ask(&database, 0, 0).resync);
    assert!(ask(&database, 4, 6).resync);
    assert!(ask(&database, 4, 7).resync);
    assert_eq!(revs(&ask(&database, 5, 7)), [8]);
}

/// A batch under one rev, with values of these sizes.
fn batch(database: &mut Database, values: &[usize]) {
    let sets = values.iter().enumerate().map(|(n, &bytes)| {
        let mut set = database.set(None, &vec![b'x'; bytes]);
        set.seq = Seq::new(set.seq.get() + n as u64);
        set
    });
    let sets = sets.collect();
    database.run(vec![RecordOp::Batch { sets }]);
}

/// A page holds a batch whole and omits values if it must; a batch that still does not fit gives a resync.
#[test]
fn changes_page_never_splits_a_batch() {
    let (_folder, mut database) = file();
    set(&mut database, "a");
    batch(&mut database, &[1_000, 1_000, 1_000]);
    set(&mut database, "b");

    let by_number = |after, limit| page(&database, after, Some(limit), 1 << 20, 1);
    let (first, second, third) = (by_number(0, 2), by_number(1, 2), by_number(2, 2));
    assert_eq!((revs(&first), first.more, first.position.rev), (vec![1], true, Rev::new(1)));
    assert_eq!((revs(&second), second.more, second.position.rev), (vec![2, 2, 2], true, Rev::new(2)));
    assert_eq!((revs(&third), third.more, third.position.rev), (vec![3], false, Rev::new(3)));
    assert_eq!(revs(&by_number(0, 4)), [1, 2, 2, 2]);

    // It fits a separate page, so it gets one.
    let bytes = ENVELOPE_BYTES + 4_600;
    assert_eq!(revs(&page(&database, 0, None, bytes, 1)), [1]);
    let whole = page(&database, 1, None, bytes, 1);
    assert_eq!(revs(&whole), [2, 2, 2]);
    // It fits no page: the last values are omitted, and can be fetched.
    let bytes = ENVELOPE_BYTES + 2_700;
    assert_eq!(revs(&page(&database, 0, None, bytes, 1)), [1]);
    let cut = page(&database, 1, None, bytes, 1);
    let omitted: Vec<_> = cut
        .changes
        .iter()
        .map(|change| match change {
            Change::Set(set) => (set.message.value_omitted, set.message.value.is_none(), set.message.size),
            _ => panic!("{change:?}"),
        })
        .collect();
    assert_eq!(omitted, [(false, false, 1_000), (true, true, 1_000), (true, true, 1_000)]);
    assert!(cut.more && cut.position.rev == Rev::new(2));
    // It does not fit even without its values.
    let none = page(&database, 1, None, ENVELOPE_BYTES + 700, 1);
    assert!(none.resync && none.changes.is_empty() && !none.more);
    assert_eq!(none.position, database.state().position());
}

/// A changes request with a limit of zero is a bad request.
#[test]
fn changes_request_with_zero_limit_is_rejected() {
    let (_folder, database) = file();
    let request = ChangesRequest { limit: Some(0), ..ChangesRequest::default() };
    assert_eq!(database.changes(&request, 1 << 20).unwrap_err().code, ErrorCode::BadRequest);
}

/// The database references a blob until its message is replaced or removed and then lists it as dead with that rev.
#[test]
fn blob_is_referenced_until_message_is_removed() {
    let (folder, mut database) = file();
    let large = |database: &Database, key: Option<&str>, n| {
        let mut set = database.set(key, b"");
        (set.value, set.blob) = (None, Some(blob(1, n)));
        RecordOp::Set(set)
    };
    for (key, n) in [(Some("a"), 1), (None, 2), (None, 3), (Some("a"), 4)] {
        database.run(vec![large(&database, key, n)]);
    }
    let mut in_place = database.set(Some("a"), b"");
    (in_place.seq, in_place.value, in_place.blob) = (Seq::new(4), None, Some(blob(1, 5)));
    database.run(vec![RecordOp::Set(in_place)]);
    database.run(vec![database.delete(&[2])]);

    let dead = |database: &Database, through| {
        let dead = database.dead_blobs().unwrap().into_iter();
        dead.filter(|(_, rev)| *rev <= Rev::new(through)).map(|(name, _)| name).collect::<Vec<_>>()
    };
    let names = |numbers: &[u128]| numbers.iter().map(|&n| blob(1, n).name).collect::<Vec<_>>();
    assert_eq!(dead(&database, 3), []);
    assert_eq!(dead(&database, 4), names(&[1]));
    assert_eq!(dead(&database, 9), names(&[1, 4, 2]));
    for (n, referred) in [(1, false), (2, false), (3, true), (4, false), (5, true), (6, false)] {
        assert_eq!(database.refers_to(blob(1, n).name).unwrap(), referred, "{n}");
    }
    assert_eq!(database.blob_at(Seq::new(4)).unwrap(), Some(blob(1, 5)));
    assert_eq!(
        (database.blob_at(Seq::new(1)).unwrap(), database.blob_at(Seq::new(u64::MAX)).unwrap()),
        (None, None)
    );
    let got = database.get(&GetRequest::key("a"), 1 << 20).unwrap().messages.remove(0);
    assert_eq!((got.value_omitted, got.value, got.size), (true, None::<Bytes>, 1 << 40));
    let reply = ask(&database, 1, 4);
    assert!(
        matches!(&reply.changes[0], Change::Set(set) if set.message.value_omitted && set.message.size == 1 << 40)
    );
    assert_eq!(database.state().bytes, 2 << 40);

    database.run(vec![database.delete_all(4)]);
    assert_eq!(dead(&database, 7), names(&[1, 4, 2]), "a blob counts as referenced while its row exists");
    assert!(database.refers_to(blob(1, 5).name).unwrap() && database.blob_at(Seq::new(4)).unwrap().is_none());
    assert!(!database.delete_hidden_rows().unwrap());
    assert_eq!(dead(&database, 7), names(&[1, 4, 2, 3, 5]));
    database.remove_dead_blob_records(&names(&[1, 3])).unwrap();
    drop(database);
    let database = Database::open(&folder.path().join("s.sqlite3"), &subject()).unwrap();
    assert_eq!(dead(&database, 7), names(&[4, 2, 5]));
    assert_eq!(database.state().bytes, 0);
}
