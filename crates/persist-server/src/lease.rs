//! The server's side of its lease: when to join, when to send a heartbeat, and how long to trust what was granted.
//!
//! A server may be overtaken at any moment in which it holds no lease, so the machine leans to the safe side
//! everywhere: a lease counts from *sending* the request that was granted, for less than it was granted for, and
//! whenever there may have been a moment without one the [generation](LeaseGeneration) grows, upon which the engine
//! verifies in the bucket what it believed before.

use std::time::Duration;

use dormouse_protocol::fleet::LeaseReply;
use dormouse_protocol::{ErrorCode, ErrorReply, Incarnation};
use dormouse_storage::api::LeaseGeneration;

/// How much of a lease is trusted, in tenths. The coordinator waits 13 tenths before it declares a process dead: the
/// distance is what clocks that run at different rates may use up.
const TRUSTED_TENTHS: u32 = 7;
/// How long to wait before joining again after a failure.
const JOIN_RETRY: Duration = Duration::from_millis(300);
/// A coordinator may grant what it likes; more than this is never trusted, and heartbeats come at least this often.
const LONGEST_TTL: Duration = Duration::from_secs(20);
/// Heartbeats never come faster than this, whatever was granted.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// How long a process that follows another in its data directory waits for its name: a lease of the longest TTL, as
/// the coordinator counts. A process that was killed after it had joined and before that was noted in the directory
/// holds the name for that long, though the directory names the one before it.
const NAME_WAIT: Duration = LONGEST_TTL.saturating_mul(13).checked_div(10).unwrap();
/// How long an answer to a join is waited for.
const JOIN_DEADLINE: Duration = Duration::from_secs(1);

/// What the server may believe: that nobody takes over before `valid_until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Until when, on the clock of [`Env::boot`](dormouse_runtime::Env::boot).
    pub valid_until: Duration,
    /// Grows with every gap between leases.
    pub generation: LeaseGeneration,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseInput {
    /// Time has passed.
    Tick,
    /// The coordinator took the join that was sent at `sent_at`.
    Joined {
        /// When the join was sent.
        sent_at: Duration,
        /// What was granted.
        lease: LeaseReply,
    },
    /// A join was not answered, or refused.
    JoinFailed(CallFailure),
    /// The coordinator granted the heartbeat that was sent at `sent_at`.
    Renewed {
        /// When the heartbeat was sent.
        sent_at: Duration,
        /// What was granted.
        lease: LeaseReply,
    },
    /// The heartbeat that was sent at `sent_at` was not answered, or refused.
    HeartbeatFailed {
        /// When the heartbeat was sent.
        sent_at: Duration,
        /// What came instead of a lease.
        failure: CallFailure,
    },
    /// What a heartbeat says has changed: send one now.
    Hurry,
    /// The process is about to leave. Nothing is believed and nothing is sent any more, whatever is still in flight:
    /// once the coordinator has heard of it others may take over, and a heartbeat would be told to join again.
    Leave,
}

/// Why a call to the coordinator failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallFailure {
    /// No answer came.
    Unanswered,
    /// The coordinator answered with an error.
    Refused(ErrorReply),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEffect {
    /// Send a join, wait at most `deadline` for the answer, and report it.
    SendJoin {
        /// How long to wait.
        deadline: Duration,
    },
    /// Send a heartbeat, wait at most `deadline` for the answer, and report it.
    SendHeartbeat {
        /// How long to wait.
        deadline: Duration,
    },
    /// From now on this is what the server may believe; `None`: nothing.
    Trust(Option<Lease>),
    /// The lease ran out before it was renewed. What was believed has ended by itself; this is for the log.
    Lapsed,
    /// An operator wants something else of this server than before, at first to serve.
    Ordered(Order),
    /// The coordinator will not have this process. It must exit.
    Exit(ErrorReply),
}

/// What an operator wants of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Serve.
    #[default]
    Serve,
    /// Be empty; it was so when this process's log became a member: nothing belongs to the log that was there before the
    /// order.
    StayEmpty,
    /// Be empty: the order came while the process was a member.
    BecomeEmpty,
}

impl Order {
    /// Whether the server is to be empty.
    #[must_use]
    pub const fn is_to_empty(self) -> bool {
        matches!(self, Self::StayEmpty | Self::BecomeEmpty)
    }
}

/// Where the process stands with the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Not a member; the next join is due at `join_at`.
    Apart { join_at: Duration },
    /// A join is in flight.
    Joining,
    /// A member; the next heartbeat is due at `heartbeat_at`. Several may be in flight.
    Member { heartbeat_at: Duration },
    /// Refused for good.
    Refused,
    /// It goes. Nothing changes that.
    Leaving,
}

/// The machine. Times are those of [`Env::boot`](dormouse_runtime::Env::boot).
#[derive(Debug)]
pub struct LeaseMachine {
    standing: Standing,
    incarnation: Option<Incarnation>,
    ttl: Duration,
    lease: Option<Lease>,
    generation: LeaseGeneration,
    /// When the request was sent to which the newest grant answers. Answers to earlier ones say nothing new.
    granted_for: Duration,
    /// Whether the name may be held by a process that had the data directory in between.
    follows: bool,
    /// Until when that is waited for, once it has shown.
    waits_for_name_until: Option<Duration>,
    /// What an operator wants.
    order: Order,
}

impl LeaseMachine {
    /// A process that is not a member yet; its first join is due at `now`. `follows`: another process had its data
    /// directory before.
    #[must_use]
    pub const fn new(now: Duration, follows: bool) -> Self {
        Self {
            standing: Standing::Apart { join_at: now },
            incarnation: None,
            ttl: LONGEST_TTL,
            lease: None,
            generation: LeaseGeneration(0),
            granted_for: Duration::ZERO,
            follows,
            waits_for_name_until: None,
            order: Order::Serve,
        }
    }

    /// When the machine wants its next [`LeaseInput::Tick`], if time alone can bring it forward.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let due = match self.standing {
            Standing::Apart { join_at } => Some(join_at),
            Standing::Member { heartbeat_at } => Some(heartbeat_at),
            Standing::Joining | Standing::Refused | Standing::Leaving => None,
        };
        let lapse = self.lease.map(|lease| lease.valid_until);
        due.into_iter().chain(lapse).min()
    }

    /// Takes one input at time `now` and says what to do, in order.
    pub fn apply(&mut self, input: LeaseInput, now: Duration) -> Vec<LeaseEffect> {
        let mut effects = Vec::new();
        // First of all, so that a grant that comes after the end of the last one is seen to follow a gap.
        if self.lease.is_some_and(|lease| lease.valid_until <= now) {
            self.lease = None;
            effects.extend([LeaseEffect::Trust(None), LeaseEffect::Lapsed]);
        }
        match input {
            LeaseInput::Leave => {
                self.drop_lease(&mut effects);
                self.standing = Standing::Leaving;
            }
            _ if self.standing == Standing::Leaving => {}
            LeaseInput::Tick => {}
            // Who joins holds no lease any more, so this begins a generation.
            LeaseInput::Joined { sent_at, lease } => self.granted(sent_at, lease, now, &mut effects),
            LeaseInput::Renewed { sent_at, lease } => {
                if self.is_news(sent_at) {
                    self.granted(sent_at, lease, now, &mut effects);
                }
            }
            LeaseInput::JoinFailed(failure) => match failure {
                CallFailure::Refused(error) if is_final(&error) && !self.waits_for_name(&error, now) => {
                    self.refused(error, &mut effects);
                }
                CallFailure::Refused(_) | CallFailure::Unanswered => {
                    self.standing = Standing::Apart { join_at: now + JOIN_RETRY };
                }
            },
            LeaseInput::HeartbeatFailed { sent_at, failure } => {
                if self.is_news(sent_at) {
                    self.heartbeat_failed(failure, now, &mut effects);
                }
            }
            LeaseInput::Hurry => {
                if let Standing::Member { heartbeat_at } = &mut self.standing {
                    *heartbeat_at = now;
                }
            }
        }
        self.send_what_is_due(now, &mut effects);
        effects
    }

    /// Whether the refusal is one that time may heal. Who has had a lease knows better: somebody else took the name.
    fn waits_for_name(&mut self, error: &ErrorReply, now: Duration) -> bool {
        let has_leased = self.generation > LeaseGeneration(0);
        if !self.follows || has_leased || error.code != ErrorCode::NameInUse {
            return false;
        }
        now < *self.waits_for_name_until.get_or_insert(now + NAME_WAIT)
    }

    /// Whether the answer to a heartbeat that was sent at `sent_at` speaks of the present membership.
    fn is_news(&self, sent_at: Duration) -> bool {
        matches!(self.standing, Standing::Member { .. }) && sent_at >= self.granted_for
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
        let unbroken = self.lease.is_some() && self.incarnation == Some(grant.incarnation);
        if !unbroken {
            self.generation = LeaseGeneration(self.generation.0 + 1);
        }
        self.incarnation = Some(grant.incarnation);
        self.granted_for = sent_at;
        self.standing = Standing::Member { heartbeat_at: sent_at + (self.ttl / 3).max(SHORTEST_PAUSE) };
        // Also when the lease before reached further: a shorter TTL makes the coordinator declare us dead earlier.
        let valid_until = sent_at + self.ttl * TRUSTED_TENTHS / 10;
        self.lease = (valid_until > now).then_some(Lease { valid_until, generation: self.generation });
        effects.push(LeaseEffect::Trust(self.lease));
        let order = match (grant.draining, self.order) {
            (false, _) => Order::Serve,
            (true, Order::Serve) if is_first => Order::StayEmpty,
            (true, Order::Serve) => Order::BecomeEmpty,
            (true, as_before) => as_before,
        };
        if std::mem::replace(&mut self.order, order) != order {
            effects.push(LeaseEffect::Ordered(order));
        }
    }

    fn heartbeat_failed(&mut self, failure: CallFailure, now: Duration, effects: &mut Vec<LeaseEffect>) {
        match failure {
            CallFailure::Refused(error) if error.code == ErrorCode::NameInUse => self.refused(error, effects),
            CallFailure::Refused(error) if error.code == ErrorCode::UnknownServer => {
                self.drop_lease(effects);
                self.standing = Standing::Apart { join_at: now };
            }
            // The next one is due already.
            CallFailure::Refused(_) | CallFailure::Unanswered => {}
        }
    }

    fn refused(&mut self, error: ErrorReply, effects: &mut Vec<LeaseEffect>) {
        self.drop_lease(effects);
        self.standing = Standing::Refused;
        effects.push(LeaseEffect::Exit(error));
    }

    fn drop_lease(&mut self, effects: &mut Vec<LeaseEffect>) {
        if self.lease.take().is_some() {
            effects.push(LeaseEffect::Trust(None));
        }
    }

    fn send_what_is_due(&mut self, now: Duration, effects: &mut Vec<LeaseEffect>) {
        match self.standing {
            Standing::Apart { join_at } if join_at <= now => {
                self.standing = Standing::Joining;
                effects.push(LeaseEffect::SendJoin { deadline: JOIN_DEADLINE });
            }
            Standing::Member { heartbeat_at } if heartbeat_at <= now => {
                // If no grant moves it, the next one comes earlier than usual: two may be lost within one lease.
                let resend = (self.ttl / 6).max(SHORTEST_PAUSE);
                self.standing = Standing::Member { heartbeat_at: now + resend };
                // An answer that comes when the lease would be over is of no use.
                let deadline = (self.ttl * TRUSTED_TENTHS / 10).max(SHORTEST_PAUSE);
                effects.push(LeaseEffect::SendHeartbeat { deadline });
            }
            Standing::Apart { .. }
            | Standing::Joining
            | Standing::Member { .. }
            | Standing::Refused
            | Standing::Leaving => {}
        }
    }
}

/// Whether joining again would be refused again, as far as anybody can know.
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
#[path = "lease_tests.rs"]
mod tests;
