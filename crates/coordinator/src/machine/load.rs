//! The load of servers, and its effect on the placement of new subjects.

use std::time::Duration;

use super::{CoordinatorMachine, MemberState};

/// The number of parts of a server's weight in placement.
pub(super) const WEIGHT_PARTS: u32 = 4;

/// After about this time, the current load of a server outweighs its earlier load.
const SMOOTHING: Duration = Duration::from_secs(10);

/// The rate is not measured over shorter times: two heartbeats may arrive directly after each other.
const SHORTEST_SPAN: Duration = Duration::from_millis(100);

/// If the servers have fewer requests per second than this on average, differences between them are ignored.
const LEAST_REQUESTS_PER_SECOND: f64 = 10.0;

/// If the servers have fewer open subjects than this on average, differences between them are ignored.
const LEAST_OPEN_SUBJECTS: f64 = 100.0;

/// The recent requests per second of a server, from the counter in its heartbeats.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RequestRate {
    counted: Option<(Duration, u64)>,
    per_second: f64,
}

impl RequestRate {
    /// Records the counter value `requests` at `now`.
    pub(super) fn note(&mut self, now: Duration, requests: u64) {
        let Some((since, counted)) = self.counted else {
            self.counted = Some((now, requests));
            return;
        };
        let span = now.saturating_sub(since);
        if span < SHORTEST_SPAN {
            return;
        }
        self.counted = Some((now, requests));
        // A smaller value belongs to another counter.
        let Some(increase) = requests.checked_sub(counted) else { return };
        let measured = increase as f64 / span.as_secs_f64();
        let weight = span.as_secs_f64() / (span + SMOOTHING).as_secs_f64();
        self.per_second += (measured - self.per_second) * weight;
    }

    /// Requests per second.
    pub(super) fn per_second(&self) -> u64 {
        self.per_second.round() as u64
    }
}

impl MemberState {
    /// The weight in placement.
    pub(super) fn weight(&self) -> u64 {
        u64::from(self.record.capacity) * u64::from(self.weight_parts)
    }
}

impl CoordinatorMachine {
    /// Reduces the weight of servers whose load is above their share, one part per call. The weight never falls below a
    /// quarter, so each server still gets subjects. The parts are coarse, so small differences change nothing.
    pub(super) fn update_weights(&mut self) {
        let takers = || self.members.values().filter(|member| member.takes_subjects());
        let sum = |metric: fn(&MemberState) -> f64| takers().map(metric).sum::<f64>();
        let capacity = sum(|member| f64::from(member.record.capacity));
        let requests = sum(|member| member.rate.per_second);
        let open = sum(|member| member.load.open_subjects as f64);
        let number = takers().count() as f64;
        for member in self.members.values_mut() {
            let share = f64::from(member.record.capacity) / capacity;
            // The load as a multiple of the server's share.
            let multiple = |load: f64, all: f64, least: f64| {
                if all < least * number || share <= 0.0 { 1.0 } else { load / (all * share) }
            };
            let busy = multiple(member.rate.per_second, requests, LEAST_REQUESTS_PER_SECOND);
            let full = multiple(member.load.open_subjects as f64, open, LEAST_OPEN_SUBJECTS);
            let wanted = if member.takes_subjects() { reduced_weight(busy.max(full)) } else { WEIGHT_PARTS };
            member.weight_parts =
                wanted.clamp(member.weight_parts.saturating_sub(1), member.weight_parts + 1);
        }
    }
}

/// The weight parts of a server whose load is `multiple` times its share.
fn reduced_weight(multiple: f64) -> u32 {
    match multiple {
        multiple if multiple > 2.0 => 1,
        multiple if multiple > 1.5 => 2,
        multiple if multiple > 1.25 => 3,
        _ => WEIGHT_PARTS,
    }
}
