//! What only the NATS adapter has: ways to connect, and the edges of the protocol. On a real nats-server.

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

use dormouse_bus::nats::{ConnectError, NatsBus, NatsOptions};
use dormouse_bus::{Bus, BusEvent, Delivery, Outgoing, RequestError, SubscribeOptions};
use dormouse_harness::{NatsServer, NatsServerOptions};
use dormouse_protocol::{Route, RoutePattern};
use dormouse_runtime::{Env, Tasks};
use tokio::sync::broadcast;

/// Long enough for anything that should happen, on any machine.
const LONG: Duration = Duration::from_secs(60);

async fn server(config: impl Into<String>) -> NatsServer {
    NatsServer::start(NatsServerOptions::with_config(config)).await.unwrap()
}

fn options(url: &str) -> NatsOptions {
    NatsOptions { connect_deadline: LONG, ..NatsOptions::new(vec![url.parse().unwrap()]) }
}

async fn connect(options: NatsOptions) -> Result<NatsBus, ConnectError> {
    options.connect(Env::system(), &Tasks::new()).await
}

/// Sends a request from the bus to itself, again if the connection was just lost.
async fn assert_works(bus: &NatsBus) {
    let pattern = RoutePattern::new("works");
    let mut heard = within(bus.subscribe(pattern, SubscribeOptions::default())).await.unwrap();
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
        while let Some(Delivery { reply_to: Some(reply_to), payload, .. }) = heard.next().await {
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
    tokio::time::timeout(LONG, future).await.expect("this must happen")
}
