//! The in-memory adapter: a whole messaging system in one process, for tests and simulation.
//!
//! It behaves like core NATS (wildcards, queue groups, no responders, maximum payload, permissions, slow consumers,
//! lost connections) and is deterministic: everything happens in the caller's own step, without randomness and without
//! a clock. Deadlines follow tokio's clock, which a test may pause. A simulation puts a [`Network`] between the
//! connections, which loses, repeats and delays messages.

mod broker;
mod delay;
mod network;
mod options;

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_protocol::{Route, RoutePattern};
use dormouse_runtime::{Env, Lock, Observable, Tasks};
use tokio::sync::{broadcast, oneshot};

use self::broker::{Broker, ConnectionId, MemoryLink, SubscriptionId};
use self::delay::DelayQueue;
pub use self::network::{MessageInfo, Network};
pub use self::options::{MemoryOptions, Permission};
use crate::{
    Bus, BusDrops, BusEvent, Outgoing, PublishError, Reply, RequestError, RoundTripError, SubscribeError,
    SubscribeOptions, Subscription, validate,
};

/// A messaging system in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryBroker {
    state: Arc<Lock<Broker>>,
    /// The messages that the network delays.
    delay_queue: Option<Arc<DelayQueue>>,
}

impl MemoryBroker {
    /// A system without connections, with the maximum payload of a nats-server (1 MiB).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A system with `network` between its connections. A task of `tasks` delivers delayed messages by the clock of
    /// `env`.
    #[must_use]
    pub fn with_network(network: Arc<dyn Network>, env: Env, tasks: &Tasks) -> Self {
        let delay_queue = Arc::new(DelayQueue::new(env));
        let broker = Self { state: Arc::default(), delay_queue: Some(Arc::clone(&delay_queue)) };
        broker.lock().network = Some(network);
        tasks.spawn("network", delay::deliver(delay_queue, Arc::clone(&broker.state)));
        broker
    }

    /// A new connection, which is up at once.
    #[must_use]
    pub fn connect(&self, options: MemoryOptions) -> MemoryBus {
        let (id, link, events) = self.lock().connect(options);
        MemoryBus { broker: self.clone(), id, link, events }
    }

    /// Disconnects the connections called `name` until [`reconnect`](Self::reconnect).
    pub fn disconnect(&self, name: &str) {
        self.lock().set_link(|connection| connection.name() == name, MemoryLink::Down);
    }

    /// Reconnects the connections called `name`, with their subscriptions.
    pub fn reconnect(&self, name: &str) {
        self.lock().set_link(|connection| connection.name() == name, MemoryLink::Up);
    }

    /// Disconnects every connection, as a stop of the messaging system does.
    pub fn disconnect_all(&self) {
        self.lock().set_link(|_| true, MemoryLink::Down);
    }

    /// Reconnects every connection, with its subscriptions.
    pub fn reconnect_all(&self) {
        self.lock().set_link(|_| true, MemoryLink::Up);
    }

    /// Closes the connections called `name` permanently, as the end of their process does.
    pub fn close(&self, name: &str) {
        self.lock().close_all(|connection| connection.name() == name);
    }

    /// Changes the maximum payload, headers included, in bytes.
    pub fn set_max_payload(&self, limit_bytes: usize) {
        self.lock().max_payload_bytes = limit_bytes;
    }

    /// Runs an action that sends messages, and queues its delayed copies.
    fn send<T>(&self, act: impl FnOnce(&mut Broker) -> T) -> T {
        let (done, posted) = {
            let mut broker = self.lock();
            let done = act(&mut broker);
            (done, std::mem::take(&mut broker.delayed))
        };
        if let Some(delay_queue) = &self.delay_queue
            && !posted.is_empty()
        {
            delay_queue.post(posted);
        }
        done
    }

    fn lock(&self) -> MutexGuard<'_, Broker> {
        // Every change of the state is complete before anything can panic.
        self.state.lock()
    }
}

impl std::fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBroker").finish_non_exhaustive()
    }
}

/// A connection to a [`MemoryBroker`]. A drop closes it.
#[derive(Debug)]
pub struct MemoryBus {
    broker: MemoryBroker,
    id: ConnectionId,
    link: Arc<Observable<MemoryLink>>,
    events: broadcast::Sender<BusEvent>,
}

impl MemoryBus {
    /// Waits until the connection is up. Returns false if it is closed.
    async fn up(&self) -> bool {
        self.link.wait_for(|link| *link != MemoryLink::Down).await == MemoryLink::Up
    }

    async fn exchange(&self, message: Outgoing, sent: &mut bool) -> Result<Reply, RequestError> {
        let route = message.route.clone();
        loop {
            if !self.up().await {
                return Err(RequestError::Closed { sent: false });
            }
            let (sender, answer) = oneshot::channel();
            let sent_request = self.broker.send(|broker| broker.request(self.id, message.clone(), sender));
            match sent_request {
                Ok(inbox) => {
                    *sent = true;
                    let _forget = Forget { broker: &self.broker, inbox };
                    // The other end is dropped only when the connection is closed.
                    return answer.await.map_err(|_| RequestError::Closed { sent: true });
                }
                // The connection was lost between the two steps.
                Err(RequestError::Disconnected) => {}
                Err(error) => {
                    if let RequestError::PermissionDenied(_) = error {
                        let _ = self.events.send(BusEvent::PublishDenied(route));
                    }
                    return Err(error);
                }
            }
        }
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn request(&self, message: Outgoing, deadline: Duration) -> Result<Reply, RequestError> {
        let route = message.route.clone();
        validate::message(&message, self.max_payload()).map_err(|fault| fault.into_request_error(&route))?;
        let mut sent = false;
        match tokio::time::timeout(deadline, self.exchange(message, &mut sent)).await {
            Ok(outcome) => outcome,
            Err(_) if sent => Err(RequestError::Deadline { route, deadline }),
            Err(_) => Err(RequestError::Disconnected),
        }
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        let route = message.route.clone();
        validate::message(&message, self.max_payload()).map_err(|fault| fault.into_publish_error(&route))?;
        self.broker.send(|broker| broker.publish(self.id, message))
    }

    async fn subscribe(
        &self,
        pattern: RoutePattern,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError> {
        if !validate::is_pattern(&pattern)
            || options.queue.as_deref().is_some_and(|name| !validate::is_queue(name))
        {
            return Err(SubscribeError::Invalid(pattern));
        }
        if !self.up().await {
            return Err(SubscribeError::Closed);
        }
        let (id, deliveries) = self.broker.lock().subscribe(self.id, &pattern, options)?;
        Ok(Subscription::new(deliveries, Box::new(Unsubscribe { broker: self.broker.clone(), id })))
    }

    /// Arrives at once: no [`Network`] is between a connection and itself.
    async fn round_trip(&self, deadline: Duration) -> Result<(), RoundTripError> {
        match tokio::time::timeout(deadline, self.up()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(RoundTripError::Closed),
            Err(_) => Err(RoundTripError::Deadline(deadline)),
        }
    }

    fn events(&self) -> broadcast::Receiver<BusEvent> {
        self.events.subscribe()
    }

    fn is_connected(&self) -> bool {
        self.link.get() == MemoryLink::Up
    }

    fn max_payload(&self) -> usize {
        self.broker.lock().max_payload_bytes
    }

    fn drops(&self) -> BusDrops {
        BusDrops { library: 0, subscriptions: self.broker.lock().dropped(self.id) }
    }

    async fn close(&self) {
        self.broker.lock().close(self.id);
    }
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        self.broker.lock().close(self.id);
    }
}

/// Removes a pending request when its wait ends, also if the wait is cancelled.
struct Forget<'b> {
    broker: &'b MemoryBroker,
    inbox: Route,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.broker.lock().forget(&self.inbox);
    }
}

/// Ends a subscription on drop.
struct Unsubscribe {
    broker: MemoryBroker,
    id: SubscriptionId,
}

impl Drop for Unsubscribe {
    fn drop(&mut self) {
        self.broker.lock().unsubscribe(self.id);
    }
}
