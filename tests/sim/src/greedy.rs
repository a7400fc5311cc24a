//! The profile `greedy`: an aggressor floods the fleet, and a polite tenant must not notice it.
//!
//! The work of a server takes no simulated time. So this profile finds a tenant that waits for the queues, the shares
//! and the bucket requests of another tenant, but no step that takes too long: the end-to-end tests find those.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{Bus, Outgoing, service_error};
use dormouse_client::Client;
use dormouse_protocol::data::{GetAllRequest, GetRequest, SetItem, SetRequest};
use dormouse_protocol::health::Health;
use dormouse_protocol::transfer::UploadBeginRequest;
use dormouse_protocol::{
    Level, Op, Prefix, ProtocolVersion, RequestId, ServerName, SessionId, Subject, UploadId, encode,
};
use dormouse_runtime::{Env, Lock, Stop};
use futures::future::join_all;
use serde::Serialize;

use crate::recorder::Recorder;
use crate::rng::SeededRng;
use crate::trace::Trace;

/// The deadline of a polite call: the default of the clients.
const POLITE_DEADLINE: Duration = Duration::from_secs(10);

/// The interval between two polite gets and sets.
const POLITE_INTERVAL: Duration = Duration::from_millis(200);

/// After this number of intervals, the polite tenant writes to a new subject.
const CREATE_EVERY: u64 = 10;

/// After this number of intervals, the polite tenant reads all messages of its store, page by page.
const PAGES_EVERY: u64 = 2;

/// The deadline of a request of the aggressor.
const GREEDY_DEADLINE: Duration = Duration::from_secs(4);

/// The time after which every server has joined and subscribed: before, the flood would reach no server.
const START_UP: Duration = Duration::from_secs(1);

/// The number of subjects over which the aggressor spreads its sets.
const SPREAD: u64 = 4;

/// The polite calls that failed. Cloning shares the list.
#[derive(Debug, Clone, Default)]
pub struct FailedCalls(Arc<Lock<Vec<String>>>);

impl FailedCalls {
    fn add(&self, trace: &Trace, call: String) {
        trace.line(format_args!("polite call failed: {call}"));
        self.0.lock().push(call);
    }

    /// Returns the calls, each with its error.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// The connection of a client of this profile to the parts of its world.
pub struct Tenant {
    /// Its number.
    pub number: u32,
    /// The messaging system.
    pub broker: MemoryBroker,
    /// The recorder of the history.
    pub recorder: Recorder,
    /// The trace of the run.
    pub trace: Trace,
    /// Its time and its random ids.
    pub env: Env,
    /// Its random choices.
    pub rng: Arc<SeededRng>,
}

impl Tenant {
    async fn connect(&self, deadline: Duration) -> Result<(Client, Arc<dyn Bus>), dormouse_client::Error> {
        let name = format!("client-{}", self.number);
        let bus: Arc<dyn Bus> = Arc::new(self.broker.connect(MemoryOptions::named(name)));
        let (bus, _) = self.recorder.connect(bus, self.number);
        let client =
            Client::builder().env(self.env.clone()).deadline(deadline).over(Arc::clone(&bus)).await?;
        Ok((client, bus))
    }

    /// Reads and writes a store, message by message and in pages, and creates subjects, until `stop` is requested. Adds
    /// every call that fails to `failed`.
    ///
    /// # Errors
    /// If the connection is closed at once.
    pub async fn be_polite(self, failed: FailedCalls, stop: Stop) -> Result<(), dormouse_client::Error> {
        let (client, _) = self.connect(POLITE_DEADLINE).await?;
        let store = client.kv("polite.store")?;
        for number in 0_u64.. {
            if stop.is_requested() {
                break;
            }
            let key = format!("k{}", number % 4);
            let (set, get) = futures::join!(
                async { store.put(key.clone(), self.value(number, 100)).await },
                store.get(key.clone())
            );
            let mut outcomes = vec![("set", set.map(drop)), ("get", get.map(drop))];
            if number.is_multiple_of(CREATE_EVERY) {
                let new = client.kv(&format!("polite.new{}", number / CREATE_EVERY))?;
                outcomes.push(("create", new.put("k", self.value(number, 101)).await.map(drop)));
            }
            if number.is_multiple_of(PAGES_EVERY) {
                outcomes.push(("get_all", store.entries("").all().await.map(drop)));
            }
            for (call, outcome) in outcomes {
                match outcome {
                    Ok(()) => self.trace.count("polite call"),
                    Err(error) => failed.add(&self.trace, format!("{call} {number}: {error}")),
                }
            }
            tokio::time::sleep(POLITE_INTERVAL).await;
        }
        Ok(())
    }

    /// Returns a value that is sent only once.
    fn value(&self, number: u64, size: usize) -> Bytes {
        let mut value = format!("@{}-{size}-{number};", self.number).into_bytes();
        value.resize(value.len().max(size), b'.');
        value.into()
    }
}

/// The attacks.
#[derive(Debug, Clone, Copy)]
enum Attack {
    Gets,
    Sets,
    Batches,
    Pages,
    Opens,
    Creates,
    Uploads,
    LookUps,
}

const ATTACKS: [(u64, Attack); 8] = [
    (10, Attack::Gets),
    (20, Attack::Sets),
    (10, Attack::Batches),
    (10, Attack::Pages),
    (20, Attack::Opens),
    (10, Attack::Creates),
    (5, Attack::Uploads),
    (5, Attack::LookUps),
];

/// An aggressor: it sends its requests at once, and the next ones as soon as it has the replies.
pub struct Aggressor {
    tenant: Tenant,
    client: Client,
    bus: Arc<dyn Bus>,
    session: SessionId,
    counter: u64,
    servers: BTreeMap<Subject, ServerName>,
}

impl Aggressor {
    /// Connects an aggressor.
    ///
    /// # Errors
    /// If the connection is closed at once.
    pub async fn connect(tenant: Tenant) -> Result<Self, dormouse_client::Error> {
        let (client, bus) = tenant.connect(GREEDY_DEADLINE).await?;
        let session = SessionId::new(tenant.env.ulid());
        Ok(Self { tenant, client, bus, session, counter: 0, servers: BTreeMap::new() })
    }

    /// Attacks until this time of the run. The polite tenant continues.
    pub async fn attack(mut self, until: Duration) {
        tokio::time::sleep(START_UP).await;
        while self.tenant.trace.now() < until {
            let attack = self.tenant.rng.weighted(&ATTACKS);
            self.tenant.trace.line(format_args!("attack {attack:?}"));
            self.tenant.trace.count("attack");
            match attack {
                Attack::Gets => self.gets().await,
                Attack::Sets => self.sets().await,
                Attack::Batches => self.batches().await,
                Attack::Pages => self.pages().await,
                Attack::Opens => self.opens().await,
                Attack::Creates => self.creates().await,
                Attack::Uploads => self.uploads().await,
                Attack::LookUps => self.look_ups().await,
            }
            tokio::time::sleep(self.tenant.rng.millis(0..1_100)).await;
        }
    }

    async fn gets(&mut self) {
        let request = get();
        self.send((0..1_500).map(|_| (Op::Get, numbered("s", 0), request.clone())).collect()).await;
    }

    async fn sets(&mut self) {
        let level = *self.tenant.rng.pick(&Level::ALL);
        let requests = (0..300).map(|number| {
            let request = self.set(1, 4_000, false, Some(level));
            (Op::Set, numbered("s", number % SPREAD), request)
        });
        let requests = requests.collect();
        self.send(requests).await;
    }

    async fn batches(&mut self) {
        let requests = (0..8)
            .map(|number| (Op::Set, numbered("s", number % SPREAD), self.set(100, 20, true, None)))
            .collect();
        self.send(requests).await;
    }

    async fn pages(&mut self) {
        let request = encoded(&GetAllRequest { key_prefix: Some("x".to_owned()), ..Default::default() });
        let requests = (0..60).map(|number| (Op::GetAll, numbered("s", number % SPREAD), request.clone()));
        self.send(requests.collect()).await;
    }

    async fn opens(&mut self) {
        let request = get();
        self.send((0..100).map(|number| (Op::Get, numbered("o", number), request.clone())).collect()).await;
    }

    async fn creates(&mut self) {
        let first = self.counter;
        let requests = (0..50)
            .map(|number| (Op::Set, numbered("c", first + number), self.set(1, 20, false, None)))
            .collect();
        self.send(requests).await;
    }

    async fn uploads(&mut self) {
        let requests = (0..300).map(|number| {
            let upload = UploadId::new(self.tenant.env.ulid());
            let request =
                UploadBeginRequest { v: ProtocolVersion::CURRENT, upload, size: Some(1_000), place: None };
            (Op::UploadBegin, numbered("s", number % SPREAD), encoded(&request))
        });
        self.send(requests.collect()).await;
    }

    async fn look_ups(&mut self) {
        let subjects: Vec<Subject> = (0..200).map(|number| numbered("never", number)).collect();
        join_all(subjects.iter().map(|subject| self.client.locate(subject))).await;
    }

    /// Encodes a set of new values.
    fn set(&mut self, items: u64, size: usize, atomic: bool, level: Option<Level>) -> Bytes {
        let sets = (0..items).map(|_| {
            self.counter += 1;
            let value = Some(self.tenant.value(self.counter, size));
            let key = (!atomic).then(|| format!("k{}", self.counter % 50));
            SetItem { key, value, ..SetItem::default() }
        });
        let sets = sets.collect();
        let request = Some(RequestId { session: self.session, counter: self.counter });
        encoded(&SetRequest { request, atomic, level, sets, ..SetRequest::default() })
    }

    /// Sends requests at once and waits for all replies.
    async fn send(&mut self, requests: Vec<(Op, Subject, Bytes)>) {
        for (_, subject, _) in &requests {
            if !self.servers.contains_key(subject)
                && let Ok(server) = self.client.locate(subject).await
            {
                self.servers.insert(subject.clone(), server);
            }
        }
        let sent = requests.into_iter().filter_map(|(op, subject, payload)| {
            let route = Prefix::default().server(self.servers.get(&subject)?, op, &subject);
            Some(self.bus.request(Outgoing::new(route, payload), GREEDY_DEADLINE))
        });
        for reply in join_all(sent).await {
            if let Err(error) = &reply {
                self.tenant.trace.line(format_args!("attack unanswered: {error}"));
            }
            self.tenant.trace.count(match reply.as_ref().map(service_error) {
                Ok(None) => "attack: executed",
                Ok(Some(error)) if error.retry_after_ms.is_some() => "attack: overloaded",
                Ok(Some(_)) => "attack: rejected",
                Err(_) => "attack: unanswered",
            });
        }
    }
}

/// Returns a violation for each of these servers whose lease lapsed since its start.
pub async fn lapses(bus: &dyn Bus, servers: &[ServerName]) -> Vec<String> {
    let mut lapses = Vec::new();
    for server in servers {
        let message = Outgoing::new(Prefix::default().health_of(server.as_str()), Bytes::new());
        let health = match bus.request(message, GREEDY_DEADLINE).await {
            Ok(reply) => serde_json::from_slice::<Health>(&reply.payload).ok(),
            Err(_) => None,
        };
        let generation = health.and_then(|health| health.figures.get("lease_generation").copied());
        if generation != Some(1) {
            lapses.push(format!("the lease of {server} lapsed: generation {generation:?}"));
        }
    }
    lapses
}

fn numbered(name: &str, number: u64) -> Subject {
    Subject::new(&format!("greedy.{name}{number}")).expect("a valid subject name")
}

fn get() -> Bytes {
    encoded(&GetRequest { key: Some("k1".to_owned()), ..GetRequest::default() })
}

fn encoded(request: &impl Serialize) -> Bytes {
    encode(request).expect("a request encodes")
}
