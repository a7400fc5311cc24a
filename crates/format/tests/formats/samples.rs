//! One sample of each stored object, identical in every run.

use std::collections::BTreeMap;

use bytes::Bytes;
use dormouse_format::checksum::Crc64;
use dormouse_format::entry::{DedupRecord, LogEntry, WriteOutcome};
use dormouse_format::frame;
use dormouse_format::index::IndexHeader;
use dormouse_format::keys::{BlobName, Nonce};
use dormouse_format::record::{BlobRef, RecordOp, RemovalCause, SetOperation};
use dormouse_format::segment::{self, Block, EncodedSlot, IndexLine, NO_PREVIOUS, SlotHeader, SlotKind};
use dormouse_protocol::data::{ConfigureReply, DeleteAllReply, DeleteReply, SetOutcome, SetReply, SetResult};
use dormouse_protocol::message::{Discard, Removed, SubjectConfig};
use dormouse_protocol::{
    ErrorCode, ErrorReply, Headers, Level, LogId, MessageId, Position, RequestId, Rev, Seq, SessionId, Slot,
    Subject, Term, Timestamp,
};

pub fn log() -> LogId {
    "persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap()
}

pub fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

pub fn nonce(number: u64) -> Nonce {
    format!("000000000000000000000000{number:02}").parse().unwrap()
}

fn time(micros: u64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + micros)
}

/// A set with only the required fields.
pub fn minimal_set(seq: u64) -> SetOperation {
    SetOperation {
        seq: Seq::new(seq),
        key: None,
        value: None,
        blob: None,
        headers: Headers::default(),
        timestamp: time(seq),
        replaces: None,
        expires_at: None,
        msg_id: None,
    }
}

fn full_set(seq: u64) -> SetOperation {
    SetOperation {
        key: Some("color".to_owned()),
        value: Some(Bytes::from_static(b"green \x00\xff")),
        headers: Headers(vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), String::new())]),
        replaces: Some(Seq::new(3)),
        expires_at: Some(time(60_000_000)),
        msg_id: Some("order-7".to_owned()),
        ..minimal_set(seq)
    }
}

fn blob_set(seq: u64) -> SetOperation {
    let name = BlobName { term: Term::new(2), nonce: nonce(8) };
    let blob = BlobRef { name, size_bytes: 1 << 33, crc64: Crc64::of(b"a large value") };
    SetOperation { blob: Some(blob), key: Some(String::new()), ..minimal_set(seq) }
}

/// An entry after a rev.
pub fn entry(after: u64, operations: Vec<RecordOp>) -> LogEntry {
    LogEntry {
        term: Term::new(2),
        after: Rev::new(after),
        accept_time: time(after),
        request: None,
        operations,
    }
}

fn answered(entry: LogEntry, counter: u64, outcome: WriteOutcome) -> LogEntry {
    let session: SessionId = "01J9Z3ABCDEFGHJKMNPQRSTVWX".parse().unwrap();
    LogEntry { request: Some(DedupRecord { id: RequestId { session, counter }, outcome }), ..entry }
}

fn position(rev: u64) -> Position {
    Position { term: Term::new(2), rev: Rev::new(rev) }
}

fn removed() -> Vec<Removed> {
    vec![Removed { seq: Seq::new(4), key: None }, Removed { seq: Seq::new(5), key: Some("k".to_owned()) }]
}

fn config() -> SubjectConfig {
    SubjectConfig {
        level: Some(Level::Disk),
        max_msgs: Some(1_000),
        max_bytes: Some(1 << 40),
        max_age_ms: Some(60_000),
        max_msg_size: Some(65_536),
        discard: Some(Discard::New),
        default_ttl_ms: Some(30_000),
        metadata: BTreeMap::from([("team".to_owned(), "orders".to_owned())]),
    }
}

/// One entry of every kind; together they are a run that starts after rev 40.
pub fn entries() -> Vec<(&'static str, LogEntry)> {
    let done = SetResult {
        seq: Seq::new(8),
        term: Term::new(2),
        rev: Rev::new(42),
        timestamp: time(8),
        duplicate: false,
    };
    let wrong = ErrorReply {
        actual: Some(MessageId { term: Term::new(1), seq: Seq::new(3) }),
        ..ErrorReply::new(ErrorCode::WrongLast, "the last message is another")
    };
    let set = SetReply { results: vec![SetOutcome::Ok(done), SetOutcome::Error(wrong.clone())] };
    let delete =
        DeleteReply { position: position(46), seqs: vec![Seq::new(4), Seq::new(5)], duplicate: false };
    let delete_all = DeleteAllReply { position: position(49), count: 3, duplicate: false };
    let configure = ConfigureReply { position: position(50), duplicate: false };
    let delete_by = |cause| vec![RecordOp::Delete { removed: removed(), cause }];
    vec![
        ("set-least", entry(40, vec![RecordOp::Set(minimal_set(7))])),
        ("set-full", answered(entry(41, vec![RecordOp::Set(full_set(8))]), 1, WriteOutcome::Set(set))),
        ("sets-of-one-request", entry(42, vec![RecordOp::Set(blob_set(9)), RecordOp::Set(minimal_set(10))])),
        ("batch", entry(44, vec![RecordOp::Batch { sets: vec![minimal_set(11), full_set(12)] }])),
        (
            "delete-asked",
            answered(entry(45, delete_by(RemovalCause::Asked)), 2, WriteOutcome::Delete(delete)),
        ),
        ("delete-evicted", entry(46, delete_by(RemovalCause::Evicted))),
        ("delete-expired", entry(47, delete_by(RemovalCause::Expired))),
        (
            "delete-all",
            answered(
                entry(48, vec![RecordOp::DeleteAll { end_seq: Seq::new((1 << 53) - 1), count: 3 }]),
                3,
                WriteOutcome::DeleteAll(delete_all),
            ),
        ),
        (
            "configure",
            answered(
                entry(49, vec![RecordOp::Configure { config: config() }]),
                4,
                WriteOutcome::Configure(configure),
            ),
        ),
        ("refused", answered(entry(50, Vec::new()), 5, WriteOutcome::Refused(wrong))),
    ]
}

pub fn run() -> Vec<LogEntry> {
    entries().into_iter().map(|(_, entry)| entry).collect()
}

pub fn frames(entries: &[LogEntry]) -> Bytes {
    entries.iter().flat_map(|entry| frame::encode(entry).unwrap()).collect()
}

pub fn block(name: &str, entries: &[LogEntry]) -> Block {
    Block {
        subject: subject(name),
        first_after: entries[0].after,
        last_rev: entries.last().unwrap().last_rev(),
        entries: entries.len() as u32,
        frames: frames(entries),
    }
}

fn header(kind: SlotKind, slot: u64, previous: Crc64) -> SlotHeader {
    SlotHeader { kind, log: log(), slot: Slot::new(slot), nonce: nonce(slot), previous }
}

pub fn birth() -> (SlotHeader, EncodedSlot) {
    let header = header(SlotKind::Birth, 0, NO_PREVIOUS);
    let encoded = segment::encode(&header, Vec::new());
    (header, encoded)
}

/// Three subjects, with unsorted blocks, and two blocks of one subject.
pub fn data() -> (SlotHeader, EncodedSlot) {
    let header = header(SlotKind::Data, 1, birth().1.checksum);
    let run = run();
    let blocks = vec![
        block("app.orders.eu", &run[..4]),
        block("app.Orders", &[entry(0, vec![RecordOp::Set(minimal_set(1))])]),
        block("app.orders.eu", &run[4..]),
        block("Ünïcode.名前", &[entry(3, Vec::new())]),
    ];
    let encoded = segment::encode(&header, blocks);
    (header, encoded)
}

pub fn seal() -> (SlotHeader, EncodedSlot) {
    let header = header(SlotKind::Seal, 2, data().1.checksum);
    let encoded = segment::encode(&header, Vec::new());
    (header, encoded)
}

/// An index in which slots 1 and 3 hold the blocks of [`data`], one of its subjects only in slot 3.
pub fn index() -> (IndexHeader, Vec<(Slot, IndexLine)>) {
    let lines = data().1.lines;
    let of = |slot: u64| lines.iter().map(move |line| (Slot::new(slot), line.clone()));
    let mut all: Vec<_> = of(3).chain(of(1).skip(1)).collect();
    all.sort_by(|(slot, line), (other, next)| (&line.subject, slot).cmp(&(&next.subject, other)));
    (IndexHeader { log: log(), seal: Slot::new(4), nonce: nonce(9) }, all)
}
