//! The in-memory adapter: a whole messaging system in one process, for tests and simulation.
//!
//! It behaves as core NATS does (wildcards, queue groups, no responders, largest payload, permissions, slow
//! consumers, lost connections) and is deterministic: everything happens in the caller's own step, nothing is drawn
//! by lot, and no clock is read. Deadlines follow tokio's clock, which a test may pause. A simulation puts a [`Network`]
//! between the connections, which decides what is lost, repeated and late.

mod broker;
mod network;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_protocol::{Route, RoutePattern};
use dormouse_runtime::{Env, Tasks, Watched};
use tokio::sync::{broadcast, oneshot};

use self::broker::{Broker, ConnectionId, Link, SubscriptionId};
use self::network::Carrier;
pub use self::network::{Network, Passage};
use crate::{
    Bus, BusEvent, Outgoing, PublishError, Reply, RequestError, SubscribeError, SubscribeOptions,
    Subscription, validate,
};

/// What a connection may do. Empty `allow` allows everything; `deny` wins over `allow`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Permission {
    /// Only these, unless empty.
    pub allow: Vec<RoutePattern>,
    /// Never these.
    pub deny: Vec<RoutePattern>,
}

/// How a connection to a [`MemoryBroker`] comes about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryOptions {
    /// The name by which [`MemoryBroker::disconnect`] and [`MemoryBroker::reconnect`] know it.
    pub name: String,
    /// The first token of its reply addresses.
    pub inbox_prefix: String,
    /// Where it may publish to.
    pub publish: Permission,
    /// What it may subscribe to.
    pub subscribe: Permission,
}

impl MemoryOptions {
    /// A connection that may do everything.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            inbox_prefix: "_INBOX".to_owned(),
            publish: Permission::default(),
            subscribe: Permission::default(),
        }
    }
}

/// A messaging system in memory. Cloning shares it.
#[derive(Clone, Default)]
pub struct MemoryBroker {
    state: Arc<Mutex<Broker>>,
    /// Keeps what the network delays.
    carrier: Option<Arc<Carrier>>,
}

impl MemoryBroker {
    /// A system without connections, whose largest payload is that of a nats-server (1 MiB).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A system whose connections have `network` between them. What it delays arrives by the clock of `env`, brought by a
    /// task of `tasks`.
    #[must_use]
    pub fn over(network: Arc<dyn Network>, env: Env, tasks: &Tasks) -> Self {
        let carrier = Arc::new(Carrier::new(env));
        let broker = Self { state: Arc::default(), carrier: Some(Arc::clone(&carrier)) };
        broker.lock().network = Some(network);
        tasks.spawn("network", network::deliver(carrier, Arc::clone(&broker.state)));
        broker
    }

    /// A new connection, up at once.
    #[must_use]
    pub fn connect(&self, options: MemoryOptions) -> MemoryBus {
        let (id, link, events) = self.lock().connect(options);
        MemoryBus { broker: self.clone(), id, link, events }
    }

    /// Takes the connections called `name` down. They stay down until [`reconnect`](Self::reconnect).
    pub fn disconnect(&self, name: &str) {
        self.lock().set_link(|connection| connection.name() == name, Link::Down);
    }

    /// Brings the connections called `name` up again, with their subscriptions.
    pub fn reconnect(&self, name: &str) {
        self.lock().set_link(|connection| connection.name() == name, Link::Up);
    }

    /// Takes every connection down, as when the messaging system stops.
    pub fn disconnect_all(&self) {
        self.lock().set_link(|_| true, Link::Down);
    }

    /// Brings every connection up again, with its subscriptions.
    pub fn reconnect_all(&self) {
        self.lock().set_link(|_| true, Link::Up);
    }

    /// Closes the connections called `name` for good, as when their process dies.
    pub fn close(&self, name: &str) {
        self.lock().close_all(|connection| connection.name() == name);
    }

    /// Changes the largest payload, headers included, in bytes.
    pub fn set_max_payload(&self, limit_bytes: usize) {
        self.lock().max_payload_bytes = limit_bytes;
    }

    /// Does what sends something.
    fn send<T>(&self, act: impl FnOnce(&mut Broker) -> T) -> T {
        let (done, posted) = {
            let mut broker = self.lock();
            let done = act(&mut broker);
            (done, std::mem::take(&mut broker.posted))
        };
        if let Some(carrier) = &self.carrier
            && !posted.is_empty()
        {
            carrier.post(posted);
        }
        done
    }

    fn lock(&self) -> MutexGuard<'_, Broker> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBroker").finish_non_exhaustive()
    }
}

/// A connection to a [`MemoryBroker`]. Closed when dropped.
#[derive(Debug)]
pub struct MemoryBus {
    broker: MemoryBroker,
    id: ConnectionId,
    link: Arc<Watched<Link>>,
    events: broadcast::Sender<BusEvent>,
}

impl MemoryBus {
    /// Waits until the connection is up. False when it is closed.
    async fn up(&self) -> bool {
        self.link.wait_for(|link| *link != Link::Down).await == Link::Up
    }

    async fn exchange(&self, message: Outgoing, sent: &mut bool) -> Result<Reply, RequestError> {
        let route = message.route.clone();
        loop {
            if !self.up().await {
                return Err(RequestError::Closed { sent: false });
            }
            let (sender, answer) = oneshot::channel();
            let asked = self.broker.send(|broker| broker.request(self.id, message.clone(), sender));
            match asked {
                Ok(inbox) => {
                    *sent = true;
                    let _forget = Forget { broker: &self.broker, inbox };
                    // The other end is dropped only when the connection is closed.
                    return answer.await.map_err(|_| RequestError::Closed { sent: true });
                }
                // It went down between the two steps.
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

    fn events(&self) -> broadcast::Receiver<BusEvent> {
        self.events.subscribe()
    }

    fn is_connected(&self) -> bool {
        self.link.get() == Link::Up
    }

    fn max_payload(&self) -> usize {
        self.broker.lock().max_payload_bytes
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

/// Forgets a request that nobody waits for any more, also when the wait is cancelled.
struct Forget<'b> {
    broker: &'b MemoryBroker,
    inbox: Route,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.broker.lock().forget(&self.inbox);
    }
}

/// Ends a subscription when its owner drops it.
struct Unsubscribe {
    broker: MemoryBroker,
    id: SubscriptionId,
}

impl Drop for Unsubscribe {
    fn drop(&mut self) {
        self.broker.lock().unsubscribe(self.id);
    }
}
