//! The coordinator's decisions, without any I/O: inputs and a time in, effects out.
//!
//! The machine holds the members in memory. It reads the assignment of the one subject of an input through
//! [`AssignmentView`], so its size does not grow with the number of subjects. It declares a process dead only at a
//! [`CoordinatorInput::Tick`], never because of the time alone; before a tick, the caller applies all arrived inputs.

mod assignment;
mod balance;
mod draining;
mod load;
mod membership;
mod moves;
mod tenants;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_protocol::admin::{
    DrainReply, HandOverOrder, MoveReply, MoveRequest, MovesReply, RebalanceReply, RebalanceRequest,
    TenantLimitReply, TenantLimitRequest, TenantsReply, TenantsRequest,
};
use dormouse_protocol::fleet::{
    BusySubject, ClaimReply, ClaimRequest, HeartbeatRequest, JoinRequest, LeaseReply, LeaveRequest,
    LimitsReply, LimitsRequest, LocateReply, ReleaseRequest, ServerLoad, ServersReply,
};
use dormouse_protocol::tenant::{BusyTenant, TenantLimits};
use dormouse_protocol::{ErrorReply, Incarnation, LogId, ServerName, Subject, TenantName};

use self::load::{RequestRate, WEIGHT_PARTS};
use self::moves::Moves;
use self::tenants::LimitTable;
use crate::lease::{GrantedLease, UNKNOWN_RESTART_WAIT, dead_after};
use crate::store::{AssignmentView, MemberRecord, StartupGrace, StoreChange, StoredState};

/// An input of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordinatorInput {
    /// A client asks which server serves a subject.
    Locate(Subject),
    /// A process asks to become a member.
    Join(JoinRequest),
    /// A member reports that it is alive.
    Heartbeat(HeartbeatRequest),
    /// A member leaves.
    Leave(LeaveRequest),
    /// A member asks whether it may claim a subject.
    Claim(Subject, ClaimRequest),
    /// A member has released a subject.
    Release(Subject, ReleaseRequest),
    /// A server reads the limits of the tenants.
    Limits(LimitsRequest),
    /// An operator asks for the list of servers.
    Servers,
    /// An operator drains a server.
    Drain(ServerName),
    /// An operator ends the drain of a server.
    Undrain(ServerName),
    /// An operator moves a subject to another server.
    Move(Subject, MoveRequest),
    /// An operator asks for the progress of the moves.
    Moves,
    /// An operator balances the load of the servers.
    Rebalance(RebalanceRequest, Candidates),
    /// An operator asks for the tenants.
    Tenants(TenantsRequest),
    /// An operator sets limits of a tenant.
    LimitTenant(TenantLimitRequest),
    /// Time has passed, and all inputs that had arrived by now were applied.
    Tick,
    /// The coordinator's own connection is lost: no message arrives.
    Disconnected,
    /// The coordinator's own connection is back.
    Connected,
}

/// The data that was looked up for a rebalancing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Candidates {
    /// Some of the subjects that could move, each with its server at the time of the lookup.
    pub subjects: Vec<(Subject, ServerName)>,
    /// The limit for the bytes of the moves in the reply.
    pub reply_bytes: usize,
}

/// The successful reply to an input that is a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordinatorReply {
    /// To a locate.
    Located(LocateReply),
    /// To a join and a heartbeat.
    Lease(LeaseReply),
    /// To a claim.
    Claimed(ClaimReply),
    /// To a release and a leave.
    Acknowledged,
    /// To the request for the list of servers.
    Servers(ServersReply),
    /// To a drain and an undrain.
    Drain(DrainReply),
    /// To a move.
    Move(MoveReply),
    /// To the request for the progress of the moves.
    Moves(MovesReply),
    /// To a rebalancing.
    Rebalance(RebalanceReply),
    /// To a server's request for the limits.
    Limits(LimitsReply),
    /// To the request for the tenants.
    Tenants(TenantsReply),
    /// To new limits of a tenant.
    TenantLimit(TenantLimitReply),
}

/// Why a process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneReason {
    /// Its lease expired without a heartbeat.
    LeaseExpired,
    /// It sent a leave.
    Left,
    /// Its successor holds the lock of the data directory.
    Replaced,
}

/// A process that is gone, to be announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoneProcess {
    /// Its log.
    pub log: LogId,
    /// Why.
    pub reason: GoneReason,
}

/// An event that the log reports to operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperatorEvent {
    /// A process was admitted.
    Joined {
        /// Its log.
        log: LogId,
        /// Its share of the subjects relative to others.
        capacity: u32,
    },
    /// An operator ordered the drain of a server.
    DrainOrdered(ServerName),
    /// An operator ended the drain of a server.
    DrainCancelled(ServerName),
    /// An operator set the limits of a tenant.
    TenantLimited {
        /// The tenant.
        tenant: TenantName,
        /// All its limits now.
        limits: TenantLimits,
    },
    /// The move of a subject failed.
    MoveFailed {
        /// The subject.
        subject: Subject,
        /// The target of the move.
        to: ServerName,
        /// The reason.
        why: &'static str,
    },
}

/// The effects of one input. The caller first writes and flushes the changes, then sends the reply, the announcements and
/// the orders.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    /// Changes to store.
    pub changes: Vec<StoreChange>,
    /// The reply, if the input was a request.
    pub answer: Option<Result<CoordinatorReply, ErrorReply>>,
    /// Gone processes to announce.
    pub gone: Vec<GoneProcess>,
    /// Handover orders to send to servers.
    pub orders: Vec<HandOverOrder>,
    /// Events to log.
    pub events: Vec<OperatorEvent>,
}

impl Effects {
    fn answer(answer: CoordinatorReply) -> Self {
        Self { answer: Some(Ok(answer)), ..Self::default() }
    }

    fn refuse(error: ErrorReply) -> Self {
        Self { answer: Some(Err(error)), ..Self::default() }
    }

    fn with(mut self, change: Option<StoreChange>) -> Self {
        self.changes.extend(change);
        self
    }
}

/// How many members are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemberCounts {
    /// Alive or possibly alive, and not draining.
    pub alive: u64,
    /// Alive or possibly alive, and draining.
    pub draining: u64,
    /// Dead.
    pub dead: u64,
}

/// One server name and the newest process that was admitted under it.
#[derive(Debug, Clone)]
struct MemberState {
    record: MemberRecord,
    lease: GrantedLease,
    load: ServerLoad,
    rate: RequestRate,
    /// The busiest subjects, from its last heartbeat.
    busiest: Vec<BusySubject>,
    /// The busiest tenants, from its last heartbeat.
    tenants: Vec<BusyTenant>,
    /// How many of the [`WEIGHT_PARTS`] parts of its weight count in placement. A busy server has fewer.
    weight_parts: u32,
    /// The process asks for no new subjects.
    draining: bool,
    /// The process has sent a leave. Not stored: it only matters for late messages.
    left: bool,
}

impl MemberState {
    fn new(record: MemberRecord, lease: GrantedLease) -> Self {
        Self {
            record,
            lease,
            load: ServerLoad::default(),
            rate: RequestRate::default(),
            busiest: Vec::new(),
            tenants: Vec::new(),
            weight_parts: WEIGHT_PARTS,
            draining: false,
            left: false,
        }
    }

    /// Whether it keeps its assigned subjects. A draining server keeps each subject until it has released it.
    fn keeps_subjects(&self) -> bool {
        self.lease.may_be_held() && !self.is_drained()
    }

    /// Whether it may get new subjects. A server without a heartbeat since the start of the coordinator gets none.
    fn takes_subjects(&self) -> bool {
        matches!(self.lease, GrantedLease::Granted { .. }) && !self.is_draining()
    }
}

/// The state from which the coordinator decides.
#[derive(Debug)]
pub struct CoordinatorMachine {
    incarnation: Incarnation,
    ttl: Duration,
    members: BTreeMap<ServerName, MemberState>,
    /// The end of the startup grace: until then a process that this run does not know may hold a lease of an earlier
    /// run. `None` after the end.
    grace_until: Option<Duration>,
    /// Logs that held a server's name in this run and have ended, kept until the end of the startup grace. They are not
    /// unknown processes.
    ended_logs: BTreeSet<LogId>,
    /// The startup grace in the store, for the next run.
    stored_grace: StartupGrace,
    connected: bool,
    last_tick: Duration,
    moves: Moves,
    limits: LimitTable,
}

impl CoordinatorMachine {
    /// Begins a run at `now` with the stored state of earlier runs, granting leases of `ttl`. The caller must flush the
    /// changes before the first input.
    #[must_use]
    pub fn begin(
        incarnation: Incarnation,
        ttl: Duration,
        stored: StoredState,
        now: Duration,
    ) -> (Self, Vec<StoreChange>) {
        let ours = dead_after(ttl);
        let inherited =
            stored.startup_grace.unwrap_or(StartupGrace { member: ours, unknown: UNKNOWN_RESTART_WAIT });
        let ends = now + inherited.member;
        let restore = |record: MemberRecord| {
            let lease = if record.dead { GrantedLease::Ended } else { GrantedLease::Inherited { ends } };
            MemberState::new(record, lease)
        };
        let members = stored.members.into_iter().map(|(name, record)| (name, restore(record))).collect();
        // Until the end of the grace, processes may hold leases of earlier runs and of this one. Then it is shortened.
        let stored_grace =
            StartupGrace { member: inherited.member.max(ours), unknown: inherited.unknown.max(ours) };
        let changed = stored.startup_grace != Some(stored_grace);
        let machine = Self {
            incarnation,
            ttl,
            members,
            grace_until: Some(now + inherited.unknown),
            ended_logs: BTreeSet::new(),
            stored_grace,
            connected: true,
            last_tick: now,
            moves: Moves::default(),
            limits: LimitTable::new(stored.limits),
        };
        (machine, changed.then_some(StoreChange::StartupGrace(stored_grace)).into_iter().collect())
    }

    /// Decides one input at `now`. This time never goes back, and it runs while the host is suspended.
    pub fn apply(&mut self, input: CoordinatorInput, now: Duration, view: &dyn AssignmentView) -> Effects {
        match input {
            CoordinatorInput::Locate(subject) => self.locate(&subject, view),
            CoordinatorInput::Join(request) => self.join(request, now),
            CoordinatorInput::Heartbeat(request) => self.heartbeat(request, now),
            CoordinatorInput::Leave(request) => self.leave(&request.log),
            CoordinatorInput::Claim(subject, request) => self.claim(&subject, &request, view),
            CoordinatorInput::Release(subject, request) => self.release(subject, &request.log, now, view),
            CoordinatorInput::Limits(request) => self.limits(request.after.as_ref()),
            CoordinatorInput::Tenants(request) => self.tenants(request.after.as_ref()),
            CoordinatorInput::LimitTenant(request) => self.limit_tenant(request),
            CoordinatorInput::Servers => self.servers(now, view),
            CoordinatorInput::Drain(server) => self.drain(&server, now, view),
            CoordinatorInput::Undrain(server) => self.undrain(&server, now, view),
            CoordinatorInput::Move(subject, request) => self.move_subject(subject, request.to, now, view),
            CoordinatorInput::Moves => self.moves(),
            CoordinatorInput::Rebalance(request, candidates) => {
                self.rebalance(request, candidates, now, view)
            }
            CoordinatorInput::Tick => self.tick(now, view),
            CoordinatorInput::Disconnected => {
                self.connected = false;
                Effects::default()
            }
            CoordinatorInput::Connected => {
                self.connected = true;
                self.extend_after_reconnect(now);
                Effects::default()
            }
        }
    }

    /// The id of this run.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether the startup grace runs: processes without a heartbeat since the start may still hold a lease.
    #[must_use]
    pub fn is_in_startup_grace(&self) -> bool {
        self.grace_until.is_some()
    }

    /// How many members are in which state.
    #[must_use]
    pub fn member_counts(&self) -> MemberCounts {
        let mut counts = MemberCounts::default();
        for member in self.members.values() {
            match member {
                MemberState { lease: GrantedLease::Ended, .. } => counts.dead += 1,
                member if member.is_draining() => counts.draining += 1,
                _ => counts.alive += 1,
            }
        }
        counts
    }

    fn tick(&mut self, now: Duration, view: &dyn AssignmentView) -> Effects {
        // After a pause of the coordinator's own process, heartbeats need time to arrive before a lease can expire.
        if now.saturating_sub(self.last_tick) > self.ttl / 2 {
            self.extend_after_reconnect(now);
        }
        self.last_tick = now;
        let mut effects = Effects::default();
        if !self.connected {
            return effects;
        }
        for member in self.members.values_mut().filter(|member| member.lease.has_ended(now)) {
            effects.gone.push(member.end(GoneReason::LeaseExpired));
            effects.changes.push(StoreChange::Member(member.record.clone()));
        }
        if self.grace_until.is_some_and(|until| until <= now) {
            self.grace_until = None;
            self.ended_logs.clear();
            // From now on, processes hold only leases of this run.
            let ours = StartupGrace { member: dead_after(self.ttl), unknown: dead_after(self.ttl) };
            if self.stored_grace != ours {
                self.stored_grace = ours;
                effects.changes.push(StoreChange::StartupGrace(ours));
            }
        }
        self.update_weights();
        self.advance_moves(now, view, &mut effects);
        effects
    }

    /// Extends the leases of all members that are not dead, after a time in which no heartbeat could arrive.
    fn extend_after_reconnect(&mut self, now: Duration) {
        let until = now + self.ttl;
        for member in self.members.values_mut() {
            member.lease.extend(until);
        }
    }

    /// Whether `log` is the process that holds its server's name and may be alive.
    fn is_member(&self, log: &LogId) -> bool {
        self.members
            .get(log.server())
            .is_some_and(|member| member.record.log == *log && member.lease.may_be_held())
    }
}
