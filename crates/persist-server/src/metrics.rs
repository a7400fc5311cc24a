//! The metrics of the server: the figures of each scrape, and their text.
//!
//! A figure that health shows too has the same source.

use std::fmt;
use std::sync::Arc;

use dormouse_bucket::BucketInstruments;
use dormouse_bus::{EndpointStats, SubscribeError, health::answer_metrics};
use dormouse_daemon::figures::{answer_times, lost_log_lines, no_answer_times, refusals};
use dormouse_engine::EngineInstruments;
use dormouse_metrics::system::{self, DiskRoom};
use dormouse_metrics::{MetricsRegistry, Scrape};
use dormouse_protocol::tenant::TenantUse;
use dormouse_protocol::{Op, TenantName};
use dormouse_runtime::{Env, Lock};

use crate::health::HealthSources;
use crate::server::Server;

/// The sources of the server that runs now.
type CurrentSources = Arc<Lock<Option<HealthSources>>>;

/// The metrics of a server process. They outlive its logs: after a takeover or a drain the process continues with a new
/// log and a new [`Server`], whose figures replace those of the old one.
pub struct ServerMetrics {
    registry: MetricsRegistry,
    current: CurrentSources,
    engine: EngineInstruments,
    bucket: BucketInstruments,
}

impl ServerMetrics {
    /// The metrics of a process whose disk has `room`.
    #[must_use]
    pub fn new(env: &Env, room: DiskRoom) -> Arc<Self> {
        let mut registry = MetricsRegistry::default();
        let current = CurrentSources::default();
        let (engine, bucket) = (EngineInstruments::default(), BucketInstruments::default());
        system::register(&mut registry, room);
        engine.register(&mut registry, env);
        bucket.register(&mut registry);
        let sources = Arc::clone(&current);
        registry.collect(move |scrape| {
            let sources = sources.lock().clone();
            lost_log_lines(scrape);
            collect_server(scrape, sources.as_ref());
            collect_requests(scrape, sources.as_ref());
            collect_engine(scrape, sources.as_ref());
            collect_tenants(scrape, sources.as_ref());
            collect_drops(scrape, sources.as_ref());
        });
        Arc::new(Self { registry, current, engine, bucket })
    }

    /// The instruments of the engine, for [`PreparedEngine::measured_by`](dormouse_engine::PreparedEngine::measured_by).
    #[must_use]
    pub const fn engine(&self) -> &EngineInstruments {
        &self.engine
    }

    /// The instruments of the bucket.
    #[must_use]
    pub const fn bucket(&self) -> &BucketInstruments {
        &self.bucket
    }

    /// All metrics in the text format of Prometheus. Does not block.
    #[must_use]
    pub fn text(&self) -> String {
        self.registry.text()
    }
}

impl fmt::Debug for ServerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerMetrics").finish_non_exhaustive()
    }
}

impl Server {
    /// Makes this server the source of `metrics`, and answers requests for them on the bus until this server ends.
    ///
    /// If the call is cancelled, the route gets replies or none.
    ///
    /// # Errors
    /// [`SubscribeError`], such as for a NATS user without the permission. The server works without the route.
    pub async fn publish_metrics(&self, metrics: &Arc<ServerMetrics>) -> Result<(), SubscribeError> {
        *metrics.current.lock() = Some(self.health.clone());
        let text = {
            let metrics = Arc::clone(metrics);
            move || metrics.text()
        };
        let (prefix, name, inboxes) = self.address();
        answer_metrics(&self.control.bus, &self.tasks.fixed_replies, prefix, name.as_str(), inboxes, text)
            .await
    }
}

/// State of the process and its lease.
fn collect_server(scrape: &mut Scrape<'_>, sources: Option<&HealthSources>) {
    let lease = sources.and_then(|sources| sources.lease.held());
    let left = lease.map_or(0.0, |(_, left)| left.as_secs_f64());
    let generation = lease.map_or(0, |(generation, _)| generation.0);
    let uptime = sources.map(|sources| sources.env.boot().saturating_sub(sources.started));
    scrape.gauge("dormouse_lease_held", "1 while the server holds a lease", u64::from(lease.is_some()));
    scrape.gauge("dormouse_lease_generation", "Generation of the lease, 0 without one", generation);
    scrape.gauge_f64("dormouse_lease_left_seconds", "Time until the lease expires", left);
    scrape.gauge_f64(
        "dormouse_uptime_seconds",
        "Time since the start of the process",
        uptime.map_or(0.0, |uptime| uptime.as_secs_f64()),
    );
    let problems = sources.map_or(0, |sources| sources.health().problems.len() as u64);
    scrape.gauge("dormouse_health_problems", "Problems that health reports", problems);
}

/// Requests by operation, and refusals.
fn collect_requests(scrape: &mut Scrape<'_>, sources: Option<&HealthSources>) {
    let endpoint = |op: Op| sources.map(|sources| Arc::clone(sources.stats.of(op)));
    let by_op =
        |figure: &dyn Fn(&EndpointStats) -> u64, op: Op| endpoint(op).map_or(0, |stats| figure(&stats));
    scrape.histogram_of(
        "dormouse_request_duration_seconds",
        "Time from the arrival of a request to its reply",
        "op",
        Op::ALL.iter().map(|op| {
            (op.as_str(), endpoint(*op).map_or_else(no_answer_times, |stats| answer_times(&stats)))
        }),
    );
    scrape.counter_by("dormouse_received_bytes_total", "Payload bytes of answered requests", |op: Op| {
        by_op(&|stats| stats.bytes().received, op)
    });
    scrape.counter_by("dormouse_sent_bytes_total", "Payload bytes of replies", |op: Op| {
        by_op(&|stats| stats.bytes().sent, op)
    });
    let all = sources.map(HealthSources::endpoints).unwrap_or_default();
    refusals(scrape, &all);
    let in_flight = sources.map_or(0, |sources| sources.admission.in_flight());
    scrape.gauge("dormouse_requests_in_flight", "Unanswered requests", in_flight);
}

/// Figures of the engine and its log.
fn collect_engine(scrape: &mut Scrape<'_>, sources: Option<&HealthSources>) {
    let engine = sources.map(|sources| sources.progress.figures().engine).unwrap_or_default();
    let log = engine.log;
    scrape.counter("dormouse_changes_total", "Changes acknowledged", engine.changes);
    scrape.counter(
        "dormouse_claims_total",
        "Claims tried: manifests that would make this log the owner",
        engine.claims,
    );
    scrape.counter(
        "dormouse_compactions_total",
        "Manifests with a newer base published",
        engine.manifest_publishes,
    );
    scrape.counter(
        "dormouse_compaction_failures_total",
        "Failed publications",
        engine.manifest_publish_failures,
    );
    scrape.counter(
        "dormouse_fenced_subjects_total",
        "Subjects that another process claimed meanwhile",
        engine.fenced_subjects,
    );
    scrape.counter(
        "dormouse_handed_over_subjects_total",
        "Subjects handed over on single orders",
        engine.handed_over,
    );
    scrape.counter(
        "dormouse_read_barriers_total",
        "Probes of the next slot for read barriers",
        log.read_barriers,
    );
    scrape.counter("dormouse_shipped_segments_total", "Segments created in the bucket", log.segments);
    scrape.counter("dormouse_shipped_entries_total", "Entries in these segments", log.entries);
    scrape.counter("dormouse_shipped_bytes_total", "Bytes of these segments", log.segment_bytes);
    scrape.gauge(
        "dormouse_apply_backlog_bytes",
        "Acknowledged changes not yet in files",
        engine.apply_backlog_bytes,
    );
    scrape.gauge(
        "dormouse_compaction_failing_subjects",
        "Subjects whose last compaction failed",
        engine.compaction_failing_subjects,
    );
    scrape.gauge(
        "dormouse_open_subjects",
        "Subjects that are open, opening or closing",
        engine.open_subjects,
    );
    scrape.gauge("dormouse_local_bytes", "Bytes of the files of open subjects", engine.local_bytes);
    scrape.gauge("dormouse_uploads", "Chunked uploads in progress", engine.uploads);
    scrape.gauge("dormouse_upload_bytes", "Bytes reserved by these uploads", engine.upload_bytes);
    scrape.gauge(
        "dormouse_unshipped_bytes",
        "Bytes of writes that are not in the bucket",
        log.unshipped_bytes,
    );
    scrape.gauge_f64(
        "dormouse_unshipped_age_seconds",
        "Age of the oldest of these writes",
        log.unshipped_age.as_secs_f64(),
    );
    scrape.gauge("dormouse_retained_slots", "Slots of the log that are not deleted", log.retained_slots);
    scrape.gauge("dormouse_log_bytes", "Bytes of the slots that are not deleted", engine.log_bytes);
    scrape.gauge(
        "dormouse_subjects_with_tail",
        "Subjects that need a slot of the log",
        log.subjects_with_tail,
    );
}

/// Use of the busiest tenants.
fn collect_tenants(scrape: &mut Scrape<'_>, sources: Option<&HealthSources>) {
    let figures = sources.map(|sources| sources.progress.figures());
    let tenants = figures.as_ref().map_or(&[][..], |figures| &figures.tenants);
    let by_tenant = |figure: fn(&TenantUse) -> u64| {
        // Without a tenant, the series of the shared record is 0.
        let none = tenants.is_empty().then_some((TenantName::SHARED, 0.0));
        tenants.iter().map(move |busy| (busy.tenant.as_str(), figure(&busy.in_use) as f64)).chain(none)
    };
    scrape.bounded(
        "dormouse_tenant_requests_per_second",
        "Requests of the busiest tenants in the last second",
        "tenant",
        by_tenant(|in_use| in_use.requests_per_second),
    );
    scrape.bounded(
        "dormouse_tenant_open_subjects",
        "Open subjects of the busiest tenants",
        "tenant",
        by_tenant(|in_use| in_use.open_subjects),
    );
    scrape.bounded(
        "dormouse_tenant_unshipped_bytes",
        "Bytes of writes of the busiest tenants that are not in the bucket",
        "tenant",
        by_tenant(|in_use| in_use.unshipped_bytes),
    );
}

/// Messages that were dropped, by the queue that was full, and published events.
fn collect_drops(scrape: &mut Scrape<'_>, sources: Option<&HealthSources>) {
    let published = sources.map_or(0, |sources| sources.events.published());
    scrape.counter("dormouse_events_total", "Events passed to NATS", published);
    let drops = sources.map(HealthSources::drops).unwrap_or_default();
    scrape.counter_of(
        "dormouse_dropped_total",
        "Messages dropped because a queue was full",
        "queue",
        drops.by_queue(),
    );
}

#[cfg(test)]
mod tests;
