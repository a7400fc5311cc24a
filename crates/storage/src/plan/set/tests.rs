//! Batches, message ids, values that lie elsewhere, and requests that come twice.

use bytes::Bytes;
use dormouse_protocol::data::{DeleteRequest, SetRequest};
use dormouse_protocol::limits::{MAX_ITEMS_PER_REQUEST, MSG_ID_WINDOW_MS};
use dormouse_protocol::{ErrorCode, MessageId, RequestId, Rev, SessionId, Term, Timestamp};

use super::*;
use crate::api::{Reply, Request};
use crate::checksum::Crc64;
use crate::entry::Entry;
use crate::keys::{BlobName, Nonce};
use crate::plan::tests::{CONTEXT, InMemory, answer, at, id, keyed, memory, set};
use crate::plan::{BlobRef, Held, Memory, Planned, SubjectState, plan};

fn batch(sets: Vec<SetItem>) -> Request {
    Request::Set(SetRequest { sets, atomic: true, ..SetRequest::default() })
}

fn named(msg_id: &str) -> SetItem {
    SetItem { msg_id: Some(msg_id.to_owned()), ..SetItem::default() }
}

fn write(request: &Request, memory: &mut InMemory, at_micros: u64) -> Entry {
    let context = Context { accept_time: Timestamp::from_micros(at_micros), ..CONTEXT };
    match plan(request, memory, context) {
        Planned::Write { entry, .. } => {
            memory.apply(&entry);
            entry
        }
        other => panic!("{other:?}"),
    }
}

/// Seq, rev and whether it is a duplicate; or why not.
fn rows(answer: Result<Reply, ErrorReply>) -> Vec<Result<(u64, u64, bool), ErrorCode>> {
    let Ok(Reply::Set(reply)) = answer else { panic!("{answer:?}") };
    let row = |outcome| match outcome {
        SetOutcome::Ok(SetResult { seq, rev, duplicate, .. }) => Ok((seq.get(), rev.get(), duplicate)),
        SetOutcome::Error(error) => Err(error.code),
    };
    reply.results.into_iter().map(row).collect()
}

#[test]
fn a_batch_has_one_rev_and_one_operation() {
    let in_place = SetItem { seq: Some(Seq::new(3)), ..keyed("a") };
    let planned = plan(&batch(vec![in_place, keyed("b"), at(20), SetItem::default()]), &memory(), CONTEXT);
    let Planned::Write { entry, outcome } = planned else { panic!("{planned:?}") };
    let [Operation::Batch { sets }] = entry.operations.as_slice() else { panic!("{entry:?}") };
    let placed: Vec<_> = sets.iter().map(|set| (set.seq.get(), set.replaces.map(Seq::get))).collect();
    assert_eq!(placed, [(3, Some(3)), (9, Some(7)), (20, None), (21, None)]);
    let expected = [3, 9, 20, 21].map(|seq| Ok((seq, 11, false)));
    assert_eq!(rows(outcome.answer()), expected);
    assert_eq!(entry.last_rev(), Rev::new(11));
    memory().apply(&entry);
}

#[test]
fn of_a_batch_nothing_is_done_unless_all_of_it_can_be() {
    let refused = |sets: Vec<SetItem>| match plan(&batch(sets), &memory(), CONTEXT) {
        Planned::Answer(Err(error)) => (error.code, true, error.message),
        Planned::Settle(Err(error)) => (error.code, false, error.message),
        other => panic!("{other:?}"),
    };
    let taken = SetItem { expect: Some(Expect::Key(None)), ..keyed("a") };
    let (code, outright, message) = refused(vec![keyed("x"), taken]);
    assert_eq!((code, outright), (ErrorCode::KeyExists, false));
    assert!(message.starts_with("set 2 of the batch: "), "{message}");
    // What no state could make right is refused at once; what another state could, when the state is certain.
    let cases = [
        (vec![keyed("x"), keyed("x")], true),
        (vec![named("m"), named("m")], true),
        (vec![at(5), SetItem { ttl_ms: Some(0), ..SetItem::default() }], true),
        (vec![SetItem::default(), at(9)], false),
        (vec![at(20), at(20)], false),
        (vec![keyed("a"), at(3)], false),
        (vec![SetItem::default(), at(4)], false),
    ];
    for (sets, outright) in cases {
        let (_, at_once, message) = refused(sets);
        assert_eq!(at_once, outright, "{message}");
    }
}

#[test]
fn what_a_batch_expects_is_what_there_is_before_it() {
    let expecting = |seq| SetItem { expect: Some(Expect::Last(Some(id(4, seq)))), ..SetItem::default() };
    let last = |request: &Request| answer(plan(request, &memory(), CONTEXT));
    assert_eq!(
        rows(last(&batch(vec![expecting(8), expecting(8)]))),
        [Ok((9, 11, false)), Ok((10, 11, false))]
    );
    assert_eq!(last(&batch(vec![expecting(8), expecting(9)])).unwrap_err().code, ErrorCode::WrongLast);
    // Independent sets see each other.
    let each = rows(last(&set(vec![expecting(8), expecting(8), expecting(9)])));
    assert_eq!(each, [Ok((9, 11, false)), Err(ErrorCode::WrongLast), Ok((10, 12, false))]);
}

#[test]
fn a_request_is_never_larger_than_an_entry_may_be() {
    let context = Context { max_message_bytes: 1 << 30, ..CONTEXT };
    let sets = |last: usize| {
        let value = |bytes| Some(Bytes::from(vec![0; bytes]));
        let half = MAX_ATOMIC_BATCH_BYTES / 2;
        vec![
            SetItem { value: value(half), ..SetItem::default() },
            SetItem { value: value(half - last), ..SetItem::default() },
        ]
    };
    let encoded = |sets: &[SetItem]| -> usize {
        sets.iter().map(|set| dormouse_protocol::encode(set).unwrap().len()).sum()
    };
    let over = encoded(&sets(0)) - MAX_ATOMIC_BATCH_BYTES;
    assert_eq!(encoded(&sets(over)), MAX_ATOMIC_BATCH_BYTES);
    for (request, limit) in [(batch as fn(_) -> _, "max_atomic_batch_bytes"), (set, "max_request_bytes")] {
        assert!(matches!(plan(&request(sets(over)), &memory(), context), Planned::Write { .. }));
        let error = answer(plan(&request(sets(over - 1)), &memory(), context)).unwrap_err();
        assert_eq!((error.code, error.limit.as_deref()), (ErrorCode::TooLarge, Some(limit)));
        // A value that lies elsewhere does not count.
        let blobs = [(0, blob())];
        let context = Context { blobs: &blobs, ..context };
        assert!(matches!(plan(&request(sets(0)), &memory(), context), Planned::Write { .. }));
    }
}

#[test]
fn the_largest_requests_fit_a_frame() {
    let context = Context { max_message_bytes: 1 << 26, ..CONTEXT };
    let mut memory = memory();
    let fill = |place: usize| {
        let item = SetItem {
            key: Some(format!("{place:01024}")),
            timestamp: Some(Timestamp::from_micros(u64::MAX)),
            msg_id: Some(format!("{place:0256}")),
            ..SetItem::default()
        };
        let room = MAX_ATOMIC_BATCH_BYTES / MAX_ITEMS_PER_REQUEST;
        let value = room - dormouse_protocol::encode(&item).unwrap().len() - 16;
        SetItem { value: Some(Bytes::from(vec![0; value])), ..item }
    };
    let sets: Vec<_> = (0..MAX_ITEMS_PER_REQUEST).map(fill).collect();
    for atomic in [true, false] {
        let request = Request::Set(SetRequest {
            sets: sets.clone(),
            atomic,
            request: request_id(1),
            ..Default::default()
        });
        let Planned::Write { entry, .. } = plan(&request, &memory, context) else { panic!() };
        let frame = crate::format::frame::encode(&entry).unwrap();
        assert!(frame.len() > MAX_ATOMIC_BATCH_BYTES, "{}", frame.len());
    }
    let keys: Vec<_> = sets.into_iter().filter_map(|set| set.key).collect();
    for (seq, key) in (100..).map(Seq::new).zip(&keys) {
        let id = MessageId { term: Term::new(4), seq };
        memory.messages.insert(seq, Held { id, key: Some(key.clone()), size: 0 });
    }
    let seqs: Vec<_> = memory.messages.keys().copied().rev().take(MAX_ITEMS_PER_REQUEST).collect();
    let request = Request::Delete(DeleteRequest { seqs, request: request_id(2), ..DeleteRequest::default() });
    let Planned::Write { entry, outcome } = plan(&request, &memory, context) else { panic!() };
    assert!(
        matches!(outcome.answer(), Ok(Reply::Delete(reply)) if reply.seqs.len() == MAX_ITEMS_PER_REQUEST)
    );
    assert!(crate::format::frame::encode(&entry).is_ok());
}

fn blob() -> BlobRef {
    let name = BlobName { term: Term::new(4), nonce: Nonce::new(ulid::Ulid(5)) };
    BlobRef { name, size_bytes: 300_000, crc64: Crc64::of(b"elsewhere") }
}

#[test]
fn a_value_that_lies_elsewhere_stays_out_of_the_log() {
    let valued = SetItem { value: Some(Bytes::from_static(b"elsewhere")), ..SetItem::default() };
    let blobs = [(1, blob())];
    let context = Context { blobs: &blobs, ..CONTEXT };
    let planned = plan(&set(vec![valued.clone(), valued.clone()]), &memory(), context);
    let Planned::Write { entry, .. } = planned else { panic!("{planned:?}") };
    let [Operation::Set(here), Operation::Set(there)] = entry.operations.as_slice() else { panic!() };
    assert_eq!((&here.value, here.blob), (&valued.value, None));
    assert_eq!((&there.value, there.blob), (&None, Some(blob())));
}

#[test]
fn a_message_id_is_good_for_one_message_within_its_window() {
    let mut memory = memory();
    let window = MSG_ID_WINDOW_MS * 1_000;
    write(&set(vec![named("m")]), &mut memory, 1_000);
    let again = |items: Vec<SetItem>, memory: &InMemory, at_micros| {
        plan(&set(items), memory, Context { accept_time: Timestamp::from_micros(at_micros), ..CONTEXT })
    };
    // It is found before expectations are looked at, and changes nothing.
    let expecting = SetItem { expect: Some(Expect::Last(None)), ..named("m") };
    let Planned::Settle(duplicate) = again(vec![expecting], &memory, 999 + window) else { panic!() };
    assert_eq!(rows(duplicate), [Ok((9, 11, true))]);
    // The second of two in one request is the duplicate of the first.
    let both = again(vec![named("n"), named("m"), named("n")], &memory, 2_000);
    let Planned::Write { entry, .. } = &both else { panic!() };
    assert_eq!(entry.operations.len(), 1);
    assert_eq!(rows(answer(both)), [Ok((10, 12, false)), Ok((9, 11, true)), Ok((10, 12, true))]);
    // A clock that runs backwards opens no window.
    let backwards = again(vec![named("m")], &memory, 0);
    assert_eq!(rows(answer(backwards)), [Ok((9, 11, true))]);
    let later = again(vec![named("m")], &memory, 1_000 + window);
    assert_eq!(rows(answer(later)), [Ok((10, 12, false))]);
    let empty = again(vec![named("")], &memory, 0);
    assert_eq!(rows(answer(empty)), [Err(ErrorCode::BadRequest)]);
}

#[test]
fn a_batch_is_a_duplicate_as_a_whole_or_refused() {
    let mut memory = memory();
    write(&batch(vec![named("m"), named("n")]), &mut memory, 600);
    let planned = plan(&batch(vec![named("n"), named("m")]), &memory, CONTEXT);
    let Planned::Settle(duplicate) = planned else { panic!("{planned:?}") };
    assert_eq!(rows(duplicate), [Ok((10, 11, true)), Ok((9, 11, true))]);
    for partly in [vec![named("m"), named("o")], vec![named("m"), SetItem::default()]] {
        let planned = plan(&batch(partly), &memory, CONTEXT);
        assert!(matches!(&planned, Planned::Settle(Err(error)) if error.code == ErrorCode::BadRequest));
    }
}

fn request_id(counter: u64) -> Option<RequestId> {
    Some(RequestId { session: SessionId::new(ulid::Ulid(9)), counter })
}

#[test]
fn a_request_that_comes_again_is_answered_as_it_was_and_changes_nothing() {
    let mut memory = memory();
    let expect = Some(Expect::Last(Some(id(4, 8))));
    let sets = vec![SetItem { expect, ..SetItem::default() }];
    let request = Request::Set(SetRequest { sets, request: request_id(1), ..SetRequest::default() });
    let entry = write(&request, &mut memory, 600);
    assert_eq!(entry.request.as_ref().map(|remembered| remembered.id), request_id(1));
    // The expectation does not hold any more, and the room for an answer is smaller: neither is looked at.
    let Planned::Settle(repeated) = plan(&request, &memory, CONTEXT) else { panic!() };
    assert_eq!(rows(repeated), [Ok((9, 11, true))]);
    let other = Request::Delete(DeleteRequest {
        keys: vec!["a".to_owned()],
        request: request_id(1),
        ..DeleteRequest::default()
    });
    let error = answer(plan(&other, &memory, CONTEXT)).unwrap_err();
    assert_eq!(error.code, ErrorCode::BadRequest);
    let tiny = Context { max_message_bytes: 4_096, ..CONTEXT };
    assert_eq!(answer(plan(&request, &memory, tiny)).unwrap_err().code, ErrorCode::Indeterminate);
}

#[test]
fn a_refusal_by_the_state_is_remembered_and_one_by_the_request_is_not() {
    let mut memory = memory();
    let refused = |sets: Vec<SetItem>, atomic| {
        Request::Set(SetRequest { sets, atomic, request: request_id(2), ..SetRequest::default() })
    };
    let taken = SetItem { expect: Some(Expect::Key(None)), ..keyed("a") };
    for request in [refused(vec![taken.clone()], false), refused(vec![taken], true)] {
        let mut memory = memory.clone();
        let first = answer(plan(&request, &memory, CONTEXT));
        let entry = write(&request, &mut memory, 600);
        assert!(entry.operations.is_empty());
        assert_eq!((entry.after, entry.last_rev()), (Rev::new(10), Rev::new(10)));
        // Now it could be carried out; but the caller has been told that it was not.
        let delete = DeleteRequest { keys: vec!["a".to_owned()], ..DeleteRequest::default() };
        write(&Request::Delete(delete), &mut memory, 600);
        assert_eq!(plan(&request, &memory, CONTEXT), Planned::Settle(first));
    }
    let nothing = Request::Delete(DeleteRequest {
        keys: vec!["absent".to_owned()],
        request: request_id(3),
        ..DeleteRequest::default()
    });
    assert!(write(&nothing, &mut memory, 600).operations.is_empty());
    for outright in [vec![SetItem { ttl_ms: Some(0), ..SetItem::default() }], Vec::new()] {
        assert!(matches!(plan(&refused(outright, false), &memory, CONTEXT), Planned::Answer(_)));
    }
}

#[test]
fn accept_time_never_goes_back() {
    let mut memory = memory();
    assert_eq!(write(&set(vec![keyed("a")]), &mut memory, 900).accept_time, Timestamp::from_micros(900));
    let entry = write(&set(vec![keyed("a")]), &mut memory, 100);
    assert_eq!(entry.accept_time, Timestamp::from_micros(900));
    let Operation::Set(set) = &entry.operations[0] else { panic!() };
    assert_eq!(set.timestamp, Timestamp::from_micros(900));
}

/// A subject that has forgotten this session's first requests, and cannot be read otherwise.
struct Unreadable(SubjectState);

impl SubjectView for Unreadable {
    fn state(&self) -> &SubjectState {
        &self.0
    }
    fn at(&self, _: Seq) -> Result<Option<Held>, ErrorReply> {
        Err(ErrorReply::corrupt("file", "gone"))
    }
    fn under(&self, _: &str) -> Result<Option<MessageId>, ErrorReply> {
        Err(ErrorReply::corrupt("file", "gone"))
    }
    fn bytes(&self) -> Option<u64> {
        None
    }
    fn oldest(&self, _: Seq, _: usize) -> Result<Vec<Held>, ErrorReply> {
        Err(ErrorReply::corrupt("file", "gone"))
    }
    fn expired(&self, _: Timestamp, _: Option<u64>, _: usize) -> Result<Vec<Held>, ErrorReply> {
        Err(ErrorReply::corrupt("file", "gone"))
    }
    fn count_up_to(&self, _: Seq) -> Result<u64, ErrorReply> {
        Err(ErrorReply::corrupt("file", "gone"))
    }
    fn newest_beyond(&self, _: u64) -> Result<Option<Seq>, ErrorReply> {
        Err(ErrorReply::corrupt("file", "gone"))
    }
    fn counts_are_exact(&self) -> bool {
        true
    }
    fn remembered(&self, id: RequestId) -> Result<Memory, ErrorReply> {
        Ok(if id.counter < 5 { Memory::Forgotten } else { Memory::New })
    }
    fn by_msg_id(&self, _: &str) -> Result<Option<(SetResult, Timestamp)>, ErrorReply> {
        Err(ErrorReply::corrupt("file", "gone"))
    }
}

#[test]
fn nobody_guesses_about_what_is_forgotten_or_cannot_be_read() {
    let view = Unreadable(SubjectState::default());
    let code = |sets: Vec<SetItem>, atomic, counter| {
        let request = SetRequest { sets, atomic, request: request_id(counter), ..SetRequest::default() };
        match plan(&Request::Set(request), &view, CONTEXT) {
            Planned::Answer(Err(error)) => error.code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code(vec![SetItem::default()], false, 4), ErrorCode::Indeterminate);
    for atomic in [false, true] {
        assert_eq!(code(vec![SetItem::default(), keyed("a")], atomic, 5), ErrorCode::Corrupt);
        assert_eq!(code(vec![SetItem::default(), named("m")], atomic, 5), ErrorCode::Corrupt);
    }
}
