//! The two messaging systems under test.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions, Permission};
use dormouse_bus::nats::{Authentication, NatsOptions, Secret};
use dormouse_bus::{Bus, BusEvent, Delivery, Outgoing, SubscribeOptions, Subscription};
use dormouse_harness::{NatsServer, NatsServerOptions};
use dormouse_protocol::{Route, RoutePattern};
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};
use tokio::sync::broadcast;

/// A deadline that is long enough on every machine.
pub const LONG: Duration = Duration::from_secs(60);

/// A deadline that a test can wait for.
pub const SHORT: Duration = Duration::from_millis(100);

/// The maximum payload of both systems, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 4_096;

/// A messaging system.
pub trait Fixture: Sized + Send {
    /// A connection with all permissions.
    fn connect(&self) -> impl Future<Output = Arc<dyn Bus>> + Send;
    /// A connection without permissions on `forbidden.>`.
    fn connect_limited(&self) -> impl Future<Output = Arc<dyn Bus>> + Send;
    /// Stops the system.
    fn stop(&mut self) -> impl Future<Output = ()> + Send;
    /// Starts the system again.
    fn start_again(&mut self) -> impl Future<Output = ()> + Send;
    /// The tasks of the test.
    fn tasks(&self) -> &Tasks;
    /// Clock and randomness.
    fn env(&self) -> Env;
}

/// The in-memory system.
pub struct Memory {
    broker: MemoryBroker,
    tasks: Tasks,
    env: Env,
}

impl Memory {
    pub async fn start() -> Self {
        let broker = MemoryBroker::new();
        broker.set_max_payload(MAX_PAYLOAD_BYTES);
        let clock = VirtualClock::starting_at(Duration::from_secs(1_800_000_000));
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
        Self { broker, tasks: Tasks::new(), env }
    }
}

impl Fixture for Memory {
    async fn connect(&self) -> Arc<dyn Bus> {
        Arc::new(self.broker.connect(MemoryOptions::named("free")))
    }

    async fn connect_limited(&self) -> Arc<dyn Bus> {
        let permission = Permission { allow: Vec::new(), deny: vec![RoutePattern::new("forbidden.>")] };
        let options = MemoryOptions::named("limited");
        Arc::new(self.broker.connect(MemoryOptions {
            publish: permission.clone(),
            subscribe: permission,
            ..options
        }))
    }

    async fn stop(&mut self) {
        self.broker.disconnect_all();
    }

    async fn start_again(&mut self) {
        self.broker.reconnect_all();
    }

    fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    fn env(&self) -> Env {
        self.env.clone()
    }
}

/// A real nats-server.
pub struct Nats {
    server: NatsServer,
    tasks: Tasks,
}

impl Nats {
    pub async fn start() -> Self {
        let config = format!(
            "max_payload: {MAX_PAYLOAD_BYTES}\n\
             authorization {{ users: [\n\
             {{ user: free, password: free }}\n\
             {{ user: limited, password: limited, permissions: {{\n\
             publish: {{ deny: \"forbidden.>\" }}, subscribe: {{ deny: \"forbidden.>\" }} }} }}\n\
             ] }}\n"
        );
        let server = NatsServer::start(NatsServerOptions::with_config(config)).await.unwrap();
        Self { server, tasks: Tasks::new() }
    }

    async fn connect_as(&self, user: &str) -> Arc<dyn Bus> {
        let options = NatsOptions {
            authentication: Authentication::UserPassword {
                user: user.to_owned(),
                password: Secret::new(user),
            },
            connect_deadline: LONG,
            ..NatsOptions::new(vec![self.server.url().parse().unwrap()])
        };
        Arc::new(options.connect(Env::system(), &self.tasks).await.unwrap())
    }
}

impl Fixture for Nats {
    async fn connect(&self) -> Arc<dyn Bus> {
        self.connect_as("free").await
    }

    async fn connect_limited(&self) -> Arc<dyn Bus> {
        self.connect_as("limited").await
    }

    async fn stop(&mut self) {
        self.server.stop().await.unwrap();
    }

    async fn start_again(&mut self) {
        self.server.restart().await.unwrap();
    }

    fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    fn env(&self) -> Env {
        Env::system()
    }
}

pub fn message(route: &str, payload: impl Into<Bytes>) -> Outgoing {
    Outgoing::new(Route::new(route), payload.into())
}

pub async fn listen(bus: &Arc<dyn Bus>, pattern: &str) -> Subscription {
    bus.subscribe(RoutePattern::new(pattern), SubscribeOptions::default()).await.unwrap()
}

pub async fn join(bus: &Arc<dyn Bus>, pattern: &str, queue: &str) -> Subscription {
    let options = SubscribeOptions { queue: Some(queue.to_owned()), ..SubscribeOptions::default() };
    bus.subscribe(RoutePattern::new(pattern), options).await.unwrap()
}

/// The next message. Panics if none arrives.
pub async fn next(subscription: &mut Subscription) -> Delivery {
    within(subscription.next()).await.expect("the subscription is active")
}

/// Waits for an event that `matches` accepts.
pub async fn wait_for(
    events: &mut broadcast::Receiver<BusEvent>,
    matches: impl Fn(&BusEvent) -> bool,
) -> BusEvent {
    within(async {
        loop {
            match events.recv().await {
                Ok(event) if matches(&event) => return event,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

/// Replies to every message of `subscription` with the output of `answer`.
pub fn respond(
    tasks: &Tasks,
    bus: &Arc<dyn Bus>,
    mut subscription: Subscription,
    answer: impl Fn(Delivery) -> Bytes + Send + 'static,
) {
    let bus = Arc::clone(bus);
    tasks.spawn("responder", async move {
        while let Some(delivery) = subscription.next().await {
            if let Some(reply_to) = delivery.reply_to.clone() {
                bus.publish(Outgoing::new(reply_to, answer(delivery))).await.unwrap();
            }
        }
    });
}

/// Waits for a future. Panics at the deadline.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("the future ends before the deadline")
}
