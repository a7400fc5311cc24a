//! What can be seen from outside: health, and the NATS services API.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_bus::services::{EndpointDescription, ServiceDescription, announce};
use dormouse_bus::{Bus, EndpointStats, InboxPrefixes, SubscribeError, health::answer_health};
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_protocol::{Incarnation, Prefix, ServerName};
use dormouse_runtime::{Env, Tasks};

use super::inbox::EndpointFacts;
use crate::machine::{Census, Machine};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How the coordinator stands, as of its last batch.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    census: Census,
    assigned_subjects: u64,
    waiting: bool,
}

/// Shows how the coordinator stands to whoever asks.
pub(super) struct Watch {
    incarnation: Incarnation,
    env: Env,
    started: Duration,
    standing: Arc<Mutex<Standing>>,
    endpoints: Vec<EndpointFacts>,
}

impl Watch {
    pub(super) fn new(incarnation: Incarnation, env: &Env, endpoints: Vec<EndpointFacts>) -> Self {
        Self { incarnation, env: env.clone(), started: env.boot(), standing: Arc::default(), endpoints }
    }

    /// Takes over how things are now.
    pub(super) fn note(&self, machine: &Machine, assigned_subjects: u64) {
        let standing =
            Standing { census: machine.census(), assigned_subjects, waiting: machine.is_waiting() };
        // Replaced in one go: nothing can be half done.
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    /// Begins to answer, until the stop signal of `tasks`.
    pub(super) async fn answer(
        &self,
        bus: &Arc<dyn Bus>,
        tasks: &Tasks,
        prefix: &Prefix,
        inbox_prefixes: &InboxPrefixes,
    ) -> Result<(), SubscribeError> {
        announce(bus, &self.env, tasks, inbox_prefixes, self.service(prefix)).await?;
        let (standing, env, started) = (Arc::clone(&self.standing), self.env.clone(), self.started);
        let id = self.incarnation.to_string();
        let stats: Vec<_> = self.endpoints.iter().map(|endpoint| Arc::clone(&endpoint.stats)).collect();
        let health = move || {
            let standing = *standing.lock().unwrap_or_else(PoisonError::into_inner);
            health(&id, standing, env.boot().saturating_sub(started), &stats)
        };
        answer_health(bus, tasks, prefix, ServerName::COORDINATOR, inbox_prefixes, health).await
    }

    fn service(&self, prefix: &Prefix) -> ServiceDescription {
        let endpoint = |facts: &EndpointFacts| EndpointDescription {
            name: facts.name.to_owned(),
            pattern: facts.pattern.clone(),
            queue: None,
            metadata: BTreeMap::new(),
            stats: Arc::clone(&facts.stats),
        };
        ServiceDescription {
            name: "dormouse-coordinator".to_owned(),
            id: self.incarnation.to_string(),
            version: VERSION.to_owned(),
            description: "Knows which persistence server serves which subject".to_owned(),
            metadata: [("prefix".to_owned(), prefix.to_string())].into(),
            endpoints: self.endpoints.iter().map(endpoint).collect(),
        }
    }
}

fn health(id: &str, standing: Standing, uptime: Duration, stats: &[Arc<EndpointStats>]) -> Health {
    let Standing { census, assigned_subjects, waiting } = standing;
    let mut problems = Vec::new();
    if census.alive == 0 {
        problems.push("no live server takes subjects".to_owned());
    }
    let requests = stats.iter().map(|stats| stats.read().requests).sum();
    let figures = [
        ("servers_alive", census.alive),
        ("servers_draining", census.draining),
        ("servers_dead", census.dead),
        ("assigned_subjects", assigned_subjects),
        ("requests", requests),
        ("waiting_for_old_leases", u64::from(waiting)),
    ];
    Health {
        kind: "coordinator".to_owned(),
        name: ServerName::COORDINATOR.to_owned(),
        id: id.to_owned(),
        version: VERSION.to_owned(),
        status: if problems.is_empty() { HealthStatus::Ok } else { HealthStatus::Degraded },
        problems,
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        figures: figures.into_iter().map(|(name, figure)| (name.to_owned(), figure)).collect(),
    }
}
