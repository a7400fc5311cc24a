//! Tests of the NATS adapter alone: connecting, and edge cases of the protocol. They use a real nats-server.

#[path = "nats/authentication.rs"]
mod authentication;
#[path = "nats/connecting.rs"]
mod connecting;
#[path = "nats/edges.rs"]
mod edges;
#[path = "nats/tls.rs"]
mod tls;

use std::future::Future;
use std::time::Duration;

use dormouse_bus::nats::{NatsBus, NatsConnectError, NatsOptions};
use dormouse_bus::{Bus, BusEvent, Delivery, Outgoing, RequestError, SubscribeOptions};
use dormouse_harness::{NatsServer, NatsServerOptions};
use dormouse_protocol::{Route, RoutePattern};
use dormouse_runtime::{Env, Tasks};
use tokio::sync::broadcast;

/// A deadline that is long enough on every machine.
const LONG: Duration = Duration::from_secs(60);

async fn server(config: impl Into<String>) -> NatsServer {
    NatsServer::start(NatsServerOptions::with_config(config)).await.unwrap()
}

fn options(url: &str) -> NatsOptions {
    NatsOptions { connect_deadline: LONG, ..NatsOptions::new(vec![url.parse().unwrap()]) }
}

async fn connect(options: NatsOptions) -> Result<NatsBus, NatsConnectError> {
    options.connect(Env::system(), &Tasks::new()).await
}

/// Sends a request from the bus to itself, and repeats it if the connection was just lost.
async fn assert_works(bus: &NatsBus) {
    let pattern = RoutePattern::new("works");
    let mut received = within(bus.subscribe(pattern, SubscribeOptions::default())).await.unwrap();
    let asked = async {
        loop {
            let ask = Outgoing::new(Route::new("works"), "yes".into());
            match bus.request(ask, LONG / 60).await {
                Ok(reply) => return reply,
                Err(error) => assert!(matches!(error, RequestError::Deadline { .. }), "{error}"),
            }
        }
    };
    let answering = async {
        while let Some(Delivery { reply_to: Some(reply_to), payload, .. }) = received.next().await {
            bus.publish(Outgoing::new(reply_to, payload)).await.unwrap();
        }
    };
    tokio::select! {
        reply = within(asked) => assert_eq!(reply.payload, "yes"),
        () = answering => panic!("the subscription ended"),
    }
}

async fn wait_for(events: &mut broadcast::Receiver<BusEvent>, wanted: BusEvent) {
    within(async { while events.recv().await.unwrap() != wanted {} }).await;
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("the future ends before the deadline")
}
