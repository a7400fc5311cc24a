//! What the coordinator is asked, from all of its routes.

use std::collections::HashSet;
use std::sync::Arc;

use dormouse_bus::{
    Bus, Callers, EndpointStats, InboxPrefixes, Incoming, Requests, ServeOptions, SubscribeError, serve,
};
use dormouse_protocol::{ErrorReply, Prefix, RoutePattern, ServerName};
use dormouse_runtime::{Env, Tasks};
use futures::FutureExt;

use super::requests::{self, Wish};
use super::{Asked, Request};
use crate::machine::Input;

/// Most requests of one endpoint in a batch.
const BATCH: usize = 4_096;

/// Most requests of operators in a batch: they are few, and each may cost more than others do.
const ADMIN_BATCH: usize = 64;

type Read<T> = fn(&Prefix, &Incoming) -> Result<T, ErrorReply>;

/// Something the coordinator can be asked, and what has arrived for it.
struct Endpoint<T> {
    name: &'static str,
    pattern: RoutePattern,
    requests: Requests,
    arrived: Vec<Incoming>,
    read: Read<T>,
}

/// What is known about an endpoint from outside.
pub(super) struct EndpointFacts {
    pub(super) name: &'static str,
    pub(super) pattern: RoutePattern,
    pub(super) stats: Arc<EndpointStats>,
}

/// Everything the coordinator can be asked.
pub(super) struct Inbox {
    fleet: Endpoint<Input>,
    /// What the fleet says that is not for at once: it comes first in the next batch, since it bears on all the rest.
    held: Vec<Asked>,
    locate: Endpoint<Input>,
    admin: Endpoint<Wish>,
}

/// A batch of what has arrived.
pub(super) struct Arrived {
    /// What can be decided.
    pub(super) asked: Vec<Asked>,
    /// What something has to be looked up for.
    pub(super) lookups: Vec<Request<Wish>>,
}

/// What could be answered at once.
#[derive(Default)]
pub(super) struct Heartbeats {
    /// The heartbeats.
    pub(super) arrived: Vec<Asked>,
    /// No other was waiting to be read.
    pub(super) all: bool,
}

impl<T> Endpoint<T> {
    async fn open(
        on: &Listening<'_>,
        name: &'static str,
        pattern: RoutePattern,
        read: Read<T>,
    ) -> Result<Self, SubscribeError> {
        let inbox_prefixes = on.inbox_prefixes.clone();
        let options = ServeOptions { inbox_prefixes, callers: on.callers, ..ServeOptions::default() };
        let requests = serve(on.bus, on.env, on.tasks, pattern.clone(), options).await?;
        Ok(Self { name, pattern, requests, arrived: Vec::new(), read })
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

    /// Takes at most `limit` requests that have arrived, without waiting, and reads those that can be understood; the
    /// others are refused here. The second value is false when there may be more.
    fn drain(&mut self, prefix: &Prefix, limit: usize) -> (Vec<Request<T>>, bool) {
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
                Ok(input) => asked.push(Request { input, responder: incoming.responder }),
                Err(error) => incoming.responder.error(&error),
            }
        }
        (asked, emptied)
    }
}

/// What it takes to listen.
#[derive(Clone, Copy)]
pub(super) struct Listening<'a> {
    pub(super) bus: &'a Arc<dyn Bus>,
    pub(super) env: &'a Env,
    pub(super) tasks: &'a Tasks,
    pub(super) prefix: &'a Prefix,
    pub(super) inbox_prefixes: &'a InboxPrefixes,
    /// Whose subjects may be located.
    pub(super) callers: Callers,
}

impl Inbox {
    pub(super) async fn open(on: Listening<'_>) -> Result<Self, SubscribeError> {
        let prefix = on.prefix;
        Ok(Self {
            fleet: Endpoint::open(&on, "fleet", prefix.fleet_all(), requests::fleet).await?,
            held: Vec::new(),
            locate: Endpoint::open(&on, "locate", prefix.locate_all(), requests::locate).await?,
            admin: Endpoint::open(&on, "admin", prefix.admin_all(), requests::admin).await?,
        })
    }

    pub(super) fn stats(&self) -> Vec<EndpointFacts> {
        vec![self.fleet.facts(), self.locate.facts(), self.admin.facts()]
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
            open = self.admin.arrival(ADMIN_BATCH) => open,
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
    pub(super) fn take(&mut self, prefix: &Prefix) -> Arrived {
        let mut asked = std::mem::take(&mut self.held);
        asked.extend(self.locate.drain(prefix, BATCH).0);
        let mut lookups = Vec::new();
        for Request { input, responder } in self.admin.drain(prefix, ADMIN_BATCH).0 {
            match input {
                Wish::Decide(input) => asked.push(Asked { input, responder }),
                Wish::Page(_) | Wish::Rebalance(_) => lookups.push(Request { input, responder }),
            }
        }
        Arrived { asked, lookups }
    }
}

#[cfg(test)]
mod tests;
