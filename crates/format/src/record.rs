//! Records: writes in which every number is decided.

use bytes::Bytes;
use dormouse_protocol::message::{
    ConfigureChange, DeleteAllChange, DeleteChange, Removed, SetChange, SubjectConfig,
};
use dormouse_protocol::{Change, Headers, Message, Rev, Seq, Term, Timestamp};
use serde::{Deserialize, Serialize};

use crate::checksum::Crc64;
use crate::keys::BlobName;

/// One change of a subject, decided in full: applying it twice to equal states gives equal states, and
/// applying it needs no clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The term under which it was decided.
    pub term: Term,
    /// The revision that it creates.
    pub rev: Rev,
    /// When it was accepted; never before the accept time of the previous revision.
    pub accept_time: Timestamp,
    /// The change.
    pub operation: RecordOp,
}

/// The change of a [`Record`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RecordOp {
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
        /// Why they are removed.
        cause: RemovalCause,
    },
    /// Every message up to a seq is removed.
    DeleteAll {
        /// The last removed seq.
        end_seq: Seq,
        /// Number of removed messages.
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
    /// A client requested it.
    Asked,
    /// A limit of the subject was exceeded, and they were the oldest: up to the last of them only messages of
    /// the same entry are left.
    Evicted,
    /// They had expired.
    Expired,
}

/// A message to be written, at a decided seq.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetOperation {
    /// Its seq.
    pub seq: Seq,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its value; absent for the null value, or for a value in [`SetOperation::blob`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Bytes>,
    /// The blob that holds its value, if the value is too large for the entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<BlobRef>,
    /// Its headers.
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// The message that it replaces: the one at its seq, or the earlier one of its key.
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
    /// The changes as watchers get them, with whole values. Only an atomic batch has several.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let rev = self.rev;
        vec![match &self.operation {
            RecordOp::Set(set) => set.change(self.term, rev),
            RecordOp::Batch { sets } => return sets.iter().map(|set| set.change(self.term, rev)).collect(),
            RecordOp::Delete { removed, .. } => {
                Change::Delete(DeleteChange { rev, removed: removed.clone() })
            }
            RecordOp::DeleteAll { end_seq, count } => {
                Change::DeleteAll(DeleteAllChange { rev, end_seq: *end_seq, count: *count })
            }
            RecordOp::Configure { config } => {
                Change::Configure(ConfigureChange { rev, config: config.clone() })
            }
        }]
    }
}
