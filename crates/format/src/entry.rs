//! A log entry: the complete result of one write request. Replay needs no further decision.

use dormouse_protocol::data::{ConfigureReply, DeleteAllReply, DeleteReply, DestroyReply, SetReply};
use dormouse_protocol::{ErrorReply, RequestId, Rev, Term, Timestamp};
use serde::{Deserialize, Serialize};

use crate::record::{Record, RecordOp};

// Here and in `record`, a field that this version does not know is damage. If a newer version adds a field, the
// object that holds the entry has a higher format number, because ignoring the field would change the entry's meaning.

/// One write request as the log keeps it. It is never split: all of its operations become durable together.
///
/// The entries of a subject have no gap: an entry's [`LogEntry::after`] is the [last rev](LogEntry::last_rev) of the
/// entry before. An entry without operations changes no data. It only records the reply to a request, so that a late
/// copy of that request gets the same reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// The term of the owner that planned it.
    pub term: Term,
    /// The rev before its first operation.
    pub after: Rev,
    /// When the owner accepted it; never before the accept time of the entry before.
    pub accept_time: Timestamp,
    /// The request's id and reply, for the dedup window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<DedupRecord>,
    /// The changes in order, one rev each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<RecordOp>,
}

/// A request and its reply, kept so that a repeat gets the reply and is not executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DedupRecord {
    /// The request's id.
    pub id: RequestId,
    /// Its first reply.
    pub outcome: WriteOutcome,
}

/// The reply to a write request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteOutcome {
    /// To a set.
    Set(SetReply),
    /// To a delete.
    Delete(DeleteReply),
    /// To a delete_all.
    DeleteAll(DeleteAllReply),
    /// To a configure.
    Configure(ConfigureReply),
    /// To the destroy that precedes the subject's current data. It is no log entry: the tombstone keeps it, and later
    /// the subject's file.
    #[serde(skip)]
    Destroy(DestroyReply),
    /// The subject's state did not allow the request; the request was refused as a whole.
    Refused(ErrorReply),
}

impl LogEntry {
    /// The rev after its last operation; equal to [`LogEntry::after`] if it has none.
    #[must_use]
    pub fn last_rev(&self) -> Rev {
        Rev::new(self.after.get() + self.operations.len() as u64)
    }

    /// Whether a state at `base` may lack this entry. The state may already hold an entry without operations; applying
    /// it again changes nothing.
    #[must_use]
    pub fn is_above(&self, base: Rev) -> bool {
        if self.operations.is_empty() { self.after >= base } else { self.last_rev() > base }
    }

    /// Its operations, each with its rev.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let (term, accept_time) = (self.term, self.accept_time);
        let mut rev = self.after;
        self.operations.iter().cloned().map(move |operation| {
            rev = rev.next();
            Record { term, rev, accept_time, operation }
        })
    }
}
