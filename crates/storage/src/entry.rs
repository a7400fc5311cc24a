//! What one changing request comes to, as it is written to the log: decided in full, replayed without asking anybody.

use dormouse_protocol::data::{ConfigureReply, DeleteAllReply, DeleteReply, DestroyReply, SetReply};
use dormouse_protocol::{ErrorReply, RequestId, Rev, Term, Timestamp};
use serde::{Deserialize, Serialize};

use crate::plan::{Operation, Record};

// A field that this version does not know is damage, here and in `plan::record`: what a newer version adds to an entry
// has a higher format number in whatever holds the entry, because leaving it out would be another change.

/// One changing request as the log keeps it. It is never split: all of its operations become durable together.
///
/// The entries of a subject follow each other without a hole: an entry's [`Entry::after`] is the
/// [last rev](Entry::last_rev) of the one before. An entry without operations changes no data; it only remembers how a
/// request was answered, so that a late copy of that request is answered the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The term under which it was decided.
    pub term: Term,
    /// The rev before its first operation.
    pub after: Rev,
    /// When it was accepted; never before the accept time of the entry before.
    pub accept_time: Timestamp,
    /// Whose request it was and how it is answered, for repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Remembered>,
    /// What changes, one rev each, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<Operation>,
}

/// A request and its answer, kept so that a repeat is answered and not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// The request's name.
    pub id: RequestId,
    /// Its first answer.
    pub outcome: Outcome,
}

/// The answer to a changing request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// To a set.
    Set(SetReply),
    /// To a delete.
    Delete(DeleteReply),
    /// To a delete_all.
    DeleteAll(DeleteAllReply),
    /// To a configure.
    Configure(ConfigureReply),
    /// To the destroy that the subject begins after. It is no entry of the log: a tombstone remembers it, and then the
    /// subject's file.
    #[serde(skip)]
    Destroy(DestroyReply),
    /// The request as a whole was refused, for a reason that lay in the subject's state.
    Refused(ErrorReply),
}

impl Entry {
    /// The rev after its last operation; equal to [`Entry::after`] when it has none.
    #[must_use]
    pub fn last_rev(&self) -> Rev {
        Rev::new(self.after.get() + self.operations.len() as u64)
    }

    /// Whether a state at `base` may lack it. An entry without operations may also be there already: applying it again
    /// changes nothing.
    #[must_use]
    pub fn is_above(&self, base: Rev) -> bool {
        if self.operations.is_empty() { self.after >= base } else { self.last_rev() > base }
    }

    /// Its operations, each with the rev it makes.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let (term, accept_time) = (self.term, self.accept_time);
        let mut rev = self.after;
        self.operations.iter().cloned().map(move |operation| {
            rev = rev.next();
            Record { term, rev, accept_time, operation }
        })
    }
}
