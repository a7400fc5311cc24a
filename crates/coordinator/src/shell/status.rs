//! The public status of the coordinator: health, and the NATS services API.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use dormouse_bus::health::{DROPPED_RECENTLY, RecentDrops, answer_health};
use dormouse_bus::services::{EndpointDescription, ServiceDescription, announce};
use dormouse_bus::{EndpointStats, SubscribeError};
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_protocol::{Incarnation, ServerName};
use dormouse_runtime::{Env, Lock};

use super::inbox::{EndpointFacts, ListenContext};
use crate::locate_queue::LocateCounts;
use crate::machine::{CoordinatorMachine, MemberCounts};
use crate::metrics::Instruments;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The status of the coordinator, as of its last batch.
#[derive(Clone, Default)]
enum CoordinatorStatus {
    /// The presence check for another coordinator runs.
    #[default]
    Checking,
    /// Standby: another coordinator is active; its run, if known.
    Standby(Option<Incarnation>),
    /// Active.
    Active {
        members: MemberCounts,
        assigned_subjects: u64,
        waiting: bool,
        locates: LocateCounts,
        endpoints: Vec<(&'static str, Arc<EndpointStats>)>,
    },
}

/// The names of the endpoints of an active coordinator.
pub(crate) const ENDPOINTS: [&str; 3] = ["fleet", "locate", "admin"];

/// The status of the coordinator as figures. On standby there are none but the uptime.
#[derive(Debug, Clone, Default)]
pub(crate) struct CoordinatorFigures {
    pub(crate) uptime: Duration,
    pub(crate) active: bool,
    pub(crate) members: MemberCounts,
    pub(crate) assigned_subjects: u64,
    pub(crate) locates: LocateCounts,
    pub(crate) endpoints: Vec<(&'static str, Arc<EndpointStats>)>,
}

/// Holds the status of the coordinator and reports it.
#[derive(Clone)]
pub(super) struct StatusReporter {
    env: Env,
    started: Duration,
    status: Arc<Lock<(Incarnation, CoordinatorStatus)>>,
    /// The messages other than look-ups that were dropped, and when.
    drops: Arc<(AtomicU64, RecentDrops)>,
    instruments: Instruments,
}

impl StatusReporter {
    pub(super) fn new(env: &Env, incarnation: Incarnation, instruments: Instruments) -> Self {
        let status = Arc::new(Lock::new((incarnation, CoordinatorStatus::default())));
        Self { env: env.clone(), started: env.boot(), status, drops: Arc::default(), instruments }
    }

    /// The newest run.
    pub(super) fn incarnation(&self) -> Incarnation {
        self.snapshot().0
    }

    pub(super) fn is_active(&self) -> bool {
        matches!(self.snapshot().1, CoordinatorStatus::Active { .. })
    }

    /// Records that another coordinator is active.
    pub(super) fn set_standby(&self, other: Option<Incarnation>) {
        self.snapshot().1 = CoordinatorStatus::Standby(other);
    }

    /// Records the current state of the active coordinator.
    pub(super) fn set_active(
        &self,
        machine: &CoordinatorMachine,
        assigned_subjects: u64,
        locates: LocateCounts,
        endpoints: &[EndpointFacts],
    ) {
        let status = CoordinatorStatus::Active {
            members: machine.member_counts(),
            assigned_subjects,
            waiting: machine.is_in_startup_grace(),
            locates,
            endpoints: endpoints
                .iter()
                .map(|endpoint| (endpoint.name, Arc::clone(&endpoint.stats)))
                .collect(),
        };
        *self.snapshot() = (machine.incarnation(), status);
    }

    /// Records the messages other than look-ups that were dropped since the start.
    pub(super) fn note_drops(&self, number: u64) {
        let (drops, recent) = &*self.drops;
        drops.store(number, Ordering::Relaxed);
        recent.note(number, self.env.boot());
    }

    fn snapshot(&self) -> MutexGuard<'_, (Incarnation, CoordinatorStatus)> {
        // The value is replaced as a whole, so it is consistent after a panic elsewhere.
        self.status.lock()
    }

    /// The instruments of this process.
    pub(super) const fn instruments(&self) -> &Instruments {
        &self.instruments
    }

    pub(super) fn figures(&self) -> CoordinatorFigures {
        let uptime = self.env.boot().saturating_sub(self.started);
        let (_, status) = self.snapshot().clone();
        match status {
            CoordinatorStatus::Checking | CoordinatorStatus::Standby(_) => {
                CoordinatorFigures { uptime, ..CoordinatorFigures::default() }
            }
            CoordinatorStatus::Active { members, assigned_subjects, locates, endpoints, .. } => {
                CoordinatorFigures { uptime, active: true, members, assigned_subjects, locates, endpoints }
            }
        }
    }

    pub(super) fn health(&self) -> Health {
        let (incarnation, status) = self.snapshot().clone();
        let now = self.env.boot();
        let mut health = health(&incarnation.to_string(), status, now, now.saturating_sub(self.started));
        let (drops, recent) = &*self.drops;
        let dropped = drops.load(Ordering::Relaxed);
        if health.status != HealthStatus::NotServing {
            health.figures.insert("messages_dropped_total".to_owned(), dropped);
            if recent.note(dropped, now) {
                let minutes = DROPPED_RECENTLY.as_secs() / 60;
                health
                    .problems
                    .push(format!("requests dropped within the last {minutes} minutes: a queue was full"));
                health.status = HealthStatus::Degraded;
            }
        }
        health
    }

    /// Starts to answer health requests, until the stop signal of the tasks.
    pub(super) async fn answer_health(&self, context: ListenContext<'_>) -> Result<(), SubscribeError> {
        let ListenContext { bus, tasks, prefix, inbox_prefixes, .. } = context;
        let reporter = self.clone();
        let health = move || reporter.health();
        answer_health(bus, tasks, prefix, ServerName::COORDINATOR, inbox_prefixes, health).await
    }
}

/// Serves the NATS services API for this run, until the stop signal of the tasks.
pub(super) async fn announce_service(
    context: ListenContext<'_>,
    incarnation: Incarnation,
    endpoints: &[EndpointFacts],
) -> Result<(), SubscribeError> {
    let endpoint = |facts: &EndpointFacts| EndpointDescription {
        name: facts.name.to_owned(),
        pattern: facts.pattern.clone(),
        queue: None,
        metadata: BTreeMap::new(),
        stats: Arc::clone(&facts.stats),
    };
    let service = ServiceDescription {
        name: "dormouse-coordinator".to_owned(),
        id: incarnation.to_string(),
        version: VERSION.to_owned(),
        description: "Knows which persistence server serves which subject".to_owned(),
        metadata: [("prefix".to_owned(), context.prefix.to_string())].into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    };
    announce(context.bus, context.env, context.tasks, context.inbox_prefixes, service).await
}

fn health(id: &str, status: CoordinatorStatus, now: Duration, uptime: Duration) -> Health {
    let mut problems = Vec::new();
    let mut figures = BTreeMap::new();
    let serves = match status {
        CoordinatorStatus::Checking => {
            problems.push("checking whether another coordinator is active in this fleet".to_owned());
            false
        }
        CoordinatorStatus::Standby(other) => {
            problems.push(format!(
                "standing by: another coordinator is active in this fleet ({})",
                other.map_or_else(|| "unknown run".to_owned(), |other| format!("run {other}"))
            ));
            false
        }
        CoordinatorStatus::Active { members, assigned_subjects, waiting, locates, endpoints } => {
            if members.alive == 0 {
                problems.push("no live server takes subjects".to_owned());
            }
            if locates.last_drop.is_some_and(|last| last + DROPPED_RECENTLY > now) {
                problems.push(format!(
                    "look-ups dropped within the last {} minutes: a tenant asks for far more than its share",
                    DROPPED_RECENTLY.as_secs() / 60
                ));
            }
            let requests = endpoints.iter().map(|(_, stats)| stats.requests()).sum();
            figures = [
                ("servers_alive", members.alive),
                ("servers_draining", members.draining),
                ("servers_dead", members.dead),
                ("assigned_subjects", assigned_subjects),
                ("requests", requests),
                ("queued_lookups", locates.queued),
                ("refused_lookups_total", locates.refused),
                ("dropped_lookups_total", locates.dropped),
                ("waiting_for_old_leases", u64::from(waiting)),
            ]
            .map(|(name, figure)| (name.to_owned(), figure))
            .into();
            true
        }
    };
    Health {
        kind: "coordinator".to_owned(),
        name: ServerName::COORDINATOR.to_owned(),
        id: id.to_owned(),
        version: VERSION.to_owned(),
        status: match problems.is_empty() {
            _ if !serves => HealthStatus::NotServing,
            true => HealthStatus::Ok,
            false => HealthStatus::Degraded,
        },
        problems,
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        figures,
    }
}
