//! When to ship: the maximum batching delay and the maximum rate of segment uploads.

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::LogSettings;

/// The writes that are ready to be shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Unshipped {
    /// Their size in bytes.
    pub bytes: u64,
    /// When the oldest of them was accepted; `None` if there are none.
    pub oldest: Option<Duration>,
    /// A caller waits for them: a write at level `bucket`, or a request to ship everything.
    pub is_awaited: bool,
}

/// When to ship the waiting writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlushDecision {
    /// There are none.
    Idle,
    /// Not before this instant.
    Wait(Duration),
    /// At once.
    Now,
}

/// Limits the rate of a log's segments. Instants are of the boot clock.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ShipSchedule {
    ship_interval: Duration,
    ship_bytes: u64,
    /// Average time between two segments.
    gap: Duration,
    /// The instant up to which the average rate is used: at most a second ahead of the clock.
    spent: Duration,
}

/// How far segments may run ahead of the average rate.
const BURST: Duration = Duration::from_secs(1);

impl ShipSchedule {
    /// The schedule for `settings`.
    #[must_use]
    pub fn new(settings: &LogSettings) -> Self {
        Self {
            ship_interval: settings.ship_interval,
            ship_bytes: settings.ship_bytes,
            gap: Duration::from_secs(1) / settings.max_puts_per_second.max(1),
            spent: Duration::ZERO,
        }
    }

    /// When to ship `waiting`, with no segment in flight.
    #[must_use]
    pub fn decide(&self, waiting: &Unshipped, now: Duration) -> FlushDecision {
        let Some(oldest) = waiting.oldest else { return FlushDecision::Idle };
        let wanted = waiting.is_awaited || waiting.bytes >= self.ship_bytes;
        let due = if wanted { now } else { oldest + self.ship_interval };
        let affordable = (self.spent + self.gap).saturating_sub(BURST.max(self.gap));
        match due.max(affordable) {
            at if at <= now => FlushDecision::Now,
            at => FlushDecision::Wait(at),
        }
    }

    /// Records that a segment is shipped now.
    pub fn shipping(&mut self, now: Duration) {
        self.spent = self.spent.max(now) + self.gap;
    }
}
