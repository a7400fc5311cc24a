//! The running coordinator: one task that owns the machine and the store.
//!
//! ```text
//! coord.locate.> ──> a queue per tenant, in turn ┐
//! fleet.>                                        ├─> batch of requests ─> read ahead ─> machine ─> one write, one flush
//! admin.>                                        ┘                                                 └─> all replies,
//!                                                                                    announcements, orders to servers
//! fleet.heartbeat ──> machine ─> reply, also while the store writes or flushes
//! admin.subjects, admin.rebalance ──> scan of the store, concurrent with the batches
//! ```
//!
//! The coordinator sends a reply only after it has flushed all changes of the batch, so a crash cannot undo a decision
//! that another process acts on. Grouping makes the flush cheap: batches grow with the load. A heartbeat changes no
//! stored state, and a lease must not expire because of other requests: heartbeats wait neither for a flush nor for other
//! requests.
//!
//! All this is one *run* with its own incarnation. A run begins when no other coordinator is active. If another
//! coordinator is active, the process stands by: it logs this, answers only health requests, and begins a new run when no
//! other coordinator is active.

mod actor;
mod errors;
mod inbox;
mod locates;
mod lookup;
mod presence;
mod requests;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{Bus, Callers, InboxPrefixes, health::answer_metrics};
use dormouse_protocol::{Incarnation, Prefix, ServerName, TenantRule};
use dormouse_runtime::{Env, Stop, Tasks};
use tokio::sync::oneshot;

use self::actor::{Actor, RunEnd};
pub use self::errors::{RunError, StartError};
use self::inbox::{ListenContext, RequestInbox};
use self::presence::{ActiveCoordinator, find_active, serve_presence};
use self::status::StatusReporter;
pub(crate) use self::status::{CoordinatorFigures, ENDPOINTS};
use crate::machine::{CoordinatorInput, CoordinatorMachine};
use crate::metrics::CoordinatorMetrics;
use crate::store::{AssignmentWindow, Store};

/// How long a run may take to send its last replies.
const LAST_REPLIES_TIMEOUT: Duration = Duration::from_secs(1);

/// The interval of the log message while another coordinator is active.
const STANDBY_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The options of a coordinator.
#[derive(Debug, Clone)]
pub struct CoordinatorOptions {
    /// The first tokens of every route.
    pub prefix: Prefix,
    /// The time to live of the leases that the coordinator grants.
    pub lease_ttl: Duration,
    /// Reply addresses must begin with one of these; see
    /// [`ServeOptions::inbox_prefixes`](dormouse_bus::ServeOptions::inbox_prefixes).
    pub inbox_prefixes: InboxPrefixes,
    /// Which callers may locate which subjects.
    pub callers: Callers,
    /// Which part of a look-up names its tenant.
    pub tenant_rule: TenantRule,
}

/// A running coordinator. It runs until the stop signal of its tasks; dropping the handle does not stop it.
pub struct Coordinator {
    status: StatusReporter,
    ended: oneshot::Receiver<Result<(), RunError>>,
}

impl Coordinator {
    /// Starts a coordinator in `tasks`. When the call returns, either the coordinator serves requests, or another
    /// coordinator is active and this one stands by until that changes.
    ///
    /// If the call is cancelled, no coordinator runs; some routes may be answered until the stop signal of `tasks`.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        options: CoordinatorOptions,
        store: Arc<dyn Store>,
        bus: Arc<dyn Bus>,
        env: Env,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        Self::start_measured(options, store, bus, env, tasks, None).await
    }

    /// As [`Coordinator::start`]. The coordinator is the source of `metrics`, and answers requests for them on the bus.
    ///
    /// If the call is cancelled, no coordinator runs; some routes may be answered until the stop signal of `tasks`.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_measured(
        options: CoordinatorOptions,
        store: Arc<dyn Store>,
        bus: Arc<dyn Bus>,
        env: Env,
        tasks: &Tasks,
        metrics: Option<&Arc<CoordinatorMetrics>>,
    ) -> Result<Self, StartError> {
        let incarnation = Incarnation::new(env.ulid());
        let instruments = metrics.map(|metrics| metrics.instruments().clone()).unwrap_or_default();
        let watch = StatusReporter::new(&env, incarnation, instruments);
        let process = CoordinatorProcess { options, store, bus, env, status: watch.clone() };
        process.status.answer_health(process.listen_context(tasks)).await?;
        if let Some(metrics) = metrics {
            process.publish_metrics(metrics, tasks).await;
        }
        let next = match find_active(&*process.bus, &process.options.prefix, incarnation).await {
            ActiveCoordinator::NoneActive => {
                AfterRun::Run(Box::new(process.begin(incarnation, PriorCoordinator::SameStore).await?))
            }
            ActiveCoordinator::Active(other) => AfterRun::StandBy(other),
        };
        if let AfterRun::StandBy(other) = &next {
            process.status.set_standby(*other);
        }
        let (report, ended) = oneshot::channel();
        let stop = tasks.stop().clone();
        tasks.spawn("coordinator", async move {
            // If the handle was dropped, the result is not needed.
            let _ = report.send(process.run(next, &stop).await);
        });
        Ok(Self { status: watch, ended })
    }

    /// The id of the newest run.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.status.incarnation()
    }

    /// Whether the coordinator is active, not on standby.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.status.is_active()
    }

    /// Waits until the coordinator has ended. The wait can be cancelled and repeated.
    ///
    /// # Errors
    /// [`RunError`] if the coordinator ended for another reason than the stop signal.
    ///
    /// # Panics
    /// If called again after it has returned.
    pub async fn ended(&mut self) -> Result<(), RunError> {
        (&mut self.ended).await.unwrap_or(Err(RunError::Panicked))
    }
}

/// The coordinator process, across its runs.
struct CoordinatorProcess {
    options: CoordinatorOptions,
    store: Arc<dyn Store>,
    bus: Arc<dyn Bus>,
    env: Env,
    status: StatusReporter,
}

/// A run that has begun.
struct ActiveRun {
    actor: Actor,
    earlier: oneshot::Receiver<Incarnation>,
    tasks: Tasks,
}

enum AfterRun {
    Run(Box<ActiveRun>),
    StandBy(Option<Incarnation>),
}

/// The coordinator that was active before a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PriorCoordinator {
    /// None, or one with the same store.
    SameStore,
    /// Another coordinator with its own store.
    OtherStore,
}

impl CoordinatorProcess {
    fn listen_context<'a>(&'a self, tasks: &'a Tasks) -> ListenContext<'a> {
        let CoordinatorOptions { prefix, inbox_prefixes, callers, tenant_rule, .. } = &self.options;
        ListenContext {
            bus: &self.bus,
            env: &self.env,
            tasks,
            prefix,
            inbox_prefixes,
            callers: *callers,
            tenant_rule: *tenant_rule,
        }
    }

    /// Makes this process the source of `metrics`, and answers requests for them.
    async fn publish_metrics(&self, metrics: &Arc<CoordinatorMetrics>, tasks: &Tasks) {
        let status = self.status.clone();
        metrics.set_source(Box::new(move || status.figures()), Arc::clone(&self.bus));
        let text = {
            let metrics = Arc::clone(metrics);
            move || metrics.text()
        };
        let CoordinatorOptions { prefix, inbox_prefixes, .. } = &self.options;
        let name = ServerName::COORDINATOR;
        if let Err(error) = answer_metrics(&self.bus, tasks, prefix, name, inbox_prefixes, text).await {
            tracing::warn!(
                %error,
                impact = "the coordinator gives no metrics over NATS",
                action = "permit the route of metrics to the user of the coordinator",
                "metrics route not served"
            );
        }
    }

    async fn run(self, mut next: AfterRun, stop: &Stop) -> Result<(), RunError> {
        loop {
            next = match next {
                AfterRun::StandBy(other) => match self.stand_by(other, stop).await? {
                    Some(run) => AfterRun::Run(Box::new(run)),
                    None => return Ok(()),
                },
                AfterRun::Run(run) => {
                    let ActiveRun { actor, earlier, tasks } = *run;
                    let ended = actor.run(stop, earlier, self.options.lease_ttl / 6).await;
                    if let Err(unfinished) = tasks.finish(LAST_REPLIES_TIMEOUT).await {
                        tracing::warn!(%unfinished, "replies not sent before deadline");
                    }
                    match ended? {
                        RunEnd::Stopped => return Ok(()),
                        RunEnd::StoodDown(other) => AfterRun::StandBy(Some(other)),
                    }
                }
            };
        }
    }

    /// Begins a run.
    async fn begin(
        &self,
        incarnation: Incarnation,
        prior: PriorCoordinator,
    ) -> Result<ActiveRun, StartError> {
        let Self { store, env, bus, status: watch, .. } = self;
        let tasks = self.env.tasks();
        let mut stored = {
            let store = Arc::clone(store);
            env.blocking(move || store.load_state()).await?
        };
        let mut changes = match prior {
            PriorCoordinator::SameStore => Vec::new(),
            PriorCoordinator::OtherStore => stored.distrust(),
        };
        let (mut machine, waits) =
            CoordinatorMachine::begin(incarnation, self.options.lease_ttl, stored, env.boot());
        changes.extend(waits);
        actor::commit(env.clone(), Arc::clone(store), changes).await?;
        let window = AssignmentWindow::new(store.counts());
        let events = bus.events();
        if !bus.is_connected() {
            machine.apply(CoordinatorInput::Disconnected, env.boot(), &window);
        }
        let context = self.listen_context(&tasks);
        let earlier = serve_presence(context, incarnation).await?;
        let inbox = RequestInbox::open(context).await?;
        let endpoints = inbox.stats(&self.options.prefix);
        status::announce_service(context, incarnation, &endpoints).await?;
        watch.set_active(&machine, window.assigned(), inbox.locate_counts(), &endpoints);
        let (env, bus, watch) = (env.clone(), Arc::clone(bus), watch.clone());
        let prefix = self.options.prefix.clone();
        tracing::info!(%incarnation, %prefix, "coordinator active");
        let actor = Actor::new(machine, Arc::clone(store), bus, env, prefix, inbox, window, events, watch);
        Ok(ActiveRun { actor, earlier, tasks })
    }

    /// Waits until no other coordinator is active, and begins a run. `None` if the stop signal is given before.
    async fn stand_by(&self, other: Option<Incarnation>, stop: &Stop) -> Result<Option<ActiveRun>, RunError> {
        let mut other = other;
        let mut next_log = Duration::ZERO;
        loop {
            self.status.set_standby(other);
            if self.env.boot() >= next_log {
                next_log = self.env.boot() + STANDBY_LOG_INTERVAL;
                let run = other.map_or_else(|| "unknown".to_owned(), |other| other.to_string());
                tracing::error!(
                    other = %run,
                    impact = "this coordinator assigns no subjects",
                    "second coordinator detected, standing by"
                );
            }
            // Each check has a new incarnation: late messages of an earlier run must not count as those of this one.
            let incarnation = Incarnation::new(self.env.ulid());
            let check = async {
                tokio::time::sleep(presence::CHECK_INTERVAL).await;
                find_active(&*self.bus, &self.options.prefix, incarnation).await
            };
            let active = tokio::select! {
                biased;
                () = stop.requested() => return Ok(None),
                active = check => active,
            };
            match active {
                ActiveCoordinator::Active(another) => other = another,
                ActiveCoordinator::NoneActive => {
                    let run = self
                        .begin(incarnation, PriorCoordinator::OtherStore)
                        .await
                        .map_err(RunError::Resume)?;
                    return Ok(Some(run));
                }
            }
        }
    }
}
