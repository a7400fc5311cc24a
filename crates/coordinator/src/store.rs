//! The stored state of the coordinator, and the port to its storage.
//!
//! The store holds decisions, not ownership: the manifests in the bucket decide ownership. If the store is lost, the next
//! start waits longer and some answers are corrected later; no data is lost.

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

pub use counts::AssignmentCounts;
pub use window::AssignmentWindow;

use crate::lease::UNKNOWN_RESTART_WAIT;

/// The stored record of one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The log of the newest process that was admitted under the server's name.
    pub log: LogId,
    /// The log of the process that held the name before; that process has ended.
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
    /// The drain order of an operator: the log that may still own subjects. When a process writes another log, the server
    /// is drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<LogId>,
}

/// One change to the stored state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChange {
    /// Replaces the record of the server that the log names.
    Member(MemberRecord),
    /// The subject is assigned to `server`.
    Assign {
        /// The subject.
        subject: Subject,
        /// The previous server.
        previous: Option<ServerName>,
        /// The new server.
        server: ServerName,
    },
    /// The subject is not assigned any more.
    Unassign {
        /// The subject.
        subject: Subject,
        /// The previous server.
        previous: ServerName,
    },
    /// How long the next run must wait before it may declare a process dead that has sent no heartbeat to it.
    StartupGrace(StartupGrace),
}

/// How long a lease that was granted just before a restart may still be held. The store keeps whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartupGrace {
    /// For a member: the runs that granted its lease are known.
    pub member: Duration,
    /// For a process without a record: its lease may be from a run that the coordinator forgot.
    pub unknown: Duration,
}

/// The state that a coordinator reads when it starts. Assignments are not part of it; they are read one by one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredState {
    /// Every server, by name.
    pub members: BTreeMap<ServerName, MemberRecord>,
    /// The startup grace of the next run; `None` if the store has no value.
    pub startup_grace: Option<StartupGrace>,
}

impl StoredState {
    /// Relaxes the state after another coordinator with its own store was active. That coordinator may have granted leases
    /// of any length to any process, also to processes recorded as dead here. Returns the changes to store.
    #[must_use]
    pub fn distrust(&mut self) -> Vec<StoreChange> {
        let waits = StartupGrace { member: UNKNOWN_RESTART_WAIT, unknown: UNKNOWN_RESTART_WAIT };
        self.startup_grace = Some(waits);
        let dead = self.members.values_mut().filter(|record| record.dead);
        let revived = dead.map(|record| {
            record.dead = false;
            StoreChange::Member(record.clone())
        });
        revived.chain([StoreChange::StartupGrace(waits)]).collect()
    }
}

/// An operation of a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The underlying storage failed. After this, results of the store are not reliable.
    #[error("cannot read or write the coordinator's state: {what}")]
    Failed {
        /// The failed operation.
        what: &'static str,
        /// The error of the storage.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A stored value is invalid.
    #[error("the coordinator's state is damaged at {key:?}: {what}")]
    Damaged {
        /// The key of the value.
        key: String,
        /// The reason.
        what: String,
    },
    /// The state was written by newer software.
    #[error("the coordinator's state has schema version {found}; this software supports up to {newest}")]
    NewerSchema {
        /// The version found.
        found: u32,
        /// The newest supported version.
        newest: u32,
    },
}

/// The storage of a coordinator's state. Calls may block their thread.
///
/// There is one writer. Writes survive the process only after the next [`flush`](Store::flush) has returned.
pub trait Store: Send + Sync + 'static {
    /// Everything except the assignments.
    ///
    /// # Errors
    /// [`StoreError`] if the state cannot be read.
    fn load_state(&self) -> Result<StoredState, StoreError>;

    /// The server that each subject is assigned to, in the order of the request.
    ///
    /// # Errors
    /// [`StoreError`] if the state cannot be read.
    fn assignments(&self, subjects: &[Subject]) -> Result<Vec<Option<ServerName>>, StoreError>;

    /// The first `rows` assignments of subjects that begin with `prefix` and come after `after`, in ascending byte order of
    /// the subject. If the result is shorter, there are no more.
    ///
    /// # Errors
    /// [`StoreError`] if the assignments cannot be read.
    fn assigned_after(
        &self,
        prefix: &str,
        after: Option<&Subject>,
        rows: usize,
    ) -> Result<Vec<(Subject, ServerName)>, StoreError>;

    /// The number of subjects assigned to each server.
    fn counts(&self) -> AssignmentCounts;

    /// Applies the changes atomically.
    ///
    /// # Errors
    /// [`StoreError`] if the changes cannot be written.
    fn write(&self, changes: &[StoreChange]) -> Result<(), StoreError>;

    /// Returns when all writes so far survive the end of the process.
    ///
    /// # Errors
    /// [`StoreError`] if the flush fails; then it is unknown which writes survive.
    fn flush(&self) -> Result<(), StoreError>;
}
