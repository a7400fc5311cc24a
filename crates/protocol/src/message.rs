//! The content of a subject and its changes: messages, changes, events, configuration.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{Level, MessageId, Position, Rev, Seq, Term, Timestamp};
use crate::version::ProtocolVersion;

/// Headers of a message: name and value, in the order of the caller. A name may occur more than once.
///
/// On the wire a list of pairs: `[["name", "value"], …]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Headers(#[serde(deserialize_with = "crate::codec::items")] pub Vec<(String, String)>);

impl Headers {
    /// Whether there are no headers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of the first header called `name` (names are compared exactly).
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The total size of all names and values, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The number of the message in the subject.
    pub seq: Seq,
    /// The term under which it was written; with `seq` its permanent id.
    pub term: Term,
    /// The revision that wrote it.
    pub rev: Rev,
    /// Its key, if it has one. The empty string is a valid key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its value. Absent is the null value, which differs from the empty value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Bytes>,
    /// Its headers.
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    /// The caller's timestamp, or the accept time if the caller gave none.
    pub timestamp: Timestamp,
    /// Size of the value in bytes, also if the value itself is omitted.
    pub size: u64,
    /// The value was too large to be included: fetch it by its seq.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub value_omitted: bool,
    /// When it expires, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl Message {
    /// The permanent id of the message.
    #[must_use]
    pub const fn id(&self) -> MessageId {
        MessageId { term: self.term, seq: self.seq }
    }
}

/// A removed message, as a delete change lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The seq it had.
    pub seq: Seq,
    /// The key it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// One change of a subject.
///
/// On the wire a map with one entry, named after the variant in snake case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A message was written.
    Set(SetChange),
    /// Messages were removed one by one.
    Delete(DeleteChange),
    /// Every message up to a seq was removed.
    DeleteAll(DeleteAllChange),
    /// The configuration was replaced.
    Configure(ConfigureChange),
}

impl Change {
    /// The revision of this change. The changes of one atomic batch share one.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        match self {
            Self::Set(change) => change.message.rev,
            Self::Delete(change) => change.rev,
            Self::DeleteAll(change) => change.rev,
            Self::Configure(change) => change.rev,
        }
    }
}

/// A message was written: appended, set under a key, or replaced in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetChange {
    /// The message after the change.
    pub message: Message,
    /// The seq of the earlier message under the same key, which was removed. Equal to the message's own seq if it was
    /// replaced in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Seq>,
}

/// Messages were removed one by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteChange {
    /// The revision that removed them.
    pub rev: Rev,
    /// The removed messages, in order of seq.
    pub removed: Vec<Removed>,
}

/// Every message up to and including `end_seq` was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteAllChange {
    /// The revision that removed them.
    pub rev: Rev,
    /// The last removed seq.
    pub end_seq: Seq,
    /// How many messages were removed.
    pub count: u64,
}

/// The configuration was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigureChange {
    /// The revision that replaced it.
    pub rev: Rev,
    /// The configuration after the change.
    pub config: SubjectConfig,
}

/// An event that a server publishes on `<prefix>.events.<subject>`: changes in order of rev, or a beacon (no changes).
///
/// The revs of `changes` are contiguous and end at `rev`. A receiver at `(term, r)` has a gap unless the first change has
/// rev `r + 1` or, within an atomic batch or a repeated event, a rev that the receiver already has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The term in which the changes were made.
    pub term: Term,
    /// The last rev before this term.
    pub term_base: Rev,
    /// The subject's rev after these changes; in a beacon its current rev.
    pub rev: Rev,
    /// The changes, in order of rev. Empty in a beacon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

impl Event {
    /// The position of the subject after this event.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position { term: self.term, rev: self.rev }
    }
}

/// The effect of a write that exceeds a limit of its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Discard {
    /// Remove the oldest messages to make room.
    #[default]
    Old,
    /// Reject the write.
    New,
}

/// A subject's configuration. `configure` replaces it as a whole; absent fields have their defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SubjectConfig {
    /// Durability level of its writes; absent: the server's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// The maximum number of messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_msgs: Option<u64>,
    /// The maximum total size of the values, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Age at which a message expires, in milliseconds of accept time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
    /// Largest value, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_msg_size: Option<u64>,
    /// The effect of a write that exceeds `max_msgs` or `max_bytes`; absent: `old`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<Discard>,
    /// Time to live of messages without their own, in milliseconds of accept time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_ttl_ms: Option<u64>,
    /// Free data of the application about the subject.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "crate::codec::nil_as_default"
    )]
    pub metadata: BTreeMap<String, String>,
}
