//! What the coordinator is asked, from all of its routes.

use std::sync::Arc;

use dormouse_bus::{
    Bus, EndpointStats, InboxPrefixes, Incoming, Requests, ServeOptions, SubscribeError, serve,
};
use dormouse_protocol::{ErrorReply, Prefix, RoutePattern};
use dormouse_runtime::{Env, Tasks};
use futures::FutureExt;

use super::{Asked, requests};
use crate::machine::Input;

/// Most requests of one endpoint in a batch.
const BATCH: usize = 4_096;

type Read = fn(&Prefix, &Incoming) -> Result<Input, ErrorReply>;

/// Something the coordinator can be asked, and what has arrived for it.
struct Endpoint {
    name: &'static str,
    pattern: RoutePattern,
    requests: Requests,
    arrived: Vec<Incoming>,
    read: Read,
}

/// What is known about an endpoint from outside.
pub(super) struct EndpointFacts {
    pub(super) name: &'static str,
    pub(super) pattern: RoutePattern,
    pub(super) stats: Arc<EndpointStats>,
}

/// Everything the coordinator can be asked.
pub(super) struct Inbox {
    // The fleet's messages come first in a batch: what they say bears on all the rest.
    fleet: Endpoint,
    locate: Endpoint,
    servers: Endpoint,
}

impl Endpoint {
    async fn arrival(&mut self) -> bool {
        self.requests.next_many(&mut self.arrived, BATCH).await > 0
    }

    /// Takes what has arrived without waiting. False when there may be more.
    fn drain(&mut self) -> bool {
        let room = BATCH.saturating_sub(self.arrived.len());
        if room > 0 {
            // Tokio would now and then say "nothing there" to be fair to other tasks; here that would be a lie.
            let _ =
                tokio::task::unconstrained(self.requests.next_many(&mut self.arrived, room)).now_or_never();
        }
        self.arrived.len() < BATCH
    }
}

impl Inbox {
    pub(super) async fn open(
        bus: &Arc<dyn Bus>,
        env: &Env,
        tasks: &Tasks,
        prefix: &Prefix,
        inbox_prefixes: &InboxPrefixes,
    ) -> Result<Self, SubscribeError> {
        let endpoint = async |name, pattern: RoutePattern, read: Read| {
            let options = ServeOptions { inbox_prefixes: inbox_prefixes.clone(), ..ServeOptions::default() };
            let requests = serve(bus, env, tasks, pattern.clone(), options).await?;
            Ok(Endpoint { name, pattern, requests, arrived: Vec::new(), read })
        };
        Ok(Self {
            fleet: endpoint("fleet", prefix.fleet_all(), requests::fleet).await?,
            locate: endpoint("locate", prefix.locate_all(), requests::locate).await?,
            servers: endpoint("servers", prefix.admin_servers().into(), requests::servers).await?,
        })
    }

    pub(super) fn stats(&self) -> Vec<EndpointFacts> {
        [&self.fleet, &self.locate, &self.servers]
            .map(|endpoint| EndpointFacts {
                name: endpoint.name,
                pattern: endpoint.pattern.clone(),
                stats: Arc::clone(endpoint.requests.stats()),
            })
            .into()
    }

    /// Waits until something has arrived. False when nothing ever will again. Cancelling the wait loses no request.
    pub(super) async fn arrival(&mut self) -> bool {
        tokio::select! {
            open = self.fleet.arrival() => open,
            open = self.locate.arrival() => open,
            open = self.servers.arrival() => open,
        }
    }

    /// Takes what has arrived; what cannot be understood is refused here. The second value is false when there may
    /// be more.
    pub(super) fn take(&mut self, prefix: &Prefix) -> (Vec<Asked>, bool) {
        let mut asked = Vec::new();
        let mut emptied = true;
        for endpoint in [&mut self.fleet, &mut self.locate, &mut self.servers] {
            emptied &= endpoint.drain();
            for incoming in endpoint.arrived.drain(..) {
                match (endpoint.read)(prefix, &incoming) {
                    Ok(input) => asked.push(Asked { input, responder: incoming.responder }),
                    Err(error) => incoming.responder.error(&error),
                }
            }
        }
        (asked, emptied)
    }
}
