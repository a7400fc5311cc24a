//! Health replies of the server: status, problems and figures for operators.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dormouse_bus::health::{DROPPED_RECENTLY, RecentDrops};
use dormouse_bus::{Bus, EndpointStats};
use dormouse_engine::{Engine, EngineMetrics};
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_protocol::tenant::BusyTenant;
use dormouse_protocol::{LogId, Op};
use dormouse_runtime::Env;

use crate::admission::{Admission, REFUSALS_PER_SECOND};
use crate::authority::LeaseView;
use crate::events::EventPublisher;
use crate::handover_task::HandoverMetrics;
use crate::liveness::StallCause;
use crate::progress::DataProgress;
use crate::requests::OpStats;

/// Age of the oldest unshipped change above which health reports a problem.
const UNSHIPPED_LONG: Duration = Duration::from_secs(5);

/// The problem text of a log that exceeds its limit of bytes.
const LOG_OVER_LIMIT: &str = "log too large: its slots have exceeded --max-log-bytes for over a minute, because subjects \
     are not compacted fast enough";

/// Phase of the process. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerPhase {
    /// Before serving: waits for the first lease.
    Starting,
    /// Serving.
    Serving,
    /// Shutting down.
    Stopping,
}

/// The phase, shared.
#[derive(Debug, Default)]
pub(crate) struct SharedPhase(AtomicU8);

impl SharedPhase {
    pub(crate) fn set(&self, phase: ServerPhase) {
        self.0.store(phase as u8, Ordering::Relaxed);
    }

    fn get(&self) -> ServerPhase {
        match self.0.load(Ordering::Relaxed) {
            0 => ServerPhase::Starting,
            1 => ServerPhase::Serving,
            _ => ServerPhase::Stopping,
        }
    }
}

/// The sources of a health reply.
#[derive(Clone)]
pub(crate) struct HealthSources {
    pub(crate) env: Env,
    /// When the process started, on the clock of [`Env::boot`].
    pub(crate) started: Duration,
    pub(crate) log: LogId,
    pub(crate) phase: Arc<SharedPhase>,
    pub(crate) lease: LeaseView,
    /// Empty until there is a lease.
    pub(crate) engine: Arc<OnceLock<Engine>>,
    pub(crate) progress: Arc<DataProgress>,
    pub(crate) events: Arc<EventPublisher>,
    pub(crate) handover: Arc<HandoverMetrics>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) stats: OpStats,
    /// The statistics of requests without a valid operation, which are also those of the reply queue. Empty until the
    /// server takes requests.
    pub(crate) others: Arc<OnceLock<Arc<EndpointStats>>>,
    /// The data connection.
    pub(crate) bus: Arc<dyn Bus>,
    /// The control connection, if it is another one.
    pub(crate) control_bus: Option<Arc<dyn Bus>>,
    pub(crate) recent_drops: Arc<RecentDrops>,
}

/// Messages dropped since the start, by queue. Events, and requests over a share, have a figure and a
/// problem of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Drops {
    /// In the NATS library, on the data connection.
    library: u64,
    /// In the queue of a subscription of the data connection.
    subscriptions: u64,
    /// On the control connection: orders, and requests for health, metrics and discovery.
    control: u64,
    replies: u64,
    /// Requests without a reply address, and those whose reply address is no inbox.
    unanswerable: u64,
    events: u64,
    /// Requests above the share of their tenant, beyond its refusals.
    over_share: u64,
}

impl Drops {
    /// The name of each queue, and the messages that it dropped.
    pub(crate) fn by_queue(self) -> [(&'static str, u64); 7] {
        let Self { library, subscriptions, control, replies, unanswerable, events, over_share } = self;
        [
            ("nats_library", library),
            ("subscriptions", subscriptions),
            ("control", control),
            ("replies", replies),
            ("unanswerable", unanswerable),
            ("events", events),
            ("over_share", over_share),
        ]
    }

    /// Requests, orders and replies that a full queue dropped.
    fn requests(self) -> u64 {
        self.library + self.subscriptions + self.control + self.replies
    }
}

impl HealthSources {
    /// Current health, with figures up to one second old. Waits for nothing that the data side does.
    pub(crate) fn health(&self) -> Health {
        let phase = self.phase.get();
        let figures = self.progress.figures();
        let stall = self.progress.stall();
        let problems = self.problems(phase, stall, &figures.engine);
        let status = match phase {
            _ if stall.is_some() => HealthStatus::Critical,
            ServerPhase::Starting | ServerPhase::Stopping => HealthStatus::NotServing,
            ServerPhase::Serving if problems.is_empty() => HealthStatus::Ok,
            ServerPhase::Serving => HealthStatus::Degraded,
        };
        let uptime = self.env.boot().saturating_sub(self.started);
        Health {
            kind: "server".to_owned(),
            name: self.log.server().to_string(),
            id: self.log.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            status,
            problems,
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            figures: self.figures(&figures.engine),
        }
    }

    /// The statistics of all endpoints.
    pub(crate) fn endpoints(&self) -> Vec<Arc<EndpointStats>> {
        let by_op = Op::ALL.iter().map(|op| Arc::clone(self.stats.of(*op)));
        by_op.chain(self.others.get().cloned()).collect()
    }

    /// The messages dropped so far.
    pub(crate) fn drops(&self) -> Drops {
        let bus = self.bus.drops();
        let control = self.control_bus.as_ref().map(|bus| bus.drops()).unwrap_or_default();
        let others = self.others.get().map(|stats| stats.read()).unwrap_or_default();
        Drops {
            library: bus.library,
            subscriptions: bus.subscriptions,
            control: control.library + control.subscriptions,
            replies: others.dropped,
            unanswerable: others.unanswerable + others.refused,
            events: self.events.dropped(),
            over_share: count(&self.admission.metrics().dropped),
        }
    }

    /// Notes drops, and returns whether there were any recently.
    pub(crate) fn note_drops(&self) -> bool {
        self.recent_drops.note(self.drops().requests(), self.env.boot())
    }

    /// The engine's current metrics. For the data side only: reading them takes locks of the engine.
    pub(crate) fn engine_metrics(&self) -> EngineMetrics {
        self.engine.get().map(Engine::metrics).unwrap_or_default()
    }

    /// The tenants with the most requests, the busiest first, at most `most`. The cost grows with the number of tenants,
    /// and reading them takes locks of the engine: for the data side only.
    pub(crate) fn busiest_tenants(&self, most: usize) -> Vec<BusyTenant> {
        let figures = self.engine.get().map(Engine::tenant_figures).unwrap_or_default();
        self.admission.busiest_tenants(most, &figures)
    }

    fn problems(
        &self,
        phase: ServerPhase,
        stall: Option<StallCause>,
        figures: &EngineMetrics,
    ) -> Vec<String> {
        let state = match phase {
            ServerPhase::Starting => Some("starting: waiting for the first lease"),
            ServerPhase::Stopping => Some("shutting down"),
            ServerPhase::Serving if self.lease.generation().is_none() => Some(
                "lease expired: every reply waits for the bucket, and only subjects that this server owns open, until \
                 the coordinator answers heartbeats again",
            ),
            ServerPhase::Serving => None,
        };
        let mut problems: Vec<String> = stall.map(stall_problem).into_iter().collect();
        problems.extend(state.map(str::to_owned));
        if phase == ServerPhase::Serving {
            problems.extend(self.drain_status(figures.open_subjects));
        }
        if figures.log.unshipped_age > UNSHIPPED_LONG {
            problems.push(format!(
                "shipping delayed: the oldest unshipped change is {} s old",
                figures.log.unshipped_age.as_secs()
            ));
        }
        if figures.compaction_failing_subjects > 0 {
            problems.push(format!(
                "compaction failing: the last attempt failed for {} subjects",
                figures.compaction_failing_subjects
            ));
        }
        if figures.log_over_limit {
            problems.push(LOG_OVER_LIMIT.to_owned());
        }
        if self.events.dropped_since(self.env.boot().saturating_sub(DROPPED_RECENTLY)) {
            problems.push(format!(
                "events dropped within the last {} minutes: the bus rejected them or was not connected",
                DROPPED_RECENTLY.as_secs() / 60
            ));
        }
        if self.admission.metrics().dropped_since(self.env.boot().saturating_sub(DROPPED_RECENTLY)) {
            problems.push(format!(
                "requests dropped within the last {} minutes: a tenant sends more than {REFUSALS_PER_SECOND} requests \
                 a second above its share",
                DROPPED_RECENTLY.as_secs() / 60
            ));
        }
        if self.note_drops() {
            problems.push(format!(
                "requests or replies dropped within the last {} minutes: a queue was full",
                DROPPED_RECENTLY.as_secs() / 60
            ));
        }
        problems
    }

    /// Progress of a drain order.
    fn drain_status(&self, open_subjects: u64) -> Option<String> {
        if !self.handover.drain_ordered.load(Ordering::Relaxed) {
            return None;
        }
        Some(if self.handover.drained.load(Ordering::Relaxed) {
            "drained: this server serves no subjects until undrain".to_owned()
        } else {
            format!("draining: {open_subjects} subjects are open")
        })
    }

    fn figures(&self, engine: &EngineMetrics) -> BTreeMap<String, u64> {
        [
            ("open_subjects", engine.open_subjects),
            ("compaction_failing_subjects", engine.compaction_failing_subjects),
            ("log_segments", engine.log.segments),
            ("log_segment_bytes", engine.log.segment_bytes),
            ("log_entries", engine.log.entries),
            ("wal_syncs_total", engine.log.wal_syncs),
            ("retained_slots", engine.log.retained_slots),
            ("log_bytes", engine.log_bytes),
            ("subjects_with_tail", engine.log.subjects_with_tail),
            ("unshipped_bytes", engine.log.unshipped_bytes),
            ("unshipped_age_ms", u64::try_from(engine.log.unshipped_age.as_millis()).unwrap_or(u64::MAX)),
            ("read_barriers_total", engine.log.read_barriers),
            ("local_bytes", engine.local_bytes),
            ("apply_backlog_bytes", engine.apply_backlog_bytes),
            ("changes", engine.changes),
            ("uploads", engine.uploads),
            ("upload_bytes", engine.upload_bytes),
            ("subject_opens_total", engine.subject_opens),
            ("manifest_publishes_total", engine.manifest_publishes),
            ("publication_failures", engine.manifest_publish_failures),
            ("fenced_subjects_total", engine.fenced_subjects),
            ("draining", u64::from(self.handover.drain_ordered.load(Ordering::Relaxed))),
            ("subjects_handed_over", engine.handed_over),
            ("handover_failures_total", self.handover.failures.load(Ordering::Relaxed)),
            ("requests", self.stats.requests()),
            ("requests_in_flight", self.admission.in_flight()),
            ("requests_overloaded", self.admission.metrics().refused() + engine.overloaded),
            ("requests_expired_total", count(&self.admission.metrics().expired) + engine.expired),
            ("requests_dropped_total", count(&self.admission.metrics().dropped)),
            ("requests_over_share_total", count(&self.admission.metrics().over_share)),
            ("requests_over_size_total", count(&self.admission.metrics().too_large)),
            ("tenants", self.admission.tenants()),
            ("events_published", self.events.published()),
            ("events_dropped", self.events.dropped()),
            ("messages_dropped_total", self.drops().requests()),
            ("lease_generation", self.lease.generation().map_or(0, |generation| generation.0)),
        ]
        .into_iter()
        .map(|(name, figure)| (name.to_owned(), figure))
        .collect()
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// The problem text of a stalled data side.
fn stall_problem(cause: StallCause) -> String {
    let what = match cause {
        StallCause::DataThread => "the data thread has not advanced for a TTL",
        StallCause::Wal => "a write or sync of the WAL has not ended within a TTL",
        StallCause::DataConnection => "no message on the data connection has arrived for a TTL",
    };
    format!("stalled: {what}, so the lease is not renewed, and the process ends if this lasts")
}
