//! The port: a connection to a messaging system.

use std::time::Duration;

use async_trait::async_trait;
use dormouse_protocol::{Route, RoutePattern};
use tokio::sync::broadcast;

use crate::errors::{PublishError, RequestError, RoundTripError, SubscribeError};
use crate::messages::{Outgoing, Reply};
use crate::subscription::{SubscribeOptions, Subscription};

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

/// Messages that a connection has dropped so far, because a queue was full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BusDrops {
    /// Before they reached this crate, in the queue of the library.
    pub library: u64,
    /// In the queues of the subscriptions.
    pub subscriptions: u64,
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
    /// message. While the connection takes no bytes, the call waits once much of what was published is not written.
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

    /// Sends a message to this connection itself and waits until it arrives, at most for `deadline`. This proves that
    /// the connection carries messages in both directions. While disconnected, the call waits for a connection.
    ///
    /// If the call is cancelled, the message may still arrive, and is discarded.
    ///
    /// # Errors
    /// [`RoundTripError`].
    async fn round_trip(&self, deadline: Duration) -> Result<(), RoundTripError>;

    /// The events of the connection from now on. A slow receiver misses events.
    fn events(&self) -> broadcast::Receiver<BusEvent>;

    /// Whether a connection is up now.
    fn is_connected(&self) -> bool;

    /// The maximum payload of the connected server in bytes, headers included. It may change after a reconnect.
    fn max_payload(&self) -> usize;

    /// The messages that the connection has dropped so far. An adapter that cannot drop any need not count.
    fn drops(&self) -> BusDrops {
        BusDrops::default()
    }

    /// Sends the queued messages and ends the connection. Every later call fails with `Closed`.
    ///
    /// If the call is cancelled, the bus is closed for new calls, and queued messages may be unsent.
    async fn close(&self);
}
