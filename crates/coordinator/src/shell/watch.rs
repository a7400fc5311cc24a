//! What can be seen from outside: health, and the NATS services API.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_bus::services::{EndpointDescription, ServiceDescription, announce};
use dormouse_bus::{EndpointStats, SubscribeError, health::answer_health};
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_protocol::{Incarnation, ServerName};
use dormouse_runtime::Env;

use super::inbox::{EndpointFacts, Listening};
use crate::machine::{Census, Machine};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How the coordinator stands, as of its last batch.
#[derive(Clone, Default)]
enum Standing {
    /// It is finding out whether another one coordinates.
    #[default]
    Asking,
    /// Another one coordinates; its run, where it is known.
    Other(Option<Incarnation>),
    /// It coordinates.
    Coordinating { census: Census, assigned_subjects: u64, waiting: bool, endpoints: Vec<Arc<EndpointStats>> },
}

/// Shows how the coordinator stands to whoever asks.
#[derive(Clone)]
pub(super) struct Watch {
    env: Env,
    started: Duration,
    shown: Arc<Mutex<(Incarnation, Standing)>>,
}

impl Watch {
    pub(super) fn new(env: &Env, incarnation: Incarnation) -> Self {
        let shown = Arc::new(Mutex::new((incarnation, Standing::default())));
        Self { env: env.clone(), started: env.boot(), shown }
    }

    /// The newest run.
    pub(super) fn incarnation(&self) -> Incarnation {
        self.shown().0
    }

    pub(super) fn coordinates(&self) -> bool {
        matches!(self.shown().1, Standing::Coordinating { .. })
    }

    /// From here on another one coordinates.
    pub(super) fn note_other(&self, other: Option<Incarnation>) {
        self.shown().1 = Standing::Other(other);
    }

    /// Takes over how things are now.
    pub(super) fn note(&self, machine: &Machine, assigned_subjects: u64, endpoints: &[EndpointFacts]) {
        let standing = Standing::Coordinating {
            census: machine.census(),
            assigned_subjects,
            waiting: machine.is_waiting(),
            endpoints: endpoints.iter().map(|endpoint| Arc::clone(&endpoint.stats)).collect(),
        };
        *self.shown() = (machine.incarnation(), standing);
    }

    fn shown(&self) -> MutexGuard<'_, (Incarnation, Standing)> {
        // Replaced in one go: nothing can be half done.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> Health {
        let (incarnation, standing) = self.shown().clone();
        health(&incarnation.to_string(), standing, self.env.boot().saturating_sub(self.started))
    }

    /// Begins to answer requests for health, until the stop signal of the tasks.
    pub(super) async fn answer_health(&self, on: Listening<'_>) -> Result<(), SubscribeError> {
        let watch = self.clone();
        let health = move || watch.health();
        answer_health(on.bus, on.tasks, on.prefix, ServerName::COORDINATOR, on.inbox_prefixes, health).await
    }
}

/// Announces the run to the tooling of NATS, until the stop signal of the tasks.
pub(super) async fn announce_service(
    on: Listening<'_>,
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
        metadata: [("prefix".to_owned(), on.prefix.to_string())].into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    };
    announce(on.bus, on.env, on.tasks, on.inbox_prefixes, service).await
}

fn health(id: &str, standing: Standing, uptime: Duration) -> Health {
    let mut problems = Vec::new();
    let mut figures = BTreeMap::new();
    let serves = match standing {
        Standing::Asking => {
            problems.push("it is finding out whether another coordinator coordinates this fleet".to_owned());
            false
        }
        Standing::Other(other) => {
            problems.push(format!(
                "another coordinator coordinates this fleet ({}): this one assigns nothing",
                other.map_or_else(|| "of a kind it does not know".to_owned(), |other| format!("run {other}"))
            ));
            false
        }
        Standing::Coordinating { census, assigned_subjects, waiting, endpoints } => {
            if census.alive == 0 {
                problems.push("no live server takes subjects".to_owned());
            }
            let requests = endpoints.iter().map(|stats| stats.read().requests).sum();
            figures = [
                ("servers_alive", census.alive),
                ("servers_draining", census.draining),
                ("servers_dead", census.dead),
                ("assigned_subjects", assigned_subjects),
                ("requests", requests),
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
