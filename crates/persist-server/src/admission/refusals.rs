//! Counts per second of one tenant. Pure.

use std::time::Duration;

/// Counts events in the current second and in the second before it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PerSecond {
    second: u64,
    now: u64,
    before: u64,
}

impl PerSecond {
    fn advance(&mut self, time: Duration) {
        let second = time.as_secs();
        if second > self.second {
            self.before = if second == self.second + 1 { self.now } else { 0 };
            (self.second, self.now) = (second, 0);
        }
    }

    /// Counts `more` events.
    pub(super) fn add(&mut self, more: u64, time: Duration) {
        self.advance(time);
        self.now = self.now.saturating_add(more);
    }

    /// Counts `more` events if at most `most` happen in this second. Events above the limit are not counted, except the
    /// first ones of a second: more than the limit at once is possible once a second.
    pub(super) fn add_up_to(&mut self, more: u64, most: u64, time: Duration) -> bool {
        self.add_to(0, more, most, time)
    }

    /// The same for `more` events that belong to `counted` ones: they count as one group.
    pub(super) fn add_to(&mut self, counted: u64, more: u64, most: u64, time: Duration) -> bool {
        self.advance(time);
        let is_first = self.now <= counted;
        let fits = is_first && most > 0 || self.now.saturating_add(more) <= most;
        if fits {
            self.now = self.now.saturating_add(more);
        }
        fits
    }

    /// Uncounts events of this second.
    pub(super) fn take_back(&mut self, number: u64, time: Duration) {
        self.advance(time);
        self.now = self.now.saturating_sub(number);
    }

    /// The events of the last full second.
    pub(super) fn last_second(&self, time: Duration) -> u64 {
        let mut at = *self;
        at.advance(time);
        at.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts end with their second, and the last full second stays visible for one second.
    #[test]
    fn counts_per_second_end_with_their_second() {
        let at = Duration::from_millis;
        let mut count = PerSecond::default();
        count.add(3, at(1_000));
        count.add(4, at(1_999));
        assert_eq!(count.last_second(at(1_999)), 0);
        assert_eq!(count.last_second(at(2_000)), 7);
        assert_eq!(count.last_second(at(3_000)), 0);
        assert!(count.add_up_to(2, 2, at(2_500)));
        assert!(!count.add_up_to(1, 2, at(2_999)));
        assert!(count.add_up_to(5, 2, at(3_000)), "one large event a second");
        assert!(!count.add_up_to(0, 2, at(3_001)) && !count.add_up_to(1, 0, at(4_000)));
    }
}
