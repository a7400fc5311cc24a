use bytes::Bytes;
use dormouse_format::record::{RecordOp, SetOperation};
use dormouse_protocol::{Change, ErrorCode, Rev, Term};

use super::super::fixture::fresh;
use super::*;
use crate::database::{SLICE_BYTES, SLICE_ROWS};

const ROOM: usize = 1 << 20;

fn position(rev: u64) -> Position {
    Position { term: Term::new(1), rev: Rev::new(rev) }
}

/// A batch of 700 messages, 50 single ones of 3 kB with keys, and 300 removals.
fn filled(path: &std::path::Path) -> Database {
    let mut database = fresh(path);
    let numbered = |database: &Database, number: u64, value: &[u8]| SetOperation {
        seq: Seq::new(number),
        ..database.set(Some(&format!("k{number:04}")), value)
    };
    let sets = (1..=700).map(|number| numbered(&database, number, b"small")).collect();
    database.run(vec![RecordOp::Batch { sets }]);
    for number in 701..=750 {
        let set = numbered(&database, number, &[b'v'; 3_000]);
        database.run(vec![RecordOp::Set(set)]);
    }
    let removed: Vec<u64> = (1..=300).collect();
    database.run(vec![database.delete(&removed)]);
    database
}

/// Reads a page, and returns it with the rows of each slice.
fn read(database: &Database, request: SubjectRequest) -> (SubjectReply, Vec<usize>) {
    let mut page = PageRead::new(request, ROOM).unwrap();
    let mut rows = Vec::new();
    loop {
        let mut slice = Slice::new();
        let reply = database.read_slice(&mut page, &mut slice).unwrap();
        assert!(slice.rows() <= SLICE_ROWS && slice.bytes() < SLICE_BYTES + 4_000, "{slice:?}");
        assert!(reply.is_some() || slice.is_spent(), "a slice that ends early makes more slices");
        rows.push(slice.rows());
        if let Some(reply) = reply {
            return (reply, rows);
        }
    }
}

/// Each slice of a page reads a bounded number of rows and bytes, and together they give the whole page.
#[test]
fn page_slices_are_bounded_and_give_whole_page() {
    let folder = tempfile::tempdir().unwrap();
    let database = filled(&folder.path().join("s.sqlite3"));
    for reverse in [false, true] {
        let request = GetAllRequest { reverse, ..GetAllRequest::default() };
        let (reply, rows) = read(&database, SubjectRequest::GetAll(request));
        let SubjectReply::GetAll(reply) = reply else { panic!("{reply:?}") };
        let mut seqs: Vec<u64> = reply.messages.iter().map(|message| message.seq.get()).collect();
        if reverse {
            seqs.reverse();
        }
        assert_eq!(seqs, (301..=750).collect::<Vec<_>>());
        assert!(rows.len() >= 4 && rows.iter().sum::<usize>() == 450, "{rows:?}");
        assert_eq!((reply.position, reply.cursor), (position(52), None));
    }
    let (reply, rows) = read(&database, SubjectRequest::Keys(KeysRequest::default()));
    let SubjectReply::Keys(reply) = reply else { panic!("{reply:?}") };
    assert_eq!(reply.keys, (301..=750).map(|number| format!("k{number:04}")).collect::<Vec<_>>());
    assert_eq!(rows, [256, 194]);

    let seqs: Vec<Seq> = (1..=750).map(Seq::new).collect();
    let (reply, rows) =
        read(&database, SubjectRequest::Get(GetRequest { seqs: Some(seqs), ..GetRequest::default() }));
    let SubjectReply::Get(reply) = reply else { panic!("{reply:?}") };
    assert_eq!((reply.messages.len(), reply.answered), (450, 750));
    assert_eq!(rows.iter().sum::<usize>(), 750);
}

/// The changes of one rev stay together although several slices read them, and follow each other by rev and seq.
#[test]
fn changes_slices_keep_batch_together_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let database = filled(&folder.path().join("s.sqlite3"));
    let request = ChangesRequest { after: position(0), ..ChangesRequest::default() };
    let (reply, rows) = read(&database, SubjectRequest::Changes(request));
    let SubjectReply::Changes(reply) = reply else { panic!("{reply:?}") };
    let seqs: Vec<u64> = reply
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::Set(set) => Some(set.message.seq.get()),
            _ => None,
        })
        .collect();
    assert_eq!(seqs, (301..=750).collect::<Vec<_>>());
    assert!(matches!(reply.changes.last(), Some(Change::Delete(delete)) if delete.removed.len() == 300));
    assert!(!reply.more && !reply.resync);
    assert_eq!(rows.iter().sum::<usize>(), 450 + 300, "{rows:?}");
    // The batch is more than the limit allows: it is the whole page.
    let first = ChangesRequest { limit: Some(10), ..request };
    let (reply, _) = read(&database, SubjectRequest::Changes(first));
    let SubjectReply::Changes(reply) = reply else { panic!("{reply:?}") };
    assert_eq!((reply.changes.len(), reply.position, reply.more), (400, position(1), true));
}

/// A page of which the subject changes between two slices fails: it would mix two states.
#[test]
fn page_of_changed_subject_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = filled(&folder.path().join("s.sqlite3"));
    let mut page = PageRead::new(SubjectRequest::GetAll(GetAllRequest::default()), ROOM).unwrap();
    assert_eq!(database.read_slice(&mut page, &mut Slice::new()), Ok(None));
    let set = SetOperation { value: Some(Bytes::new()), ..database.set(None, b"") };
    database.run(vec![RecordOp::Set(set)]);
    let error = database.read_slice(&mut page, &mut Slice::new()).unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal);
}
