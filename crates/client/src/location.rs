//! Which server serves which subject: a bounded cache in front of the coordinator.
//!
//! A location is only ever a belief. It is dropped when a server says otherwise, when nobody answers at it, and when
//! the coordinator announces that the server is gone. Many callers who miss the same subject cost one look-up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Outgoing, RequestError};
use dormouse_protocol::fleet::{LocateReply, LocateRequest};
use dormouse_protocol::{Prefix, ServerName, Subject, encode};
use dormouse_runtime::Stop;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

use crate::exchange::{exchange, whole};
use crate::retry::Refusal;

/// How long one look-up waits for the coordinator before its callers decide anew.
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(2);

/// A server as this client knows it, until the coordinator announces that it is gone.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: ServerName,
    /// Given when the server is gone. A later process of the same name is another `Server`.
    pub(crate) gone: Stop,
}

type LookUp = Shared<BoxFuture<'static, Result<Arc<Server>, Refusal>>>;
type WeakLookUp = WeakShared<BoxFuture<'static, Result<Arc<Server>, Refusal>>>;

/// Cloning shares the cache.
#[derive(Clone)]
pub(crate) struct Locations {
    bus: Arc<dyn Bus>,
    prefix: Prefix,
    request: Bytes,
    state: Arc<Mutex<State>>,
}

struct State {
    cache: Cache,
    // One per server that a location ever named and that is not gone; a fleet has few.
    servers: HashMap<ServerName, Arc<Server>>,
    // How many announcements there were, and which was the last about each server.
    announcements: u64,
    announced: HashMap<ServerName, u64>,
    // One per look-up that somebody waits for.
    flights: HashMap<Subject, (u64, WeakLookUp)>,
    next_flight: u64,
}

/// Two generations instead of a list in order of use: what was used since the younger one began survives when the
/// older is dropped.
struct Cache {
    young: HashMap<Subject, Arc<Server>>,
    old: HashMap<Subject, Arc<Server>>,
    generation_size: usize,
}

impl Cache {
    fn get(&mut self, subject: &Subject) -> Option<Arc<Server>> {
        let server = match self.young.get(subject) {
            Some(server) => Arc::clone(server),
            None => {
                let server = self.old.remove(subject)?;
                self.insert(subject.clone(), Arc::clone(&server));
                server
            }
        };
        if server.gone.is_given() {
            self.remove(subject);
            return None;
        }
        Some(server)
    }

    fn insert(&mut self, subject: Subject, server: Arc<Server>) {
        if self.young.len() >= self.generation_size {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&subject);
        self.young.insert(subject, server);
    }

    fn remove(&mut self, subject: &Subject) {
        self.young.remove(subject);
        self.old.remove(subject);
    }
}

impl State {
    fn learn(&mut self, subject: &Subject, name: ServerName) -> Arc<Server> {
        let server = self
            .servers
            .entry(name)
            .or_insert_with_key(|name| Arc::new(Server { name: name.clone(), gone: Stop::new() }));
        let server = Arc::clone(server);
        self.cache.insert(subject.clone(), Arc::clone(&server));
        server
    }
}

impl Locations {
    /// A cache of at most `capacity` locations.
    pub(crate) fn new(bus: Arc<dyn Bus>, prefix: Prefix, capacity: usize) -> Self {
        // A map of plain fields always encodes.
        let request = encode(&LocateRequest::default()).expect("a request encodes");
        let cache = Cache {
            young: HashMap::new(),
            old: HashMap::new(),
            generation_size: capacity.div_ceil(2).max(1),
        };
        let state = State {
            cache,
            servers: HashMap::new(),
            announcements: 0,
            announced: HashMap::new(),
            flights: HashMap::new(),
            next_flight: 0,
        };
        Self { bus, prefix, request, state: Arc::new(Mutex::new(state)) }
    }

    // Every critical section leaves the maps consistent at each step, so a panic in one poisons nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server believed to serve `subject`.
    pub(crate) fn known(&self, subject: &Subject) -> Option<Arc<Server>> {
        self.state().cache.get(subject)
    }

    /// Believes from now on that `name` serves `subject`.
    pub(crate) fn learn(&self, subject: &Subject, name: ServerName) -> Arc<Server> {
        self.state().learn(subject, name)
    }

    /// Stops believing that `server` serves `subject`. What was learned meanwhile of another server stays.
    pub(crate) fn forget(&self, subject: &Subject, server: &Arc<Server>) {
        let mut state = self.state();
        if state.cache.get(subject).is_some_and(|believed| Arc::ptr_eq(&believed, server)) {
            state.cache.remove(subject);
        }
    }

    /// The server `name` is gone: fails what waits for it, and no location names it any more.
    pub(crate) fn gone(&self, name: &ServerName) {
        let server = {
            let mut state = self.state();
            state.announcements += 1;
            let number = state.announcements;
            state.announced.insert(name.clone(), number);
            state.servers.remove(name)
        };
        if let Some(server) = server {
            server.gone.give();
        }
    }

    /// Asks the coordinator, together with everybody who asks about the same subject at the moment.
    ///
    /// Cancelling the call leaves the look-up to the others who wait for it, or abandons it.
    pub(crate) async fn ask(&self, subject: &Subject, deadline: Duration) -> Result<Arc<Server>, Refusal> {
        let look_up = self.join_look_up(subject);
        match tokio::time::timeout(deadline, look_up).await {
            Ok(found) => found,
            Err(_) => {
                Err(Refusal::Request(RequestError::Deadline { route: self.prefix.locate(subject), deadline }))
            }
        }
    }

    fn join_look_up(&self, subject: &Subject) -> LookUp {
        let mut state = self.state();
        if let Some(running) = state.flights.get(subject).and_then(|(_, flight)| flight.upgrade()) {
            return running;
        }
        let number = state.next_flight;
        state.next_flight += 1;
        let flight = Flight { number, subject: subject.clone(), state: Arc::clone(&self.state) };
        let look_up = self.clone().look_up(flight).boxed().shared();
        // A future that has not been polled to its end can always be downgraded.
        if let Some(weak) = look_up.downgrade() {
            state.flights.insert(subject.clone(), (number, weak));
        }
        look_up
    }

    async fn look_up(self, flight: Flight) -> Result<Arc<Server>, Refusal> {
        let route = self.prefix.locate(&flight.subject);
        loop {
            let before = self.state().announcements;
            let message = Outgoing::new(route.clone(), self.request.clone());
            let reply = exchange::<LocateReply>(&*self.bus, message, LOOK_UP_DEADLINE, whole).await?;
            let mut state = self.state();
            // An answer that was on its way when the server was announced as gone is of the time before that: believed, it
            // would cost a pause with nobody to cut it short. Each time round needs another announcement.
            if state.announced.get(&reply.server).is_none_or(|number| *number <= before) {
                return Ok(state.learn(&flight.subject, reply.server));
            }
        }
    }
}

/// One look-up in the books; leaves them when it ends, also when everybody who waited has gone away.
struct Flight {
    number: u64,
    subject: Subject,
    state: Arc<Mutex<State>>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A newer look-up of the same subject may stand there by now.
        if state.flights.get(&self.subject).is_some_and(|(number, _)| *number == self.number) {
            state.flights.remove(&self.subject);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(generation_size: usize) -> Cache {
        Cache { young: HashMap::new(), old: HashMap::new(), generation_size }
    }

    fn server() -> Arc<Server> {
        Arc::new(Server { name: ServerName::new("a").unwrap(), gone: Stop::new() })
    }

    fn subject(number: usize) -> Subject {
        Subject::new(&format!("app.{number}")).unwrap()
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let (mut cache, server) = (cache(10), server());
        for number in 0..1_000 {
            cache.insert(subject(number), Arc::clone(&server));
            assert!(cache.get(&subject(0)).is_some(), "after {number}");
            assert!(cache.young.len() + cache.old.len() <= 20);
        }
        assert!(cache.get(&subject(1)).is_none());
        assert!(cache.get(&subject(999)).is_some());
    }

    #[test]
    fn a_server_that_is_gone_is_nowhere() {
        let (mut cache, server) = (cache(10), server());
        cache.insert(subject(1), Arc::clone(&server));
        server.gone.give();
        assert!(cache.get(&subject(1)).is_none());
        assert!(cache.young.is_empty() && cache.old.is_empty());
    }
}
