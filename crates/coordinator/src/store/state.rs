//! The stored state: members, changes, and the wait of the next run.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_protocol::tenant::TenantLimits;
use dormouse_protocol::{LogId, ServerName, Subject, TenantName};
use serde::{Deserialize, Serialize};

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
    /// The limits of a tenant are these; empty limits are removed.
    TenantLimits {
        /// The tenant.
        tenant: TenantName,
        /// Its limits.
        limits: TenantLimits,
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
    /// The limits of each tenant that has any.
    pub limits: BTreeMap<TenantName, TenantLimits>,
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
