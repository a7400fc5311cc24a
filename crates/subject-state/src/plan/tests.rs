//! Tests of planning, on an in-memory state.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use dormouse_format::record::{Record, SetOperation};
use dormouse_protocol::data::{
    ConfigureRequest, DeleteAllRequest, DeleteRequest, SetItem, SetOutcome, SetRequest, SetResult,
};
use dormouse_protocol::limits::{
    MAX_CALLER_SEQ, MAX_HEADERS_BYTES, MAX_METADATA_BYTES, MAX_MSG_ID_BYTES, MAX_SEQ,
};
use dormouse_protocol::message::{Removed, SubjectConfig};
use dormouse_protocol::{Headers, Rev, Seq, Term};

use super::delete::DELETE_RECORD_BYTES;
use super::*;
use crate::database::Slice;

/// Plans a request with the largest and with the smallest slices: the result must not depend on them.
pub(crate) fn plan(
    request: &SubjectRequest,
    view: &impl SubjectView,
    context: PlanContext<'_>,
) -> PlanResult {
    let in_slices = |new_slice: fn() -> Slice| {
        let mut progress = PlanProgress::new();
        loop {
            if let Some(planned) = progress.step(request, view, context, &mut new_slice()) {
                return planned;
            }
        }
    };
    let planned = in_slices(Slice::new);
    assert_eq!(in_slices(Slice::of_one_row), planned, "{request:?}");
    planned
}

/// The same for retention.
pub(crate) fn plan_retention(
    view: &impl SubjectView,
    context: PlanContext<'_>,
) -> Result<Option<LogEntry>, ErrorReply> {
    let in_slices = |new_slice: fn() -> Slice| {
        let mut progress = RetentionProgress::new();
        loop {
            if let Some(planned) = progress.step(view, context, &mut new_slice())? {
                return Ok(planned);
            }
        }
    };
    let planned = in_slices(Slice::new);
    assert_eq!(in_slices(Slice::of_one_row), planned);
    planned
}

/// An in-memory subject that forgets nothing.
#[derive(Debug, Default, Clone)]
pub(crate) struct InMemory {
    pub(crate) state: SubjectState,
    pub(super) messages: BTreeMap<Seq, StoredMessage>,
    /// When each message was accepted, and when it expires by its own time to live.
    times: BTreeMap<Seq, (Timestamp, Option<Timestamp>)>,
    requests: HashMap<RequestId, DedupLookup>,
    msg_ids: HashMap<String, (SetResult, Timestamp)>,
}

impl InMemory {
    /// Applies an entry in the simplest way.
    pub(super) fn apply(&mut self, entry: &LogEntry) {
        assert_eq!((entry.term, entry.after), (self.state.term, self.state.rev));
        assert!(entry.accept_time >= self.state.accept_time);
        self.state.accept_time = entry.accept_time;
        for record in entry.records() {
            self.state.rev = record.rev;
            match &record.operation {
                RecordOp::Set(set) => self.apply_set(&record, set),
                RecordOp::Batch { sets } => sets.iter().for_each(|set| self.apply_set(&record, set)),
                RecordOp::Delete { removed, .. } => {
                    for one in removed {
                        assert_eq!(self.messages.remove(&one.seq).unwrap().key, one.key);
                    }
                }
                RecordOp::DeleteAll { end_seq, count } => {
                    let before = self.messages.len();
                    self.messages.retain(|seq, _| seq > end_seq);
                    assert_eq!((before - self.messages.len()) as u64, *count);
                }
                RecordOp::Configure { config } => self.state.config = config.clone(),
            }
        }
        self.state.count = self.messages.len() as u64;
        self.state.bytes = self.messages.values().map(|held| held.size).sum();
        if let Some(remembered) = &entry.request {
            let known = self.requests.insert(remembered.id, DedupLookup::Done(remembered.outcome.clone()));
            assert_eq!(known, None, "the request was executed twice");
        }
    }

    fn apply_set(&mut self, record: &Record, set: &SetOperation) {
        if let Some(gone) = set.replaces {
            self.messages.remove(&gone).expect("the replaced message exists");
        }
        let id = MessageId { term: record.term, seq: set.seq };
        assert!(set.key.is_none() || self.by_key(set.key.as_deref().unwrap()).unwrap().is_none());
        let held = StoredMessage { id, key: set.key.clone(), size: set.size_bytes() };
        assert!(self.messages.insert(set.seq, held).is_none());
        self.times.insert(set.seq, (record.accept_time, set.expires_at));
        if let Some(msg_id) = &set.msg_id {
            let result = SetResult {
                seq: set.seq,
                term: record.term,
                rev: record.rev,
                timestamp: set.timestamp,
                duplicate: false,
            };
            self.msg_ids.insert(msg_id.clone(), (result, record.accept_time));
        }
        self.state.last = self.state.last.filter(|last| last.seq > set.seq).or(Some(id));
        self.state.next_seq = self.state.next_seq.max(set.seq.next());
    }
}

impl SubjectView for InMemory {
    fn state(&self) -> &SubjectState {
        &self.state
    }
    fn at(&self, seq: Seq) -> Result<Option<StoredMessage>, ErrorReply> {
        Ok(self.messages.get(&seq).cloned())
    }
    fn by_key(&self, key: &str) -> Result<Option<MessageId>, ErrorReply> {
        Ok(self.messages.values().find(|held| held.key.as_deref() == Some(key)).map(|held| held.id))
    }
    fn bytes(&self) -> Option<u64> {
        Some(self.state.bytes)
    }
    fn oldest(&self, from: Seq, limit: usize) -> Result<Vec<StoredMessage>, ErrorReply> {
        Ok(self.messages.range(from..).take(limit).map(|(_, held)| held.clone()).collect())
    }
    fn expired(
        &self,
        now: Timestamp,
        max_age_ms: Option<u64>,
        cursor: &mut ExpiryCursor,
        limit: usize,
    ) -> Result<Vec<StoredMessage>, ErrorReply> {
        let is_over = |held: &&StoredMessage| {
            let Some((accepted_at, expires_at)) = self.times.get(&held.id.seq) else { return false };
            let by_age = max_age_ms.map(|max_age_ms| accepted_at.plus_millis(max_age_ms));
            expires_at.iter().chain(&by_age).any(|&at| at <= now)
        };
        let from = cursor.by_ttl.map_or(Seq::default(), |(_, seq)| seq.next());
        let found: Vec<_> =
            self.messages.range(from..).map(|(_, held)| held).filter(is_over).take(limit).cloned().collect();
        cursor.by_ttl = found.last().map(|last| (now, last.id.seq)).or(cursor.by_ttl);
        (cursor.ttl_ended, cursor.age_ended) = (found.len() < limit, found.len() < limit);
        Ok(found)
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
    fn remembered(&self, id: RequestId) -> Result<DedupLookup, ErrorReply> {
        Ok(self.requests.get(&id).cloned().unwrap_or(DedupLookup::New))
    }
    fn by_msg_id(&self, msg_id: &str) -> Result<Option<(SetResult, Timestamp)>, ErrorReply> {
        Ok(self.msg_ids.get(msg_id).copied())
    }
}

/// Term 4, rev 10, messages `a` at 3, one without key at 5, `b` at 7; the next seq is 9.
pub(super) fn memory() -> InMemory {
    let mut memory = InMemory::default();
    let term = Term::new(4);
    for (seq, key) in [(3, Some("a")), (5, None), (7, Some("b"))] {
        let id = MessageId { term, seq: Seq::new(seq) };
        memory.messages.insert(id.seq, StoredMessage { id, key: key.map(str::to_owned), size: 0 });
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

/// Messages `a` of 10 bytes at 3, one without key of 20 at 5, `b` of 30 at 7; the next seq is 9.
pub(super) fn sized(config: SubjectConfig) -> InMemory {
    let mut memory = memory();
    for (held, size) in memory.messages.values_mut().zip([10, 20, 30]) {
        held.size = size;
    }
    memory.state.bytes = 60;
    memory.state.config = config;
    memory
}

pub(super) fn id(term: u64, seq: u64) -> MessageId {
    MessageId { term: Term::new(term), seq: Seq::new(seq) }
}

pub(super) const CONTEXT: PlanContext<'_> =
    PlanContext { accept_time: Timestamp::from_micros(500), max_message_bytes: 1 << 20, blobs: &[] };

pub(super) fn set(items: Vec<SetItem>) -> SubjectRequest {
    SubjectRequest::Set(SetRequest { sets: items, ..SetRequest::default() })
}

pub(super) fn keyed(key: &str) -> SetItem {
    SetItem { key: Some(key.to_owned()), ..SetItem::default() }
}

pub(super) fn at(seq: u64) -> SetItem {
    SetItem { seq: Some(Seq::new(seq)), ..SetItem::default() }
}

/// The entry of the request, and its reply.
fn written(
    request: &SubjectRequest,
    view: &impl SubjectView,
) -> (LogEntry, Result<SubjectReply, ErrorReply>) {
    match plan(request, view, CONTEXT) {
        PlanResult::Write { entry, outcome } => (entry, outcome::answer(outcome)),
        other => panic!("{other:?}"),
    }
}

/// The reply, whether an entry was written or not.
pub(super) fn answer(planned: PlanResult) -> Result<SubjectReply, ErrorReply> {
    match planned {
        PlanResult::Write { outcome, .. } => outcome::answer(outcome),
        PlanResult::Answer(answer) | PlanResult::DeferredAnswer(answer) => answer,
        PlanResult::Later => panic!(),
    }
}

fn results(answer: Result<SubjectReply, ErrorReply>) -> Vec<SetOutcome> {
    match answer {
        Ok(SubjectReply::Set(reply)) => reply.results,
        other => panic!("{other:?}"),
    }
}

/// Seq, rev and the replaced message; or the error.
type Row = Result<(u64, u64, Option<u64>), ErrorCode>;

/// The result of each set.
fn outcomes_on(items: Vec<SetItem>, memory: &InMemory) -> Vec<Row> {
    let planned = plan(&set(items), memory, CONTEXT);
    let records: Vec<Record> = match &planned {
        PlanResult::Write { entry, .. } => entry.records().collect(),
        _ => Vec::new(),
    };
    let mut records = records.into_iter();
    let mut row = |outcome: SetOutcome| match outcome {
        SetOutcome::Error(error) => Err(error.code),
        SetOutcome::Ok(result) if result.duplicate => Ok((result.seq.get(), result.rev.get(), None)),
        SetOutcome::Ok(result) => {
            let record = records.next().unwrap();
            let RecordOp::Set(set) = record.operation else { panic!() };
            assert_eq!((set.seq, set.timestamp, record.rev), (result.seq, result.timestamp, result.rev));
            Ok((set.seq.get(), record.rev.get(), set.replaces.map(Seq::get)))
        }
    };
    let rows = results(answer(planned)).into_iter().map(&mut row).collect();
    assert_eq!(records.next(), None);
    rows
}

fn outcomes(items: Vec<SetItem>) -> Vec<Row> {
    outcomes_on(items, &memory())
}

/// The rejection of the whole request.
fn whole(request: &SubjectRequest) -> ErrorCode {
    match plan(request, &memory(), CONTEXT) {
        PlanResult::Answer(Err(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

/// The server assigns seqs in order, and a set can skip ahead to a higher seq.
#[test]
fn seq_assignment_is_ordered_and_allows_gaps() {
    assert_eq!(
        outcomes(vec![SetItem::default(), at(20), SetItem::default()]),
        [Ok((9, 11, None)), Ok((20, 12, None)), Ok((21, 13, None))]
    );
}

/// A set replaces the earlier message of its key, even if the same request wrote it.
#[test]
fn set_of_key_replaces_earlier_message_in_same_request() {
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

/// A client can choose a new higher seq or an existing seq with the same key; other choices are rejected.
#[test]
fn seq_chosen_by_client_must_follow_rules() {
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
    // A message that an earlier set of the request replaced no longer exists.
    assert_eq!(
        outcomes(vec![keyed("a"), SetItem { seq: Some(Seq::new(3)), ..keyed("a") }])[1],
        Err(ErrorCode::BadRequest)
    );
}

/// A client cannot choose a seq so high that the space runs out; at the very end a set gets `limit_exceeded`.
#[test]
fn seq_space_cannot_be_exhausted_by_client() {
    assert_eq!(
        outcomes(vec![at(MAX_CALLER_SEQ + 1), at(MAX_CALLER_SEQ), SetItem::default()]),
        [Err(ErrorCode::BadRequest), Ok((MAX_CALLER_SEQ, 11, None)), Ok((MAX_CALLER_SEQ + 1, 12, None))]
    );
    // An existing message can be replaced at any seq.
    let mut memory = memory();
    memory.apply(&written(&set(vec![at(MAX_CALLER_SEQ), SetItem::default()]), &memory.clone()).0);
    let next = at(MAX_CALLER_SEQ + 2);
    assert_eq!(
        outcomes_on(vec![at(MAX_CALLER_SEQ + 1), next], &memory),
        [Ok((MAX_CALLER_SEQ + 1, 13, Some(MAX_CALLER_SEQ + 1))), Err(ErrorCode::BadRequest)]
    );
    // The end of the seqs is an ordinary error.
    memory.state.next_seq = Seq::new(MAX_SEQ);
    assert_eq!(
        outcomes_on(vec![SetItem::default(), SetItem::default()], &memory),
        [Ok((MAX_SEQ, 13, None)), Err(ErrorCode::LimitExceeded)]
    );
}

/// An expectation about the last message or a key is compared with the current state.
#[test]
fn expectation_is_compared_with_current_state() {
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

/// A failed set takes no rev or seq, and the other sets of the request apply.
#[test]
fn set_failure_leaves_other_sets_unaffected() {
    let mut rejected = keyed("a");
    rejected.expect = Some(Expect::Key(None));
    let (entry, reply) = written(&set(vec![keyed("x"), rejected, keyed("y")]), &memory());
    assert_eq!((entry.after.get(), entry.last_rev().get()), (10, 12));
    let results = results(reply);
    let [SetOutcome::Ok(x), SetOutcome::Error(error), SetOutcome::Ok(y)] = results.as_slice() else {
        panic!("{results:?}")
    };
    assert_eq!((x.rev.get(), y.rev.get(), y.seq.get()), (11, 12, 10));
    assert_eq!((error.code.clone(), error.actual), (ErrorCode::KeyExists, Some(id(4, 3))));
}

/// A set over a size limit is rejected as `too_large` with the limit's name; an empty request is a bad request.
#[test]
fn set_over_size_limit_is_rejected_with_limit_name() {
    let too_large =
        |item: SetItem| match results(answer(plan(&set(vec![item]), &memory(), CONTEXT))).remove(0) {
            SetOutcome::Error(error) if error.code == ErrorCode::TooLarge => error.limit.unwrap(),
            other => panic!("{other:?}"),
        };
    assert_eq!(too_large(keyed(&"k".repeat(MAX_KEY_BYTES + 1))), "max_key_bytes");
    let headers = Headers(vec![("h".to_owned(), "v".repeat(MAX_HEADERS_BYTES))]);
    assert_eq!(too_large(SetItem { headers, ..SetItem::default() }), "max_headers_bytes");
    let value = Some(Bytes::from(vec![0; CONTEXT.max_message_bytes]));
    assert_eq!(too_large(SetItem { value, ..SetItem::default() }), "max_message_bytes");
    let msg_id = Some("m".repeat(MAX_MSG_ID_BYTES + 1));
    assert_eq!(too_large(SetItem { msg_id, ..SetItem::default() }), "max_msg_id_bytes");
    assert_eq!(whole(&set(vec![SetItem::default(); MAX_ITEMS_PER_REQUEST + 1])), ErrorCode::TooLarge);
    assert_eq!(whole(&set(Vec::new())), ErrorCode::BadRequest);
}

/// A configure with metadata over the size limit is rejected as `too_large`.
#[test]
fn subject_metadata_size_is_limited() {
    let metadata = BTreeMap::from([("m".to_owned(), "x".repeat(MAX_METADATA_BYTES))]);
    let config = SubjectConfig { metadata, ..SubjectConfig::default() };
    assert_eq!(
        whole(&SubjectRequest::Configure(ConfigureRequest { config, ..Default::default() })),
        ErrorCode::TooLarge
    );
}

/// A delete names only the messages it removes, checks its expectation, and takes no rev if it removes none.
#[test]
fn delete_reports_removed_messages_and_may_take_no_rev() {
    let delete = |seqs: &[u64], keys: &[&str]| {
        let request = SubjectRequest::Delete(DeleteRequest {
            seqs: seqs.iter().copied().map(Seq::new).collect(),
            keys: keys.iter().map(|&key| key.to_owned()).collect(),
            ..DeleteRequest::default()
        });
        let Ok(SubjectReply::Delete(reply)) = answer(plan(&request, &memory(), CONTEXT)) else { panic!() };
        (reply.seqs.iter().map(|seq| seq.get()).collect::<Vec<_>>(), reply.position.rev.get())
    };
    assert_eq!(delete(&[7, 3, 3, 4], &["b", "zz"]), (vec![3, 7], 11));
    assert_eq!(delete(&[4, 100], &["zz"]), (vec![], 10));
    let expecting = |seqs: Vec<Seq>, keys: Vec<String>, expect| {
        let request = DeleteRequest { seqs, keys, expect: Some(expect), ..DeleteRequest::default() };
        answer(plan(&SubjectRequest::Delete(request), &memory(), CONTEXT))
            .map(|_| ())
            .map_err(|error| error.code)
    };
    let key = |key: &str| vec![key.to_owned()];
    assert_eq!(expecting(vec![], key("a"), Expect::Key(Some(id(4, 3)))), Ok(()));
    assert_eq!(expecting(vec![], key("a"), Expect::Key(Some(id(4, 4)))), Err(ErrorCode::WrongLast));
    assert_eq!(expecting(vec![], key("a"), Expect::Key(None)), Err(ErrorCode::KeyExists));
    assert_eq!(expecting(vec![Seq::new(3)], key("a"), Expect::Key(None)), Err(ErrorCode::BadRequest));
    assert_eq!(expecting(vec![Seq::new(3)], vec![], Expect::Last(None)), Err(ErrorCode::WrongLast));
    assert_eq!(whole(&SubjectRequest::Delete(DeleteRequest::default())), ErrorCode::BadRequest);
}

/// A large delete becomes several records with successive revs, each small enough for an event.
#[test]
fn delete_of_many_is_split_into_records_that_fit_events() {
    let mut memory = memory();
    let key = |n: u64| format!("{n:01000}");
    for n in 0..1_000 {
        let id = id(4, 100 + n);
        memory.messages.insert(id.seq, StoredMessage { id, key: Some(key(n)), size: 0 });
    }
    let request = SubjectRequest::Delete(DeleteRequest {
        seqs: (0..1_000).map(|n| Seq::new(100 + n)).collect(),
        ..DeleteRequest::default()
    });
    let (entry, reply) = written(&request, &memory);
    assert!(entry.operations.len() > 5);
    for (place, record) in entry.records().enumerate() {
        assert_eq!(record.rev.get(), 11 + place as u64);
        assert!(dormouse_protocol::encode(&record.changes()[0]).unwrap().len() <= DELETE_RECORD_BYTES + 256);
    }
    let Ok(SubjectReply::Delete(reply)) = reply else { panic!() };
    assert_eq!(reply.position.rev, entry.last_rev());
    assert_eq!(reply.seqs.len(), 1_000);
    assert!(reply.seqs.is_sorted());
}

/// A delete-all removes everything up to a seq or all but the newest messages; both selectors together are rejected.
#[test]
fn delete_all_removes_up_to_seq_or_all_but_newest() {
    let delete_all = |end_seq: Option<u64>, keep_last| {
        let request = SubjectRequest::DeleteAll(DeleteAllRequest {
            end_seq: end_seq.map(Seq::new),
            keep_last,
            ..DeleteAllRequest::default()
        });
        match plan(&request, &memory(), CONTEXT) {
            PlanResult::Write { entry, .. } => match entry.operations[0] {
                RecordOp::DeleteAll { end_seq, count } => Ok(Some((end_seq.get(), count))),
                _ => panic!(),
            },
            planned => answer(planned).map(|_| None),
        }
    };
    assert_eq!(delete_all(None, None), Ok(Some((8, 3))));
    assert_eq!(delete_all(Some(5), None), Ok(Some((5, 2))));
    assert_eq!(delete_all(Some(u64::MAX), None), Ok(Some((8, 3))));
    assert_eq!(delete_all(Some(2), None), Ok(None));
    assert_eq!(delete_all(None, Some(1)), Ok(Some((5, 2))));
    assert_eq!(delete_all(None, Some(3)), Ok(None));
    assert_eq!(delete_all(None, Some(0)), Ok(Some((8, 3))));
    assert_eq!(delete_all(Some(1), Some(1)).unwrap_err().code, ErrorCode::BadRequest);
}

/// The estimated sizes of changes and removed messages are never below the encoded sizes.
#[test]
fn record_size_estimates_are_upper_bounds() {
    let record = Record {
        term: Term::new(u64::MAX),
        rev: Rev::new(u64::MAX),
        accept_time: Timestamp::from_micros(u64::MAX),
        operation: RecordOp::Set(SetOperation {
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
    let removed = Removed { seq: Seq::new(u64::MAX), key: Some("k".repeat(100)) };
    assert!(dormouse_protocol::encode(&removed).unwrap().len() <= size::of_removed(&removed));
}

/// A request is rejected unexecuted if its reply would exceed the reply limit, and an accepted one always fits.
#[test]
fn request_with_reply_over_limit_is_not_executed() {
    let wrong =
        |_| SetItem { expect: Some(Expect::Last(Some(id(u64::MAX, u64::MAX)))), ..SetItem::default() };
    let delete = SubjectRequest::Delete(DeleteRequest {
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
            let context = PlanContext { max_message_bytes: ENVELOPE_BYTES + room, ..CONTEXT };
            match answer(plan(&request, &memory(), context)) {
                Ok(reply) => {
                    let encoded = match reply {
                        SubjectReply::Set(reply) => dormouse_protocol::encode(&reply),
                        SubjectReply::Delete(reply) => dormouse_protocol::encode(&reply),
                        other => panic!("{other:?}"),
                    };
                    assert!(encoded.unwrap().len() <= context.max_message_bytes, "{room}");
                    break;
                }
                Err(error) => {
                    assert_eq!(error.code, ErrorCode::TooLarge);
                    // If not even an empty message fits, each set gets the error.
                    assert_eq!(error.limit.as_deref(), Some("max_reply_bytes"));
                    refused += 1;
                }
            }
        }
        assert!(refused > 0 && refused <= roomy, "{refused} of {roomy}");
    }
}

/// The estimated sizes of set results and errors are never below the encoded sizes.
#[test]
fn reply_size_estimates_are_upper_bounds() {
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
