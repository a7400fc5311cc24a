//! The rules of writing, over a state that is only in memory.

use std::collections::BTreeMap;

use bytes::Bytes;
use dormouse_protocol::{Headers, RequestId, Term};

use super::*;

#[derive(Default)]
struct InMemory {
    state: SubjectState,
    messages: BTreeMap<Seq, Held>,
}

impl SubjectView for InMemory {
    fn state(&self) -> &SubjectState {
        &self.state
    }
    fn at(&self, seq: Seq) -> Result<Option<Held>, ErrorReply> {
        Ok(self.messages.get(&seq).cloned())
    }
    fn under(&self, key: &str) -> Result<Option<MessageId>, ErrorReply> {
        Ok(self.messages.values().find(|held| held.key.as_deref() == Some(key)).map(|held| held.id))
    }
    fn count_up_to(&self, end_seq: Seq) -> Result<u64, ErrorReply> {
        Ok(self.messages.range(..=end_seq).count() as u64)
    }
    fn newest_beyond(&self, keep: u64) -> Result<Option<Seq>, ErrorReply> {
        Ok(self.messages.keys().rev().nth(usize::try_from(keep).unwrap()).copied())
    }
    fn counts_are_exact(&self) -> bool {
        true
    }
    fn remembered(&self, _: RequestId) -> Result<Memory, ErrorReply> {
        Ok(Memory::New)
    }
    fn by_msg_id(&self, _: &str) -> Result<Option<(SetResult, Timestamp)>, ErrorReply> {
        Ok(None)
    }
}

/// Term 4, rev 10, messages `a` at 3, one without key at 5, `b` at 7; the next seq is 9.
fn memory() -> InMemory {
    let mut memory = InMemory::default();
    let term = Term::new(4);
    for (seq, key) in [(3, Some("a")), (5, None), (7, Some("b"))] {
        let id = MessageId { term, seq: Seq::new(seq) };
        memory.messages.insert(id.seq, Held { id, key: key.map(str::to_owned) });
    }
    memory.state = SubjectState {
        term,
        rev: Rev::new(10),
        next_seq: Seq::new(9),
        last: Some(id(4, 8)),
        count: 3,
        ..SubjectState::default()
    };
    memory
}

fn id(term: u64, seq: u64) -> MessageId {
    MessageId { term: Term::new(term), seq: Seq::new(seq) }
}

const CONTEXT: Context = Context { accept_time: Timestamp::from_micros(500), max_message_bytes: 1 << 20 };

fn set(items: Vec<SetItem>) -> Request {
    Request::Set(SetRequest { sets: items, ..SetRequest::default() })
}

fn keyed(key: &str) -> SetItem {
    SetItem { key: Some(key.to_owned()), ..SetItem::default() }
}

fn at(seq: u64) -> SetItem {
    SetItem { seq: Some(Seq::new(seq)), ..SetItem::default() }
}

/// Seq, rev and what was replaced.
type Outcome = Result<(u64, u64, Option<u64>), ErrorCode>;

/// What becomes of each set: seq, rev and what it replaces, or the error's code.
fn outcomes(items: Vec<SetItem>) -> Vec<Outcome> {
    plan(&set(items), &memory(), CONTEXT)
        .unwrap()
        .into_iter()
        .map(|planned| match planned {
            Planned::Refuse(error) => Err(error.code),
            Planned::Write(record) => match record.operation {
                Operation::Set(set) => Ok((set.seq.get(), record.rev.get(), set.replaces.map(Seq::get))),
                other => panic!("{other:?}"),
            },
        })
        .collect()
}

fn whole(request: &Request) -> ErrorCode {
    plan(request, &memory(), CONTEXT).unwrap_err().code
}

#[test]
fn seqs_are_given_out_in_order_and_a_hole_is_legal() {
    assert_eq!(
        outcomes(vec![SetItem::default(), at(20), SetItem::default()]),
        [Ok((9, 11, None)), Ok((20, 12, None)), Ok((21, 13, None))]
    );
}

#[test]
fn a_key_replaces_its_earlier_message_also_within_one_request() {
    assert_eq!(
        outcomes(vec![keyed("a"), keyed("a"), keyed("new"), keyed("new"), keyed("")]),
        [
            Ok((9, 11, Some(3))),
            Ok((10, 12, Some(9))),
            Ok((11, 13, None)),
            Ok((12, 14, Some(11))),
            Ok((13, 15, None))
        ]
    );
}

#[test]
fn a_seq_of_the_callers_choice_meets_its_rules() {
    let in_place = SetItem { seq: Some(Seq::new(3)), ..keyed("a") };
    let other_key = SetItem { seq: Some(Seq::new(3)), ..keyed("b") };
    assert_eq!(
        outcomes(vec![in_place, at(5), other_key, at(3), at(4), at(0), at(MAX_SEQ + 1)]),
        [
            Ok((3, 11, Some(3))),
            Ok((5, 12, Some(5))),
            Err(ErrorCode::BadRequest),
            Err(ErrorCode::BadRequest),
            Err(ErrorCode::BadRequest),
            Err(ErrorCode::BadRequest),
            Err(ErrorCode::BadRequest),
        ]
    );
    // A message that an earlier set of the request replaced is no longer there.
    assert_eq!(
        outcomes(vec![keyed("a"), SetItem { seq: Some(Seq::new(3)), ..keyed("a") }])[1],
        Err(ErrorCode::BadRequest)
    );
    // The last seq can be used, and then none is left.
    assert_eq!(
        outcomes(vec![at(MAX_SEQ), SetItem::default()]),
        [Ok((MAX_SEQ, 11, None)), Err(ErrorCode::BadRequest)]
    );
}

#[test]
fn expectations_compare_what_is_there() {
    let expecting = |mut item: SetItem, expect| {
        item.expect = Some(expect);
        outcomes(vec![item]).remove(0).map(|_| ())
    };
    use Expect::{Key, Last};
    assert_eq!(expecting(SetItem::default(), Last(Some(id(4, 8)))), Ok(()));
    assert_eq!(expecting(SetItem::default(), Last(Some(id(3, 8)))), Err(ErrorCode::WrongLast));
    assert_eq!(expecting(SetItem::default(), Last(None)), Err(ErrorCode::WrongLast));
    assert_eq!(expecting(keyed("a"), Key(Some(id(4, 3)))), Ok(()));
    assert_eq!(expecting(keyed("a"), Key(Some(id(4, 7)))), Err(ErrorCode::WrongLast));
    assert_eq!(expecting(keyed("a"), Key(None)), Err(ErrorCode::KeyExists));
    assert_eq!(expecting(keyed("c"), Key(None)), Ok(()));
    assert_eq!(expecting(keyed("c"), Key(Some(id(4, 3)))), Err(ErrorCode::WrongLast));
    assert_eq!(expecting(SetItem::default(), Key(None)), Err(ErrorCode::BadRequest));
}

#[test]
fn a_failed_set_leaves_the_others_alone() {
    let mut doomed = keyed("a");
    doomed.expect = Some(Expect::Key(None));
    let planned = plan(&set(vec![keyed("x"), doomed, keyed("y")]), &memory(), CONTEXT).unwrap();
    let request = set(Vec::new());
    let Some(Reply::Set(reply)) = reply(&request, &planned, memory().state.position()) else { panic!() };
    let [SetOutcome::Ok(x), SetOutcome::Error(error), SetOutcome::Ok(y)] = reply.results.as_slice() else {
        panic!("{reply:?}")
    };
    assert_eq!((x.rev.get(), y.rev.get(), y.seq.get()), (11, 12, 10));
    assert_eq!((error.code.clone(), error.actual), (ErrorCode::KeyExists, Some(id(4, 3))));
}

#[test]
fn limits_are_typed_and_checked_first() {
    let too_large = |item: SetItem| {
        let planned = plan(&set(vec![item]), &memory(), CONTEXT).unwrap().remove(0);
        match planned {
            Planned::Refuse(error) if error.code == ErrorCode::TooLarge => error.limit.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(too_large(keyed(&"k".repeat(MAX_KEY_BYTES + 1))), "max_key_bytes");
    let headers = Headers(vec![("h".to_owned(), "v".repeat(MAX_HEADERS_BYTES))]);
    assert_eq!(too_large(SetItem { headers, ..SetItem::default() }), "max_headers_bytes");
    let value = Some(Bytes::from(vec![0; CONTEXT.max_message_bytes]));
    assert_eq!(too_large(SetItem { value, ..SetItem::default() }), "max_message_bytes");
    assert_eq!(whole(&set(vec![SetItem::default(); MAX_ITEMS_PER_REQUEST + 1])), ErrorCode::TooLarge);
    assert_eq!(whole(&set(Vec::new())), ErrorCode::BadRequest);
}

#[test]
fn what_this_version_does_not_have_is_unsupported() {
    let unsupported = |item: SetItem| assert_eq!(outcomes(vec![item]), [Err(ErrorCode::Unsupported)]);
    unsupported(SetItem { ttl_ms: Some(1), ..SetItem::default() });
    unsupported(SetItem { msg_id: Some(String::new()), ..SetItem::default() });
    let mut request = SetRequest { sets: vec![SetItem::default()], ..SetRequest::default() };
    request.atomic = true;
    assert_eq!(whole(&Request::Set(request.clone())), ErrorCode::Unsupported);
    request.atomic = false;
    request.level = Some(Level::Memory);
    assert!(plan(&Request::Set(request.clone()), &memory(), CONTEXT).is_ok());
    for level in [Level::Interval, Level::Disk, Level::Bucket] {
        request.level = Some(level);
        assert_eq!(whole(&Request::Set(request.clone())), ErrorCode::Unsupported);
        let config = SubjectConfig { level: Some(level), ..SubjectConfig::default() };
        assert_eq!(
            whole(&Request::Configure(ConfigureRequest { config, ..Default::default() })),
            ErrorCode::Unsupported
        );
    }
    let config = SubjectConfig { max_msgs: Some(1), ..SubjectConfig::default() };
    assert_eq!(
        whole(&Request::Configure(ConfigureRequest { config, ..Default::default() })),
        ErrorCode::Unsupported
    );
    let metadata = BTreeMap::from([("m".to_owned(), "x".repeat(MAX_METADATA_BYTES))]);
    let config = SubjectConfig { metadata, ..SubjectConfig::default() };
    assert_eq!(
        whole(&Request::Configure(ConfigureRequest { config, ..Default::default() })),
        ErrorCode::TooLarge
    );
}

#[test]
fn a_delete_names_what_it_really_removes_and_nothing_has_no_rev() {
    let delete = |seqs: &[u64], keys: &[&str]| {
        let request = Request::Delete(DeleteRequest {
            seqs: seqs.iter().copied().map(Seq::new).collect(),
            keys: keys.iter().map(|&key| key.to_owned()).collect(),
            ..DeleteRequest::default()
        });
        let planned = plan(&request, &memory(), CONTEXT).unwrap();
        let Some(Reply::Delete(reply)) = reply(&request, &planned, memory().state.position()) else {
            panic!()
        };
        (reply.seqs.iter().map(|seq| seq.get()).collect::<Vec<_>>(), reply.position.rev.get())
    };
    assert_eq!(delete(&[7, 3, 3, 4], &["b", "zz"]), (vec![3, 7], 11));
    assert_eq!(delete(&[4, 100], &["zz"]), (vec![], 10));
    let expecting = |seqs: Vec<Seq>, keys: Vec<String>, expect| {
        let request = DeleteRequest { seqs, keys, expect: Some(expect), ..DeleteRequest::default() };
        plan(&Request::Delete(request), &memory(), CONTEXT).map(|planned| planned.len()).map_err(|e| e.code)
    };
    let key = |key: &str| vec![key.to_owned()];
    assert_eq!(expecting(vec![], key("a"), Expect::Key(Some(id(4, 3)))), Ok(1));
    assert_eq!(expecting(vec![], key("a"), Expect::Key(Some(id(4, 4)))), Err(ErrorCode::WrongLast));
    assert_eq!(expecting(vec![], key("a"), Expect::Key(None)), Err(ErrorCode::KeyExists));
    assert_eq!(expecting(vec![Seq::new(3)], key("a"), Expect::Key(None)), Err(ErrorCode::BadRequest));
    assert_eq!(expecting(vec![Seq::new(3)], vec![], Expect::Last(None)), Err(ErrorCode::WrongLast));
    assert_eq!(whole(&Request::Delete(DeleteRequest::default())), ErrorCode::BadRequest);
}

#[test]
fn a_large_delete_is_cut_into_records_that_fit_an_event() {
    let mut memory = memory();
    let key = |n: u64| format!("{n:01000}");
    for n in 0..1_000 {
        let id = id(4, 100 + n);
        memory.messages.insert(id.seq, Held { id, key: Some(key(n)) });
    }
    let request = Request::Delete(DeleteRequest {
        seqs: (0..1_000).map(|n| Seq::new(100 + n)).collect(),
        ..DeleteRequest::default()
    });
    let planned = plan(&request, &memory, CONTEXT).unwrap();
    assert!(planned.len() > 5);
    for (place, planned) in planned.iter().enumerate() {
        let record = planned.record().unwrap();
        assert_eq!(record.rev.get(), 11 + place as u64);
        assert!(dormouse_protocol::encode(&record.changes()[0]).unwrap().len() <= DELETE_RECORD_BYTES + 256);
    }
    let Some(Reply::Delete(reply)) = reply(&request, &planned, memory.state.position()) else { panic!() };
    assert_eq!(reply.seqs.len(), 1_000);
    assert!(reply.seqs.is_sorted());
}

#[test]
fn delete_all_takes_everything_up_to_a_seq_or_all_but_the_newest() {
    let delete_all = |end_seq: Option<u64>, keep_last| {
        let request = Request::DeleteAll(DeleteAllRequest {
            end_seq: end_seq.map(Seq::new),
            keep_last,
            ..DeleteAllRequest::default()
        });
        let planned = plan(&request, &memory(), CONTEXT)?;
        Ok::<_, ErrorReply>(planned.first().and_then(Planned::record).map(|record| match record.operation {
            Operation::DeleteAll { end_seq, count } => (end_seq.get(), count),
            _ => panic!(),
        }))
    };
    assert_eq!(delete_all(None, None), Ok(Some((8, 3))));
    assert_eq!(delete_all(Some(5), None), Ok(Some((5, 2))));
    assert_eq!(delete_all(Some(u64::MAX), None), Ok(Some((8, 3))));
    assert_eq!(delete_all(Some(2), None), Ok(None));
    assert_eq!(delete_all(None, Some(1)), Ok(Some((5, 2))));
    assert_eq!(delete_all(None, Some(3)), Ok(None));
    assert_eq!(delete_all(None, Some(0)), Ok(Some((7, 3))));
    assert_eq!(delete_all(Some(1), Some(1)).unwrap_err().code, ErrorCode::BadRequest);
}

#[test]
fn records_survive_their_encoding() {
    let request = set(vec![SetItem { value: Some(Bytes::from_static(b"v")), ..keyed("a") }, at(5)]);
    for planned in plan(&request, &memory(), CONTEXT).unwrap() {
        let record = planned.record().unwrap().clone();
        let bytes = dormouse_protocol::encode(&record).unwrap();
        assert_eq!(dormouse_protocol::decode::<Record>(&bytes).unwrap(), record);
    }
}

#[test]
fn sizes_are_upper_bounds() {
    let record = Record {
        term: Term::new(u64::MAX),
        rev: Rev::new(u64::MAX),
        accept_time: Timestamp::from_micros(u64::MAX),
        operation: Operation::Set(SetOperation {
            seq: Seq::new(u64::MAX),
            key: Some("k".repeat(1_000)),
            value: Some(Bytes::from(vec![0; 70_000])),
            headers: Headers((0..100).map(|n| (n.to_string(), "é".repeat(100))).collect()),
            timestamp: Timestamp::from_micros(u64::MAX),
            replaces: Some(Seq::new(u64::MAX)),
            expires_at: Some(Timestamp::from_micros(u64::MAX)),
            blob: None,
            msg_id: None,
        }),
    };
    let change = record.changes().remove(0);
    assert!(dormouse_protocol::encode(&change).unwrap().len() <= size::of_change(&change));
    assert_eq!(size::of_record(&record), size::of_change(&change));
    let removed = Removed { seq: Seq::new(u64::MAX), key: Some("k".repeat(100)) };
    assert!(dormouse_protocol::encode(&removed).unwrap().len() <= size::of_removed(&removed));
}

#[test]
fn nothing_is_done_whose_answer_would_not_fit() {
    let wrong =
        |_| SetItem { expect: Some(Expect::Last(Some(id(u64::MAX, u64::MAX)))), ..SetItem::default() };
    let delete = Request::Delete(DeleteRequest {
        seqs: [3, 5, 7].map(Seq::new).to_vec(),
        keys: vec!["a".to_owned()],
        ..DeleteRequest::default()
    });
    let cases = [
        (set((0..200).map(|_| SetItem::default()).collect()), 200 * size::SET_RESULT_BYTES),
        (set((0..200).map(wrong).collect()), 200 * 400),
        (delete, 30),
    ];
    for (request, roomy) in cases {
        let mut refused = 0;
        for room in 0..=roomy {
            let context = Context { max_message_bytes: ENVELOPE_BYTES + room, ..CONTEXT };
            match plan(&request, &memory(), context) {
                Ok(planned) => {
                    let encoded = match reply(&request, &planned, memory().state.position()).unwrap() {
                        Reply::Set(reply) => dormouse_protocol::encode(&reply),
                        Reply::Delete(reply) => dormouse_protocol::encode(&reply),
                        other => panic!("{other:?}"),
                    };
                    assert!(encoded.unwrap().len() <= context.max_message_bytes, "{room}");
                    break;
                }
                Err(error) => {
                    assert_eq!(error.code, ErrorCode::TooLarge);
                    // Where not even a message without content fits, that is said of each.
                    assert_eq!(error.limit.as_deref(), Some("max_reply_bytes"));
                    refused += 1;
                }
            }
        }
        assert!(refused > 0 && refused <= roomy, "{refused} of {roomy}");
    }
}

#[test]
fn results_and_errors_have_upper_bounds() {
    let most = id(u64::MAX, u64::MAX);
    let result = SetOutcome::Ok(SetResult {
        seq: most.seq,
        term: most.term,
        rev: Rev::new(u64::MAX),
        timestamp: Timestamp::from_micros(u64::MAX),
        duplicate: true,
    });
    assert!(dormouse_protocol::encode(&result).unwrap().len() <= size::SET_RESULT_BYTES);
    for error in [
        ErrorReply::wrong_last(Some(most)),
        ErrorReply::key_exists(most),
        ErrorReply::too_large("max_headers_bytes", usize::MAX, usize::MAX),
        ErrorReply::bad_request("w".repeat(10_000)),
    ] {
        let bytes = size::of_error(&error);
        assert!(dormouse_protocol::encode(&SetOutcome::Error(error)).unwrap().len() <= bytes);
    }
}
