//! Whether the data side of a server advances: the rule under which the control side may renew the lease, and when it
//! ends the process.
//!
//! The lease says that this server answers requests. So it is renewed only while the data thread runs passes, the data
//! connection carries messages, and the disk takes writes. A saturated server does all three; a server that hangs does
//! not.

use std::time::Duration;

/// Checks in one TTL.
pub(crate) const CHECKS_PER_TTL: u32 = 6;

/// Checks in a row after which a stalled process ends: 3 TTL. Checks count, not elapsed time, so a process that was
/// suspended does not end when it continues.
const CHECKS_BEFORE_EXIT: u32 = 3 * CHECKS_PER_TTL;

/// Checks in a row after which a stall is logged. At the first check after a suspension, the data side has not run yet.
const CHECKS_BEFORE_WARNING: u32 = 2;

/// The last signs of life. Times are those of [`Env::boot`](dormouse_runtime::Env::boot).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivenessSample {
    /// When the data side last ended a pass.
    pub advanced_at: Duration,
    /// When the last message that the data connection carried to itself was sent.
    pub round_trip_at: Duration,
    /// The same for the control connection.
    pub control_round_trip_at: Duration,
    /// When the running write or sync of the WAL began.
    pub wal_busy_since: Option<Duration>,
}

/// What does not advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StallCause {
    /// The data thread has ended no pass for a TTL.
    DataThread,
    /// A write or sync of the WAL has been unfinished for a TTL.
    Wal,
    /// No message that the data connection sent to itself within the last TTL has arrived.
    DataConnection,
}

impl StallCause {
    /// A constant name, for log lines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DataThread => "data thread",
            Self::Wal => "WAL write",
            Self::DataConnection => "data connection",
        }
    }
}

impl LivenessSample {
    /// What does not advance at `now`, if anything: then the lease must not be renewed.
    #[must_use]
    pub fn stall(&self, ttl: Duration, now: Duration) -> Option<StallCause> {
        let is_old = |time: Duration| now.saturating_sub(time) > ttl;
        if is_old(self.advanced_at) {
            Some(StallCause::DataThread)
        } else if self.wal_busy_since.is_some_and(is_old) {
            Some(StallCause::Wal)
        } else if is_old(self.round_trip_at) {
            Some(StallCause::DataConnection)
        } else {
            None
        }
    }

    /// Whether `cause` at `now` is a fault of this process. Without a round trip of the control connection, the
    /// messaging system may be down, and an outage of it must end no process.
    fn is_own_fault(&self, cause: StallCause, ttl: Duration, now: Duration) -> bool {
        cause != StallCause::DataConnection || now.saturating_sub(self.control_round_trip_at) <= ttl
    }
}

/// An effect of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LivenessEffect {
    /// Log that the lease is not renewed, and why.
    Warn(StallCause),
    /// Log that the data side advances again.
    Recovered,
    /// End the process.
    Exit(StallCause),
}

/// Counts the checks that find a stall.
#[derive(Debug)]
pub struct LivenessMachine {
    ttl: Duration,
    check_at: Duration,
    /// Checks in a row that found a stall by the fault of this process.
    stalled_checks: u32,
    /// A stall is logged, and its end is not.
    is_warned: bool,
}

impl LivenessMachine {
    /// A machine whose first check is due one interval after `now`.
    #[must_use]
    pub fn new(now: Duration, ttl: Duration) -> Self {
        Self { ttl, check_at: now + ttl / CHECKS_PER_TTL, stalled_checks: 0, is_warned: false }
    }

    /// When the next check is due.
    #[must_use]
    pub fn check_at(&self) -> Duration {
        self.check_at
    }

    /// Uses another TTL from `now` on.
    pub fn set_ttl(&mut self, ttl: Duration, now: Duration) {
        if std::mem::replace(&mut self.ttl, ttl) != ttl {
            self.check_at = self.check_at.min(now + ttl / CHECKS_PER_TTL);
        }
    }

    /// Checks `sample` at `now`, if a check is due.
    pub fn check(&mut self, sample: &LivenessSample, now: Duration) -> Option<LivenessEffect> {
        if now < self.check_at {
            return None;
        }
        // From now, not from the time when it was due: late checks are not made up for.
        self.check_at = now + self.ttl / CHECKS_PER_TTL;
        let stall = sample.stall(self.ttl, now);
        let Some(cause) = stall.filter(|cause| sample.is_own_fault(*cause, self.ttl, now)) else {
            self.stalled_checks = 0;
            let has_recovered = stall.is_none() && std::mem::take(&mut self.is_warned);
            return has_recovered.then_some(LivenessEffect::Recovered);
        };
        self.stalled_checks += 1;
        if self.stalled_checks >= CHECKS_BEFORE_EXIT {
            return Some(LivenessEffect::Exit(cause));
        }
        if self.stalled_checks < CHECKS_BEFORE_WARNING || std::mem::replace(&mut self.is_warned, true) {
            return None;
        }
        Some(LivenessEffect::Warn(cause))
    }
}

#[cfg(test)]
mod tests;
