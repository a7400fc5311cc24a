//! What the coordinator remembers across restarts, and the port behind which it is kept.
//!
//! A store is a memory of decisions, never the truth: the bucket decides who owns what. Losing a store costs a
//! longer wait after the next start and some corrected answers, never data.

#[cfg(test)]
mod contract;
mod counts;
pub mod memory;
mod record;
pub mod sled_store;
mod window;

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_protocol::{LogId, ServerName, Subject};
use serde::{Deserialize, Serialize};

pub use counts::Counts;
pub use window::Window;

use crate::lease::UNKNOWN_RESTART_WAIT;

/// What is remembered about one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The log of the newest process that was admitted under the server's name.
    pub log: LogId,
    /// The log of the process it took the name over from; known to be over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<LogId>,
    /// The server's share of the subjects relative to others.
    pub capacity: u32,
    /// The version of the server's software.
    #[serde(default)]
    pub version: String,
    /// The process was declared dead or left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dead: bool,
    /// An operator wants the server emptied. The log that may still own something: as soon as a process writes another
    /// one, the server is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<LogId>,
}

/// One change to what is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// This is now what is known about the server that the log names.
    Member(MemberRecord),
    /// The subject is assigned to `server`.
    Assign {
        /// The subject.
        subject: Subject,
        /// The server it was assigned to so far.
        previous: Option<ServerName>,
        /// The server it is assigned to from now on.
        server: ServerName,
    },
    /// The subject is assigned to nobody.
    Unassign {
        /// The subject.
        subject: Subject,
        /// The server it was assigned to so far.
        previous: ServerName,
    },
    /// How long the next run must wait before it may take a process that it has not heard of for dead.
    Waits(Waits),
}

/// How long a lease may still be trusted that was granted just before a restart. Whole milliseconds are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// By a member: the runs that granted its lease are known.
    pub member: Duration,
    /// By a process that is not remembered: it may have its lease from a run that was forgotten.
    pub stranger: Duration,
}

/// What is read when a coordinator starts. Assignments are not part of it: they are asked for one by one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered {
    /// Every server, by name.
    pub members: BTreeMap<ServerName, MemberRecord>,
    /// See [`Change::Waits`]; `None` when the store does not know.
    pub waits: Option<Waits>,
}

impl Remembered {
    /// Believes less of it, after another coordinator has been at work that remembers for itself: it may have granted
    /// leases of any length to anybody, also to whom this store knows as dead. Returns the changes that this is.
    #[must_use]
    pub fn doubt(&mut self) -> Vec<Change> {
        let waits = Waits { member: UNKNOWN_RESTART_WAIT, stranger: UNKNOWN_RESTART_WAIT };
        self.waits = Some(waits);
        let dead = self.members.values_mut().filter(|record| record.dead);
        let revived = dead.map(|record| {
            record.dead = false;
            Change::Member(record.clone())
        });
        revived.chain([Change::Waits(waits)]).collect()
    }
}

/// Why a store could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The storage underneath failed. After this nothing the store says can be relied on.
    #[error("the coordinator's state cannot be read or written: {what}")]
    Failed {
        /// What was being done.
        what: &'static str,
        /// What the storage says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value is not what it should be.
    #[error("the coordinator's state is damaged at {key:?}: {what}")]
    Damaged {
        /// The key of the value.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// The state was written by newer software.
    #[error(
        "the coordinator's state has schema version {found}, the newest this software understands is {newest}"
    )]
    NewerSchema {
        /// The version found.
        found: u32,
        /// The newest version understood.
        newest: u32,
    },
}

/// Where a coordinator keeps what it must remember. Calls may block their thread.
///
/// There is one writer. What was written is certain to survive the process only after the next
/// [`flush`](Store::flush) has returned.
pub trait Store: Send + Sync + 'static {
    /// Everything except the assignments.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read.
    fn remembered(&self) -> Result<Remembered, StoreError>;

    /// To which server each subject is assigned, in the order asked.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read.
    fn assignments(&self, subjects: &[Subject]) -> Result<Vec<Option<ServerName>>, StoreError>;

    /// The assignments of subjects that begin with `prefix` and come after `after`, ascending by the bytes of the subject:
    /// the first `rows` of them. Fewer means that there are no more.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be read.
    fn assigned_after(
        &self,
        prefix: &str,
        after: Option<&Subject>,
        rows: usize,
    ) -> Result<Vec<(Subject, ServerName)>, StoreError>;

    /// How many subjects are assigned to each server.
    fn counts(&self) -> Counts;

    /// Makes the changes, all or none of them.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be written.
    fn write(&self, changes: &[Change]) -> Result<(), StoreError>;

    /// Returns when everything written so far survives the death of the process.
    ///
    /// # Errors
    /// [`StoreError`] when that cannot be had; then it is not known what survives.
    fn flush(&self) -> Result<(), StoreError>;
}
