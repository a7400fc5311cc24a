//! Requests and replies of the data operations, sent on `<prefix>.server.<name>.<op>.<subject>`.
//!
//! The subject is in the route, so no request repeats it. `PROTOCOL.md` has every field; what is said here is what
//! a reader of the code needs.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::{self, ProtocolVersion, versioned};
use crate::error::ErrorReply;
use crate::ids::{Level, LogId, MessageId, Position, RequestId, Rev, Seq, ServerName, Term, Timestamp};
use crate::message::{Change, Headers, Message, SubjectConfig};
use crate::transfer::UploadedValue;

/// Optimistic concurrency: what the caller believes is there. The inner `None` means "nothing is".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// The message with the highest seq ever written to the subject, deleted or not.
    Last(Option<MessageId>),
    /// The message under the key of this set or delete.
    Key(Option<MessageId>),
}

/// Writes messages: several independent sets, or one atomic batch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Names the request, so that it is applied at most once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// All or none, with one rev and one event.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub atomic: bool,
    /// A level above the subject's own for this request; a lower one is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// What to write, in order. At least one.
    #[serde(deserialize_with = "codec::items")]
    pub sets: Vec<SetItem>,
}

/// One message to write.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetItem {
    /// The seq it shall have; absent: the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<Seq>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its value; absent is the null value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Bytes>,
    /// Its value where that was uploaded before; only in an `upload_commit`, and in place of `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploaded: Option<UploadedValue>,
    /// Its headers.
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    /// The caller's own timestamp: data, nothing is decided by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// Time to live in milliseconds of accept time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// The application's message id, remembered within a window across sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msg_id: Option<String>,
    /// What must be there for the set to be carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
}

/// What became of each set, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetReply {
    /// One outcome per set; for an atomic batch all are `ok`, or the whole request is an error.
    pub results: Vec<SetOutcome>,
}

/// What became of one set. On the wire a map with one entry, `ok` or `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetOutcome {
    /// It was carried out, now or when the same request came before.
    Ok(SetResult),
    /// It was refused and changed nothing.
    Error(ErrorReply),
}

/// A set that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetResult {
    /// The message's seq.
    pub seq: Seq,
    /// The term under which it was written.
    pub term: Term,
    /// The revision that wrote it.
    pub rev: Rev,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// It had been carried out before; this is the first result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

impl SetResult {
    /// The written message's name for ever.
    #[must_use]
    pub const fn id(&self) -> MessageId {
        MessageId { term: self.term, seq: self.seq }
    }
}

/// Reads messages by seq, by key, by several keys or by several seqs: exactly one of the four.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GetRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The message at this seq.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<Seq>,
    /// The message under this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The messages under these keys.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "codec::optional_items")]
    pub keys: Option<Vec<String>>,
    /// The messages at these seqs.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "codec::optional_items")]
    pub seqs: Option<Vec<Seq>>,
}

impl GetRequest {
    /// Asks for the message under `key`.
    #[must_use]
    pub fn key(key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..Self::default() }
    }

    /// Asks for the message at `seq`.
    #[must_use]
    pub fn seq(seq: Seq) -> Self {
        Self { seq: Some(seq), ..Self::default() }
    }
}

/// The messages asked for, as far as they exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetReply {
    /// The state the answer was read from.
    pub position: Position,
    /// The messages that exist, in the order asked for.
    pub messages: Vec<Message>,
    /// How many of the keys or seqs asked for, counted from the first, this answer speaks of. Fewer than all when the
    /// answer would not have fitted a payload: ask again for the rest.
    pub answered: u64,
}

/// Reads messages in order of seq, a page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GetAllRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The first seq wanted; absent: the first there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_seq: Option<Seq>,
    /// The last seq wanted, inclusive; absent: the last there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_seq: Option<Seq>,
    /// Only messages whose key starts with this. The empty prefix means every message that has a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
    /// From the last to the first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reverse: bool,
    /// Most messages on the page; absent: as many as fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// A page of messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetAllReply {
    /// The state the page was read from.
    pub position: Position,
    /// The messages, in the order asked for.
    pub messages: Vec<Message>,
    /// Where the next page starts (its `start_seq`, or its `end_seq` when reading in reverse); absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Seq>,
}

/// Reads keys in ascending order of their bytes, a page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeysRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Only keys that start with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Only keys after this one: the `cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most keys on the page; absent: as many as fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// A page of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysReply {
    /// The state the page was read from.
    pub position: Position,
    /// The keys, ascending.
    pub keys: Vec<String>,
    /// The last key of this page when there are more; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Removes messages by seq or by key, or both.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeleteRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Names the request, so that it is applied at most once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// A level above the subject's own for this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Remove the messages at these seqs.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "codec::items")]
    pub seqs: Vec<Seq>,
    /// Remove the messages under these keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "codec::items")]
    pub keys: Vec<String>,
    /// What must be there. `Key` needs exactly one key and no seq in the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
}

/// What a delete really removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteReply {
    /// The subject's position after the delete. When nothing was there to remove, the rev has not moved.
    pub position: Position,
    /// The seqs that were removed, ascending.
    pub seqs: Vec<Seq>,
    /// It had been carried out before; this is the first result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

/// Removes every message up to a seq, or all but the newest few, or all. At most one field of the two.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeleteAllRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Names the request, so that it is applied at most once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// A level above the subject's own for this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// The last seq to remove.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_seq: Option<Seq>,
    /// How many of the newest messages to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<u64>,
}

/// How much a delete_all removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteAllReply {
    /// The subject's position after the delete. When nothing was there to remove, the rev has not moved.
    pub position: Position,
    /// How many messages were removed.
    pub count: u64,
    /// It had been carried out before; this is the first result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

/// Asks for what has changed since a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ChangesRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The position the caller has.
    pub after: Position,
    /// Most changes on the page; absent: as many as fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// The compacted changes since a position: for each message that was touched, its state now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesReply {
    /// The position after these changes.
    pub position: Position,
    /// The last rev that the term of `position` inherited.
    pub term_base: Rev,
    /// The caller's position is not on this subject's path any more, or too old: read everything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resync: bool,
    /// The changes, in order of rev.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// There are more after `position`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// Asks for everything there is to know about a subject, but its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InfoRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// What there is to know about a subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoReply {
    /// Where the subject is.
    pub position: Position,
    /// The last rev that this term inherited.
    pub term_base: Rev,
    /// The lowest seq that holds a message; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_seq: Option<Seq>,
    /// The highest seq that holds a message; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<Seq>,
    /// The seq the next message gets.
    pub next_seq: Seq,
    /// How many messages it holds.
    pub count: u64,
    /// Bytes of all values together.
    pub bytes: u64,
    /// Its configuration.
    pub config: SubjectConfig,
    /// The level at which its writes are acknowledged.
    pub level: Level,
    /// The server that serves it.
    pub server: ServerName,
    /// The log of the serving process.
    pub log: LogId,
    /// The last rev that is in the bucket.
    pub bucket_rev: Rev,
    /// More, of interest to whoever looks after the subject.
    #[serde(default)]
    pub details: InfoDetails,
}

/// What there is to know about a subject beside what every client needs. Absent where the server is older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InfoDetails {
    /// The subject's own time: the accept time of its last request. It never goes back, and expiry goes by it.
    pub accept_time: Timestamp,
    /// The timestamp of the message with the lowest seq.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_timestamp: Option<Timestamp>,
    /// The timestamp of the message with the highest seq.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest_timestamp: Option<Timestamp>,
    /// How many messages have a time to live.
    pub expiring: u64,
    /// When a message expires next, by its time to live or by the subject's `max_age_ms`; absent when none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_expiry: Option<Timestamp>,
    /// How many values lie in objects of their own.
    pub large_values: u64,
    /// Bytes of those values together.
    pub large_value_bytes: u64,
    /// How many clients' sessions are remembered, so that nothing is carried out twice.
    pub sessions: u64,
    /// The rev to which the subject's own objects in the bucket lead; what is above lies in the server's log.
    pub base_rev: Rev,
    /// Bytes that the log holds above that.
    pub tail_bytes: u64,
    /// Bytes of the subject's file on the server's disk.
    pub local_bytes: u64,
    /// Since when the server has it open, by the server's clock.
    pub open_since: Timestamp,
}

/// Replaces a subject's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfigureRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Names the request, so that it is applied at most once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// The whole new configuration.
    pub config: SubjectConfig,
}

/// The configuration is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigureReply {
    /// The subject's position after the change.
    pub position: Position,
    /// It had been carried out before; this is the first result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

/// Puts everything so far in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlushRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// Everything up to this position is in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushReply {
    /// What is in the bucket.
    pub position: Position,
}

/// Removes a subject for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DestroyRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Names the request, so that it is applied at most once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
}

/// Nothing is left of the subject but a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestroyReply {
    /// Where the subject ended; a later claim goes on from here.
    pub position: Position,
    /// It had been carried out before; this is the first result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

versioned! {
    SetRequest, GetRequest, GetAllRequest, KeysRequest, DeleteRequest, DeleteAllRequest, ChangesRequest, InfoRequest,
    ConfigureRequest, FlushRequest, DestroyRequest,
}
