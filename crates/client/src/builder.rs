//! Settings and construction of a client.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::nats::{InvalidNatsUrl, NatsOptions};
use dormouse_bus::{Bus, SubscribeOptions, Subscription};
use dormouse_protocol::fleet::GoneAnnouncement;
use dormouse_protocol::{Prefix, SessionId, decode};
use dormouse_runtime::{Env, Stop, Tasks};

use crate::call::ClientShared;
use crate::client::Client;
use crate::error::Error;
use crate::exchange::subscribe;
use crate::gets::GetScheduler;
use crate::location::Locations;
use crate::request_ids::RequestIds;
use crate::sets::SetScheduler;

/// Default of the longest time a call takes. A handle can set its own.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// Default of the number of locations that a client caches.
pub const DEFAULT_LOCATION_CAPACITY: usize = 100_000;

/// Default of the bytes of sets that may be queued or in flight at once.
pub const DEFAULT_QUEUE_BYTES: usize = 64 * 1_024 * 1_024;

/// Capacity of the queue of gone announcements; further ones are dropped.
const ANNOUNCEMENTS: usize = 1_024;

/// Settings of a client; made by [`Client::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    prefix: Prefix,
    deadline: Duration,
    env: Env,
    location_capacity: usize,
    queue_bytes: usize,
}

impl Client {
    /// Connects to the fleet over a NATS system, with defaults for all other settings. `url` is
    /// `nats://host:4222`, or several such URLs separated by commas.
    ///
    /// If the call is cancelled, no connection remains.
    ///
    /// # Errors
    /// [`ConnectError`] if a URL is invalid or the connection fails.
    pub async fn connect(url: &str) -> Result<Self, ConnectError> {
        let urls = url.split(',').map(|url| url.trim().parse()).collect::<Result<_, _>>()?;
        Self::builder().connect(NatsOptions::new(urls)).await
    }

    /// Returns a builder, for settings other than those of [`connect`](Self::connect).
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Uses an existing connection, with defaults for all other settings.
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// [`Error::Closed`] if the bus is closed; [`Error::Deadline`] if the messaging system is away.
    pub async fn over(bus: Arc<dyn Bus>) -> Result<Self, Error> {
        Self::builder().over(bus).await
    }
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
    /// The prefix of the fleet's routes: their first tokens. Default: `persist`.
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = prefix;
        self
    }

    /// The longest time a call takes, all attempts and pauses included. Default: [`DEFAULT_DEADLINE`]. A
    /// handle can set its own.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The source of time and randomness. Default: the system's.
    pub fn env(mut self, env: Env) -> Self {
        self.env = env;
        self
    }

    /// The largest number of cached subject locations. Default: [`DEFAULT_LOCATION_CAPACITY`]. A call to a
    /// subject that is not cached costs one request to the coordinator.
    pub fn location_capacity(mut self, locations: usize) -> Self {
        self.location_capacity = locations;
        self
    }

    /// The largest number of bytes of sets that are queued or sent and not yet answered. Default:
    /// [`DEFAULT_QUEUE_BYTES`]. One subject may use a quarter of it. A set over the limit fails with
    /// [`Error::QueueFull`]; if the queue is empty, a set of any size is accepted.
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.queue_bytes = bytes;
        self
    }

    /// Connects over core NATS.
    ///
    /// If the call is cancelled, no connection remains.
    ///
    /// # Errors
    /// [`ConnectError`] if no connection is established within the limits of `options`.
    pub async fn connect(self, options: NatsOptions) -> Result<Client, ConnectError> {
        let tasks = self.env.tasks();
        let bus = options.connect(self.env.clone(), &tasks).await?;
        Ok(self.assemble(Arc::new(bus), Some(tasks)).await?)
    }

    /// Uses an existing connection. The connection stays open when the client is dropped.
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// [`Error::Closed`] if the bus is closed; [`Error::Deadline`] if the messaging system is away.
    pub async fn over(self, bus: Arc<dyn Bus>) -> Result<Client, Error> {
        self.assemble(bus, None).await
    }

    async fn assemble(self, bus: Arc<dyn Bus>, bus_tasks: Option<Tasks>) -> Result<Client, Error> {
        let locations = Locations::new(Arc::clone(&bus), self.prefix.clone(), self.location_capacity);
        let tasks = self.env.tasks();
        let options = SubscribeOptions { queue: None, capacity: ANNOUNCEMENTS };
        match subscribe(&*bus, self.prefix.gone().into(), options, self.deadline).await {
            Ok(announcements) => {
                let task = follow_announcements(announcements, locations.clone(), tasks.stop().clone());
                tasks.spawn("gone announcements", task);
            }
            Err(error @ (Error::Closed | Error::Deadline { .. })) => return Err(error),
            // Without announcements, the client detects a failover later, by a timeout of the old server.
            Err(error) => {
                tracing::info!(
                    %error,
                    impact = "failover is detected only by timeout",
                    "gone announcements unavailable"
                );
            }
        }
        let session = SessionId::new(self.env.ulid());
        let inner = ClientShared {
            bus,
            bus_tasks,
            prefix: self.prefix,
            deadline: self.deadline,
            env: self.env,
            locations,
            tasks,
            session,
            request_ids: RequestIds::new(session),
            set_scheduler: SetScheduler::new(self.queue_bytes),
            get_scheduler: GetScheduler::default(),
        };
        Ok(Client { inner: Arc::new(inner) })
    }
}

async fn follow_announcements(mut announcements: Subscription, locations: Locations, stop: Stop) {
    loop {
        let delivery = tokio::select! {
            biased;
            () = stop.requested() => return,
            delivery = announcements.next() => delivery,
        };
        let Some(delivery) = delivery else { return };
        // Any protocol version is accepted: versions only add fields, and the announcement stays valid.
        match decode::<GoneAnnouncement>(&delivery.payload) {
            Ok(announcement) => locations.gone(announcement.log.server()),
            Err(error) => tracing::warn!(%error, "malformed gone announcement ignored"),
        }
    }
}

/// Why a client could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The text is not the URL of a NATS server.
    #[error(transparent)]
    Url(#[from] InvalidNatsUrl),
    /// The connection could not be established.
    #[error(transparent)]
    Nats(#[from] dormouse_bus::nats::NatsConnectError),
    /// The connection was closed during the set-up of the client.
    #[error(transparent)]
    Client(#[from] Error),
}
