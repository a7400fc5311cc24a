//! Operators' requests to the coordinator about the assignment of subjects, and messages between coordinators.

use serde::{Deserialize, Serialize};

use crate::codec::versioned;
use crate::fleet::ServerEntry;
use crate::ids::{Incarnation, LogId, ServerName};
use crate::limits::MAX_PAGE_ITEMS;
use crate::subject::Subject;
use crate::tenant::{TenantLimits, TenantName, TenantUse};
use crate::version::ProtocolVersion;

/// Drains a server, or ends its drain. Operators send it on `<prefix>.admin.drain.<server>` and
/// `<prefix>.admin.undrain.<server>`.
///
/// A draining server gets no new subjects and hands over its subjects one by one. When it has none left, it continues with a
/// new log. The order applies to the server's name: it stays valid across restarts of the server and of the coordinator,
/// until an undrain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DrainRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// The order is stored. The reply to a drain and an undrain; a repeated request returns the progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReply {
    /// The server, as the coordinator sees it now.
    pub server: ServerEntry,
}

/// Asks for the assignments of subjects. Operators send it on `<prefix>.admin.subjects`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectsRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Only subjects that match this pattern: `*` matches any one token and a final `>` one or more.
    #[serde(default = "every_subject")]
    pub pattern: String,
    /// Only subjects assigned to this server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerName>,
    /// Only subjects after this one, in byte order: the cursor of the previous page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Subject>,
    /// The maximum number of subjects; the coordinator may return fewer.
    #[serde(default = "full_page")]
    pub limit: u64,
}

impl Default for SubjectsRequest {
    fn default() -> Self {
        Self {
            v: ProtocolVersion::default(),
            pattern: every_subject(),
            server: None,
            after: None,
            limit: full_page(),
        }
    }
}

fn every_subject() -> String {
    ">".to_owned()
}

const fn full_page() -> u64 {
    MAX_PAGE_ITEMS as u64
}

/// A page of assignments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectsReply {
    /// The assignments, in ascending byte order of the subject.
    pub subjects: Vec<Assigned>,
    /// The start of the next page: subjects after this one were not scanned. Absent on the last page. A page may be empty
    /// and not the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Subject>,
}

/// A subject and the server it is assigned to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// The subject.
    pub subject: Subject,
    /// The server.
    pub server: ServerName,
}

/// Moves the subject of the route to another server. Operators send it on `<prefix>.admin.move.<subject>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The target server.
    pub to: ServerName,
}

/// The progress of the move. A repeated request returns the progress and does not order the move twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveReply {
    /// The assigned server. Equal to `to` after the move; absent if the subject is not assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ServerName>,
    /// The target server.
    pub to: ServerName,
    /// The subject is assigned to `to`.
    pub done: bool,
}

/// Balances the load of the servers. Operators send it on `<prefix>.admin.rebalance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalanceRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Only returns the plan, without moves.
    #[serde(default)]
    pub dry_run: bool,
    /// The maximum number of moves.
    #[serde(default = "usual_moves")]
    pub most_moves: u64,
}

impl Default for RebalanceRequest {
    fn default() -> Self {
        Self { v: ProtocolVersion::default(), dry_run: false, most_moves: usual_moves() }
    }
}

const fn usual_moves() -> u64 {
    100
}

/// The plan. The coordinator executes it, except in a dry run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalanceReply {
    /// The moves, in this order.
    pub moves: Vec<PlannedMove>,
    /// The load of each server before and after the plan.
    pub servers: Vec<ServerBalance>,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedMove {
    /// The subject.
    pub subject: Subject,
    /// The current server.
    pub from: ServerName,
    /// The target server.
    pub to: ServerName,
    /// Its requests per second, if it is known to be busy.
    #[serde(default)]
    pub requests_per_second: u64,
    /// The size of its file in bytes, if known.
    #[serde(default)]
    pub bytes: u64,
}

/// The load of one server, before and after a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerBalance {
    /// The server.
    pub name: ServerName,
    /// Its share of the subjects relative to others.
    pub capacity: u32,
    /// Subjects assigned to it now.
    pub assigned_subjects: u64,
    /// Subjects assigned to it after the plan.
    pub assigned_subjects_after: u64,
    /// Requests per second now.
    pub requests_per_second: u64,
    /// Requests per second after the plan, as far as the rates of the moved subjects are known.
    pub requests_per_second_after: u64,
}

/// Asks for the progress of the moves. Operators send it on `<prefix>.admin.moves`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MovesRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// The numbers of pending, finished and failed moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovesReply {
    /// The number of moves that are queued or under way.
    pub pending: u64,
    /// The number of moves finished since the coordinator started.
    pub done: u64,
    /// The number of moves failed since the coordinator started: the servers did not execute them in time.
    pub given_up: u64,
}

/// Asks for the limits and the use of the tenants. Operators send it on `<prefix>.admin.tenants`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TenantsRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Only tenants after this one, in byte order: the cursor of the previous page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<TenantName>,
}

/// A page of tenants: those with limits, and the busiest tenants of each server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantsReply {
    /// The tenants, in ascending byte order; at most
    /// [`MAX_TENANTS_PER_PAGE`](crate::limits::MAX_TENANTS_PER_PAGE).
    pub tenants: Vec<TenantEntry>,
    /// The start of the next page: tenants after this one. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<TenantName>,
}

/// A tenant as the coordinator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantEntry {
    /// The tenant.
    pub tenant: TenantName,
    /// Its limits. Each server enforces them for itself.
    #[serde(default)]
    pub limits: TenantLimits,
    /// Its use, as the sum over the servers that report it. A server reports its 32 busiest tenants.
    #[serde(default, rename = "use")]
    pub in_use: TenantUse,
    /// The number of these servers.
    #[serde(default)]
    pub servers: u64,
}

/// Sets limits of a tenant. Operators send it on `<prefix>.admin.tenant_limit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantLimitRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The tenant.
    pub tenant: TenantName,
    /// First removes all limits of the tenant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clear: bool,
    /// The limits to set. The others stay.
    #[serde(default)]
    pub limits: TenantLimits,
}

/// The limits are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantLimitReply {
    /// All limits of the tenant now.
    pub limits: TenantLimits,
}

/// A handover order: the server must release a subject, so that another server can claim it. The coordinator publishes it on
/// `<prefix>.coord.order.<server>`, and repeats it until the subject is released or the move fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOverOrder {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The log of the addressed process; other processes ignore the order.
    pub log: LogId,
    /// The subject to release. If the process does not own it, it still sends a release.
    pub subject: Subject,
}

/// A presence check. A coordinator sends it on `<prefix>.coord.presence` before it begins a run; the active coordinator
/// replies, except to its own check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The run that checks.
    pub incarnation: Incarnation,
}

/// The reply of the active coordinator to a presence check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceReply {
    /// The active run.
    pub incarnation: Incarnation,
}

/// The announcement of the active coordinator, published on `<prefix>.coord.active` at intervals. If two active coordinators
/// detect each other, the one with the later incarnation stands down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveAnnouncement {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The run.
    pub incarnation: Incarnation,
}

versioned! {
    DrainRequest, SubjectsRequest, MoveRequest, RebalanceRequest, MovesRequest, PresenceRequest,
    TenantsRequest, TenantLimitRequest,
}
