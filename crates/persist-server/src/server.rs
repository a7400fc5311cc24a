//! The server put together: bucket, engine, bus, membership, requests, events; up in order, and down in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::health::answer_health;
use dormouse_bus::services::{EndpointDescription, ServiceDescription, announce};
use dormouse_bus::{
    Bus, Callers, EndpointStats, InboxPrefixes, Requests, ServeOptions, SubscribeError, SubscribeOptions,
    Subscription, serve,
};
use dormouse_protocol::fleet::{BusySubject, ServerLoad};
use dormouse_protocol::limits::MAX_BUSY_SUBJECTS;
use dormouse_protocol::{ErrorReply, LogId, Op, Prefix, RoutePattern, Subject};
use dormouse_runtime::{Env, Stop, Tasks};
use dormouse_storage::api::Submission;
use dormouse_storage::{Engine, LogEnd, OpenError, Prepared};

use crate::authority::{Coordinated, LeaseView};
use crate::events::Events;
use crate::health::{Phase, PhaseCell, Vitals};
use crate::membership::{Member, Membership};
use crate::mover::{Mover, MoverParts, ORDERS};
use crate::requests::{Budget, Intake, OpStats, Submit};

/// Name of the service in the NATS services API.
pub const SERVICE_NAME: &str = "dormouse-persist-server";

/// Most requests that are unanswered at a time.
const MOST_REQUESTS: usize = 32_768;
/// Most bytes of requests that are unanswered at a time.
const MOST_REQUEST_BYTES: usize = 256 * 1_024 * 1_024;

/// What a server needs to know beyond its engine's settings.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The first tokens of every route.
    pub prefix: Prefix,
    /// The server's share of the subjects relative to others.
    pub capacity: u32,
    /// Answers are sent only to addresses that begin with one of these.
    pub inbox_prefixes: InboxPrefixes,
    /// Whose subjects a request may be about.
    pub callers: Callers,
    /// When the process started, on the clock of [`Env::boot`]: the uptime in health counts from here, over every log
    /// of the process.
    pub started: Duration,
}

/// Why a server does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The coordinator will not have this process.
    #[error("the coordinator refuses this process: {0}")]
    Refused(#[source] ErrorReply),
    /// The messaging system does not let it listen.
    #[error("cannot listen: {0}")]
    Subscribe(#[from] SubscribeError),
    /// The messaging system has ended the subscription to the server's routes.
    #[error("the messaging system does not let this process listen to its routes any more")]
    Unheard,
    /// The log failed here, mostly because the local disk failed to sync: it can acknowledge nothing any more.
    #[error(
        "the log of this process failed; nothing more is acknowledged, and the process has to be started again"
    )]
    LocalLog,
    /// The data directory cannot be taken over.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// A server on a bus.
pub struct Server {
    /// The engine until it runs.
    pub(crate) prepared: Option<Prepared>,
    settings: ServerSettings,
    pub(crate) log: LogId,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) env: Env,
    pub(crate) vitals: Vitals,
    pub(crate) membership: Membership,
    /// Hands subjects over, once the engine runs.
    pub(crate) mover: Option<Mover>,
    /// Given when requests are to be turned away.
    pub(crate) closed: Stop,
    /// Given when no more requests come.
    unheard: Stop,
    pub(crate) tasks: ServerTasks,
}

/// The server's tasks, in the order in which they end.
#[derive(Debug)]
pub(crate) struct ServerTasks {
    /// Hands subjects over one by one.
    pub(crate) mover: Tasks,
    /// Subjects: they end when they are handed back.
    pub(crate) engine: Tasks,
    /// The membership: it keeps the lease until the last subject is handed back.
    pub(crate) membership: Tasks,
    /// Takes requests: those that nobody serves any more still get an answer.
    pub(crate) intake: Tasks,
    /// Sends the last answers.
    pub(crate) replies: Tasks,
    /// Publishes the last events.
    pub(crate) events: Tasks,
    /// Discovery and health.
    pub(crate) answers: Tasks,
}

impl ServerTasks {
    fn new(env: &Env) -> Self {
        Self {
            mover: env.tasks(),
            engine: env.tasks(),
            membership: env.tasks(),
            intake: env.tasks(),
            replies: env.tasks(),
            events: env.tasks(),
            answers: env.tasks(),
        }
    }
}

impl Server {
    /// Asks the coordinator for membership. Nothing is served before [`Server::ready`].
    ///
    /// Cancelling the call leaves health requests answered; the process is expected to end.
    ///
    /// # Errors
    /// [`SubscribeError`] when health requests cannot be listened to.
    pub async fn start(
        prepared: Prepared,
        settings: ServerSettings,
        bus: Arc<dyn Bus>,
        env: Env,
    ) -> Result<Self, SubscribeError> {
        let tasks = ServerTasks::new(&env);
        let (log, predecessor) = (prepared.log().clone(), prepared.predecessor().cloned());
        let lease = LeaseView::new(env.clone());
        let prefix = settings.prefix.clone();
        let events = Events::start(prefix.clone(), &bus, &env, &tasks.events);
        let vitals = Vitals {
            env: env.clone(),
            started: settings.started,
            log: log.clone(),
            phase: Arc::new(PhaseCell::default()),
            lease: lease.clone(),
            engine: Arc::default(),
            events,
            moving: Arc::default(),
            budget: Budget::new(MOST_REQUESTS, MOST_REQUEST_BYTES),
            stats: OpStats::default(),
        };
        let asked = vitals.clone();
        let name = log.server().as_str();
        answer_health(&bus, &tasks.answers, &prefix, name, &settings.inbox_prefixes, move || asked.health())
            .await?;
        let (load, busy) = (vitals.clone(), vitals.clone());
        let member = Member {
            log: log.clone(),
            predecessor,
            capacity: settings.capacity,
            load: Arc::new(move || load.load()),
            busiest: Arc::new(move || busy.busiest()),
        };
        let membership = Membership::start(&bus, &env, &tasks.membership, &prefix, member, lease);
        let prepared = Some(prepared);
        Ok(Self {
            prepared,
            settings,
            log,
            bus,
            env,
            vitals,
            membership,
            mover: None,
            closed: Stop::new(),
            unheard: Stop::new(),
            tasks,
        })
    }

    /// Waits for the first lease, and only then starts the engine and listens to the server's routes: a process that
    /// may not be the one stays silent. When the call returns, requests are served. Later calls do nothing.
    ///
    /// Cancelling the call leaves the server as it was, or unable to become ready: shut it down.
    ///
    /// # Errors
    /// [`ServeError`]; the process should end.
    pub async fn ready(&mut self) -> Result<(), ServeError> {
        self.membership.first_lease().await.map_err(ServeError::Refused)?;
        let Some(prepared) = self.prepared.take() else { return Ok(()) };
        let authority = Coordinated::new(
            Arc::clone(&self.bus),
            self.settings.prefix.clone(),
            self.log.clone(),
            self.vitals.lease.clone(),
        );
        let events = Arc::clone(&self.vitals.events);
        let engine = prepared.start(Arc::new(authority), events, self.tasks.engine.clone()).await?;
        let engine = self.vitals.engine.get_or_init(|| engine).clone();
        let orders = SubscribeOptions { capacity: ORDERS, ..SubscribeOptions::default() };
        let orders = self.bus.subscribe(self.settings.prefix.order(self.log.server()).into(), orders).await?;
        self.mover = Some(self.move_on(engine.clone(), orders));
        let pattern = self.settings.prefix.server_all(self.log.server());
        let options = ServeOptions {
            inbox_prefixes: self.settings.inbox_prefixes.clone(),
            callers: self.settings.callers,
            ..ServeOptions::default()
        };
        let requests = serve(&self.bus, &self.env, &self.tasks.replies, pattern, options).await?;
        let others = Arc::clone(requests.stats());
        self.take(engine, requests);
        announce(
            &self.bus,
            &self.env,
            &self.tasks.answers,
            &self.settings.inbox_prefixes,
            self.describe(others),
        )
        .await?;
        self.vitals.phase.set(Phase::Serving);
        Ok(())
    }

    /// The log of this process.
    #[must_use]
    pub fn log(&self) -> &LogId {
        &self.log
    }

    /// Waits until this server can serve no more, and says why. Cancelling the wait changes nothing.
    pub async fn ended(&self) -> Ended {
        let log = async {
            match self.vitals.engine.get() {
                Some(engine) => engine.ended().await,
                None => std::future::pending().await,
            }
        };
        let emptied = async {
            match &self.mover {
                Some(mover) => mover.needs_fresh_log().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // The refusal of a process whose log was taken over is about that log: it goes on with a fresh one.
            end = log => match end {
                LogEnd::Sealed => Ended::TakenOver,
                LogEnd::Poisoned => Ended::Failed(Box::new(ServeError::LocalLog)),
                // Only a shutdown stops it, and whoever shuts down does not wait here.
                LogEnd::Stopped => std::future::pending().await,
            },
            () = emptied => Ended::Emptied,
            error = self.membership.refused() => Ended::Failed(Box::new(ServeError::Refused(error))),
            () = self.unheard.given() => Ended::Failed(Box::new(ServeError::Unheard)),
        }
    }

    fn move_on(&self, engine: Engine, orders: Subscription) -> Mover {
        let parts = MoverParts {
            env: self.env.clone(),
            log: self.log.clone(),
            engine,
            lease: self.vitals.lease.clone(),
            standing: self.membership.standing(),
            orders,
            figures: Arc::clone(&self.vitals.moving),
        };
        Mover::start(parts, &self.tasks.mover)
    }

    fn take(&self, engine: Engine, requests: Requests) {
        let intake = Intake {
            prefix: self.settings.prefix.clone(),
            name: self.log.server().clone(),
            bus: Arc::clone(&self.bus),
            engine,
            budget: Arc::clone(&self.vitals.budget),
            stats: self.vitals.stats.clone(),
        };
        let (closed, stop) = (self.closed.clone(), self.tasks.intake.stop().clone());
        let unheard = self.unheard.clone();
        self.tasks.intake.spawn("requests", async move {
            intake.run(requests, closed, stop).await;
            unheard.give();
        });
    }

    /// What the services API tells: an endpoint for each operation, and one for what is none.
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
                endpoint(op.as_str(), pattern, Arc::clone(self.vitals.stats.of(*op)))
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

/// Why a server serves no more.
#[derive(Debug)]
pub enum Ended {
    /// Another server has taken the log over: this process goes on by [`Server::succeed`].
    TakenOver,
    /// It has handed over everything, as an operator wanted, and goes on by [`Server::begin_anew`]: with a log that owns
    /// nothing.
    Emptied,
    /// The process must end.
    Failed(Box<ServeError>),
}

impl Vitals {
    /// How busy the server is, for the coordinator.
    fn load(&self) -> ServerLoad {
        let figures = self.engine_figures();
        ServerLoad {
            open_subjects: figures.open_subjects,
            requests: self.stats.requests(),
            local_bytes: figures.local_bytes,
        }
    }

    /// With which subjects the server has the most to do, for the coordinator.
    fn busiest(&self) -> Vec<BusySubject> {
        let busiest = self.engine.get().map(|engine| engine.busiest(MAX_BUSY_SUBJECTS)).unwrap_or_default();
        let busiest = busiest.into_iter().map(|busy| BusySubject {
            subject: busy.subject,
            // Rates are never negative, and a cast of one that is too large saturates.
            requests_per_second: busy.requests_per_second.round() as u64,
            bytes: busy.bytes,
        });
        busiest.collect()
    }
}

impl Submit for Engine {
    fn submit(&self, subject: &Subject, submission: Submission) {
        Engine::submit(self, subject, submission);
    }
}
