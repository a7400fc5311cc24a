//! What the coordinator is asked, from all of its routes.

use std::collections::HashSet;
use std::sync::Arc;

use dormouse_bus::{
    Bus, EndpointStats, InboxPrefixes, Incoming, Requests, ServeOptions, SubscribeError, serve,
};
use dormouse_protocol::{ErrorReply, Prefix, RoutePattern, ServerName};
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
    fleet: Endpoint,
    /// What the fleet says that is not for at once: it comes first in the next batch, since it bears on all the rest.
    held: Vec<Asked>,
    locate: Endpoint,
    servers: Endpoint,
}

/// What could be answered at once.
#[derive(Default)]
pub(super) struct Heartbeats {
    /// The heartbeats.
    pub(super) arrived: Vec<Asked>,
    /// No other was waiting to be read.
    pub(super) all: bool,
}

impl Endpoint {
    async fn arrival(&mut self, limit: usize) -> bool {
        self.requests.next_many(&mut self.arrived, limit).await > 0
    }

    /// Takes at most `limit` requests that have arrived, without waiting, and reads those that can be understood; the
    /// others are refused here. The second value is false when there may be more.
    fn drain(&mut self, prefix: &Prefix, limit: usize) -> (Vec<Asked>, bool) {
        let room = limit.saturating_sub(self.arrived.len());
        if room > 0 {
            // Tokio would now and then say "nothing there" to be fair to other tasks; here that would be a lie.
            let _ =
                tokio::task::unconstrained(self.requests.next_many(&mut self.arrived, room)).now_or_never();
        }
        let emptied = self.arrived.len() < limit;
        let mut asked = Vec::with_capacity(self.arrived.len());
        for incoming in self.arrived.drain(..) {
            match (self.read)(prefix, &incoming) {
                Ok(input) => asked.push(Asked { input, responder: incoming.responder }),
                Err(error) => incoming.responder.error(&error),
            }
        }
        (asked, emptied)
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
            held: Vec::new(),
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
        if !self.held.is_empty() {
            return true;
        }
        tokio::select! {
            biased;
            open = self.fleet.arrival(BATCH) => open,
            open = self.locate.arrival(BATCH) => open,
            open = self.servers.arrival(BATCH) => open,
        }
    }

    /// Waits until the fleet has said something, if there is room for it. False when it never will again. Cancelling
    /// the wait loses no request.
    pub(super) async fn fleet_arrival(&mut self) -> bool {
        match BATCH.saturating_sub(self.held.len() + self.fleet.arrived.len()) {
            0 => std::future::pending().await,
            room => self.fleet.arrival(room).await,
        }
    }

    /// Reads everything that the fleet has said, takes the heartbeats and keeps the rest for the next batch. Servers
    /// in `unflushed` have to wait with the rest: what is decided about them is not certain yet.
    pub(super) fn heartbeats(&mut self, prefix: &Prefix, unflushed: &HashSet<ServerName>) -> Heartbeats {
        let room = BATCH.saturating_sub(self.held.len());
        let (asked, all) = self.fleet.drain(prefix, room);
        let (arrived, held): (Vec<_>, Vec<_>) = asked.into_iter().partition(|asked| match &asked.input {
            Input::Heartbeat(request) => !unflushed.contains(request.log.server()),
            _ => false,
        });
        self.held.extend(held);
        Heartbeats { arrived, all }
    }

    /// Takes a batch of what has arrived: all that the fleet has said, and of the rest as much from each endpoint as
    /// keeps the batch short.
    pub(super) fn take(&mut self, prefix: &Prefix) -> Vec<Asked> {
        let mut asked = std::mem::take(&mut self.held);
        for endpoint in [&mut self.locate, &mut self.servers] {
            asked.extend(endpoint.drain(prefix, BATCH).0);
        }
        asked
    }
}

#[cfg(test)]
mod tests;
