//! The server's side of its lease: when it joins, when it sends a heartbeat, and how long a granted lease is valid.
//!
//! While a server holds no lease, another server can take over its log at any moment. So the machine is conservative. A
//! lease starts when the server *sends* the granted request, and lasts for less than the granted time. If there may
//! have been a moment without a lease, the [generation](LeaseGeneration) grows, and the engine verifies its state in
//! the bucket.

use std::time::Duration;

use dormouse_engine::api::LeaseGeneration;
use dormouse_protocol::fleet::LeaseReply;
use dormouse_protocol::{ErrorCode, ErrorReply, Incarnation};

use crate::liveness::CHECKS_PER_TTL;

/// Used part of a granted lease, in tenths. The coordinator waits 13 tenths before it declares a process dead: the
/// distance allows for clocks that run at different rates.
const LEASE_TENTHS: u32 = 7;
/// Delay before the next join after a failure.
const JOIN_RETRY: Duration = Duration::from_millis(300);
/// Maximum TTL that the server uses, whatever the coordinator grants. It also bounds the heartbeat interval.
pub(crate) const LONGEST_TTL: Duration = Duration::from_secs(20);
/// Minimum heartbeat interval, whatever the coordinator grants.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// How long a process with a predecessor in its data directory waits for its name: a lease of the longest TTL, as the
/// coordinator counts. A process can be killed after it joined and before the directory records it. That process holds
/// the name for this time, although the directory names the process before it.
const NAME_WAIT: Duration = LONGEST_TTL.saturating_mul(13).checked_div(10).unwrap();
/// Deadline of a join request.
const JOIN_DEADLINE: Duration = Duration::from_secs(1);

/// A lease of this server: no takeover happens before `valid_until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLease {
    /// End of the lease, on the clock of [`Env::boot`](dormouse_runtime::Env::boot).
    pub valid_until: Duration,
    /// Grows with every gap between leases.
    pub generation: LeaseGeneration,
}

/// An input of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseInput {
    /// Time has passed.
    Tick,
    /// The coordinator accepted the join that was sent at `sent_at`.
    Joined {
        /// When the join was sent.
        sent_at: Duration,
        /// The granted lease.
        lease: LeaseReply,
    },
    /// A join got no reply, or was refused.
    JoinFailed(CallFailure),
    /// The coordinator granted the heartbeat that was sent at `sent_at`.
    Renewed {
        /// When the heartbeat was sent.
        sent_at: Duration,
        /// The granted lease.
        lease: LeaseReply,
    },
    /// The heartbeat that was sent at `sent_at` got no reply, or was refused.
    HeartbeatFailed {
        /// When the heartbeat was sent.
        sent_at: Duration,
        /// The reason.
        failure: CallFailure,
    },
    /// The content of a heartbeat has changed: send one now.
    HeartbeatNow,
    /// The process is about to leave. The machine drops the lease and sends nothing more, and ignores replies in
    /// flight: after the coordinator gets the leave, other servers may take over, and it would answer a heartbeat with
    /// `unknown_server`.
    Leave,
}

/// Why a call to the coordinator failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallFailure {
    /// No reply arrived.
    Unanswered,
    /// The coordinator replied with an error.
    Refused(ErrorReply),
}

/// An effect that the task performs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEffect {
    /// Send a join, wait at most `deadline` for the reply, and report it.
    SendJoin {
        /// How long to wait.
        deadline: Duration,
    },
    /// Send a heartbeat, wait at most `deadline` for the reply, and report it.
    SendHeartbeat {
        /// How long to wait.
        deadline: Duration,
    },
    /// The server now holds this lease, or none.
    SetLease(Option<HeldLease>),
    /// The lease expired before it was renewed. [`LeaseEffect::SetLease`] precedes it; this effect is only for the log.
    Expired,
    /// The drain order of this server has changed. The initial order is [`DrainOrder::Serve`].
    DrainOrderChanged(DrainOrder),
    /// The coordinator refuses this process. It must exit.
    Exit(ErrorReply),
}

/// The drain order for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DrainOrder {
    /// Serve.
    #[default]
    Serve,
    /// Stay drained: the order was active when this process's log joined, so the log owned nothing before the order.
    StayDrained,
    /// Drain: the order came while the process was a member.
    Drain,
}

impl DrainOrder {
    /// Whether the server has to hand over all its subjects.
    #[must_use]
    pub const fn requires_drain(self) -> bool {
        matches!(self, Self::StayDrained | Self::Drain)
    }
}

/// The membership of the process at the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JoinState {
    /// Not a member; the next join is due at `join_at`.
    NotJoined { join_at: Duration },
    /// A join is in flight.
    Joining,
    /// A member; the next heartbeat is due at `heartbeat_at`. Several may be in flight.
    Member { heartbeat_at: Duration },
    /// Refused, and the refusal is final.
    Refused,
    /// Leaving. This state is final.
    Leaving,
}

/// The machine. Times are those of [`Env::boot`](dormouse_runtime::Env::boot).
#[derive(Debug)]
pub struct LeaseMachine {
    state: JoinState,
    incarnation: Option<Incarnation>,
    ttl: Duration,
    lease: Option<HeldLease>,
    generation: LeaseGeneration,
    /// When the request of the newest grant was sent. The machine ignores replies to earlier requests.
    granted_sent_at: Duration,
    /// Whether a process that used the data directory in between may hold the name.
    has_predecessor: bool,
    /// End of the wait for the name, after the first `name_in_use`.
    name_wait_until: Option<Duration>,
    /// The current drain order.
    order: DrainOrder,
    /// Whether the machine may send joins and heartbeats: whether the data side advances.
    may_send: bool,
}

impl LeaseMachine {
    /// A process that is not a member yet; its first join is due at `now`. `has_predecessor`: another process used its
    /// data directory before.
    #[must_use]
    pub const fn new(now: Duration, has_predecessor: bool) -> Self {
        Self {
            state: JoinState::NotJoined { join_at: now },
            incarnation: None,
            ttl: LONGEST_TTL,
            lease: None,
            generation: LeaseGeneration(0),
            granted_sent_at: Duration::ZERO,
            has_predecessor,
            name_wait_until: None,
            order: DrainOrder::Serve,
            may_send: true,
        }
    }

    /// The TTL of the newest grant, by which the data side is judged. A coordinator that grants next to nothing must not
    /// make the control side busy.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl.max(SHORTEST_PAUSE * CHECKS_PER_TTL)
    }

    /// Allows or forbids joins and heartbeats from now on. A message that falls due meanwhile is sent by the first
    /// [`apply`](Self::apply) that may send it. Without heartbeats the lease expires, which is always safe.
    pub const fn allow(&mut self, may_send: bool) {
        self.may_send = may_send;
    }

    /// When the machine needs its next [`LeaseInput::Tick`], if it waits for a time.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let due = match self.state {
            JoinState::NotJoined { join_at } => Some(join_at),
            JoinState::Member { heartbeat_at } => Some(heartbeat_at),
            JoinState::Joining | JoinState::Refused | JoinState::Leaving => None,
        };
        let due = due.filter(|_| self.may_send);
        let expiry = self.lease.map(|lease| lease.valid_until);
        due.into_iter().chain(expiry).min()
    }

    /// Applies one input at time `now` and returns the effects in order.
    pub fn apply(&mut self, input: LeaseInput, now: Duration) -> Vec<LeaseEffect> {
        let mut effects = Vec::new();
        // The expiry is handled first, so a grant after the expiry starts a new generation.
        if self.lease.is_some_and(|lease| lease.valid_until <= now) {
            self.lease = None;
            effects.extend([LeaseEffect::SetLease(None), LeaseEffect::Expired]);
        }
        match input {
            LeaseInput::Leave => {
                self.drop_lease(&mut effects);
                self.state = JoinState::Leaving;
            }
            _ if self.state == JoinState::Leaving => {}
            LeaseInput::Tick => {}
            // A process that joins holds no lease, so the join starts a new generation.
            LeaseInput::Joined { sent_at, lease } => self.granted(sent_at, lease, now, &mut effects),
            LeaseInput::Renewed { sent_at, lease } => {
                if self.is_current(sent_at) {
                    self.granted(sent_at, lease, now, &mut effects);
                }
            }
            LeaseInput::JoinFailed(failure) => match failure {
                CallFailure::Refused(error) if is_final(&error) && !self.may_wait_for_name(&error, now) => {
                    self.refused(error, &mut effects);
                }
                CallFailure::Refused(_) | CallFailure::Unanswered => {
                    self.state = JoinState::NotJoined { join_at: now + JOIN_RETRY };
                }
            },
            LeaseInput::HeartbeatFailed { sent_at, failure } => {
                if self.is_current(sent_at) {
                    self.heartbeat_failed(failure, now, &mut effects);
                }
            }
            LeaseInput::HeartbeatNow => {
                if let JoinState::Member { heartbeat_at } = &mut self.state {
                    *heartbeat_at = now;
                }
            }
        }
        self.send_due(now, &mut effects);
        effects
    }

    /// Whether the refusal may be temporary. If this process has held a lease, another process has taken the name.
    fn may_wait_for_name(&mut self, error: &ErrorReply, now: Duration) -> bool {
        let has_leased = self.generation > LeaseGeneration(0);
        if !self.has_predecessor || has_leased || error.code != ErrorCode::NameInUse {
            return false;
        }
        now < *self.name_wait_until.get_or_insert(now + NAME_WAIT)
    }

    /// Whether the reply to a heartbeat that was sent at `sent_at` concerns the current membership.
    fn is_current(&self, sent_at: Duration) -> bool {
        matches!(self.state, JoinState::Member { .. }) && sent_at >= self.granted_sent_at
    }

    fn granted(
        &mut self,
        sent_at: Duration,
        grant: LeaseReply,
        now: Duration,
        effects: &mut Vec<LeaseEffect>,
    ) {
        self.ttl = Duration::from_millis(grant.ttl_ms).min(LONGEST_TTL);
        let is_first = self.generation == LeaseGeneration(0);
        let continuous = self.lease.is_some() && self.incarnation == Some(grant.incarnation);
        if !continuous {
            self.generation = LeaseGeneration(self.generation.0 + 1);
        }
        self.incarnation = Some(grant.incarnation);
        self.granted_sent_at = sent_at;
        self.state = JoinState::Member { heartbeat_at: sent_at + (self.ttl / 3).max(SHORTEST_PAUSE) };
        // Also if the previous lease was longer: with a shorter TTL the coordinator declares this process dead earlier.
        let valid_until = sent_at + self.ttl * LEASE_TENTHS / 10;
        self.lease = (valid_until > now).then_some(HeldLease { valid_until, generation: self.generation });
        effects.push(LeaseEffect::SetLease(self.lease));
        let order = match (grant.draining, self.order) {
            (false, _) => DrainOrder::Serve,
            (true, DrainOrder::Serve) if is_first => DrainOrder::StayDrained,
            (true, DrainOrder::Serve) => DrainOrder::Drain,
            (true, unchanged) => unchanged,
        };
        if std::mem::replace(&mut self.order, order) != order {
            effects.push(LeaseEffect::DrainOrderChanged(order));
        }
    }

    fn heartbeat_failed(&mut self, failure: CallFailure, now: Duration, effects: &mut Vec<LeaseEffect>) {
        match failure {
            CallFailure::Refused(error) if error.code == ErrorCode::NameInUse => self.refused(error, effects),
            CallFailure::Refused(error) if error.code == ErrorCode::UnknownServer => {
                self.drop_lease(effects);
                self.state = JoinState::NotJoined { join_at: now };
            }
            // The next one is due already.
            CallFailure::Refused(_) | CallFailure::Unanswered => {}
        }
    }

    fn refused(&mut self, error: ErrorReply, effects: &mut Vec<LeaseEffect>) {
        self.drop_lease(effects);
        self.state = JoinState::Refused;
        effects.push(LeaseEffect::Exit(error));
    }

    fn drop_lease(&mut self, effects: &mut Vec<LeaseEffect>) {
        if self.lease.take().is_some() {
            effects.push(LeaseEffect::SetLease(None));
        }
    }

    fn send_due(&mut self, now: Duration, effects: &mut Vec<LeaseEffect>) {
        if !self.may_send {
            return;
        }
        match self.state {
            JoinState::NotJoined { join_at } if join_at <= now => {
                self.state = JoinState::Joining;
                effects.push(LeaseEffect::SendJoin { deadline: JOIN_DEADLINE });
            }
            JoinState::Member { heartbeat_at } if heartbeat_at <= now => {
                // Without a grant the next heartbeat comes earlier than usual: two can be lost within one lease.
                let resend = (self.ttl / 6).max(SHORTEST_PAUSE);
                self.state = JoinState::Member { heartbeat_at: now + resend };
                // A reply after the end of the lease has no use.
                let deadline = (self.ttl * LEASE_TENTHS / 10).max(SHORTEST_PAUSE);
                effects.push(LeaseEffect::SendHeartbeat { deadline });
            }
            JoinState::NotJoined { .. }
            | JoinState::Joining
            | JoinState::Member { .. }
            | JoinState::Refused
            | JoinState::Leaving => {}
        }
    }
}

/// Whether the coordinator would probably refuse another join too.
fn is_final(error: &ErrorReply) -> bool {
    matches!(
        error.code,
        ErrorCode::NameInUse
            | ErrorCode::BadRequest
            | ErrorCode::UnsupportedVersion
            | ErrorCode::Unsupported
            | ErrorCode::PermissionDenied
    )
}

#[cfg(test)]
mod tests;
