//! How busy servers are, and what that means for where new subjects go.

use std::time::Duration;

use super::{Machine, Member};

/// The weight of a server in placement is counted in so many parts.
pub(super) const EASE: u32 = 4;

/// Within about this time what a server has to do now outweighs what it had to do before.
const SMOOTHING: Duration = Duration::from_secs(10);

/// Over less than this nothing is measured: two heartbeats may come right behind each other.
const SHORTEST_SPAN: Duration = Duration::from_millis(100);

/// Where servers have fewer requests per second than this on average, who has more of them says nothing.
const LEAST_REQUESTS_PER_SECOND: f64 = 10.0;

/// Where servers have fewer subjects open than this on average, who has more of them says nothing.
const LEAST_OPEN_SUBJECTS: f64 = 100.0;

/// How many requests a server answers per second, lately, by the counter in its heartbeats.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rate {
    counted: Option<(Duration, u64)>,
    per_second: f64,
}

impl Rate {
    /// Notes that the counter stands at `requests` now.
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
        // A counter that went back is another one.
        let Some(more) = requests.checked_sub(counted) else { return };
        let measured = more as f64 / span.as_secs_f64();
        let weight = span.as_secs_f64() / (span + SMOOTHING).as_secs_f64();
        self.per_second += (measured - self.per_second) * weight;
    }

    /// Requests per second.
    pub(super) fn per_second(&self) -> u64 {
        self.per_second.round() as u64
    }
}

impl Member {
    /// What it counts for in placement.
    pub(super) fn weight(&self) -> u64 {
        u64::from(self.record.capacity) * u64::from(self.ease)
    }
}

impl Machine {
    /// Reduces the weight of those who have more to do than their share, one step at a time: to a quarter at most, so
    /// that nobody is left out, and in coarse steps, so that small differences change nothing.
    pub(super) fn weigh_members(&mut self) {
        let takers = || self.members.values().filter(|member| member.takes_subjects());
        let sum = |what: fn(&Member) -> f64| takers().map(what).sum::<f64>();
        let capacity = sum(|member| f64::from(member.record.capacity));
        let requests = sum(|member| member.rate.per_second);
        let open = sum(|member| member.load.open_subjects as f64);
        let number = takers().count() as f64;
        for member in self.members.values_mut() {
            let share = f64::from(member.record.capacity) / capacity;
            // How many times its share it has.
            let times = |has: f64, all: f64, least: f64| {
                if all < least * number || share <= 0.0 { 1.0 } else { has / (all * share) }
            };
            let busy = times(member.rate.per_second, requests, LEAST_REQUESTS_PER_SECOND);
            let full = times(member.load.open_subjects as f64, open, LEAST_OPEN_SUBJECTS);
            let wanted = if member.takes_subjects() { ease(busy.max(full)) } else { EASE };
            member.ease = wanted.clamp(member.ease.saturating_sub(1), member.ease + 1);
        }
    }
}

/// What is left of the weight of a server that has so many times its share.
fn ease(times: f64) -> u32 {
    match times {
        times if times > 2.0 => 1,
        times if times > 1.5 => 2,
        times if times > 1.25 => 3,
        _ => EASE,
    }
}
