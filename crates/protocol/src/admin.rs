//! What operators say to the coordinator about where subjects are served, and what coordinators say to each other.

use serde::{Deserialize, Serialize};

use crate::codec::{ProtocolVersion, versioned};
use crate::fleet::ServerEntry;
use crate::ids::{Incarnation, LogId, ServerName};
use crate::limits::MAX_PAGE_ITEMS;
use crate::subject::Subject;

/// Empty a server, or let it take subjects again. Sent by operators on `<prefix>.admin.drain.<server>` and
/// `<prefix>.admin.undrain.<server>`.
///
/// A server that is being drained is given nothing new, hands over what it has subject by subject, and goes on
/// with a fresh log once it has nothing left. The order is about the server's name: it outlives the process, and the
/// coordinator's, until it is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DrainRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// The order is remembered. Answers a drain and an undrain; sending it again tells how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReply {
    /// The server, as the coordinator sees it now.
    pub server: ServerEntry,
}

/// Which subjects are assigned to whom? Sent by operators on `<prefix>.admin.subjects`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectsRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Only subjects that match this pattern: `*` stands for any one token and a final `>` for one or more.
    #[serde(default = "every_subject")]
    pub pattern: String,
    /// Only subjects assigned to this server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerName>,
    /// Only subjects after this one, in the order of their bytes: the cursor of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Subject>,
    /// At most this many; the coordinator may answer fewer.
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
    /// The assignments, ascending by the bytes of the subject.
    pub subjects: Vec<Assigned>,
    /// Where the next page begins: what is after this subject was not looked at. Absent on the last page. A page may be
    /// empty and not the last.
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

/// Have the subject of the route served by another server. Sent by operators on `<prefix>.admin.move.<subject>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The server that shall have it.
    pub to: ServerName,
}

/// How far the move has come. Sending the request again asks for this; it orders nothing twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveReply {
    /// Who has it. The same as `to` once the move is over; absent while nobody is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ServerName>,
    /// Who shall have it.
    pub to: ServerName,
    /// The subject is assigned to `to`.
    pub done: bool,
}

/// Even out what servers have to do. Sent by operators on `<prefix>.admin.rebalance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalanceRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// Only say what would be moved.
    #[serde(default)]
    pub dry_run: bool,
    /// At most so many moves.
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

/// The plan, which is being carried out unless it was asked for as a dry run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalanceReply {
    /// What is moved, in this order.
    pub moves: Vec<PlannedMove>,
    /// What each server has to do now and after the plan.
    pub servers: Vec<ServerBalance>,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedMove {
    /// The subject.
    pub subject: Subject,
    /// Who has it.
    pub from: ServerName,
    /// Who shall have it.
    pub to: ServerName,
    /// Its requests per second, where it is known to be busy.
    #[serde(default)]
    pub requests_per_second: u64,
    /// Bytes of its file, where that is known.
    #[serde(default)]
    pub bytes: u64,
}

/// What one server has to do, before and after a plan.
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
    /// Requests per second after the plan, as far as is known of the subjects that move.
    pub requests_per_second_after: u64,
}

/// Which moves are under way? Sent by operators on `<prefix>.admin.moves`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MovesRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
}

/// The moves that were ordered and are not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovesReply {
    /// How many wait or are under way.
    pub pending: u64,
    /// How many are over since the coordinator started.
    pub done: u64,
    /// How many were given up since the coordinator started: the servers did not carry them out in time.
    pub given_up: u64,
}

/// A subject that a server is to hand back, so that another may have it. Published by the coordinator on
/// `<prefix>.coord.order.<server>`, again and again until the subject was released or the move is given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOverOrder {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The process that is meant; others ignore it.
    pub log: LogId,
    /// What it shall release. Where it does not hold the subject, it says that it has released it all the same.
    pub subject: Subject,
}

/// Does anybody coordinate this fleet? Sent by a coordinator on `<prefix>.coord.presence` before it begins; who
/// coordinates answers, unless the question is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceRequest {
    /// The protocol version.
    #[serde(default)]
    pub v: ProtocolVersion,
    /// The run that asks.
    pub incarnation: Incarnation,
}

/// The run that coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceReply {
    /// It.
    pub incarnation: Incarnation,
}

/// This run coordinates the fleet. Published by it on `<prefix>.coord.active` at intervals: of two that hear each other the one
/// whose incarnation is the later stands down.
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
}
