//! The request inbox: arrived requests of all routes of the coordinator.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{
    Bus, Callers, EndpointStats, InboxPrefixes, Incoming, Requests, ServeOptions, SubscribeError, serve,
};
use dormouse_protocol::{ErrorReply, Prefix, RoutePattern, ServerName, TenantRule};
use dormouse_runtime::{Env, Tasks};
use futures::FutureExt;

use super::locates::LocateInbox;
use super::requests::{self, AdminRequest, DecodedRequest, MachineRequest};
use crate::locate_queue::LocateCounts;
use crate::machine::CoordinatorInput;

/// The maximum number of requests of servers in a batch.
const BATCH: usize = 4_096;

/// The maximum number of operators' requests in a batch: they are few, and each may cost more than other requests.
const ADMIN_BATCH: usize = 64;

type ParseFn<T> = fn(&Prefix, &Incoming) -> Result<T, ErrorReply>;

/// A route pattern that the coordinator serves, and the requests that have arrived on it.
struct Endpoint<T> {
    name: &'static str,
    pattern: RoutePattern,
    requests: Requests,
    arrived: Vec<Incoming>,
    parse: ParseFn<T>,
}

/// The public facts about an endpoint.
pub(super) struct EndpointFacts {
    pub(super) name: &'static str,
    pub(super) pattern: RoutePattern,
    pub(super) stats: Arc<EndpointStats>,
}

/// All endpoints of the coordinator.
pub(super) struct RequestInbox {
    fleet: Endpoint<CoordinatorInput>,
    /// Fleet requests that wait for the next batch. They come first in it, because the other decisions depend on them.
    deferred: Vec<MachineRequest>,
    locate: LocateInbox,
    admin: Endpoint<AdminRequest>,
}

/// A batch of arrived requests.
pub(super) struct RequestBatch {
    /// Requests that can be decided.
    pub(super) asked: Vec<MachineRequest>,
    /// Requests that need a lookup first.
    pub(super) lookups: Vec<DecodedRequest<AdminRequest>>,
}

/// Heartbeats to answer at once.
#[derive(Default)]
pub(super) struct HeartbeatBatch {
    /// The heartbeats.
    pub(super) arrived: Vec<MachineRequest>,
    /// Whether no further fleet request was waiting to be read.
    pub(super) complete: bool,
}

impl<T> Endpoint<T> {
    async fn open(
        context: &ListenContext<'_>,
        name: &'static str,
        pattern: RoutePattern,
        parse: ParseFn<T>,
    ) -> Result<Self, SubscribeError> {
        let requests = subscribe(context, pattern.clone()).await?;
        Ok(Self { name, pattern, requests, arrived: Vec::new(), parse })
    }

    fn facts(&self) -> EndpointFacts {
        EndpointFacts {
            name: self.name,
            pattern: self.pattern.clone(),
            stats: Arc::clone(self.requests.stats()),
        }
    }

    async fn arrival(&mut self, limit: usize) -> bool {
        self.requests.next_many(&mut self.arrived, limit).await > 0
    }

    /// Takes at most `limit` arrived requests, without waiting, and decodes them; invalid ones get an error reply here. The
    /// second value is false if more may be waiting.
    fn take_arrived(&mut self, prefix: &Prefix, limit: usize) -> (Vec<DecodedRequest<T>>, bool) {
        let room = limit.saturating_sub(self.arrived.len());
        if room > 0 {
            // Without `unconstrained`, tokio's budget could report "nothing there" although requests have arrived.
            let _ =
                tokio::task::unconstrained(self.requests.next_many(&mut self.arrived, room)).now_or_never();
        }
        let complete = self.arrived.len() < limit;
        let mut asked = Vec::with_capacity(self.arrived.len());
        for incoming in self.arrived.drain(..) {
            match (self.parse)(prefix, &incoming) {
                Ok(input) => asked.push(DecodedRequest { input, responder: incoming.responder }),
                Err(error) => incoming.responder.error(&error),
            }
        }
        (asked, complete)
    }
}

/// Subscribes to the requests on a pattern.
pub(super) async fn subscribe(
    context: &ListenContext<'_>,
    pattern: RoutePattern,
) -> Result<Requests, SubscribeError> {
    let inbox_prefixes = context.inbox_prefixes.clone();
    let options = ServeOptions { inbox_prefixes, callers: context.callers, ..ServeOptions::default() };
    serve(context.bus, context.env, context.tasks, pattern, options).await
}

/// The context in which routes are served.
#[derive(Clone, Copy)]
pub(super) struct ListenContext<'a> {
    pub(super) bus: &'a Arc<dyn Bus>,
    pub(super) env: &'a Env,
    pub(super) tasks: &'a Tasks,
    pub(super) prefix: &'a Prefix,
    pub(super) inbox_prefixes: &'a InboxPrefixes,
    /// Which callers may locate which subjects.
    pub(super) callers: Callers,
    /// Which part of a look-up names its tenant.
    pub(super) tenant_rule: TenantRule,
}

impl RequestInbox {
    pub(super) async fn open(context: ListenContext<'_>) -> Result<Self, SubscribeError> {
        let prefix = context.prefix;
        Ok(Self {
            fleet: Endpoint::open(&context, "fleet", prefix.fleet_all(), requests::fleet).await?,
            deferred: Vec::new(),
            locate: LocateInbox::open(&context).await?,
            admin: Endpoint::open(&context, "admin", prefix.admin_all(), requests::admin).await?,
        })
    }

    pub(super) fn stats(&self, prefix: &Prefix) -> Vec<EndpointFacts> {
        vec![self.fleet.facts(), self.locate.facts(prefix), self.admin.facts()]
    }

    /// The look-ups.
    pub(super) fn locates(&mut self) -> &mut LocateInbox {
        &mut self.locate
    }

    /// The numbers of look-ups.
    pub(super) fn locate_counts(&self) -> LocateCounts {
        self.locate.counts()
    }

    /// The messages other than look-ups that subscriptions of `bus` have dropped.
    pub(super) fn other_drops(&self, bus: &dyn Bus) -> u64 {
        bus.drops().subscriptions.saturating_sub(self.locate.counted_drops())
    }

    /// Waits until a request has arrived. False if none can arrive any more. Cancelling the wait loses no request.
    pub(super) async fn arrival(&mut self) -> bool {
        if !self.deferred.is_empty() {
            return true;
        }
        tokio::select! {
            biased;
            open = self.fleet.arrival(BATCH) => open,
            open = self.locate.arrival() => open,
            open = self.admin.arrival(ADMIN_BATCH) => open,
        }
    }

    /// Waits until a fleet request has arrived, if there is room for it. False if none can arrive any more. Cancelling the
    /// wait loses no request.
    pub(super) async fn fleet_arrival(&mut self) -> bool {
        match BATCH.saturating_sub(self.deferred.len() + self.fleet.arrived.len()) {
            0 => std::future::pending().await,
            room => self.fleet.arrival(room).await,
        }
    }

    /// Reads the arrived fleet requests, returns the heartbeats and defers the other requests to the next batch. Heartbeats
    /// of servers in `unflushed` are deferred as well, because the decisions about these servers are not flushed yet.
    pub(super) fn heartbeats(&mut self, prefix: &Prefix, unflushed: &HashSet<ServerName>) -> HeartbeatBatch {
        let room = BATCH.saturating_sub(self.deferred.len());
        let (asked, all) = self.fleet.take_arrived(prefix, room);
        let (arrived, deferred): (Vec<_>, Vec<_>) = asked.into_iter().partition(|asked| match &asked.input {
            CoordinatorInput::Heartbeat(request) => !unflushed.contains(request.log.server()),
            _ => false,
        });
        self.deferred.extend(deferred);
        HeartbeatBatch { arrived, complete: all }
    }

    /// Takes a batch of arrived requests at `now`: all deferred fleet requests, and from each other endpoint a bounded
    /// number, which keeps the batch short.
    pub(super) fn take(&mut self, prefix: &Prefix, now: Duration) -> RequestBatch {
        let mut asked = std::mem::take(&mut self.deferred);
        asked.extend(self.locate.take(prefix, now));
        let mut lookups = Vec::new();
        for DecodedRequest { input, responder } in self.admin.take_arrived(prefix, ADMIN_BATCH).0 {
            match input {
                AdminRequest::Decide(input) => asked.push(MachineRequest { input, responder }),
                AdminRequest::Page(_) | AdminRequest::Rebalance(_) => {
                    lookups.push(DecodedRequest { input, responder });
                }
            }
        }
        RequestBatch { asked, lookups }
    }
}

#[cfg(test)]
mod tests;
