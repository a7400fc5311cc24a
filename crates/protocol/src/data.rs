//! Requests and replies of the data operations, sent on `<prefix>.server.<name>.<op>.<subject>`.
//!
//! The subject is in the route, so no request repeats it. `PROTOCOL.md` specifies every field; the comments here are for
//! readers of the code.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::{self, versioned};
use crate::error::ErrorReply;
use crate::ids::{Level, LogId, MessageId, Position, RequestId, Rev, Seq, ServerName, Term, Timestamp};
use crate::message::{Change, Headers, Message, SubjectConfig};
use crate::transfer::UploadedValue;
use crate::version::ProtocolVersion;

/// Optimistic concurrency: the state that the caller expects. The inner `None` means "no message".
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
    /// The request id, so that the request is applied at most once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// Applies all sets or none, with one rev and one event.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub atomic: bool,
    /// A level above the subject's own for this request; a lower one is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// The messages to write, in order. At least one.
    #[serde(deserialize_with = "codec::items")]
    pub sets: Vec<SetItem>,
}

/// One message to write.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetItem {
    /// The seq to use; absent: the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<Seq>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its value; absent is the null value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Bytes>,
    /// The uploaded value, in place of `value`; only in an `upload_commit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploaded: Option<UploadedValue>,
    /// Its headers.
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    /// The caller's own timestamp. It is data; no decision depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// Time to live in milliseconds of accept time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// The application's message id, deduplicated within a window across sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msg_id: Option<String>,
    /// The precondition of the set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
}

/// The outcome of each set, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetReply {
    /// One outcome per set; for an atomic batch all are `ok`, or the whole request is an error.
    pub results: Vec<SetOutcome>,
}

/// The outcome of one set. On the wire a map with one entry, `ok` or `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetOutcome {
    /// The set was executed, now or by an earlier delivery of the same request.
    Ok(SetResult),
    /// The set was rejected and changed nothing.
    Error(ErrorReply),
}

/// The result of an executed set.
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
    /// The request was executed before; this is the first result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

impl SetResult {
    /// The permanent id of the written message.
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

/// The requested messages that exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetReply {
    /// The position that the reply was read at.
    pub position: Position,
    /// The messages that exist, in the order of the request.
    pub messages: Vec<Message>,
    /// How many of the requested keys or seqs, counted from the first, this reply covers. Fewer than all if the full reply
    /// would not fit a payload: request the rest again.
    pub answered: u64,
}

/// Reads messages in order of seq, a page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GetAllRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The first seq to read; absent: the first existing one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_seq: Option<Seq>,
    /// The last seq to read, inclusive; absent: the last existing one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_seq: Option<Seq>,
    /// Only messages whose key starts with this. The empty prefix means every message that has a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
    /// Reads from the last to the first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reverse: bool,
    /// The maximum number of messages on the page; absent: as many as fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// A page of messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetAllReply {
    /// The position that the page was read at.
    pub position: Position,
    /// The messages, in the requested order.
    pub messages: Vec<Message>,
    /// The start of the next page (its `start_seq`, or its `end_seq` when reading in reverse); absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Seq>,
}

/// Reads keys in ascending order of their bytes, a page at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeysRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Only keys with this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Only keys after this one: the `cursor` of the previous page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// The maximum number of keys on the page; absent: as many as fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// A page of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysReply {
    /// The position that the page was read at.
    pub position: Position,
    /// The keys, ascending.
    pub keys: Vec<String>,
    /// The last key of this page if there are more; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Removes messages by seq or by key, or both.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeleteRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The request id, so that the request is applied at most once.
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
    /// The precondition. `Key` needs exactly one key and no seq in the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
}

/// The messages that a delete removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteReply {
    /// The subject's position after the delete. If there was nothing to remove, the rev is unchanged.
    pub position: Position,
    /// The seqs that were removed, ascending.
    pub seqs: Vec<Seq>,
    /// The request was executed before; this is the first result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

/// Removes every message up to a seq, or all but the newest few, or all. At most one field of the two.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeleteAllRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The request id, so that the request is applied at most once.
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

/// The number of messages that a delete_all removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteAllReply {
    /// The subject's position after the delete. If there was nothing to remove, the rev is unchanged.
    pub position: Position,
    /// How many messages were removed.
    pub count: u64,
    /// The request was executed before; this is the first result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

/// Reads the changes since a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ChangesRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The position of the caller.
    pub after: Position,
    /// The maximum number of changes on the page; absent: as many as fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// The compacted changes since a position: the current state of each changed message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesReply {
    /// The position after these changes.
    pub position: Position,
    /// The last rev before the term of `position`.
    pub term_base: Rev,
    /// The caller's position is no longer in the history of this subject, or is too old: the caller must reread everything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resync: bool,
    /// The changes, in order of rev.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// There are more changes after `position`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// Reads the properties of a subject, without its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InfoRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// The properties of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoReply {
    /// The position of the subject.
    pub position: Position,
    /// The last rev before this term.
    pub term_base: Rev,
    /// The lowest seq that holds a message; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_seq: Option<Seq>,
    /// The highest seq that holds a message; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<Seq>,
    /// The seq of the next message.
    pub next_seq: Seq,
    /// The number of messages.
    pub count: u64,
    /// The total size of all values, in bytes.
    pub bytes: u64,
    /// Its configuration.
    pub config: SubjectConfig,
    /// The level at which its writes are acknowledged.
    pub level: Level,
    /// The server that serves it.
    pub server: ServerName,
    /// The log of the serving process.
    pub log: LogId,
    /// The durable watermark: the highest rev in the bucket.
    pub bucket_rev: Rev,
    /// Further properties, for operators.
    #[serde(default)]
    pub details: InfoDetails,
}

/// Properties of a subject for operators. Older servers do not send them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InfoDetails {
    /// The accept time of the subject's last request. It never goes back, and expiry depends on it.
    pub accept_time: Timestamp,
    /// The timestamp of the message with the lowest seq.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_timestamp: Option<Timestamp>,
    /// The timestamp of the message with the highest seq.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest_timestamp: Option<Timestamp>,
    /// The number of messages with a time to live.
    pub expiring: u64,
    /// The time of the next expiry, by a message's time to live or by the subject's `max_age_ms`; absent if no message
    /// expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_expiry: Option<Timestamp>,
    /// The number of values stored as blobs.
    pub large_values: u64,
    /// The total size of the blobs, in bytes.
    pub large_value_bytes: u64,
    /// The number of client sessions in the dedup window.
    pub sessions: u64,
    /// The rev of the subject's base in the bucket; higher revs are in the server's log.
    pub base_rev: Rev,
    /// The size of the tail: the shipped entries above the base, in bytes.
    pub tail_bytes: u64,
    /// The size of the subject's file on the server's disk, in bytes.
    pub local_bytes: u64,
    /// When the server opened the subject, by the server's clock.
    pub open_since: Timestamp,
}

/// Replaces a subject's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfigureRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The request id, so that the request is applied at most once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// The whole new configuration.
    pub config: SubjectConfig,
}

/// The configuration is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigureReply {
    /// The subject's position after the change.
    pub position: Position,
    /// The request was executed before; this is the first result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

/// Waits until all writes so far are in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlushRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// All writes up to this position are in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushReply {
    /// The position in the bucket.
    pub position: Position,
}

/// Destroys a subject permanently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DestroyRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The request id, so that the request is applied at most once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
}

/// The subject is destroyed; only a tombstone is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestroyReply {
    /// The last position of the subject; a later claim continues from it.
    pub position: Position,
    /// The request was executed before; this is the first result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

versioned! {
    SetRequest, GetRequest, GetAllRequest, KeysRequest, DeleteRequest, DeleteAllRequest, ChangesRequest, InfoRequest,
    ConfigureRequest, FlushRequest, DestroyRequest,
}
