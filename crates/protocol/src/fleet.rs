//! Requests of clients, servers and operators to the coordinator, and the announcements of the coordinator.

use serde::{Deserialize, Serialize};

use crate::codec::versioned;
use crate::ids::{Incarnation, LogId, ServerName};
use crate::subject::Subject;
use crate::tenant::{BusyTenant, LimitedTenant, LimitsRevision, TenantName};
use crate::version::ProtocolVersion;

/// Asks which server serves the subject of the route. Clients send it on `<prefix>.coord.locate.<subject>`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LocateRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// The server that serves the subject, or that will serve it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocateReply {
    /// The server.
    pub server: ServerName,
}

/// A server process asks to become a member. Sent on `<prefix>.fleet.join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The log of the process; the server's name is in it.
    pub log: LogId,
    /// The log of the process that held the data directory before. It counts as dead at once, because the joining process
    /// holds the lock of the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<LogId>,
    /// The server's share of the subjects relative to others; the default is 100.
    #[serde(default = "usual_capacity")]
    pub capacity: u32,
    /// The version of the server's software, for operators.
    #[serde(default)]
    pub version: String,
}

/// The default capacity of a server.
#[must_use]
pub const fn usual_capacity() -> u32 {
    100
}

/// A lease, granted to a log id. The reply to a join and a heartbeat.
///
/// The server considers the lease valid for 0.7 TTL, counted from when it *sent* the request. The coordinator declares the
/// process dead 1.3 TTL after the grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReply {
    /// The coordinator's run. If it changes, the coordinator may have lost its leases.
    pub incarnation: Incarnation,
    /// Time to live of the lease, in milliseconds.
    pub ttl_ms: u64,
    /// The operator's drain order: the server hands over all subjects, one by one, and serves the others meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// The revision of the tenants' limits. If it is not the revision that the server has, the server reads the limits.
    #[serde(default, skip_serializing_if = "LimitsRevision::is_none")]
    pub limits: LimitsRevision,
}

/// The load of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServerLoad {
    /// Open subjects.
    #[serde(default)]
    pub open_subjects: u64,
    /// Requests answered since the process started.
    #[serde(default)]
    pub requests: u64,
    /// Bytes of local subject files.
    #[serde(default)]
    pub local_bytes: u64,
}

/// One of the busiest subjects of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusySubject {
    /// The subject.
    pub subject: Subject,
    /// Recent requests per second.
    pub requests_per_second: u64,
    /// Bytes of its local file.
    pub bytes: u64,
}

/// A member reports that it is alive and renews its lease. Sent on `<prefix>.fleet.heartbeat` each TTL/3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The log of the process.
    pub log: LogId,
    /// Its load.
    #[serde(default)]
    pub load: ServerLoad,
    /// The server is shutting down or draining: it asks for no new subjects.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// Its busiest open subjects, the busiest first; at most
    /// [`MAX_BUSY_SUBJECTS`](crate::limits::MAX_BUSY_SUBJECTS).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub busiest: Vec<BusySubject>,
    /// Its busiest tenants, the busiest first; at most [`MAX_BUSY_TENANTS`](crate::limits::MAX_BUSY_TENANTS).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<BusyTenant>,
}

/// Asks for the limits of the tenants. Servers send it on `<prefix>.fleet.limits`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LimitsRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Only tenants after this one, in byte order: the cursor of the previous page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<TenantName>,
}

/// A page of limits. A server applies the limits when it has all pages of one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsReply {
    /// The revision of all limits.
    #[serde(default)]
    pub revision: LimitsRevision,
    /// The tenants with limits, in ascending byte order; at most
    /// [`MAX_TENANTS_PER_PAGE`](crate::limits::MAX_TENANTS_PER_PAGE).
    pub limits: Vec<LimitedTenant>,
    /// The start of the next page: tenants after this one. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<TenantName>,
}

/// Asks for permission to claim the subject of the route. Servers send it on `<prefix>.fleet.claim.<subject>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The log that will own the subject.
    pub claimant: LogId,
    /// The owner in the newest manifest; absent if there is no manifest or the subject is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<LogId>,
}

/// The claim is allowed: the subject is assigned to the claimant, and the process that owned it is dead. A refusal is the
/// error `not_owner`, which names the server to use instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimReply {
    /// The coordinator's run that granted it.
    pub incarnation: Incarnation,
}

/// A server has released a subject: the next server that gets a request for it may claim it. Sent on
/// `<prefix>.fleet.release.<subject>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The log that owned it.
    pub log: LogId,
}

/// A server process has released all subjects and leaves. Sent on `<prefix>.fleet.leave`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Its log.
    pub log: LogId,
}

/// The reply to a release and a leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Acknowledged {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// A server process is gone: its subjects have moved or will move. Published on `<prefix>.coord.gone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoneAnnouncement {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The log of the process that is gone; the server's name is in it.
    pub log: LogId,
}

/// Asks for the list of servers. Operators send it on `<prefix>.admin.servers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServersRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// The servers that the coordinator knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServersReply {
    /// The coordinator's run.
    pub incarnation: Incarnation,
    /// The servers, by name.
    pub servers: Vec<ServerEntry>,
}

/// The state of a server, as the coordinator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// It holds a lease.
    Alive,
    /// It is alive and draining.
    Draining,
    /// It is alive and drained, and gets no subjects: stopping its process causes no failed call.
    Drained,
    /// Its lease has expired, or it has left.
    Dead,
}

/// One server as the coordinator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerEntry {
    /// Its name.
    pub name: ServerName,
    /// The log of its newest process.
    pub log: LogId,
    /// Its state.
    pub state: ServerState,
    /// Milliseconds since its last heartbeat; absent if there was none since the coordinator started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_ms_ago: Option<u64>,
    /// Its share of the subjects relative to others.
    pub capacity: u32,
    /// The number of subjects assigned to it.
    pub assigned_subjects: u64,
    /// The load in its last heartbeat.
    #[serde(default)]
    pub load: ServerLoad,
    /// The version of its software.
    #[serde(default)]
    pub version: String,
}

versioned! {
    LocateRequest, JoinRequest, HeartbeatRequest, ClaimRequest, ReleaseRequest, LeaveRequest, ServersRequest,
    LimitsRequest,
}
