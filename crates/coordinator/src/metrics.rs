//! The metrics of the coordinator: the figures of each scrape, and their text.

use std::fmt;
use std::sync::Arc;

use dormouse_bus::{Bus, BusDrops, EndpointStats};
use dormouse_daemon::figures::{answer_times, lost_log_lines, no_answer_times, refusals};
use dormouse_metrics::system::{self, DiskRoom};
use dormouse_metrics::{DurationHistogram, LongestSteps, MetricsRegistry, Scrape};
use dormouse_runtime::{Env, Lock};

use crate::shell::{CoordinatorFigures, ENDPOINTS};

/// Reads the current figures.
type ReadFigures = Box<dyn Fn() -> CoordinatorFigures + Send + Sync>;

/// The coordinator that runs now, and its connection.
type CurrentSources = Arc<Lock<Option<(ReadFigures, Arc<dyn Bus>)>>>;

/// What the coordinator measures while it works. Cloning shares the instruments.
#[derive(Debug, Clone, Default)]
pub(crate) struct Instruments {
    pub(crate) steps: LongestSteps,
    /// Time to write and flush the changes of a batch.
    pub(crate) commits: DurationHistogram,
}

/// The metrics of a coordinator process, across its runs.
pub struct CoordinatorMetrics {
    registry: MetricsRegistry,
    current: CurrentSources,
    instruments: Instruments,
}

impl CoordinatorMetrics {
    /// The metrics of a process whose disk has `room`.
    #[must_use]
    pub fn new(env: &Env, room: DiskRoom) -> Arc<Self> {
        let mut registry = MetricsRegistry::default();
        let (current, instruments) = (CurrentSources::default(), Instruments::default());
        system::register(&mut registry, room);
        instruments.steps.register(&mut registry, env);
        let help = "Time to write and flush the changes of a batch";
        registry.register("dormouse_store_commit_seconds", help, &instruments.commits);
        let sources = Arc::clone(&current);
        registry.collect(move |scrape| {
            let (figures, drops) = match &*sources.lock() {
                Some((read, bus)) => (read(), bus.drops()),
                None => (CoordinatorFigures::default(), BusDrops::default()),
            };
            lost_log_lines(scrape);
            collect_state(scrape, &figures);
            collect_requests(scrape, &figures, drops);
        });
        Arc::new(Self { registry, current, instruments })
    }

    /// All metrics in the text format of Prometheus. Does not block.
    #[must_use]
    pub fn text(&self) -> String {
        self.registry.text()
    }

    pub(crate) fn instruments(&self) -> &Instruments {
        &self.instruments
    }

    /// Reads figures from `read` and `bus` from now on.
    pub(crate) fn set_source(&self, read: ReadFigures, bus: Arc<dyn Bus>) {
        *self.current.lock() = Some((read, bus));
    }
}

impl fmt::Debug for CoordinatorMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoordinatorMetrics").finish_non_exhaustive()
    }
}

/// Members, assignments and look-ups.
fn collect_state(scrape: &mut Scrape<'_>, figures: &CoordinatorFigures) {
    let uptime = figures.uptime.as_secs_f64();
    scrape.gauge_f64("dormouse_uptime_seconds", "Time since the start of the process", uptime);
    let active = u64::from(figures.active);
    scrape.gauge("dormouse_coordinator_active", "1 while this coordinator is active", active);
    let assigned = figures.assigned_subjects;
    scrape.gauge("dormouse_assigned_subjects", "Subjects with an assignment", assigned);
    let members = figures.members;
    let states = [("alive", members.alive), ("draining", members.draining), ("dead", members.dead)];
    scrape.gauge_of("dormouse_members", "Servers by state", "state", states);
    scrape.gauge("dormouse_queued_lookups", "Look-ups that wait for their turn", figures.locates.queued);
}

/// Requests by endpoint, refusals and drops.
fn collect_requests(scrape: &mut Scrape<'_>, figures: &CoordinatorFigures, drops: BusDrops) {
    let stats =
        |name: &str| figures.endpoints.iter().find(|(known, _)| *known == name).map(|(_, stats)| stats);
    scrape.histogram_of(
        "dormouse_request_duration_seconds",
        "Time from the arrival of a request to its reply",
        "endpoint",
        ENDPOINTS.map(|name| (name, stats(name).map_or_else(no_answer_times, |stats| answer_times(stats)))),
    );
    let bytes = |name: &str| stats(name).map(|stats| stats.bytes()).unwrap_or_default();
    let received = ENDPOINTS.map(|name| (name, bytes(name).received));
    let help = "Payload bytes of answered requests";
    scrape.counter_of("dormouse_received_bytes_total", help, "endpoint", received);
    let sent = ENDPOINTS.map(|name| (name, bytes(name).sent));
    scrape.counter_of("dormouse_sent_bytes_total", "Payload bytes of replies", "endpoint", sent);
    let all: Vec<Arc<EndpointStats>> = figures.endpoints.iter().map(|(_, stats)| Arc::clone(stats)).collect();
    refusals(scrape, &all);
    let read: Vec<_> = all.iter().map(|stats| stats.read()).collect();
    let dropped = [
        ("nats_library", drops.library),
        ("subscriptions", drops.subscriptions),
        ("replies", read.iter().map(|stats| stats.dropped).sum()),
        ("lookups", figures.locates.dropped),
        ("unanswerable", read.iter().map(|stats| stats.unanswerable + stats.refused).sum()),
    ];
    scrape.counter_of(
        "dormouse_dropped_total",
        "Messages dropped because a queue was full",
        "queue",
        dropped,
    );
}

#[cfg(test)]
mod tests;
