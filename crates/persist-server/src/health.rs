//! What the server says about itself: health, and figures for operators.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dormouse_protocol::LogId;
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_runtime::Env;
use dormouse_storage::{Engine, Figures};

use crate::authority::LeaseView;
use crate::events::Events;
use crate::mover::MovingFigures;
use crate::requests::{Budget, OpStats};

/// For how long dropped events are a problem that an operator should look at.
const DROPPED_RECENTLY: Duration = Duration::from_secs(5 * 60);

/// Changes that wait so long for the bucket are a problem that an operator should look at.
const UNSHIPPED_LONG: Duration = Duration::from_secs(5);

/// Where the process is in its life. Only ever moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// On its way up: waiting for its first lease.
    Starting,
    /// Serving.
    Serving,
    /// On its way down.
    Stopping,
}

/// The phase, shared.
#[derive(Debug, Default)]
pub(crate) struct PhaseCell(AtomicU8);

impl PhaseCell {
    pub(crate) fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Relaxed);
    }

    fn get(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Stopping,
        }
    }
}

/// Everything health is read from.
#[derive(Clone)]
pub(crate) struct Vitals {
    pub(crate) env: Env,
    pub(crate) started: Duration,
    pub(crate) log: LogId,
    pub(crate) phase: Arc<PhaseCell>,
    pub(crate) lease: LeaseView,
    /// Empty until there is a lease.
    pub(crate) engine: Arc<OnceLock<Engine>>,
    pub(crate) events: Arc<Events>,
    pub(crate) moving: Arc<MovingFigures>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) stats: OpStats,
}

impl Vitals {
    /// Health at this moment. Costs the same however many subjects there are.
    pub(crate) fn health(&self) -> Health {
        let phase = self.phase.get();
        let problems = self.problems(phase);
        let status = match phase {
            Phase::Starting | Phase::Stopping => HealthStatus::NotServing,
            Phase::Serving if problems.is_empty() => HealthStatus::Ok,
            Phase::Serving => HealthStatus::Degraded,
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
            figures: self.figures(),
        }
    }

    pub(crate) fn engine_figures(&self) -> Figures {
        self.engine.get().map(Engine::figures).unwrap_or_default()
    }

    fn problems(&self, phase: Phase) -> Vec<String> {
        let standing = match phase {
            Phase::Starting => Some("waiting for the coordinator to grant the first lease"),
            Phase::Stopping => Some("shutting down"),
            Phase::Serving if self.lease.generation().is_none() => Some(
                "no lease: every answer waits for the bucket, and no subject is opened that is not this server's, \
                 until the coordinator answers heartbeats again",
            ),
            Phase::Serving => None,
        };
        let mut problems: Vec<String> = standing.map(str::to_owned).into_iter().collect();
        let figures = self.engine_figures();
        if phase == Phase::Serving {
            problems.extend(self.emptying(figures.open_subjects));
        }
        if figures.log.unshipped_age > UNSHIPPED_LONG {
            problems.push(format!(
                "the bucket has not taken changes that are {} s old",
                figures.log.unshipped_age.as_secs()
            ));
        }
        if figures.subjects_not_compacted > 0 {
            problems.push(format!(
                "the bucket did not take a newer base of {} subjects at the last attempt",
                figures.subjects_not_compacted
            ));
        }
        if self.events.dropped_since(self.env.boot().saturating_sub(DROPPED_RECENTLY)) {
            problems.push(format!(
                "events were dropped within the last {} minutes because the bus did not take them or was not connected",
                DROPPED_RECENTLY.as_secs() / 60
            ));
        }
        problems
    }

    /// How far an order to be empty is carried out.
    fn emptying(&self, open_subjects: u64) -> Option<String> {
        if !self.moving.is_ordered.load(Ordering::Relaxed) {
            return None;
        }
        Some(if self.moving.is_empty.load(Ordering::Relaxed) {
            "drained, as an operator wants: nothing is served here until that is taken back".to_owned()
        } else {
            format!("draining, as an operator wants: {open_subjects} subjects are open")
        })
    }

    fn figures(&self) -> BTreeMap<String, u64> {
        let engine = self.engine_figures();
        [
            ("open_subjects", engine.open_subjects),
            ("subjects_not_compacted", engine.subjects_not_compacted),
            ("log_segments", engine.log.segments),
            ("log_segment_bytes", engine.log.segment_bytes),
            ("log_entries", engine.log.entries),
            ("log_syncs", engine.log.syncs),
            ("log_slots", engine.log.slots),
            ("log_tails", engine.log.tails),
            ("unshipped_bytes", engine.log.unshipped_bytes),
            ("unshipped_age_ms", u64::try_from(engine.log.unshipped_age.as_millis()).unwrap_or(u64::MAX)),
            ("barriers_asked_of_the_bucket", engine.log.probes),
            ("local_bytes", engine.local_bytes),
            ("backlog_bytes", engine.backlog_bytes),
            ("changes", engine.changes),
            ("uploads", engine.uploads),
            ("upload_bytes", engine.upload_bytes),
            ("opens", engine.opens),
            ("publications", engine.publications),
            ("publication_failures", engine.publication_failures),
            ("lost_subjects", engine.lost_subjects),
            ("draining", u64::from(self.moving.is_ordered.load(Ordering::Relaxed))),
            ("subjects_handed_over", engine.handed_over),
            ("hand_over_failures", self.moving.failures.load(Ordering::Relaxed)),
            ("requests", self.stats.requests()),
            ("requests_in_flight", self.budget.in_flight() as u64),
            ("requests_overloaded", self.budget.refused() + engine.overloaded),
            ("events_published", self.events.published()),
            ("events_dropped", self.events.dropped()),
            ("lease_generation", self.lease.generation().map_or(0, |generation| generation.0)),
        ]
        .into_iter()
        .map(|(name, figure)| (name.to_owned(), figure))
        .collect()
    }
}
