//! How a client comes about.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use dormouse_bus::nats::{InvalidNatsUrl, NatsOptions};
use dormouse_bus::{Bus, SubscribeError, SubscribeOptions, Subscription};
use dormouse_protocol::fleet::GoneAnnouncement;
use dormouse_protocol::{Prefix, SessionId, decode};
use dormouse_runtime::{Env, Stop, Tasks};

use crate::call::Inner;
use crate::client::Client;
use crate::error::Error;
use crate::gets::Lanes;
use crate::location::Locations;
use crate::sets::Writers;

/// How long a call takes at most, unless its handle says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// How many locations a client remembers, unless configured otherwise.
pub const DEFAULT_LOCATION_CAPACITY: usize = 100_000;

/// How many bytes of sets may be on their way at once, unless configured otherwise.
pub const DEFAULT_QUEUE_BYTES: usize = 64 * 1_024 * 1_024;

/// How many announcements wait to be read before new ones are dropped.
const ANNOUNCEMENTS: usize = 1_024;

/// How a client is set up; made by [`Client::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    prefix: Prefix,
    deadline: Duration,
    env: Env,
    location_capacity: usize,
    queue_bytes: usize,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            prefix: Prefix::default(),
            deadline: DEFAULT_DEADLINE,
            env: Env::system(),
            location_capacity: DEFAULT_LOCATION_CAPACITY,
            queue_bytes: DEFAULT_QUEUE_BYTES,
        }
    }
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

    /// How many bytes of sets may be on their way at once, queued and sent, and not yet answered;
    /// [`DEFAULT_QUEUE_BYTES`] unless set. One subject may have a quarter of it. What comes on top is refused with
    /// [`Error::QueueFull`], except that something is always let in when there is nothing else.
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.queue_bytes = bytes;
        self
    }

    /// Connects over core NATS.
    ///
    /// Cancelling the call leaves no connection.
    ///
    /// # Errors
    /// [`ConnectError`] when no connection comes about within what `options` allow.
    pub async fn connect(self, options: NatsOptions) -> Result<Client, ConnectError> {
        let tasks = self.env.tasks();
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
        let tasks = self.env.tasks();
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
        let inner = Inner {
            bus,
            bus_tasks,
            prefix: self.prefix,
            deadline: self.deadline,
            env: self.env,
            locations,
            tasks,
            session,
            counter: AtomicU64::new(0),
            writers: Writers::new(self.queue_bytes),
            lanes: Lanes::default(),
        };
        Ok(Client { inner: Arc::new(inner) })
    }
}

async fn follow_announcements(mut announcements: Subscription, locations: Locations, stop: Stop) {
    loop {
        let delivery = tokio::select! {
            biased;
            () = stop.given() => return,
            delivery = announcements.next() => delivery,
        };
        let Some(delivery) = delivery else { return };
        // Of any version: versions add fields, and what this one says would still be so.
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
