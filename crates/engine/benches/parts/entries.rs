//! The most common entries of a server: one set of a small value under a key.

use bytes::Bytes;
use dormouse_format::entry::LogEntry;
use dormouse_format::record::{RecordOp, SetOperation};
use dormouse_protocol::{Headers, LogId, Rev, Seq, Term, Timestamp};

/// Bytes of a value.
pub const VALUE_BYTES: usize = 128;

pub fn log() -> LogId {
    "persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().expect("a log id")
}

/// The entry that leads from `after` to the rev after it.
pub fn entry(after: u64) -> LogEntry {
    let set = SetOperation {
        seq: Seq::new(after + 1),
        key: Some(format!("key-{after}")),
        value: Some(Bytes::from(vec![b'v'; VALUE_BYTES])),
        blob: None,
        headers: Headers::default(),
        timestamp: Timestamp::from_micros(1_700_000_000_000_000),
        replaces: None,
        expires_at: None,
        msg_id: None,
    };
    LogEntry {
        term: Term::new(1),
        after: Rev::new(after),
        accept_time: Timestamp::from_micros(1_700_000_000_000_000),
        request: None,
        operations: vec![RecordOp::Set(set)],
    }
}
