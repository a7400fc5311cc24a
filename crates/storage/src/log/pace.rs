//! When to ship: how long writes wait for company, and how often the bucket is asked.

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::LogSettings;

/// What waits to be shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Waiting {
    /// Its bytes.
    pub bytes: u64,
    /// When the oldest of it was accepted; `None` when nothing waits.
    pub oldest: Option<Duration>,
    /// Somebody waits for it: a write at level `bucket`, or whoever asked for everything to be shipped.
    pub is_wanted: bool,
}

/// When to ship what waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Nothing waits.
    Idle,
    /// Not before this instant.
    Wait(Duration),
    /// At once.
    Now,
}

/// Spaces the segments of a log. Instants are of the boot clock.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pace {
    ship_interval: Duration,
    ship_bytes: u64,
    /// Between two segments, on average.
    gap: Duration,
    /// The instant that the average has reached: at most a second ahead of the clock.
    spent: Duration,
}

/// How far segments may run ahead of their average.
const BURST: Duration = Duration::from_secs(1);

impl Pace {
    /// The pace that `settings` ask for.
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
    pub fn decide(&self, waiting: &Waiting, now: Duration) -> Decision {
        let Some(oldest) = waiting.oldest else { return Decision::Idle };
        let wanted = waiting.is_wanted || waiting.bytes >= self.ship_bytes;
        let due = if wanted { now } else { oldest + self.ship_interval };
        let affordable = (self.spent + self.gap).saturating_sub(BURST.max(self.gap));
        match due.max(affordable) {
            at if at <= now => Decision::Now,
            at => Decision::Wait(at),
        }
    }

    /// A segment goes now.
    pub fn shipping(&mut self, now: Duration) {
        self.spent = self.spent.max(now) + self.gap;
    }
}
