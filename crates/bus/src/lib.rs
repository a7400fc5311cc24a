//! The pub/sub port of Dormouse: everything the fleet needs of a messaging system, and nothing more.
//!
//! The port is [`Bus`]: request with a deadline, publish, subscribe. [`nats`] is the adapter for core NATS and
//! [`memory`] the one for tests and simulation; one contract suite runs on both. No other crate knows which is
//! underneath, which is what lets another pub/sub system take its place.
//!
//! On top of the port: [`ask`](ask()) makes a typed request, [`serve`](serve()) answers requests, [`services`] speaks
//! the NATS services API, [`health`] answers health requests. With the feature `args` the module of that name
//! holds the command-line arguments of everything that connects.

mod answers;
#[cfg(feature = "args")]
pub mod args;
mod ask;
mod callers;
pub mod health;
mod inbox;
mod mailbox;
pub mod memory;
pub mod nats;
mod serve;
pub mod services;
mod validate;

pub use ask::{AskError, ask, service_error};
pub use callers::{Caller, Callers};
pub use inbox::{InboxPrefix, InboxPrefixes, InvalidInboxPrefix};
pub use serve::{EndpointFigures, EndpointStats, Incoming, Requests, Responder, ServeOptions, serve};

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_protocol::{Happened, Headers, Route, RoutePattern};
use tokio::sync::broadcast;

use self::mailbox::Mailbox;

/// A message on its way out.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub route: Route,
    /// Headers of the transport.
    pub headers: Headers,
    /// The content.
    pub payload: Bytes,
}

impl Outgoing {
    /// A message without headers.
    #[must_use]
    pub fn new(route: Route, payload: Bytes) -> Self {
        Self { route, headers: Headers::default(), payload }
    }
}

/// A message that has arrived.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Where it was sent to.
    pub route: Route,
    /// Where an answer is expected, if one is.
    pub reply_to: Option<Route>,
    /// Headers of the transport.
    pub headers: Headers,
    /// The content.
    pub payload: Bytes,
}

/// The first answer to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Headers of the transport.
    pub headers: Headers,
    /// The content.
    pub payload: Bytes,
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nobody listens on the route.
    #[error("nobody answers on {0}")]
    NoResponders(Route),
    /// No answer came in time. The request may have been carried out, or may yet be.
    #[error("no answer on {route} within {} ms", deadline.as_millis())]
    Deadline {
        /// The route asked.
        route: Route,
        /// How long the answer was waited for.
        deadline: Duration,
    },
    /// The messaging system does not let us send to this route.
    #[error("not permitted to publish to {0}")]
    PermissionDenied(Route),
    /// The message is larger than the messaging system carries.
    #[error("a message of {size_bytes} bytes exceeds the largest payload of {limit_bytes} bytes")]
    TooLarge {
        /// Size of payload and headers.
        size_bytes: usize,
        /// The largest the connected server carries.
        limit_bytes: usize,
    },
    /// The message is one that no transport carries: a route with wildcards, a line break in a header.
    #[error("cannot send to {route}: {reason}")]
    Invalid {
        /// Where it was to go.
        route: Route,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not connected, and no connection came about before the deadline. Nothing was sent.
    #[error("not connected")]
    Disconnected,
    /// The bus was closed by its owner.
    #[error("the connection is closed")]
    Closed {
        /// Whether the request was sent before: then it may have been carried out.
        sent: bool,
    },
}

impl RequestError {
    /// Could the request have been carried out all the same?
    #[must_use]
    pub fn happened(&self) -> Happened {
        match self {
            Self::Deadline { .. } | Self::Closed { sent: true } => Happened::Unknown,
            Self::NoResponders(_)
            | Self::PermissionDenied(_)
            | Self::TooLarge { .. }
            | Self::Invalid { .. }
            | Self::Disconnected
            | Self::Closed { sent: false } => Happened::No,
        }
    }
}

/// Why a message was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The message is larger than the messaging system carries.
    #[error("a message of {size_bytes} bytes exceeds the largest payload of {limit_bytes} bytes")]
    TooLarge {
        /// Size of payload and headers.
        size_bytes: usize,
        /// The largest the connected server carries.
        limit_bytes: usize,
    },
    /// The message is one that no transport carries: a route with wildcards, a line break in a header.
    #[error("cannot send to {route}: {reason}")]
    Invalid {
        /// Where it was to go.
        route: Route,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The bus was closed by its owner.
    #[error("the connection is closed")]
    Closed,
}

/// Why a subscription did not come about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The messaging system does not let us listen there.
    #[error("not permitted to subscribe to {0}")]
    PermissionDenied(RoutePattern),
    /// The text is no pattern.
    #[error("not a valid pattern: {0}")]
    Invalid(RoutePattern),
    /// The bus was closed by its owner.
    #[error("the connection is closed")]
    Closed,
}

/// What happened to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusEvent {
    /// A connection is up; subscriptions are in force again. Messages sent meanwhile by others are lost.
    Connected,
    /// The connection is lost; the adapter tries to bring it back by itself.
    Disconnected,
    /// The connected server is about to go away; the adapter will move to another.
    LameDuck,
    /// A subscription's buffer was full and messages for it were dropped; told once for a run of losses. Pattern where
    /// known.
    SlowConsumer(Option<RoutePattern>),
    /// A message to this route was refused.
    PublishDenied(Route),
    /// A subscription to this pattern was refused.
    SubscribeDenied(RoutePattern),
    /// Anything else the server complained about.
    ServerError(String),
    /// The bus was closed by its owner.
    Closed,
}

/// How to subscribe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Each message goes to one member of this group only.
    pub queue: Option<String>,
    /// How many messages wait for the subscriber before new ones are dropped (with [`BusEvent::SlowConsumer`]). They are
    /// dropped, too, when more than 128 MiB of them wait.
    pub capacity: usize,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { queue: None, capacity: 65_536 }
    }
}

/// A subscription. Ends when dropped.
///
/// Ends, too, when the messaging system refuses it after a reconnect, or when the word of a refusal comes only after
/// the call that made it ([`BusEvent::SubscribeDenied`] says so).
pub struct Subscription {
    deliveries: Mailbox,
    // Dropping it tells the adapter to unsubscribe.
    guard: Option<Box<dyn Send + Sync>>,
}

impl Subscription {
    /// Joins an adapter's queue of deliveries with what ends the subscription when dropped.
    pub(crate) fn new(deliveries: Mailbox, guard: Box<dyn Send + Sync>) -> Self {
        Self { deliveries, guard: Some(guard) }
    }

    /// The next message; `None` once the bus is closed. Cancelling the wait loses no message.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.next().await
    }

    /// Moves what has arrived into `buffer`, at most `limit` messages, waiting for the first. Returns their number;
    /// 0 once the bus is closed. One wake-up for a whole burst. Cancelling the wait loses no message.
    pub async fn next_many(&mut self, buffer: &mut Vec<Delivery>, limit: usize) -> usize {
        self.deliveries.next_many(buffer, limit).await
    }

    /// Stops listening. What was sent before can still be taken; after that it is as if the bus were closed. On NATS
    /// listening ends once nothing has come for 100 ms, after 2 s at the latest: what is sent in that very moment is lost.
    pub fn unsubscribe(&mut self) {
        self.guard = None;
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("waiting", &self.deliveries.waiting()).finish_non_exhaustive()
    }
}

/// A connection to a messaging system.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Sends a message and waits for the first answer, at most for `deadline`.
    ///
    /// Cancelling the call abandons the answer; the message may have been sent.
    ///
    /// # Errors
    /// [`RequestError`]; its [`happened`](RequestError::happened) tells whether the request may have been carried
    /// out. While disconnected the call waits for a connection, and what it did not hand to the adapter by its deadline
    /// it never sends. What it did hand over may still go out later, where the connection broke at that moment: that
    /// is [`RequestError::Deadline`].
    async fn request(&self, message: Outgoing, deadline: Duration) -> Result<Reply, RequestError>;

    /// Sends a message. Whether anybody received it is not known; that is the nature of pub/sub. While disconnected
    /// it goes nowhere: a message that comes late is worth less than one that is known to be lost after a
    /// [`BusEvent::Disconnected`].
    ///
    /// Cancelling the call leaves the message sent or not.
    ///
    /// # Errors
    /// [`PublishError`] when it cannot be sent at all. A refusal by the server comes later, as
    /// [`BusEvent::PublishDenied`].
    async fn publish(&self, message: Outgoing) -> Result<(), PublishError>;

    /// Listens to a pattern. When the call returns, the subscription is in force at the server: a message that
    /// anybody sends afterwards arrives.
    ///
    /// Cancelling the call leaves no subscription.
    ///
    /// # Errors
    /// [`SubscribeError`].
    async fn subscribe(
        &self,
        pattern: RoutePattern,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError>;

    /// What happens to the connection from now on. A receiver that lags misses events.
    fn events(&self) -> broadcast::Receiver<BusEvent>;

    /// Whether a connection is up now.
    fn is_connected(&self) -> bool;

    /// The largest payload, headers included, that the connected server carries. In bytes; may change after a
    /// reconnect.
    fn max_payload(&self) -> usize;

    /// Sends what is queued and ends the connection. Every later call fails with `Closed`.
    ///
    /// Cancelling the call leaves the bus closed for new calls and perhaps messages unsent.
    async fn close(&self);
}
