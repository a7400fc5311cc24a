//! What clients, servers and operators say to the coordinator, and what it announces.

use serde::{Deserialize, Serialize};

use crate::codec::{ProtocolVersion, versioned};
use crate::ids::{Incarnation, LogId, ServerName};
use crate::subject::Subject;

/// Which server serves the subject of the route? Sent by clients on `<prefix>.coord.locate.<subject>`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LocateRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// The server that serves a subject, or shall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocateReply {
    /// The server.
    pub server: ServerName,
}

/// A server process wants to be a member. Sent on `<prefix>.fleet.join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The log of the process; the server's name is in it.
    pub log: LogId,
    /// The log of the process that held the data directory before: dead at once, for this one holds the directory's
    /// lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<LogId>,
    /// The server's share of the subjects relative to others; 100 is usual.
    #[serde(default = "usual_capacity")]
    pub capacity: u32,
    /// The version of the server's software, for operators.
    #[serde(default)]
    pub version: String,
}

/// The capacity of a server that states none.
#[must_use]
pub const fn usual_capacity() -> u32 {
    100
}

/// A lease, granted to a log id. Answers a join and a heartbeat.
///
/// The server trusts it for 0.7 TTL counted from when it *sent* the request; the coordinator declares the process
/// dead 1.3 TTL after it granted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReply {
    /// The coordinator's run. When it changes, leases may have been forgotten.
    pub incarnation: Incarnation,
    /// Time to live of the lease, in milliseconds.
    pub ttl_ms: u64,
    /// An operator wants the server emptied: hand over every subject, one by one, and go on serving meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

/// How busy a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServerLoad {
    /// Subjects held open.
    #[serde(default)]
    pub open_subjects: u64,
    /// Requests answered since the process started.
    #[serde(default)]
    pub requests: u64,
    /// Bytes of local subject files.
    #[serde(default)]
    pub local_bytes: u64,
}

/// One of the subjects with which a server has the most to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusySubject {
    /// The subject.
    pub subject: Subject,
    /// Requests per second, lately.
    pub requests_per_second: u64,
    /// Bytes of its local file.
    pub bytes: u64,
}

/// A member is alive and asks for its lease to be renewed. Sent on `<prefix>.fleet.heartbeat` each TTL/3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The log of the process.
    pub log: LogId,
    /// How busy it is.
    #[serde(default)]
    pub load: ServerLoad,
    /// It is shutting down or being emptied: assign it nothing new.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// The open subjects with which it has the most to do, the busiest first; at most
    /// [`MAX_BUSY_SUBJECTS`](crate::limits::MAX_BUSY_SUBJECTS).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub busiest: Vec<BusySubject>,
}

/// May I claim the subject of the route? Sent by a server on `<prefix>.fleet.claim.<subject>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The log that would own the subject.
    pub claimant: LogId,
    /// The log that owns it by its newest manifest, unless there is none or it is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<LogId>,
}

/// The claimant may go ahead: the subject is assigned to it, and the process that owned it is dead. A refusal is
/// the error `not_owner`, which names the server to ask instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimReply {
    /// The coordinator's run that granted it.
    pub incarnation: Incarnation,
}

/// A server has handed a subject back: whoever is asked for next may claim it. Sent on
/// `<prefix>.fleet.release.<subject>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The log that held it.
    pub log: LogId,
}

/// A server process has released everything and goes. Sent on `<prefix>.fleet.leave`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Its log.
    pub log: LogId,
}

/// Noted. Answers a release and a leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Acknowledged {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// A server process is gone: what it served has moved or will. Published on `<prefix>.coord.gone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoneAnnouncement {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The log of the process that is gone; the server's name is in it.
    pub log: LogId,
}

/// Which servers are there? Sent by operators on `<prefix>.admin.servers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServersRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// The servers the coordinator knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServersReply {
    /// The coordinator's run.
    pub incarnation: Incarnation,
    /// The servers, by name.
    pub servers: Vec<ServerEntry>,
}

/// Whether a server can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// It holds a lease.
    Alive,
    /// It is alive and being emptied.
    Draining,
    /// It is alive, was emptied, and is given nothing: its process can be stopped and nobody notices.
    Drained,
    /// Its lease has run out, or it left.
    Dead,
}

/// One server as the coordinator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerEntry {
    /// Its name.
    pub name: ServerName,
    /// The log of its newest process.
    pub log: LogId,
    /// Whether it can be reached.
    pub state: ServerState,
    /// Milliseconds since it was last heard of; absent when not since the coordinator started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_ms_ago: Option<u64>,
    /// Its share of the subjects relative to others.
    pub capacity: u32,
    /// How many subjects are assigned to it.
    pub assigned_subjects: u64,
    /// How busy it said it was.
    #[serde(default)]
    pub load: ServerLoad,
    /// The version of its software.
    #[serde(default)]
    pub version: String,
}

versioned! {
    LocateRequest, JoinRequest, HeartbeatRequest, ClaimRequest, ReleaseRequest, LeaveRequest, ServersRequest,
}
