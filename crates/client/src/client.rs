//! The client: one connection, one session, one cache of locations.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_bus::nats::{InvalidNatsUrl, NatsOptions};
use dormouse_bus::{Bus, Outgoing, SubscribeError, SubscribeOptions, Subscription};
use dormouse_protocol::fleet::{GoneAnnouncement, LocateReply, LocateRequest, ServersReply, ServersRequest};
use dormouse_protocol::{Op, Prefix, RequestId, Route, ServerName, SessionId, Subject, decode, encode};
use dormouse_runtime::{Env, Stop, Tasks};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::exchange::exchange;
use crate::kv::Kv;
use crate::location::{Locations, Server};
use crate::retry::{Failure, Next, Repeat, Target, Tries};
use crate::stream::Stream;
use crate::subject::Handle;

/// How long a call takes at most, unless its handle says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// How many locations a client remembers, unless configured otherwise.
pub const DEFAULT_LOCATION_CAPACITY: usize = 100_000;

/// How many announcements wait to be read before new ones are dropped.
const ANNOUNCEMENTS: usize = 1_024;

/// How long [`Client::close`] waits for the client's own tasks.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// The connection of an application to a Dormouse fleet. Cloning is cheap and shares the connection, the session and
/// the cache of locations.
///
/// Dropping the last clone, handle and watch ends the client's tasks and, if the client made the connection, the
/// connection.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) bus: Arc<dyn Bus>,
    // Only if the connection was made by this client: it ends with it.
    bus_tasks: Option<Tasks>,
    pub(crate) prefix: Prefix,
    deadline: Duration,
    env: Env,
    locations: Locations,
    pub(crate) tasks: Tasks,
    session: SessionId,
    counter: AtomicU64,
}

/// How a client is set up; made by [`Client::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    prefix: Prefix,
    deadline: Duration,
    env: Env,
    location_capacity: usize,
}

impl ClientBuilder {
    /// The first tokens of the fleet's routes; `persist` unless set.
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = prefix;
        self
    }

    /// How long a call takes at most, tries and pauses together; [`DEFAULT_DEADLINE`] unless set. A handle may set
    /// its own.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Where time and chance come from; the real world unless set.
    pub fn env(mut self, env: Env) -> Self {
        self.env = env;
        self
    }

    /// How many locations of subjects are remembered at most; [`DEFAULT_LOCATION_CAPACITY`] unless set. One that was
    /// forgotten costs a question to the coordinator.
    pub fn location_capacity(mut self, locations: usize) -> Self {
        self.location_capacity = locations;
        self
    }

    /// Connects over core NATS.
    ///
    /// Cancelling the call leaves no connection.
    ///
    /// # Errors
    /// [`ConnectError`] when no connection comes about within what `options` allow.
    pub async fn connect(self, options: NatsOptions) -> Result<Client, ConnectError> {
        let tasks = Tasks::new();
        let bus = options.connect(self.env.clone(), &tasks).await?;
        Ok(self.assemble(Arc::new(bus), Some(tasks)).await?)
    }

    /// Uses a connection that is there already and stays when the client goes.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::Closed`] when the bus is closed.
    pub async fn over(self, bus: Arc<dyn Bus>) -> Result<Client, Error> {
        self.assemble(bus, None).await
    }

    async fn assemble(self, bus: Arc<dyn Bus>, bus_tasks: Option<Tasks>) -> Result<Client, Error> {
        let locations = Locations::new(Arc::clone(&bus), self.prefix.clone(), self.location_capacity);
        let tasks = Tasks::new();
        let options = SubscribeOptions { queue: None, capacity: ANNOUNCEMENTS };
        match bus.subscribe(self.prefix.gone().into(), options).await {
            Ok(announcements) => {
                let task = follow_announcements(announcements, locations.clone(), tasks.stop().clone());
                tasks.spawn("gone announcements", task);
            }
            Err(SubscribeError::Closed) => return Err(Error::Closed),
            // Without announcements a failover is noticed later, by the silence of the old server.
            Err(error) => {
                tracing::info!(%error, "the client does without announcements of servers that are gone");
            }
        }
        let session = SessionId::new(self.env.ulid());
        Ok(Client {
            inner: Arc::new(Inner {
                bus,
                bus_tasks,
                prefix: self.prefix,
                deadline: self.deadline,
                env: self.env,
                locations,
                tasks,
                session,
                counter: AtomicU64::new(0),
            }),
        })
    }
}

async fn follow_announcements(mut announcements: Subscription, locations: Locations, stop: Stop) {
    loop {
        let delivery = tokio::select! {
            () = stop.given() => return,
            delivery = announcements.next() => delivery,
        };
        let Some(delivery) = delivery else { return };
        match decode::<GoneAnnouncement>(&delivery.payload) {
            Ok(announcement) => locations.gone(announcement.log.server()),
            Err(error) => tracing::warn!(%error, "an announcement of the coordinator cannot be understood"),
        }
    }
}

/// Why a client did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The text is no address of a NATS server.
    #[error(transparent)]
    Url(#[from] InvalidNatsUrl),
    /// No connection came about.
    #[error(transparent)]
    Nats(#[from] dormouse_bus::nats::ConnectError),
    /// The connection was lost for good while the client was being set up.
    #[error(transparent)]
    Client(#[from] Error),
}

impl Client {
    /// Connects to the fleet on a NATS system, with the defaults for everything else: `nats://host:4222`, or several
    /// of them separated by commas.
    ///
    /// Cancelling the call leaves no connection.
    ///
    /// # Errors
    /// [`ConnectError`] when the address makes no sense or no connection comes about.
    pub async fn connect(url: &str) -> Result<Self, ConnectError> {
        let urls = url.split(',').map(|url| url.trim().parse()).collect::<Result<_, _>>()?;
        Self::builder().connect(NatsOptions::new(urls)).await
    }

    /// Sets up a client in other ways than [`connect`](Self::connect).
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            prefix: Prefix::default(),
            deadline: DEFAULT_DEADLINE,
            env: Env::system(),
            location_capacity: DEFAULT_LOCATION_CAPACITY,
        }
    }

    /// Uses a connection that is there already, with the defaults for everything else.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::Closed`] when the bus is closed.
    pub async fn over(bus: Arc<dyn Bus>) -> Result<Self, Error> {
        Self::builder().over(bus).await
    }

    /// The stream at `subject`. Nothing is sent: a stream exists from its first message on.
    ///
    /// # Errors
    /// [`Error::InvalidSubject`] when the text is not a subject.
    pub fn stream(&self, subject: &str) -> Result<Stream, Error> {
        Ok(Stream { handle: self.handle(subject)? })
    }

    /// The key-value store at `subject`. Nothing is sent: a store exists from its first entry on.
    ///
    /// # Errors
    /// [`Error::InvalidSubject`] when the text is not a subject.
    pub fn kv(&self, subject: &str) -> Result<Kv, Error> {
        Ok(Kv { handle: self.handle(subject)? })
    }

    fn handle(&self, subject: &str) -> Result<Handle, Error> {
        Ok(Handle {
            inner: Arc::clone(&self.inner),
            subject: Subject::new(subject)?,
            deadline: self.inner.deadline,
            level: None,
        })
    }

    /// Which server serves `subject`, asked of the coordinator afresh. If nobody does yet, the coordinator decides now.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::Deadline`] when the coordinator does not answer or knows no live server;
    /// [`Error::PermissionDenied`].
    pub async fn locate(&self, subject: &Subject) -> Result<ServerName, Error> {
        let reply: LocateReply =
            self.inner.ask_coordinator(self.inner.prefix.locate(subject), &LocateRequest::default()).await?;
        Ok(reply.server)
    }

    /// The servers that the coordinator knows. For operators: an ordinary application need not be permitted to ask.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::Deadline`] when the coordinator does not answer; [`Error::PermissionDenied`].
    pub async fn servers(&self) -> Result<ServersReply, Error> {
        self.inner.ask_coordinator(self.inner.prefix.admin_servers(), &ServersRequest::default()).await
    }

    /// The connection underneath.
    #[must_use]
    pub fn bus(&self) -> &Arc<dyn Bus> {
        &self.inner.bus
    }

    /// The first tokens of the fleet's routes.
    #[must_use]
    pub fn prefix(&self) -> &Prefix {
        &self.inner.prefix
    }

    /// Ends the client for all its clones: watches and pages end, and the connection is closed if the client made it.
    /// Calls in flight fail or go on until their deadline.
    ///
    /// Cancelling the call leaves the client half closed; it can be called again.
    pub async fn close(&self) {
        finish(&self.inner.tasks).await;
        if let Some(bus_tasks) = &self.inner.bus_tasks {
            self.inner.bus.close().await;
            finish(bus_tasks).await;
        }
    }
}

async fn finish(tasks: &Tasks) {
    if let Err(unfinished) = tasks.finish(CLOSE_DEADLINE).await {
        tracing::warn!(%unfinished, "some tasks of the client did not end");
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("prefix", &self.inner.prefix)
            .field("session", &self.inner.session)
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.stop().give();
    }
}

impl Inner {
    /// Names the next changing request.
    pub(crate) fn next_request(&self) -> RequestId {
        RequestId { session: self.session, counter: self.counter.fetch_add(1, Ordering::Relaxed) }
    }

    /// Asks the server of `subject` for `op`, as often as it takes and is safe.
    pub(crate) async fn call<R: DeserializeOwned>(
        &self,
        subject: &Subject,
        op: Op,
        request: &(impl Serialize + ?Sized),
        deadline: Duration,
    ) -> Result<R, Error> {
        // The requests of the protocol are maps of plain fields, which always encode.
        let payload = encode(request).expect("a request encodes");
        let started = self.env.boot();
        let elapsed = || self.env.boot().saturating_sub(started);
        let mut tries = Tries::new(Repeat::of(op), deadline);
        let mut target = Target::Known;
        loop {
            // Only before a request is sent does a closed client mean that nothing happens.
            if self.tasks.stop().is_given() {
                return Err(Error::Closed);
            }
            let failure = match self.server(subject, target, deadline.saturating_sub(elapsed())).await {
                Err(failure) => failure,
                Ok(server) => {
                    let message =
                        Outgoing::new(self.prefix.server(&server.name, op, subject), payload.clone());
                    let answer = tokio::select! {
                        // An answer that came with the announcement is still an answer.
                        biased;
                        answer = exchange::<R>(&*self.bus, message, tries.try_deadline(elapsed())) =>
                            answer.map_err(Failure::Server),
                        () = server.gone.given() => Err(Failure::Gone(server.name.clone())),
                    };
                    match answer {
                        Ok(reply) => return Ok(reply),
                        Err(failure) => {
                            if failure.moved() {
                                self.locations.forget(subject, &server);
                            }
                            failure
                        }
                    }
                }
            };
            tracing::debug!(%subject, %op, ?failure, "a try failed");
            match tries.next(failure, elapsed(), || self.env.random_u64()) {
                Next::Fail(error) => return Err(error),
                Next::Retry { pause, target: next } => {
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    target = next;
                }
            }
        }
    }

    async fn server(
        &self,
        subject: &Subject,
        target: Target,
        deadline: Duration,
    ) -> Result<Arc<Server>, Failure> {
        match target {
            Target::Hinted(name) => return Ok(self.locations.learn(subject, name)),
            Target::Known => {
                if let Some(server) = self.locations.known(subject) {
                    return Ok(server);
                }
            }
            Target::Fresh => {}
        }
        self.locations.ask(subject, deadline).await.map_err(Failure::LookUp)
    }

    /// Asks the coordinator, as often as it takes: no question to it changes anything.
    async fn ask_coordinator<R: DeserializeOwned>(
        &self,
        route: Route,
        request: &impl Serialize,
    ) -> Result<R, Error> {
        // As in `call`.
        let payload = encode(request).expect("a request encodes");
        let started = self.env.boot();
        let elapsed = || self.env.boot().saturating_sub(started);
        let mut tries = Tries::new(Repeat::Freely, self.deadline);
        loop {
            let message = Outgoing::new(route.clone(), payload.clone());
            let refusal = match exchange(&*self.bus, message, tries.try_deadline(elapsed())).await {
                Ok(reply) => return Ok(reply),
                Err(refusal) => refusal,
            };
            match tries.next(Failure::LookUp(refusal), elapsed(), || self.env.random_u64()) {
                Next::Fail(error) => return Err(error),
                Next::Retry { pause, .. } => tokio::time::sleep(pause).await,
            }
        }
    }
}
