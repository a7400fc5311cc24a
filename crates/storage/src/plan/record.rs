//! What a write becomes once every number in it is decided.

use bytes::Bytes;
use dormouse_protocol::message::{
    ConfigureChange, DeleteAllChange, DeleteChange, Removed, SetChange, SubjectConfig,
};
use dormouse_protocol::{Change, Headers, Message, Rev, Seq, Term, Timestamp};
use serde::{Deserialize, Serialize};

/// One change of a subject, decided in full: applying it twice to equal states gives equal states, and nothing in it
/// has to be asked of a clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The term under which it was decided.
    pub term: Term,
    /// The revision it makes.
    pub rev: Rev,
    /// When it was accepted; never before the accept time of the revision below it.
    pub accept_time: Timestamp,
    /// What changes.
    pub operation: Operation,
}

/// What a [`Record`] changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// A message is written.
    Set(SetOperation),
    /// Messages are removed one by one.
    Delete {
        /// The messages, ascending by seq. All of them exist.
        removed: Vec<Removed>,
    },
    /// Every message up to a seq is removed.
    DeleteAll {
        /// The last seq that goes.
        end_seq: Seq,
        /// How many messages go.
        count: u64,
    },
    /// The configuration is replaced.
    Configure {
        /// The new one.
        config: SubjectConfig,
    },
}

/// A message to be written, at a decided place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetOperation {
    /// Where it goes.
    pub seq: Seq,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its value; absent is the null value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Bytes>,
    /// Its headers.
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// The message that goes because of it: the one at its seq, or the earlier one under its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Seq>,
    /// When it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl SetOperation {
    /// Size of the value in bytes; the null value has none.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.value.as_ref().map_or(0, |value| value.len() as u64)
    }
}

impl Record {
    /// The change as watchers are told of it, with the whole value.
    #[must_use]
    pub fn change(&self) -> Change {
        let rev = self.rev;
        match &self.operation {
            Operation::Set(set) => Change::Set(SetChange {
                message: Message {
                    seq: set.seq,
                    term: self.term,
                    rev,
                    key: set.key.clone(),
                    value: set.value.clone(),
                    headers: set.headers.clone(),
                    timestamp: set.timestamp,
                    size: set.size_bytes(),
                    value_omitted: false,
                    expires_at: set.expires_at,
                },
                replaces: set.replaces,
            }),
            Operation::Delete { removed } => Change::Delete(DeleteChange { rev, removed: removed.clone() }),
            Operation::DeleteAll { end_seq, count } => {
                Change::DeleteAll(DeleteAllChange { rev, end_seq: *end_seq, count: *count })
            }
            Operation::Configure { config } => {
                Change::Configure(ConfigureChange { rev, config: config.clone() })
            }
        }
    }
}
