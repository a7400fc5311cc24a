//! The server as a whole: bucket, engine, bus, membership, requests and events, with an ordered start and an ordered
//! end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::health::answer_health;
use dormouse_bus::services::{EndpointDescription, ServiceDescription, announce};
use dormouse_bus::{
    Bus, Callers, EndpointStats, InboxPrefixes, Requests, ServeOptions, SubscribeError, SubscribeOptions,
    Subscription, serve,
};
use dormouse_engine::api::{Submission, TenantId};
use dormouse_engine::{Engine, EngineOpenError, LogEnd, PreparedEngine};
use dormouse_protocol::fleet::ServerLoad;
use dormouse_protocol::tenant::TenantLimits;
use dormouse_protocol::{ErrorReply, LogId, Op, Prefix, RoutePattern, ServerName, Subject, TenantRule};
use dormouse_runtime::{Env, Stop, Tasks};

use crate::admission::Admission;
use crate::authority::{CoordinatorAuthority, LeaseView};
use crate::events::EventPublisher;
use crate::handover_task::{Handover, HandoverDeps, ORDERS};
use crate::health::{HealthSources, ServerPhase, SharedPhase};
use crate::membership::{MemberInfo, Membership};
use crate::progress::DataProgress;
use crate::pulse;
use crate::requests::{OpStats, RequestIntake, RequestSink};

/// Name of the service in the NATS services API.
pub const SERVICE_NAME: &str = "dormouse-persist-server";

/// One side of a server: its connection, and the environment whose tasks run on its thread.
#[derive(Clone)]
pub struct ServerSide {
    /// The connection.
    pub bus: Arc<dyn Bus>,
    /// The environment.
    pub env: Env,
}

/// The two sides of a server.
#[derive(Clone)]
pub struct ServerSides {
    /// Carries requests, replies and events.
    pub data: ServerSide,
    /// Keeps the membership, asks the coordinator, and answers health and discovery. No request may delay it.
    pub control: ServerSide,
}

impl ServerSides {
    /// Both sides on one connection and in one environment.
    #[must_use]
    pub fn same(bus: Arc<dyn Bus>, env: Env) -> Self {
        let side = ServerSide { bus, env };
        Self { data: side.clone(), control: side }
    }
}

/// How a server whose data side hangs ends its process. The data side cannot: it hangs.
#[derive(Clone)]
pub struct ProcessExit(Arc<dyn Fn() + Send + Sync>);

impl ProcessExit {
    /// Ends the process with `end`, which the control side calls. The cause is logged before.
    #[must_use]
    pub fn new(end: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(end))
    }

    /// Ends the process.
    pub(crate) fn end(&self) {
        (self.0)();
    }
}

impl std::fmt::Debug for ProcessExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessExit").finish_non_exhaustive()
    }
}

/// Settings of a server beyond those of its engine.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The first tokens of every route.
    pub prefix: Prefix,
    /// The server's share of the subjects relative to others.
    pub capacity: u32,
    /// The server replies only to addresses that begin with one of these prefixes.
    pub inbox_prefixes: InboxPrefixes,
    /// How the server checks the subject of a request against its caller.
    pub callers: Callers,
    /// Which part of a request names its tenant.
    pub tenant_rule: TenantRule,
    /// When the process started, on the clock of [`Env::boot`]. The uptime in health counts from here, also after the
    /// process has started a new log.
    pub started: Duration,
    /// Ends the process if its data side hangs.
    pub exit: ProcessExit,
}

/// Why a server does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The coordinator refuses this process.
    #[error("the coordinator refuses this process: {0}")]
    Refused(#[source] ErrorReply),
    /// The messaging system rejects a subscription.
    #[error("subscribe failed: {0}")]
    Subscribe(#[from] SubscribeError),
    /// The messaging system has ended the subscription to the server's routes.
    #[error("the messaging system ended the subscription to the server's routes")]
    SubscriptionDenied,
    /// The log failed locally, usually because the disk failed to sync. It acknowledges nothing more.
    #[error("the WAL of this process failed: it acknowledges nothing more, restart the process")]
    LocalLog,
    /// The engine cannot start on the data directory.
    #[error(transparent)]
    Open(#[from] EngineOpenError),
}

/// A server on a bus.
pub struct Server {
    /// The engine before it runs.
    pub(crate) prepared: Option<PreparedEngine>,
    settings: ServerSettings,
    pub(crate) log: LogId,
    pub(crate) data: ServerSide,
    pub(crate) control: ServerSide,
    pub(crate) health: HealthSources,
    pub(crate) membership: Membership,
    /// The handover task, if the engine runs.
    pub(crate) handover: Option<Handover>,
    /// Given when the server starts to reject requests.
    pub(crate) closed: Stop,
    /// Given when the subscription to requests has ended.
    unsubscribed: Stop,
    pub(crate) tasks: ServerTasks,
}

/// The server's tasks, in the order in which they end. The membership and the fixed replies run on the control side, the
/// others on the data side.
#[derive(Debug)]
pub(crate) struct ServerTasks {
    /// Handovers.
    pub(crate) handovers: Tasks,
    /// Subjects: they end when they are released.
    pub(crate) engine: Tasks,
    /// The membership: it keeps the lease until the last subject is released.
    pub(crate) membership: Tasks,
    /// Signs of life of the data side, without which there is no lease.
    pub(crate) pulse: Tasks,
    /// Takes requests: a request that arrives after the close still gets a reply.
    pub(crate) intake: Tasks,
    /// Sends the last replies.
    pub(crate) replies: Tasks,
    /// Publishes the last events.
    pub(crate) events: Tasks,
    /// Discovery and health.
    pub(crate) fixed_replies: Tasks,
}

impl ServerTasks {
    fn new(data: &Env, control: &Env) -> Self {
        Self {
            handovers: data.tasks(),
            engine: data.tasks(),
            membership: control.tasks(),
            pulse: data.tasks(),
            intake: data.tasks(),
            replies: data.tasks(),
            events: data.tasks(),
            fixed_replies: control.tasks(),
        }
    }
}

impl Server {
    /// Starts to join the fleet. The server serves nothing before [`Server::ready`].
    ///
    /// The caller runs on the data side. If the call is cancelled, health requests still get replies; the process is
    /// expected to end.
    ///
    /// # Errors
    /// [`SubscribeError`] if the subscription to health requests fails.
    pub async fn start(
        prepared: PreparedEngine,
        settings: ServerSettings,
        sides: ServerSides,
    ) -> Result<Self, SubscribeError> {
        let ServerSides { data, control } = sides;
        let tasks = ServerTasks::new(&data.env, &control.env);
        let (log, predecessor) = (prepared.log().clone(), prepared.predecessor().cloned());
        let lease = LeaseView::new(control.env.clone());
        let engine = Arc::default();
        let progress = DataProgress::new(&data.env, Arc::clone(&engine));
        let prefix = settings.prefix.clone();
        let events = EventPublisher::start(prefix.clone(), &data.bus, &data.env, &tasks.events);
        let vitals = HealthSources {
            env: control.env.clone(),
            started: settings.started,
            log: log.clone(),
            phase: Arc::new(SharedPhase::default()),
            lease: lease.clone(),
            engine,
            progress: Arc::clone(&progress),
            events,
            handover: Arc::default(),
            admission: Admission::new(settings.tenant_rule, data.env.clone()),
            stats: OpStats::default(),
            others: Arc::default(),
            bus: Arc::clone(&data.bus),
            control_bus: (!Arc::ptr_eq(&data.bus, &control.bus)).then(|| Arc::clone(&control.bus)),
            recent_drops: Arc::default(),
        };
        let tenants = vitals.clone();
        pulse::start(&data, &tasks.pulse, &progress, Box::new(move |most| tenants.busiest_tenants(most)));
        let sources = vitals.clone();
        let name = log.server().as_str();
        answer_health(
            &control.bus,
            &tasks.fixed_replies,
            &prefix,
            name,
            &settings.inbox_prefixes,
            move || sources.health(),
        )
        .await?;
        let (load, busy, tenants) = (vitals.clone(), Arc::clone(&progress), Arc::clone(&progress));
        let admission = Arc::clone(&vitals.admission);
        let member = MemberInfo {
            log: log.clone(),
            predecessor,
            capacity: settings.capacity,
            load: Arc::new(move || load.load()),
            busiest: Arc::new(move || busy.figures().busiest.clone()),
            tenants: Arc::new(move || tenants.figures().tenants.clone()),
            limits: Arc::new(move |limits| admission.set_limits(limits)),
            progress,
            exit: settings.exit.clone(),
        };
        let membership = Membership::start(&control, &tasks.membership, &prefix, member, lease);
        let prepared = Some(prepared);
        Ok(Self {
            prepared,
            settings,
            log,
            data,
            control,
            health: vitals,
            membership,
            handover: None,
            closed: Stop::new(),
            unsubscribed: Stop::new(),
            tasks,
        })
    }

    /// Waits for the first lease, and only then starts the engine and subscribes to the server's routes: a process that
    /// may not have the name sends no replies. When the call returns, the server serves. Later calls do nothing.
    ///
    /// If the call is cancelled, the server is unchanged or cannot become ready any more: shut it down.
    ///
    /// # Errors
    /// [`ServeError`]; the process should end.
    pub async fn ready(&mut self) -> Result<(), ServeError> {
        self.membership.first_lease().await.map_err(ServeError::Refused)?;
        let Some(prepared) = self.prepared.take() else { return Ok(()) };
        let authority = CoordinatorAuthority::new(
            Arc::clone(&self.control.bus),
            self.settings.prefix.clone(),
            self.log.clone(),
            self.health.lease.clone(),
        );
        let events = Arc::clone(&self.health.events);
        let engine = prepared.start(Arc::new(authority), events, self.tasks.engine.clone()).await?;
        let engine = self.health.engine.get_or_init(|| engine).clone();
        let orders = SubscribeOptions { capacity: ORDERS, ..SubscribeOptions::default() };
        let orders =
            self.control.bus.subscribe(self.settings.prefix.order(self.log.server()).into(), orders).await?;
        self.handover = Some(self.start_handover(engine.clone(), orders));
        let pattern = self.settings.prefix.server_all(self.log.server());
        let options = ServeOptions {
            inbox_prefixes: self.settings.inbox_prefixes.clone(),
            callers: self.settings.callers,
            ..ServeOptions::default()
        };
        let requests = serve(&self.data.bus, &self.data.env, &self.tasks.replies, pattern, options).await?;
        let others = Arc::clone(self.health.others.get_or_init(|| Arc::clone(requests.stats())));
        self.start_intake(engine, requests);
        announce(
            &self.control.bus,
            &self.control.env,
            &self.tasks.fixed_replies,
            &self.settings.inbox_prefixes,
            self.describe(others),
        )
        .await?;
        self.health.phase.set(ServerPhase::Serving);
        Ok(())
    }

    /// The route prefix, the name and the accepted reply addresses.
    pub(crate) fn address(&self) -> (&Prefix, &ServerName, &InboxPrefixes) {
        (&self.settings.prefix, self.log.server(), &self.settings.inbox_prefixes)
    }

    /// The log of this process.
    #[must_use]
    pub fn log(&self) -> &LogId {
        &self.log
    }

    /// Waits until this server can serve no more, and returns the reason. Cancelling the wait changes nothing.
    pub async fn ended(&self) -> ServeEnd {
        let log = async {
            match self.health.engine.get() {
                Some(engine) => engine.ended().await,
                None => std::future::pending().await,
            }
        };
        let drained = async {
            match &self.handover {
                Some(mover) => mover.new_log_needed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // First, because a refusal after a takeover concerns only the old log: the process continues with a new
            // one.
            end = log => match end {
                LogEnd::Sealed => ServeEnd::TakenOver,
                LogEnd::Poisoned => ServeEnd::Failed(Box::new(ServeError::LocalLog)),
                // Only a shutdown stops the log, and a shutdown does not wait here.
                LogEnd::Stopped => std::future::pending().await,
            },
            () = drained => ServeEnd::Drained,
            error = self.membership.refused() => ServeEnd::Failed(Box::new(ServeError::Refused(error))),
            () = self.unsubscribed.requested() => ServeEnd::Failed(Box::new(ServeError::SubscriptionDenied)),
        }
    }

    fn start_handover(&self, engine: Engine, orders: Subscription) -> Handover {
        let parts = HandoverDeps {
            env: self.data.env.clone(),
            log: self.log.clone(),
            engine,
            lease: self.health.lease.clone(),
            membership: self.membership.state(),
            orders,
            metrics: Arc::clone(&self.health.handover),
        };
        Handover::start(parts, &self.tasks.handovers)
    }

    fn start_intake(&self, engine: Engine, requests: Requests) {
        let steps = (engine.instruments().steps().clone(), self.data.env.clone());
        let intake = RequestIntake {
            steps,
            prefix: self.settings.prefix.clone(),
            name: self.log.server().clone(),
            bus: Arc::clone(&self.data.bus),
            engine,
            admission: Arc::clone(&self.health.admission),
            stats: self.health.stats.clone(),
            progress: Arc::clone(&self.health.progress),
        };
        let (closed, stop) = (self.closed.clone(), self.tasks.intake.stop().clone());
        let unsubscribed = self.unsubscribed.clone();
        self.tasks.intake.spawn("requests", async move {
            intake.run(requests, closed, stop).await;
            unsubscribed.request();
        });
    }

    /// The description for the services API: one endpoint per operation, and one for all other requests.
    fn describe(&self, others: Arc<EndpointStats>) -> ServiceDescription {
        let all = self.settings.prefix.server_all(self.log.server());
        let base = all.as_str().trim_end_matches('>').to_owned();
        let endpoint = |name: &str, pattern: RoutePattern, stats: Arc<EndpointStats>| EndpointDescription {
            name: name.to_owned(),
            pattern,
            queue: None,
            metadata: BTreeMap::new(),
            stats,
        };
        let mut endpoints: Vec<_> = Op::ALL
            .iter()
            .map(|op| {
                let pattern = RoutePattern::new(format!("{base}{op}.>"));
                endpoint(op.as_str(), pattern, Arc::clone(self.health.stats.of(*op)))
            })
            .collect();
        endpoints.push(endpoint("other", all, others));
        ServiceDescription {
            name: SERVICE_NAME.to_owned(),
            id: self.log.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            description: format!("Dormouse persistence server {}", self.log.server()),
            metadata: BTreeMap::from([
                ("server".to_owned(), self.log.server().to_string()),
                ("prefix".to_owned(), self.settings.prefix.to_string()),
            ]),
            endpoints,
        }
    }
}

/// Why a server has stopped serving.
#[derive(Debug)]
pub enum ServeEnd {
    /// Another server has taken the log over. The process continues with [`Server::restart_after_takeover`].
    TakenOver,
    /// The server has handed over all subjects for a drain. The process continues with [`Server::restart_after_drain`],
    /// with a log that owns nothing.
    Drained,
    /// The process must end.
    Failed(Box<ServeError>),
}

impl HealthSources {
    /// Load of the server, for the coordinator.
    fn load(&self) -> ServerLoad {
        // Each heartbeat notes drops, so that health knows their time within seconds.
        self.note_drops();
        let figures = self.progress.figures();
        let figures = &figures.engine;
        ServerLoad {
            open_subjects: figures.open_subjects,
            requests: self.stats.requests(),
            local_bytes: figures.local_bytes,
        }
    }
}

impl RequestSink for Engine {
    fn submit(&self, subject: &Subject, submission: Submission) {
        Engine::submit(self, subject, submission);
    }

    fn set_tenant_limits(&self, tenant: TenantId, limits: TenantLimits) {
        Engine::set_tenant_limits(self, tenant, limits);
    }
}
