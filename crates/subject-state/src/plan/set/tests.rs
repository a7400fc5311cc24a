//! Tests of batches, message ids, blobs and repeated requests.

use bytes::Bytes;
use dormouse_format::checksum::Crc64;
use dormouse_format::entry::LogEntry;
use dormouse_format::keys::{BlobName, Nonce};
use dormouse_format::record::BlobRef;
use dormouse_protocol::data::{DeleteRequest, SetRequest};
use dormouse_protocol::limits::{MAX_ITEMS_PER_REQUEST, MSG_ID_WINDOW_MS};
use dormouse_protocol::{ErrorCode, MessageId, RequestId, Rev, SessionId, Term, Timestamp};

use super::*;
use crate::plan::tests::{CONTEXT, InMemory, answer, at, id, keyed, memory, set};
use crate::plan::{DedupLookup, ExpiryCursor, PlanResult, StoredMessage, SubjectState, outcome, plan};
use crate::request::{SubjectReply, SubjectRequest};

fn batch(sets: Vec<SetItem>) -> SubjectRequest {
    SubjectRequest::Set(SetRequest { sets, atomic: true, ..SetRequest::default() })
}

fn named(msg_id: &str) -> SetItem {
    SetItem { msg_id: Some(msg_id.to_owned()), ..SetItem::default() }
}

fn write(request: &SubjectRequest, memory: &mut InMemory, at_micros: u64) -> LogEntry {
    let context = PlanContext { accept_time: Timestamp::from_micros(at_micros), ..CONTEXT };
    match plan(request, memory, context) {
        PlanResult::Write { entry, .. } => {
            memory.apply(&entry);
            entry
        }
        other => panic!("{other:?}"),
    }
}

/// Seq, rev and whether it is a duplicate; or the error.
fn rows(answer: Result<SubjectReply, ErrorReply>) -> Vec<Result<(u64, u64, bool), ErrorCode>> {
    let Ok(SubjectReply::Set(reply)) = answer else { panic!("{answer:?}") };
    let row = |outcome| match outcome {
        SetOutcome::Ok(SetResult { seq, rev, duplicate, .. }) => Ok((seq.get(), rev.get(), duplicate)),
        SetOutcome::Error(error) => Err(error.code),
    };
    reply.results.into_iter().map(row).collect()
}

/// A batch becomes one operation with one rev for all its sets.
#[test]
fn batch_has_one_rev_and_one_operation() {
    let in_place = SetItem { seq: Some(Seq::new(3)), ..keyed("a") };
    let planned = plan(&batch(vec![in_place, keyed("b"), at(20), SetItem::default()]), &memory(), CONTEXT);
    let PlanResult::Write { entry, outcome } = planned else { panic!("{planned:?}") };
    let [RecordOp::Batch { sets }] = entry.operations.as_slice() else { panic!("{entry:?}") };
    let placed: Vec<_> = sets.iter().map(|set| (set.seq.get(), set.replaces.map(Seq::get))).collect();
    assert_eq!(placed, [(3, Some(3)), (9, Some(7)), (20, None), (21, None)]);
    let expected = [3, 9, 20, 21].map(|seq| Ok((seq, 11, false)));
    assert_eq!(rows(outcome::answer(outcome)), expected);
    assert_eq!(entry.last_rev(), Rev::new(11));
    memory().apply(&entry);
}

/// A batch with one set that cannot apply is rejected whole, and the error names the set.
#[test]
fn batch_is_rejected_unless_every_set_can_apply() {
    let refused = |sets: Vec<SetItem>| match plan(&batch(sets), &memory(), CONTEXT) {
        PlanResult::Answer(Err(error)) => (error.code, true, error.message),
        PlanResult::DeferredAnswer(Err(error)) => (error.code, false, error.message),
        other => panic!("{other:?}"),
    };
    let taken = SetItem { expect: Some(Expect::Key(None)), ..keyed("a") };
    let (code, outright, message) = refused(vec![keyed("x"), taken]);
    assert_eq!((code, outright), (ErrorCode::KeyExists, false));
    assert!(message.starts_with("set 2 of the batch: "), "{message}");
    // A rejection by the request alone is immediate; one by the state waits until the state is acknowledged.
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

/// Expectations in a batch compare the state before the batch; independent sets see each other.
#[test]
fn batch_expectations_compare_state_before_batch() {
    let expecting = |seq| SetItem { expect: Some(Expect::Last(Some(id(4, seq)))), ..SetItem::default() };
    let last = |request: &SubjectRequest| answer(plan(request, &memory(), CONTEXT));
    assert_eq!(
        rows(last(&batch(vec![expecting(8), expecting(8)]))),
        [Ok((9, 11, false)), Ok((10, 11, false))]
    );
    assert_eq!(last(&batch(vec![expecting(8), expecting(9)])).unwrap_err().code, ErrorCode::WrongLast);
    // Independent sets see each other.
    let each = rows(last(&set(vec![expecting(8), expecting(8), expecting(9)])));
    assert_eq!(each, [Ok((9, 11, false)), Err(ErrorCode::WrongLast), Ok((10, 12, false))]);
}

/// A set request or batch over the size limit of an entry is rejected with the limit's name; blob values do not count.
#[test]
fn set_request_over_entry_size_is_rejected() {
    let context = PlanContext { max_message_bytes: 1 << 30, ..CONTEXT };
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
        assert!(matches!(plan(&request(sets(over)), &memory(), context), PlanResult::Write { .. }));
        let error = answer(plan(&request(sets(over - 1)), &memory(), context)).unwrap_err();
        assert_eq!((error.code, error.limit.as_deref()), (ErrorCode::TooLarge, Some(limit)));
        // A blob does not count.
        let blobs = [(0, blob())];
        let context = PlanContext { blobs: &blobs, ..context };
        assert!(matches!(plan(&request(sets(0)), &memory(), context), PlanResult::Write { .. }));
    }
}

/// The largest allowed sets and deletes encode into one frame.
#[test]
fn set_and_delete_of_maximum_size_fit_a_frame() {
    let context = PlanContext { max_message_bytes: 1 << 26, ..CONTEXT };
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
        let request = SubjectRequest::Set(SetRequest {
            sets: sets.clone(),
            atomic,
            request: request_id(1),
            ..Default::default()
        });
        let PlanResult::Write { entry, .. } = plan(&request, &memory, context) else { panic!() };
        let frame = dormouse_format::frame::encode(&entry).unwrap();
        assert!(frame.len() > MAX_ATOMIC_BATCH_BYTES, "{}", frame.len());
    }
    let keys: Vec<_> = sets.into_iter().filter_map(|set| set.key).collect();
    for (seq, key) in (100..).map(Seq::new).zip(&keys) {
        let id = MessageId { term: Term::new(4), seq };
        memory.messages.insert(seq, StoredMessage { id, key: Some(key.clone()), size: 0 });
    }
    let seqs: Vec<_> = memory.messages.keys().copied().rev().take(MAX_ITEMS_PER_REQUEST).collect();
    let request =
        SubjectRequest::Delete(DeleteRequest { seqs, request: request_id(2), ..DeleteRequest::default() });
    let PlanResult::Write { entry, outcome } = plan(&request, &memory, context) else { panic!() };
    assert!(
        matches!(outcome::answer(outcome), Ok(SubjectReply::Delete(reply)) if reply.seqs.len() == MAX_ITEMS_PER_REQUEST)
    );
    assert!(dormouse_format::frame::encode(&entry).is_ok());
}

fn blob() -> BlobRef {
    let name = BlobName { term: Term::new(4), nonce: Nonce::new(ulid::Ulid(5)) };
    BlobRef { name, size_bytes: 300_000, crc64: Crc64::of(b"elsewhere") }
}

/// A set with a blob logs the blob's reference and omits the value; other sets log their values.
#[test]
fn blob_value_stays_out_of_the_log() {
    let valued = SetItem { value: Some(Bytes::from_static(b"elsewhere")), ..SetItem::default() };
    let blobs = [(1, blob())];
    let context = PlanContext { blobs: &blobs, ..CONTEXT };
    let planned = plan(&set(vec![valued.clone(), valued.clone()]), &memory(), context);
    let PlanResult::Write { entry, .. } = planned else { panic!("{planned:?}") };
    let [RecordOp::Set(here), RecordOp::Set(there)] = entry.operations.as_slice() else { panic!() };
    assert_eq!((&here.value, here.blob), (&valued.value, None));
    assert_eq!((&there.value, there.blob), (&None, Some(blob())));
}

/// Within its window, a message id gives one message, and each repeat replies with the first result as a duplicate.
#[test]
fn dedup_msg_id_gives_one_message_within_window() {
    let mut memory = memory();
    let window = MSG_ID_WINDOW_MS * 1_000;
    write(&set(vec![named("m")]), &mut memory, 1_000);
    let again = |items: Vec<SetItem>, memory: &InMemory, at_micros| {
        plan(&set(items), memory, PlanContext { accept_time: Timestamp::from_micros(at_micros), ..CONTEXT })
    };
    // A known id is found before expectations are checked, and changes nothing.
    let expecting = SetItem { expect: Some(Expect::Last(None)), ..named("m") };
    let PlanResult::DeferredAnswer(duplicate) = again(vec![expecting], &memory, 999 + window) else {
        panic!()
    };
    assert_eq!(rows(duplicate), [Ok((9, 11, true))]);
    // The second of two in one request is the duplicate of the first.
    let both = again(vec![named("n"), named("m"), named("n")], &memory, 2_000);
    let PlanResult::Write { entry, .. } = &both else { panic!() };
    assert_eq!(entry.operations.len(), 1);
    assert_eq!(rows(answer(both)), [Ok((10, 12, false)), Ok((9, 11, true)), Ok((10, 12, true))]);
    // A clock that goes back does not reopen the window.
    let backwards = again(vec![named("m")], &memory, 0);
    assert_eq!(rows(answer(backwards)), [Ok((9, 11, true))]);
    let later = again(vec![named("m")], &memory, 1_000 + window);
    assert_eq!(rows(answer(later)), [Ok((10, 12, false))]);
    let empty = again(vec![named("")], &memory, 0);
    assert_eq!(rows(answer(empty)), [Err(ErrorCode::BadRequest)]);
}

/// If all message ids of a batch are known, it is a duplicate; if only some are, it is a bad request.
#[test]
fn batch_is_a_duplicate_as_a_whole_or_rejected() {
    let mut memory = memory();
    write(&batch(vec![named("m"), named("n")]), &mut memory, 600);
    let planned = plan(&batch(vec![named("n"), named("m")]), &memory, CONTEXT);
    let PlanResult::DeferredAnswer(duplicate) = planned else { panic!("{planned:?}") };
    assert_eq!(rows(duplicate), [Ok((10, 11, true)), Ok((9, 11, true))]);
    for partly in [vec![named("m"), named("o")], vec![named("m"), SetItem::default()]] {
        let planned = plan(&batch(partly), &memory, CONTEXT);
        assert!(
            matches!(&planned, PlanResult::DeferredAnswer(Err(error)) if error.code == ErrorCode::BadRequest)
        );
    }
}

fn request_id(counter: u64) -> Option<RequestId> {
    Some(RequestId { session: SessionId::new(ulid::Ulid(9)), counter })
}

/// A repeated request gets the first reply and changes nothing; another operation under its id is a bad request.
#[test]
fn request_repeat_gets_first_reply_and_changes_nothing() {
    let mut memory = memory();
    let expect = Some(Expect::Last(Some(id(4, 8))));
    let sets = vec![SetItem { expect, ..SetItem::default() }];
    let request = SubjectRequest::Set(SetRequest { sets, request: request_id(1), ..SetRequest::default() });
    let entry = write(&request, &mut memory, 600);
    assert_eq!(entry.request.as_ref().map(|remembered| remembered.id), request_id(1));
    // The expectation no longer holds, and the reply limit is smaller: neither is checked.
    let PlanResult::DeferredAnswer(repeated) = plan(&request, &memory, CONTEXT) else { panic!() };
    assert_eq!(rows(repeated), [Ok((9, 11, true))]);
    let other = SubjectRequest::Delete(DeleteRequest {
        keys: vec!["a".to_owned()],
        request: request_id(1),
        ..DeleteRequest::default()
    });
    let error = answer(plan(&other, &memory, CONTEXT)).unwrap_err();
    assert_eq!(error.code, ErrorCode::BadRequest);
    let tiny = PlanContext { max_message_bytes: 4_096, ..CONTEXT };
    assert_eq!(answer(plan(&request, &memory, tiny)).unwrap_err().code, ErrorCode::Indeterminate);
}

/// A rejection that depends on the state is recorded for repeats; a rejection by the request alone is not.
#[test]
fn dedup_records_rejection_by_state_only() {
    let mut memory = memory();
    let refused = |sets: Vec<SetItem>, atomic| {
        SubjectRequest::Set(SetRequest { sets, atomic, request: request_id(2), ..SetRequest::default() })
    };
    let taken = SetItem { expect: Some(Expect::Key(None)), ..keyed("a") };
    for request in [refused(vec![taken.clone()], false), refused(vec![taken], true)] {
        let mut memory = memory.clone();
        let first = answer(plan(&request, &memory, CONTEXT));
        let entry = write(&request, &mut memory, 600);
        assert!(entry.operations.is_empty());
        assert_eq!((entry.after, entry.last_rev()), (Rev::new(10), Rev::new(10)));
        // Now it could succeed, but the caller got a rejection.
        let delete = DeleteRequest { keys: vec!["a".to_owned()], ..DeleteRequest::default() };
        write(&SubjectRequest::Delete(delete), &mut memory, 600);
        assert_eq!(plan(&request, &memory, CONTEXT), PlanResult::DeferredAnswer(first));
    }
    let nothing = SubjectRequest::Delete(DeleteRequest {
        keys: vec!["absent".to_owned()],
        request: request_id(3),
        ..DeleteRequest::default()
    });
    assert!(write(&nothing, &mut memory, 600).operations.is_empty());
    for outright in [vec![SetItem { ttl_ms: Some(0), ..SetItem::default() }], Vec::new()] {
        assert!(matches!(plan(&refused(outright, false), &memory, CONTEXT), PlanResult::Answer(_)));
    }
}

/// A plan never uses an accept time below that of the subject.
#[test]
fn plan_accept_time_never_decreases() {
    let mut memory = memory();
    assert_eq!(write(&set(vec![keyed("a")]), &mut memory, 900).accept_time, Timestamp::from_micros(900));
    let entry = write(&set(vec![keyed("a")]), &mut memory, 100);
    assert_eq!(entry.accept_time, Timestamp::from_micros(900));
    let RecordOp::Set(set) = &entry.operations[0] else { panic!() };
    assert_eq!(set.timestamp, Timestamp::from_micros(900));
}

/// A subject that has forgotten this session's first requests and fails all other reads.
struct Unreadable(SubjectState);

impl SubjectView for Unreadable {
    fn state(&self) -> &SubjectState {
        &self.0
    }
    fn at(&self, _: Seq) -> Result<Option<StoredMessage>, ErrorReply> {
        Err(ErrorReply::corrupt("file", "gone"))
    }
    fn by_key(&self, _: &str) -> Result<Option<MessageId>, ErrorReply> {
        Err(ErrorReply::corrupt("file", "gone"))
    }
    fn bytes(&self) -> Option<u64> {
        None
    }
    fn oldest(&self, _: Seq, _: usize) -> Result<Vec<StoredMessage>, ErrorReply> {
        Err(ErrorReply::corrupt("file", "gone"))
    }
    fn expired(
        &self,
        _: Timestamp,
        _: Option<u64>,
        _: &mut ExpiryCursor,
        _: usize,
    ) -> Result<Vec<StoredMessage>, ErrorReply> {
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
    fn remembered(&self, id: RequestId) -> Result<DedupLookup, ErrorReply> {
        Ok(if id.counter < 5 { DedupLookup::Forgotten } else { DedupLookup::New })
    }
    fn by_msg_id(&self, _: &str) -> Result<Option<(SetResult, Timestamp)>, ErrorReply> {
        Err(ErrorReply::corrupt("file", "gone"))
    }
}

/// A request below the dedup window is `forgotten`, and an unreadable state is `corrupt`.
#[test]
fn plan_on_forgotten_or_unreadable_state_is_an_error() {
    let view = Unreadable(SubjectState::default());
    let code = |sets: Vec<SetItem>, atomic, counter| {
        let request = SetRequest { sets, atomic, request: request_id(counter), ..SetRequest::default() };
        match plan(&SubjectRequest::Set(request), &view, CONTEXT) {
            PlanResult::Answer(Err(error)) => error.code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code(vec![SetItem::default()], false, 4), ErrorCode::Forgotten);
    for atomic in [false, true] {
        assert_eq!(code(vec![SetItem::default(), keyed("a")], atomic, 5), ErrorCode::Corrupt);
        assert_eq!(code(vec![SetItem::default(), named("m")], atomic, 5), ErrorCode::Corrupt);
    }
}
