//! Calls while the messaging system is away: each one ends by its deadline.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_bus::memory::{MemoryBus, MemoryOptions};
use dormouse_bus::{
    Bus, BusEvent, Outgoing, PublishError, Reply, RequestError, RoundTripError, SubscribeError,
    SubscribeOptions, Subscription,
};
use dormouse_client::{Client, Error, Executed, FeedFrom, FeedKeys};
use dormouse_protocol::RoutePattern;
use tokio::sync::broadcast;

use support::{CannedReply, Fleet, at, info};

const DEADLINE: Duration = Duration::from_secs(3);

/// A connection whose subscriptions wait while the messaging system is away, as those of NATS do.
struct AwayBus {
    bus: MemoryBus,
    away: AtomicBool,
    /// How long a subscription takes otherwise.
    delay: Duration,
}

#[async_trait]
impl Bus for AwayBus {
    async fn request(&self, message: Outgoing, deadline: Duration) -> Result<Reply, RequestError> {
        self.bus.request(message, deadline).await
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        self.bus.publish(message).await
    }

    async fn subscribe(
        &self,
        pattern: RoutePattern,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError> {
        if self.away.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        tokio::time::sleep(self.delay).await;
        self.bus.subscribe(pattern, options).await
    }

    async fn round_trip(&self, deadline: Duration) -> Result<(), RoundTripError> {
        self.bus.round_trip(deadline).await
    }

    fn events(&self) -> broadcast::Receiver<BusEvent> {
        self.bus.events()
    }

    fn is_connected(&self) -> bool {
        self.bus.is_connected()
    }

    fn max_payload(&self) -> usize {
        self.bus.max_payload()
    }

    async fn close(&self) {
        self.bus.close().await;
    }
}

fn bus(fleet: &Fleet, away: bool, delay: Duration) -> Arc<AwayBus> {
    let bus = fleet.broker.connect(MemoryOptions::named("client"));
    Arc::new(AwayBus { bus, away: AtomicBool::new(away), delay })
}

fn assert_deadline(error: &Error) {
    assert!(matches!(error, Error::Deadline { deadline: DEADLINE, .. }), "{error:?}");
    assert_eq!(error.executed(), Executed::No);
}

/// Watches and feeds end by the deadline of their handle while the messaging system is away.
#[tokio::test(start_paused = true)]
async fn feed_ends_by_deadline_while_messaging_is_away() {
    let fleet = Fleet::new();
    let bus = bus(&fleet, false, Duration::ZERO);
    let client = Client::builder().env(fleet.env.clone()).over(Arc::clone(&bus) as _).await.unwrap();
    let kv = client.kv("app.x").unwrap().with_deadline(DEADLINE);
    bus.away.store(true, Ordering::SeqCst);
    for from in [FeedFrom::Now, FeedFrom::Beginning] {
        let before = fleet.now();
        assert_deadline(&kv.feed(FeedKeys::All, from).await.unwrap_err());
        assert_eq!(fleet.now() - before, DEADLINE);
    }
}

/// The subscription and the query of a watch have one deadline together.
#[tokio::test(start_paused = true)]
async fn watch_steps_share_one_deadline() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| CannedReply::Late(DEADLINE * 2 / 3, Box::new(info(1)))).await;
    let bus = bus(&fleet, false, DEADLINE * 2 / 3);
    let client = Client::builder().env(fleet.env.clone()).over(bus).await.unwrap();
    let kv = client.kv("app.x").unwrap().with_deadline(DEADLINE);
    let before = fleet.now();
    assert_deadline(&kv.watch("k").await.unwrap_err());
    assert_eq!(fleet.now() - before, DEADLINE);
}

/// A client over a connection whose messaging system is away is refused by its deadline.
#[tokio::test(start_paused = true)]
async fn client_set_up_ends_by_deadline_while_messaging_is_away() {
    let fleet = Fleet::new();
    let bus = bus(&fleet, true, Duration::ZERO);
    let before = fleet.now();
    let client = Client::builder().env(fleet.env.clone()).deadline(DEADLINE).over(bus).await;
    assert_deadline(&client.unwrap_err());
    assert_eq!(fleet.now() - before, DEADLINE);
}
