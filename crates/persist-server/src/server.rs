//! The server put together: bucket, engine, bus, membership, requests, events; up in order, and down in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::health::answer_health;
use dormouse_bus::services::{EndpointDescription, ServiceDescription, announce};
use dormouse_bus::{Bus, EndpointStats, InboxPrefixes, Requests, ServeOptions, SubscribeError, serve};
use dormouse_protocol::fleet::ServerLoad;
use dormouse_protocol::{ErrorReply, LogId, Op, Prefix, RoutePattern, Subject};
use dormouse_runtime::{Env, Stop, Tasks};
use dormouse_storage::api::Submission;
use dormouse_storage::{Engine, LogEnd, OpenError, Prepared, ShutdownReport};

use crate::authority::{Coordinated, LeaseView};
use crate::events::Events;
use crate::health::{Phase, PhaseCell, Vitals};
use crate::membership::{Member, Membership};
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
    prepared: Option<Prepared>,
    settings: ServerSettings,
    log: LogId,
    bus: Arc<dyn Bus>,
    env: Env,
    vitals: Vitals,
    membership: Membership,
    /// Given when requests are to be turned away.
    closed: Stop,
    /// Given when no more requests come.
    unheard: Stop,
    tasks: ServerTasks,
}

/// The server's tasks, in the order in which they end.
#[derive(Debug)]
struct ServerTasks {
    /// Subjects: they end when they are handed back.
    engine: Tasks,
    /// The membership: it keeps the lease until the last subject is handed back.
    membership: Tasks,
    /// Takes requests: those that nobody serves any more still get an answer.
    intake: Tasks,
    /// Sends the last answers.
    replies: Tasks,
    /// Publishes the last events.
    events: Tasks,
    /// Discovery and health.
    answers: Tasks,
}

impl ServerTasks {
    fn new(env: &Env) -> Self {
        Self {
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
            started: env.boot(),
            log: log.clone(),
            phase: Arc::new(PhaseCell::default()),
            lease: lease.clone(),
            engine: Arc::default(),
            events,
            budget: Budget::new(MOST_REQUESTS, MOST_REQUEST_BYTES),
            stats: OpStats::default(),
        };
        let asked = vitals.clone();
        let name = log.server().as_str();
        answer_health(&bus, &tasks.answers, &prefix, name, &settings.inbox_prefixes, move || asked.health())
            .await?;
        let load = vitals.clone();
        let member = Member {
            log: log.clone(),
            predecessor,
            capacity: settings.capacity,
            load: Arc::new(move || load.load()),
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
        let pattern = self.settings.prefix.server_all(self.log.server());
        let options =
            ServeOptions { inbox_prefixes: self.settings.inbox_prefixes.clone(), ..ServeOptions::default() };
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
        tokio::select! {
            biased;
            // The refusal of a process whose log was taken over is about that log: it goes on with a fresh one.
            end = log => match end {
                LogEnd::Sealed => Ended::TakenOver,
                LogEnd::Poisoned => Ended::Failed(Box::new(ServeError::LocalLog)),
                // Only a shutdown stops it, and whoever shuts down does not wait here.
                LogEnd::Stopped => std::future::pending().await,
            },
            error = self.membership.refused() => Ended::Failed(Box::new(ServeError::Refused(error))),
            () = self.unheard.given() => Ended::Failed(Box::new(ServeError::Unheard)),
        }
    }

    /// Ends a server whose log was taken over, and prepares an engine with a fresh log: the process goes on under a new
    /// identity, and claims what it is asked for. `deadline` bounds the waits for what is under way.
    ///
    /// Cancelling the call leaves a server that serves nothing.
    pub async fn succeed(self, deadline: Duration) -> Option<Prepared> {
        let Self { prepared, env, vitals, closed, tasks, log, .. } = self;
        let clock = Countdown { ends_at: env.boot() + deadline, env };
        vitals.phase.set(Phase::Starting);
        tracing::warn!(%log, "this process was taken for dead and its log was taken over: going on with a fresh one");
        closed.give();
        let prepared = match vitals.engine.get() {
            Some(engine) => tokio::time::timeout(clock.left(), engine.clone().succeed()).await.ok(),
            None => prepared,
        };
        // No goodbye: the coordinator hears of the successor, which names this log as its predecessor.
        finish(&tasks, &clock).await;
        prepared
    }

    /// Hands everything back and goes, in this order; each step has a share of `deadline` and says who held it up:
    ///
    /// 1. The coordinator hears that this process is draining, so that clients who ask are sent elsewhere.
    /// 2. New requests are turned away, with an answer.
    /// 3. Every subject brings its changes to the bucket and is released.
    /// 4. The coordinator hears that this process is gone.
    /// 5. Listening ends, and what is queued of answers and events is sent.
    /// 6. The bus is closed.
    ///
    /// Returns whether everything was handed back. Cancelling the call leaves the rest undone; subjects that were not
    /// released are claimed by others once the lease has run out.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        let Self { bus, env, vitals, membership, closed, tasks, log, .. } = self;
        let clock = Countdown { env, ends_at: vitals.env.boot() + deadline };
        vitals.phase.set(Phase::Stopping);
        tracing::info!(%log, open_subjects = vitals.engine_figures().open_subjects, "shutting down");

        let step = clock.at_most(Duration::from_secs(1));
        if vitals.lease.generation().is_some()
            && tokio::time::timeout(step, membership.drain()).await.is_err()
        {
            tracing::info!("the coordinator has not heard that this process is draining");
        }

        closed.give();

        let handed_back = match vitals.engine.get() {
            Some(engine) => hand_back(engine, clock.all_but(Duration::from_secs(5))).await,
            None => true,
        };

        if let Err(error) = membership.leave(clock.at_most(Duration::from_secs(1))).await {
            tracing::info!(%error, "the coordinator has not heard that this process is gone");
        }

        finish(&tasks, &clock).await;

        if tokio::time::timeout(clock.at_most(Duration::from_secs(4)), bus.close()).await.is_err() {
            tracing::warn!("the bus: stopped waiting for it to close");
        }
        handed_back
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
    /// The process must end.
    Failed(Box<ServeError>),
}

/// Ends the tasks in their order.
async fn finish(tasks: &ServerTasks, clock: &Countdown) {
    for (name, tasks) in [
        ("subjects", &tasks.engine),
        ("membership", &tasks.membership),
        ("requests", &tasks.intake),
        ("answers", &tasks.replies),
        ("events", &tasks.events),
        ("discovery and health", &tasks.answers),
    ] {
        if let Err(unfinished) = tasks.finish(clock.at_most(Duration::from_secs(1))).await {
            tracing::warn!(%unfinished, "{name}: stopped waiting");
        }
    }
}

/// Brings every subject to the bucket and releases it. Whether that worked for all.
async fn hand_back(engine: &Engine, deadline: Duration) -> bool {
    const NAMED: usize = 20;
    let ShutdownReport { released, unreleased } = engine.shutdown(deadline).await;
    for (subject, why) in unreleased.iter().take(NAMED) {
        tracing::warn!(%subject, why, "the subject was not handed back; its file stays in the data directory");
    }
    if unreleased.len() > NAMED {
        tracing::warn!(subjects = unreleased.len() - NAMED, "more subjects were not handed back");
    }
    tracing::info!(released, unreleased = unreleased.len(), "handed subjects back");
    unreleased.is_empty()
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
}

impl Submit for Engine {
    fn submit(&self, subject: &Subject, submission: Submission) {
        Engine::submit(self, subject, submission);
    }
}

/// Time until a deadline, dealt out in steps.
struct Countdown {
    env: Env,
    ends_at: Duration,
}

impl Countdown {
    fn left(&self) -> Duration {
        self.ends_at.saturating_sub(self.env.boot())
    }

    /// What is left, but at most `share`.
    fn at_most(&self, share: Duration) -> Duration {
        self.left().min(share)
    }

    /// What is left but for `reserve`, or half of it where that is more.
    fn all_but(&self, reserve: Duration) -> Duration {
        let left = self.left();
        left.saturating_sub(reserve).max(left / 2)
    }
}
