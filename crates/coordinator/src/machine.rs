//! The coordinator's decisions, without any I/O: inputs and a time in, effects out.
//!
//! The machine holds the members in memory and asks for the assignment of the one subject an input is about through
//! [`AssignmentView`], so that its size does not grow with the number of subjects. It never takes a process for dead
//! because of the time alone: only a [`Input::Tick`] does, and its caller first hands over everything that has
//! arrived.

mod assignment;
mod balance;
mod draining;
mod load;
mod membership;
mod moves;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_protocol::admin::{
    DrainReply, HandOverOrder, MoveReply, MoveRequest, MovesReply, RebalanceReply, RebalanceRequest,
};
use dormouse_protocol::fleet::{
    BusySubject, ClaimReply, ClaimRequest, HeartbeatRequest, JoinRequest, LeaseReply, LeaveRequest,
    LocateReply, ReleaseRequest, ServerLoad, ServersReply,
};
use dormouse_protocol::{ErrorReply, Incarnation, LogId, ServerName, Subject};

use self::load::{EASE, Rate};
use self::moves::Moves;
use crate::lease::{Lease, UNKNOWN_RESTART_WAIT, dead_after};
use crate::store::{Change, MemberRecord, Remembered, Waits};

/// What the machine may ask about assignments.
pub trait AssignmentView {
    /// The server that `subject` is assigned to.
    fn assignment(&self, subject: &Subject) -> Option<ServerName>;

    /// How many subjects are assigned to `server`.
    fn assigned_subjects(&self, server: &ServerName) -> u64;
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A client asks which server serves a subject.
    Locate(Subject),
    /// A process wants to be a member.
    Join(JoinRequest),
    /// A member is alive.
    Heartbeat(HeartbeatRequest),
    /// A member goes.
    Leave(LeaveRequest),
    /// A member asks whether it may claim a subject.
    Claim(Subject, ClaimRequest),
    /// A member has handed a subject back.
    Release(Subject, ReleaseRequest),
    /// An operator asks for the list of servers.
    Servers,
    /// An operator wants a server emptied.
    Drain(ServerName),
    /// An operator lets a server take subjects again.
    Undrain(ServerName),
    /// An operator wants a subject served by another server.
    Move(Subject, MoveRequest),
    /// An operator asks how the moves stand.
    Moves,
    /// An operator wants the servers' work evened out.
    Rebalance(RebalanceRequest, Candidates),
    /// Time has passed, and everything that had arrived by now was handed over.
    Tick,
    /// The coordinator's own connection is lost: nobody can be heard.
    Disconnected,
    /// The coordinator's own connection is back.
    Connected,
}

/// What was looked up for a rebalancing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Candidates {
    /// Some of the subjects that could be moved, and who had them when they were looked up.
    pub subjects: Vec<(Subject, ServerName)>,
    /// Most bytes of moves that the answer has room for.
    pub reply_bytes: usize,
}

/// The good answer to an input that is a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To a locate.
    Located(LocateReply),
    /// To a join and a heartbeat.
    Lease(LeaseReply),
    /// To a claim.
    Claimed(ClaimReply),
    /// To a release and a leave.
    Acknowledged,
    /// To the question for servers.
    Servers(ServersReply),
    /// To a drain and an undrain.
    Drain(DrainReply),
    /// To a move.
    Move(MoveReply),
    /// To the question how the moves stand.
    Moves(MovesReply),
    /// To a rebalancing.
    Rebalance(RebalanceReply),
}

/// Why a process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It was not heard of for longer than its lease.
    Silent,
    /// It said so.
    Left,
    /// Its successor holds the data directory.
    Replaced,
}

/// A process that is gone, to be announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Its log.
    pub log: LogId,
    /// Why.
    pub why: Why,
}

/// Something that operators should find in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A process was admitted.
    Joined {
        /// Its log.
        log: LogId,
        /// Its share of the subjects relative to others.
        capacity: u32,
    },
    /// A server is to be emptied.
    DrainOrdered(ServerName),
    /// A server may take subjects again.
    DrainTakenBack(ServerName),
    /// A subject was not moved.
    MoveGivenUp {
        /// The subject.
        subject: Subject,
        /// The server that should have had it.
        to: ServerName,
        /// Why.
        why: &'static str,
    },
}

/// What is to be done: first make and flush the changes, then send the answer, the announcements and the orders.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    /// To be remembered.
    pub changes: Vec<Change>,
    /// The answer, if the input was a request.
    pub answer: Option<Result<Answer, ErrorReply>>,
    /// To be announced.
    pub gone: Vec<Gone>,
    /// To be sent to servers.
    pub orders: Vec<HandOverOrder>,
    /// To be logged.
    pub news: Vec<News>,
}

impl Effects {
    fn answer(answer: Answer) -> Self {
        Self { answer: Some(Ok(answer)), ..Self::default() }
    }

    fn refuse(error: ErrorReply) -> Self {
        Self { answer: Some(Err(error)), ..Self::default() }
    }

    fn with(mut self, change: Option<Change>) -> Self {
        self.changes.extend(change);
        self
    }
}

/// How many members are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// Alive, or perhaps alive, and not draining.
    pub alive: u64,
    /// Alive and draining.
    pub draining: u64,
    /// Dead.
    pub dead: u64,
}

/// One server name and the newest process that was admitted under it.
#[derive(Debug, Clone)]
struct Member {
    record: MemberRecord,
    lease: Lease,
    load: ServerLoad,
    rate: Rate,
    /// The subjects it said it had most to do with.
    busiest: Vec<BusySubject>,
    /// By how much its weight in placement is reduced for what it has to do: so many [`EASE`]ths of it count.
    ease: u32,
    /// The process wishes to be given nothing.
    draining: bool,
    /// The process said that it goes. Not remembered over a restart: this is about messages that come late.
    left: bool,
}

impl Member {
    fn new(record: MemberRecord, lease: Lease) -> Self {
        Self {
            record,
            lease,
            load: ServerLoad::default(),
            rate: Rate::default(),
            busiest: Vec::new(),
            ease: EASE,
            draining: false,
            left: false,
        }
    }

    /// Whether subjects that it has are to stay with it: also while it drains, until it has released them.
    fn keeps_subjects(&self) -> bool {
        self.lease.may_hold() && !self.is_drained()
    }

    /// Whether it may be given subjects it does not have. Who was not heard of since the start is not.
    fn takes_subjects(&self) -> bool {
        matches!(self.lease, Lease::Granted { .. }) && !self.drains()
    }
}

/// The state from which the coordinator decides.
#[derive(Debug)]
pub struct Machine {
    incarnation: Incarnation,
    ttl: Duration,
    members: BTreeMap<ServerName, Member>,
    /// Until then a process that this run has not heard of may hold a lease of an earlier run; `None` once it has
    /// passed.
    waits_until: Option<Duration>,
    /// Logs that held a server's name in this run and are over, kept as long as strangers may be alive: no strangers.
    over: BTreeSet<LogId>,
    /// What the store says.
    waits: Waits,
    connected: bool,
    last_tick: Duration,
    moves: Moves,
}

impl Machine {
    /// Begins a run at `now` with what is remembered of earlier ones, granting leases of `ttl`. The changes must be
    /// flushed before the first input.
    #[must_use]
    pub fn begin(
        incarnation: Incarnation,
        ttl: Duration,
        remembered: Remembered,
        now: Duration,
    ) -> (Self, Vec<Change>) {
        let ours = dead_after(ttl);
        let inherited = remembered.waits.unwrap_or(Waits { member: ours, stranger: UNKNOWN_RESTART_WAIT });
        let ends = now + inherited.member;
        let revive = |record: MemberRecord| {
            let lease = if record.dead { Lease::Over } else { Lease::Inherited { ends } };
            Member::new(record, lease)
        };
        let members = remembered.members.into_iter().map(|(name, record)| (name, revive(record))).collect();
        // Leases of earlier runs and of this one may be out there until the wait has passed; it is shortened then.
        let waits = Waits { member: inherited.member.max(ours), stranger: inherited.stranger.max(ours) };
        let changed = remembered.waits != Some(waits);
        let machine = Self {
            incarnation,
            ttl,
            members,
            waits_until: Some(now + inherited.stranger),
            over: BTreeSet::new(),
            waits,
            connected: true,
            last_tick: now,
            moves: Moves::default(),
        };
        (machine, changed.then_some(Change::Waits(waits)).into_iter().collect())
    }

    /// Decides about one input at `now`, a time that never goes back and runs while the machine is suspended.
    pub fn apply(&mut self, input: Input, now: Duration, view: &dyn AssignmentView) -> Effects {
        match input {
            Input::Locate(subject) => self.locate(&subject, view),
            Input::Join(request) => self.join(request, now),
            Input::Heartbeat(request) => self.heartbeat(request, now),
            Input::Leave(request) => self.leave(&request.log),
            Input::Claim(subject, request) => self.claim(&subject, &request, view),
            Input::Release(subject, request) => self.release(subject, &request.log, now, view),
            Input::Servers => self.servers(now, view),
            Input::Drain(server) => self.drain(&server, now, view),
            Input::Undrain(server) => self.undrain(&server, now, view),
            Input::Move(subject, request) => self.move_subject(subject, request.to, now, view),
            Input::Moves => self.moves(),
            Input::Rebalance(request, candidates) => self.rebalance(request, candidates, now, view),
            Input::Tick => self.tick(now, view),
            Input::Disconnected => {
                self.connected = false;
                Effects::default()
            }
            Input::Connected => {
                self.connected = true;
                self.hear_again(now);
                Effects::default()
            }
        }
    }

    /// The id of this run.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether processes that were not heard of since the start may still hold a lease.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waits_until.is_some()
    }

    /// How many members are in which state.
    #[must_use]
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for member in self.members.values() {
            match member {
                Member { lease: Lease::Over, .. } => census.dead += 1,
                member if member.drains() => census.draining += 1,
                _ => census.alive += 1,
            }
        }
        census
    }

    fn tick(&mut self, now: Duration, view: &dyn AssignmentView) -> Effects {
        // Whoever stood still himself must listen for a while before he calls others silent.
        if now.saturating_sub(self.last_tick) > self.ttl / 2 {
            self.hear_again(now);
        }
        self.last_tick = now;
        let mut effects = Effects::default();
        if !self.connected {
            return effects;
        }
        for member in self.members.values_mut().filter(|member| member.lease.has_ended(now)) {
            effects.gone.push(member.end(Why::Silent));
            effects.changes.push(Change::Member(member.record.clone()));
        }
        if self.waits_until.is_some_and(|until| until <= now) {
            self.waits_until = None;
            self.over.clear();
            // From here on only leases of this run are out there.
            let ours = Waits { member: dead_after(self.ttl), stranger: dead_after(self.ttl) };
            if self.waits != ours {
                self.waits = ours;
                effects.changes.push(Change::Waits(ours));
            }
        }
        self.weigh_members();
        self.drive_moves(now, view, &mut effects);
        effects
    }

    /// Gives everybody who is not dead the time to be heard again, after a while in which nobody could be.
    fn hear_again(&mut self, now: Duration) {
        let until = now + self.ttl;
        for member in self.members.values_mut() {
            member.lease.extend(until);
        }
    }

    /// Whether `log` is the process that holds its server's name, and may be alive.
    fn is_member(&self, log: &LogId) -> bool {
        self.members
            .get(log.server())
            .is_some_and(|member| member.record.log == *log && member.lease.may_hold())
    }
}
