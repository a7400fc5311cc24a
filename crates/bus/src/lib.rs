//! The pub/sub port of Dormouse: exactly the messaging functions that the fleet needs.
//!
//! The port is [`Bus`]: request with a deadline, publish, subscribe. [`nats`] is the adapter for core NATS, and
//! `memory`, with the feature of that name, is the adapter for tests and simulation; one contract suite runs on both. No other crate depends on an
//! adapter, so another pub/sub system can replace NATS.
//!
//! On top of the port: [`ask`](ask()) sends a typed request, [`serve`](serve()) answers requests, [`services`]
//! implements the NATS services API, [`health`] answers health requests. With the feature `args`, the module of that
//! name has the command-line arguments of the programs that connect.

#[cfg(feature = "args")]
pub mod args;
mod ask;
mod callers;
mod fixed_replies;
pub mod health;
mod inbox;
mod mailbox;
#[cfg(feature = "memory")]
pub mod memory;
pub mod nats;
mod serve;
pub mod services;
mod validate;

pub use ask::{AskError, ask, service_error};
pub use callers::{Caller, Callers};
pub use inbox::{InboxPrefix, InboxPrefixes, InvalidInboxPrefix};
pub use serve::{EndpointSnapshot, EndpointStats, Incoming, Requests, Responder, ServeOptions, serve};

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_protocol::{Executed, Headers, Route, RoutePattern};
use tokio::sync::broadcast;

use self::mailbox::MailboxReceiver;

/// A message to send.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The destination.
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
    /// The route of the message.
    pub route: Route,
    /// The address for a reply, if a reply is expected.
    pub reply_to: Option<Route>,
    /// Headers of the transport.
    pub headers: Headers,
    /// The content.
    pub payload: Bytes,
}

/// The first reply to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Headers of the transport.
    pub headers: Headers,
    /// The content.
    pub payload: Bytes,
}

/// Why a request got no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The route has no subscriber.
    #[error("no responder on {0}")]
    NoResponders(Route),
    /// No reply arrived in time. The request may have been executed, or may be executed later.
    #[error("no reply on {route} within {} ms", deadline.as_millis())]
    Deadline {
        /// The route of the request.
        route: Route,
        /// The deadline of the request.
        deadline: Duration,
    },
    /// The messaging system denies a publish to this route.
    #[error("not permitted to publish to {0}")]
    PermissionDenied(Route),
    /// The message is larger than the maximum payload.
    #[error("a message of {size_bytes} bytes exceeds the maximum payload of {limit_bytes} bytes")]
    TooLarge {
        /// Size of payload and headers.
        size_bytes: usize,
        /// The maximum payload of the connected server.
        limit_bytes: usize,
    },
    /// The message is invalid for every transport: a route with wildcards, a line break in a header.
    #[error("cannot send to {route}: {reason}")]
    Invalid {
        /// The destination.
        route: Route,
        /// Why it is invalid.
        reason: &'static str,
    },
    /// Not connected until the deadline. Nothing was sent.
    #[error("not connected")]
    Disconnected,
    /// The bus was closed by its owner.
    #[error("the connection is closed")]
    Closed {
        /// Whether the request was sent before the close. If so, it may have been executed.
        sent: bool,
    },
}

impl RequestError {
    /// Whether the request may have been executed.
    #[must_use]
    pub fn executed(&self) -> Executed {
        match self {
            Self::Deadline { .. } | Self::Closed { sent: true } => Executed::Unknown,
            Self::NoResponders(_)
            | Self::PermissionDenied(_)
            | Self::TooLarge { .. }
            | Self::Invalid { .. }
            | Self::Disconnected
            | Self::Closed { sent: false } => Executed::No,
        }
    }
}

/// Why a message was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The message is larger than the maximum payload.
    #[error("a message of {size_bytes} bytes exceeds the maximum payload of {limit_bytes} bytes")]
    TooLarge {
        /// Size of payload and headers.
        size_bytes: usize,
        /// The maximum payload of the connected server.
        limit_bytes: usize,
    },
    /// The message is invalid for every transport: a route with wildcards, a line break in a header.
    #[error("cannot send to {route}: {reason}")]
    Invalid {
        /// The destination.
        route: Route,
        /// Why it is invalid.
        reason: &'static str,
    },
    /// The bus was closed by its owner.
    #[error("the connection is closed")]
    Closed,
}

/// Why a subscription failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The messaging system denies the subscription.
    #[error("not permitted to subscribe to {0}")]
    PermissionDenied(RoutePattern),
    /// The text is no valid pattern.
    #[error("not a valid pattern: {0}")]
    Invalid(RoutePattern),
    /// The bus was closed by its owner.
    #[error("the connection is closed")]
    Closed,
}

/// An event of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusEvent {
    /// A connection is up, and the subscriptions are active again. Messages that others sent meanwhile are lost.
    Connected,
    /// The connection is lost. The adapter reconnects on its own.
    Disconnected,
    /// The connected server is about to stop. The adapter will connect to another one.
    LameDuck,
    /// A subscription's buffer was full, and messages for it were dropped. One event per series of drops. The pattern,
    /// if known.
    SlowConsumer(Option<RoutePattern>),
    /// A publish to this route was denied.
    PublishDenied(Route),
    /// A subscription to this pattern was denied.
    SubscribeDenied(RoutePattern),
    /// Any other error that the server reported.
    ServerError(String),
    /// The bus was closed by its owner.
    Closed,
}

/// Options of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// The queue group: each message goes to only one of its members.
    pub queue: Option<String>,
    /// Maximum number of queued messages. Above it, new messages are dropped (with [`BusEvent::SlowConsumer`]). They
    /// are also dropped above 128 MiB of queued messages.
    pub capacity: usize,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { queue: None, capacity: 65_536 }
    }
}

/// A subscription. A drop ends it.
///
/// It also ends if the messaging system denies it after a reconnect, or if a denial arrives only after the `subscribe`
/// call (with [`BusEvent::SubscribeDenied`]).
pub struct Subscription {
    deliveries: MailboxReceiver,
    // A drop makes the adapter unsubscribe.
    guard: Option<Box<dyn Send + Sync>>,
}

impl Subscription {
    /// A subscription of an adapter's delivery queue and a guard whose drop ends the subscription.
    pub(crate) fn new(deliveries: MailboxReceiver, guard: Box<dyn Send + Sync>) -> Self {
        Self { deliveries, guard: Some(guard) }
    }

    /// The next message; `None` if the bus is closed. Cancelling the wait loses no message.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.next().await
    }

    /// Moves the queued messages into `buffer`, at most `limit`, and waits for the first. Returns their number; 0 if
    /// the bus is closed. One task wake-up handles a whole burst. Cancelling the wait loses no message.
    pub async fn next_many(&mut self, buffer: &mut Vec<Delivery>, limit: usize) -> usize {
        self.deliveries.next_many(buffer, limit).await
    }

    /// Unsubscribes. Messages that were sent before can still be taken; after them the subscription acts as if the bus
    /// were closed. On NATS the subscription ends after 100 ms without a message, after 2 s at the latest: messages
    /// sent at that moment are lost.
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
    /// Sends a message and waits for the first reply, at most for `deadline`.
    ///
    /// If the call is cancelled, the reply is discarded; the message may have been sent.
    ///
    /// # Errors
    /// [`RequestError`]; [`executed`](RequestError::executed) says whether the request may have been executed. While
    /// disconnected, the call waits for a connection. A message that the adapter did not get before the deadline is
    /// never sent. A message that the adapter got may still be sent later if the connection broke at that moment: that
    /// is [`RequestError::Deadline`].
    async fn request(&self, message: Outgoing, deadline: Duration) -> Result<Reply, RequestError>;

    /// Sends a message. As always in pub/sub, the sender does not know whether a subscriber received it. While
    /// disconnected, the message is discarded: a known loss after a [`BusEvent::Disconnected`] is better than a late
    /// message.
    ///
    /// If the call is cancelled, the message may have been sent or not.
    ///
    /// # Errors
    /// [`PublishError`] if the message cannot be sent. A denial by the server comes later, as
    /// [`BusEvent::PublishDenied`].
    async fn publish(&self, message: Outgoing) -> Result<(), PublishError>;

    /// Subscribes to a pattern. When the call returns, the subscription is active at the server: every message sent
    /// after that arrives.
    ///
    /// If the call is cancelled, there is no subscription.
    ///
    /// # Errors
    /// [`SubscribeError`].
    async fn subscribe(
        &self,
        pattern: RoutePattern,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError>;

    /// The events of the connection from now on. A slow receiver misses events.
    fn events(&self) -> broadcast::Receiver<BusEvent>;

    /// Whether a connection is up now.
    fn is_connected(&self) -> bool;

    /// The maximum payload of the connected server in bytes, headers included. It may change after a reconnect.
    fn max_payload(&self) -> usize;

    /// Sends the queued messages and ends the connection. Every later call fails with `Closed`.
    ///
    /// If the call is cancelled, the bus is closed for new calls, and queued messages may be unsent.
    async fn close(&self);
}
