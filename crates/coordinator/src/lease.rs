//! Leases: how long a process counts as alive.
//!
//! A server considers its lease valid for 0.7 TTL, counted from when it *sent* the heartbeat. The coordinator declares
//! the process dead 1.3 TTL after the grant, and the grant is later than the heartbeat. So the lease has always ended at
//! the server before the coordinator reassigns its subjects, if the clock rates differ by less than 30 %.

use std::time::Duration;

/// How long a process may hold a lease from an unknown run of a coordinator.
///
/// Within this time after the coordinator lost its state, an operator must not configure shorter leases: a server may
/// still hold a longer lease that the coordinator does not know, and the join of the server does not contain it.
pub const UNKNOWN_RESTART_WAIT: Duration = Duration::from_secs(30);

/// The longest time to live of a lease. A coordinator that lost its state waits [`UNKNOWN_RESTART_WAIT`] for unknown
/// leases; no lease may be longer than that.
pub const LONGEST_TTL: Duration = Duration::from_secs(20);

const _: () = assert!(LONGEST_TTL.as_millis() * 13 / 10 <= UNKNOWN_RESTART_WAIT.as_millis());

/// How long after it granted a lease of `ttl` the coordinator may declare the process dead.
#[must_use]
pub fn dead_after(ttl: Duration) -> Duration {
    ttl * 13 / 10
}

/// The lease of one process, as the coordinator knows it. Times are on the clock of the machine's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantedLease {
    /// Granted by this run.
    Granted {
        /// The time of the last heartbeat or join of the process.
        last_seen: Duration,
        /// When the process may be declared dead, unless it sends a heartbeat before.
        ends: Duration,
    },
    /// Possibly granted by an earlier run; no heartbeat has arrived in this run.
    Inherited {
        /// When the process may be declared dead, unless it sends a heartbeat before.
        ends: Duration,
    },
    /// The process was declared dead, or it left.
    Ended,
}

impl GrantedLease {
    /// A lease granted now.
    #[must_use]
    pub fn granted(now: Duration, ttl: Duration) -> Self {
        Self::Granted { last_seen: now, ends: now + dead_after(ttl) }
    }

    /// The lease after a new grant now. The reply to the process may be lost, and the old lease may have been longer: the
    /// new lease never ends before the old one.
    #[must_use]
    pub fn renewed(self, now: Duration, ttl: Duration) -> Self {
        let mut renewed = Self::granted(now, ttl);
        if let Self::Granted { ends, .. } | Self::Inherited { ends } = self {
            renewed.extend(ends);
        }
        renewed
    }

    /// Whether the process may still hold the lease.
    #[must_use]
    pub fn may_be_held(self) -> bool {
        self != Self::Ended
    }

    /// Whether the coordinator may declare the process dead.
    #[must_use]
    pub fn has_ended(self, now: Duration) -> bool {
        match self {
            Self::Granted { ends, .. } | Self::Inherited { ends } => ends <= now,
            Self::Ended => false,
        }
    }

    /// Postpones the end to at least `until`, because heartbeats could not reach the coordinator for some time.
    pub fn extend(&mut self, until: Duration) {
        match self {
            Self::Granted { ends, .. } | Self::Inherited { ends } => *ends = (*ends).max(until),
            Self::Ended => {}
        }
    }
}
