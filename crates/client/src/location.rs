//! Which server serves which subject: a bounded cache in front of the coordinator.
//!
//! A cached location may be outdated. The client drops it if a server replies that it is not the owner, if
//! the server does not respond, and if the coordinator announces the server as gone. Concurrent callers that
//! miss the same subject share one look-up.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Outgoing, RequestError};
use dormouse_protocol::fleet::{LocateReply, LocateRequest};
use dormouse_protocol::{Prefix, ServerName, Subject, encode};
use dormouse_runtime::{Lock, Stop};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

use crate::exchange::{exchange, whole};
use crate::retry::AttemptCause;

/// How long one look-up waits for the coordinator. Then its callers decide again.
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(2);

/// A server as this client knows it, until the coordinator announces it as gone.
#[derive(Debug)]
pub(crate) struct CachedServer {
    pub(crate) name: ServerName,
    /// Set when the server is gone. A later process of the same name is another `CachedServer`.
    pub(crate) gone: Stop,
}

type LookUp = Shared<BoxFuture<'static, Result<Arc<CachedServer>, AttemptCause>>>;
type WeakLookUp = WeakShared<BoxFuture<'static, Result<Arc<CachedServer>, AttemptCause>>>;

/// Cloning shares the cache.
#[derive(Clone)]
pub(crate) struct Locations {
    bus: Arc<dyn Bus>,
    prefix: Prefix,
    request: Bytes,
    state: Arc<Lock<LocationState>>,
}

struct LocationState {
    cache: Cache,
    // One per server that was a location and is not gone; a fleet has few.
    servers: HashMap<ServerName, Arc<CachedServer>>,
    // The number of announcements, and the number of the last one about each server.
    announcements: u64,
    announced: HashMap<ServerName, u64>,
    // One per look-up that a caller waits for.
    look_ups: HashMap<Subject, (u64, WeakLookUp)>,
    next_look_up: u64,
}

/// Two generations instead of a list in order of use: entries used since the start of the younger generation
/// survive when the older one is dropped.
struct Cache {
    young: HashMap<Subject, Arc<CachedServer>>,
    old: HashMap<Subject, Arc<CachedServer>>,
    generation_size: usize,
}

impl Cache {
    fn get(&mut self, subject: &Subject) -> Option<Arc<CachedServer>> {
        let server = match self.young.get(subject) {
            Some(server) => Arc::clone(server),
            None => {
                let server = self.old.remove(subject)?;
                self.insert(subject.clone(), Arc::clone(&server));
                server
            }
        };
        if server.gone.is_requested() {
            self.remove(subject);
            return None;
        }
        Some(server)
    }

    fn insert(&mut self, subject: Subject, server: Arc<CachedServer>) {
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

impl LocationState {
    fn learn(&mut self, subject: &Subject, name: ServerName) -> Arc<CachedServer> {
        let server = self
            .servers
            .entry(name)
            .or_insert_with_key(|name| Arc::new(CachedServer { name: name.clone(), gone: Stop::new() }));
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
        let state = LocationState {
            cache,
            servers: HashMap::new(),
            announcements: 0,
            announced: HashMap::new(),
            look_ups: HashMap::new(),
            next_look_up: 0,
        };
        Self { bus, prefix, request, state: Arc::new(Lock::new(state)) }
    }

    // Every critical section leaves the maps consistent at each step, so a panic in one poisons nothing.
    fn state(&self) -> MutexGuard<'_, LocationState> {
        self.state.lock()
    }

    /// The cached server of `subject`.
    pub(crate) fn known(&self, subject: &Subject) -> Option<Arc<CachedServer>> {
        self.state().cache.get(subject)
    }

    /// Caches `name` as the server of `subject`.
    pub(crate) fn learn(&self, subject: &Subject, name: ServerName) -> Arc<CachedServer> {
        self.state().learn(subject, name)
    }

    /// Drops `server` as the location of `subject`. A newer entry with another server stays.
    pub(crate) fn forget(&self, subject: &Subject, server: &Arc<CachedServer>) {
        let mut state = self.state();
        if state.cache.get(subject).is_some_and(|cached| Arc::ptr_eq(&cached, server)) {
            state.cache.remove(subject);
        }
    }

    /// The server `name` is gone: fails the calls in flight to it, and no location names it any more.
    pub(crate) fn gone(&self, name: &ServerName) {
        let server = {
            let mut state = self.state();
            state.announcements += 1;
            let number = state.announcements;
            state.announced.insert(name.clone(), number);
            state.servers.remove(name)
        };
        if let Some(server) = server {
            server.gone.request();
        }
    }

    /// Looks up the server of `subject` at the coordinator. Concurrent callers for the same subject share the
    /// look-up.
    ///
    /// If the call is cancelled, the look-up continues for the other callers; without any, it is abandoned.
    pub(crate) async fn ask(
        &self,
        subject: &Subject,
        deadline: Duration,
    ) -> Result<Arc<CachedServer>, AttemptCause> {
        let look_up = self.join_look_up(subject);
        match tokio::time::timeout(deadline, look_up).await {
            Ok(found) => found,
            Err(_) => Err(AttemptCause::Request(RequestError::Deadline {
                route: self.prefix.locate(subject),
                deadline,
            })),
        }
    }

    fn join_look_up(&self, subject: &Subject) -> LookUp {
        let mut state = self.state();
        if let Some(running) = state.look_ups.get(subject).and_then(|(_, pending)| pending.upgrade()) {
            return running;
        }
        let number = state.next_look_up;
        state.next_look_up += 1;
        let pending = PendingLookup { number, subject: subject.clone(), state: Arc::clone(&self.state) };
        let look_up = self.clone().look_up(pending).boxed().shared();
        // A future that has not been polled to its end can always be downgraded.
        if let Some(weak) = look_up.downgrade() {
            state.look_ups.insert(subject.clone(), (number, weak));
        }
        look_up
    }

    async fn look_up(self, pending: PendingLookup) -> Result<Arc<CachedServer>, AttemptCause> {
        let route = self.prefix.locate(&pending.subject);
        loop {
            let before = self.state().announcements;
            let message = Outgoing::new(route.clone(), self.request.clone());
            let reply = exchange::<LocateReply>(&*self.bus, message, LOOK_UP_DEADLINE, whole).await?;
            let mut state = self.state();
            // A reply that crossed an announcement about its server may be older than the announcement. If it
            // were cached, it would cost a pause that no announcement shortens. Each further round needs
            // another announcement.
            if state.announced.get(&reply.server).is_none_or(|number| *number <= before) {
                return Ok(state.learn(&pending.subject, reply.server));
            }
        }
    }
}

/// The registration of one look-up. It is removed when the look-up ends, also if all its callers are gone.
struct PendingLookup {
    number: u64,
    subject: Subject,
    state: Arc<Lock<LocationState>>,
}

impl Drop for PendingLookup {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        // A newer look-up of the same subject may be registered by now.
        if state.look_ups.get(&self.subject).is_some_and(|(number, _)| *number == self.number) {
            state.look_ups.remove(&self.subject);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(generation_size: usize) -> Cache {
        Cache { young: HashMap::new(), old: HashMap::new(), generation_size }
    }

    fn server() -> Arc<CachedServer> {
        Arc::new(CachedServer { name: ServerName::new("a").unwrap(), gone: Stop::new() })
    }

    fn subject(number: usize) -> Subject {
        Subject::new(&format!("app.{number}")).unwrap()
    }

    /// The location cache holds a bounded number of subjects and keeps the entries in use.
    #[test]
    fn location_cache_is_bounded_and_keeps_used_entries() {
        let (mut cache, server) = (cache(10), server());
        for number in 0..1_000 {
            cache.insert(subject(number), Arc::clone(&server));
            assert!(cache.get(&subject(0)).is_some(), "after {number}");
            assert!(cache.young.len() + cache.old.len() <= 20);
        }
        assert!(cache.get(&subject(1)).is_none());
        assert!(cache.get(&subject(999)).is_some());
    }

    /// The location cache drops an entry if its server is gone.
    #[test]
    fn location_cache_drops_entry_of_gone_server() {
        let (mut cache, server) = (cache(10), server());
        cache.insert(subject(1), Arc::clone(&server));
        server.gone.request();
        assert!(cache.get(&subject(1)).is_none());
        assert!(cache.young.is_empty() && cache.old.is_empty());
    }
}
