//! What a write becomes once every number in it is decided.

use bytes::Bytes;
use dormouse_protocol::message::{
    ConfigureChange, DeleteAllChange, DeleteChange, Removed, SetChange, SubjectConfig,
};
use dormouse_protocol::{Change, Headers, Message, Rev, Seq, Term, Timestamp};
use serde::{Deserialize, Serialize};

use crate::checksum::Crc64;
use crate::keys::BlobName;

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
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Operation {
    /// A message is written.
    Set(SetOperation),
    /// Messages are written, all or none, under one revision.
    Batch {
        /// The messages, in the order of the request. No two have the same seq or the same key.
        sets: Vec<SetOperation>,
    },
    /// Messages are removed one by one.
    Delete {
        /// The messages, ascending by seq. All of them exist.
        removed: Vec<Removed>,
        /// Why they go.
        cause: RemovalCause,
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

/// Why messages are removed one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemovalCause {
    /// Somebody asked for it.
    Asked,
    /// A limit of the subject was met, and they were the oldest: up to the last of them nothing is left but what the same
    /// entry wrote.
    Evicted,
    /// Their time was over.
    Expired,
}

/// A message to be written, at a decided place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetOperation {
    /// Where it goes.
    pub seq: Seq,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its value; absent is the null value, or a value that lies in [`SetOperation::blob`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Bytes>,
    /// The object that holds its value, where that is too large to stand here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<BlobRef>,
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
    /// The application's message id, remembered within a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msg_id: Option<String>,
}

/// A large value as an object of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobRef {
    /// The object's name in the subject's folder.
    pub name: BlobName,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The checksum of its bytes.
    pub crc64: Crc64,
}

impl SetOperation {
    /// Size of the value in bytes; the null value has none.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match (&self.value, &self.blob) {
            (Some(value), _) => value.len() as u64,
            (None, Some(blob)) => blob.size_bytes,
            (None, None) => 0,
        }
    }

    fn change(&self, term: Term, rev: Rev) -> Change {
        Change::Set(SetChange {
            message: Message {
                seq: self.seq,
                term,
                rev,
                key: self.key.clone(),
                value: self.value.clone(),
                headers: self.headers.clone(),
                timestamp: self.timestamp,
                size: self.size_bytes(),
                value_omitted: self.blob.is_some(),
                expires_at: self.expires_at,
            },
            replaces: self.replaces,
        })
    }
}

impl Record {
    /// The changes as watchers are told of them, with whole values. Only an atomic batch has several.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let rev = self.rev;
        vec![match &self.operation {
            Operation::Set(set) => set.change(self.term, rev),
            Operation::Batch { sets } => return sets.iter().map(|set| set.change(self.term, rev)).collect(),
            Operation::Delete { removed, .. } => {
                Change::Delete(DeleteChange { rev, removed: removed.clone() })
            }
            Operation::DeleteAll { end_seq, count } => {
                Change::DeleteAll(DeleteAllChange { rev, end_seq: *end_seq, count: *count })
            }
            Operation::Configure { config } => {
                Change::Configure(ConfigureChange { rev, config: config.clone() })
            }
        }]
    }
}
