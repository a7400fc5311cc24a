//! How long a process counts as alive.
//!
//! A server trusts a lease for 0.7 TTL from *sending* the heartbeat. The coordinator takes the process for dead only
//! 1.3 TTL after it granted the lease, which was later. So a server has always stopped trusting its lease before the
//! coordinator gives its subjects away, as long as their clocks' rates differ by less than 30 %.

use std::time::Duration;

/// How long a process may hold a lease of a run that nothing is known of.
///
/// Within this time after the coordinator lost its state, leases must not be made shorter by configuration: a server
/// may still trust a longer one of which nobody knows, and its own join says nothing of it.
pub const UNKNOWN_RESTART_WAIT: Duration = Duration::from_secs(30);

/// The longest time to live of a lease. A coordinator that lost its state waits [`UNKNOWN_RESTART_WAIT`] for leases
/// that it does not know of; nobody may be granted one that is longer than that.
pub const LONGEST_TTL: Duration = Duration::from_secs(20);

const _: () = assert!(LONGEST_TTL.as_millis() * 13 / 10 <= UNKNOWN_RESTART_WAIT.as_millis());

/// How long after granting a lease of `ttl` the coordinator may take the process for dead.
#[must_use]
pub fn dead_after(ttl: Duration) -> Duration {
    ttl * 13 / 10
}

/// What the coordinator knows about the lease of one process. Times are on the clock of the machine's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Granted by this run.
    Granted {
        /// When the process was last heard of.
        heard: Duration,
        /// When it may be taken for dead, unless it is heard of before.
        ends: Duration,
    },
    /// Perhaps granted by a run before, which was not heard of since this run began.
    Inherited {
        /// When it may be taken for dead, unless it is heard of before.
        ends: Duration,
    },
    /// The process was declared dead, or it left.
    Over,
}

impl Lease {
    /// A lease granted now.
    #[must_use]
    pub fn granted(now: Duration, ttl: Duration) -> Self {
        Self::Granted { heard: now, ends: now + dead_after(ttl) }
    }

    /// The lease after granting it again now. The process may not learn of the new one, and the old one may have been
    /// longer: it ends no sooner than that.
    #[must_use]
    pub fn renewed(self, now: Duration, ttl: Duration) -> Self {
        let mut renewed = Self::granted(now, ttl);
        if let Self::Granted { ends, .. } | Self::Inherited { ends } = self {
            renewed.extend(ends);
        }
        renewed
    }

    /// Whether the process may still trust it.
    #[must_use]
    pub fn may_hold(self) -> bool {
        self != Self::Over
    }

    /// Whether it is time to declare the process dead.
    #[must_use]
    pub fn has_ended(self, now: Duration) -> bool {
        match self {
            Self::Granted { ends, .. } | Self::Inherited { ends } => ends <= now,
            Self::Over => false,
        }
    }

    /// Puts the end off to `until` at least: the coordinator could not have heard the process lately.
    pub fn extend(&mut self, until: Duration) {
        match self {
            Self::Granted { ends, .. } | Self::Inherited { ends } => *ends = (*ends).max(until),
            Self::Over => {}
        }
    }
}
