//! A scripted fleet: a coordinator and servers with scripted replies, on an in-memory messaging system, under
//! a paused clock.

#![allow(dead_code)] // Each test file uses a part of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::memory::{MemoryBroker, MemoryBus, MemoryOptions};
use dormouse_bus::{Bus, Delivery, Outgoing, SubscribeOptions};
use dormouse_client::{
    Client, ErrorReply, Headers, Level, Message, Position, Rev, Seq, ServerName, Subject, SubjectConfig,
    Term, Timestamp,
};
use dormouse_protocol::data::{
    GetReply, InfoDetails, InfoReply, SetOutcome, SetReply, SetRequest, SetResult,
};
use dormouse_protocol::deadline::time_left;
use dormouse_protocol::fleet::{GoneAnnouncement, LocateReply};
use dormouse_protocol::{Event, LogId, Op, Prefix, ProtocolVersion, RoutePattern, decode, encode};
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};
use serde::Serialize;

pub const CLIENT: &str = "client";

/// The reaction of a party to a request.
#[derive(Debug, Clone)]
pub enum CannedReply {
    Reply(Bytes),
    Error(ErrorReply),
    Silence,
    Late(Duration, Box<CannedReply>),
}

pub fn reply(value: &impl Serialize) -> CannedReply {
    CannedReply::Reply(encode(value).unwrap())
}

/// The coordinator's reply: use this server.
pub fn at(server: &str) -> CannedReply {
    reply(&LocateReply { server: server_name(server) })
}

/// The reply to a get: this message.
pub fn found(message: Message) -> CannedReply {
    reply(&GetReply { position: Position::default(), messages: vec![message], answered: 1 })
}

/// The reply to a get without a message.
pub fn nothing() -> CannedReply {
    reply(&GetReply { position: Position::default(), messages: vec![], answered: 1 })
}

/// The reply to an info: the subject is at `rev` of term 1.
pub fn info(rev: u64) -> CannedReply {
    reply(&InfoReply {
        position: Position { term: Term::new(1), rev: Rev::new(rev) },
        term_base: Rev::new(0),
        first_seq: None,
        last_seq: None,
        next_seq: Seq::new(1),
        count: 0,
        bytes: 0,
        config: SubjectConfig::default(),
        level: Level::Memory,
        server: server_name("a"),
        log: "a-01J9Z3ABCDEFGHJKMNPQRSTVWX".parse().unwrap(),
        bucket_rev: Rev::new(0),
        details: InfoDetails::default(),
    })
}

/// The reply to a set: every set of the request succeeds, with seqs from 1 on.
pub fn done(payload: &[u8]) -> CannedReply {
    let request: SetRequest = decode(payload).unwrap();
    let results = (1..=request.sets.len() as u64).map(|seq| SetOutcome::Ok(result(seq))).collect();
    reply(&SetReply { results })
}

pub fn result(seq: u64) -> SetResult {
    SetResult {
        seq: Seq::new(seq),
        term: Term::new(1),
        rev: Rev::new(seq),
        timestamp: Timestamp::from_micros(seq),
        duplicate: false,
    }
}

pub fn message(seq: u64, key: Option<&str>, value: Option<&str>) -> Message {
    Message {
        seq: Seq::new(seq),
        term: Term::new(1),
        rev: Rev::new(seq),
        key: key.map(str::to_owned),
        value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
        headers: Headers::default(),
        timestamp: Timestamp::from_micros(seq),
        size: value.map_or(0, |value| value.len() as u64),
        value_omitted: false,
        expires_at: None,
    }
}

pub fn server_name(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

/// The arrived requests, in order: `coordinator locate`, `a get`, …
#[derive(Clone, Default)]
pub struct Arrivals(Arc<Mutex<Vec<Arrival>>>);

#[derive(Clone)]
struct Arrival {
    what: String,
    payload: Bytes,
    time_left: Duration,
}

impl Arrivals {
    pub fn list(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|arrival| arrival.what.clone()).collect()
    }

    pub fn count(&self, what: &str) -> usize {
        self.list().iter().filter(|arrival| *arrival == what).count()
    }

    pub fn payloads(&self, what: &str) -> Vec<Bytes> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|arrival| arrival.what == what)
            .map(|arrival| arrival.payload.clone())
            .collect()
    }

    /// The time left of each request, in milliseconds.
    pub fn times_left_ms(&self, what: &str) -> Vec<u128> {
        let arrivals = self.0.lock().unwrap();
        let asked = arrivals.iter().filter(|arrival| arrival.what == what);
        asked.map(|arrival| arrival.time_left.as_millis()).collect()
    }

    /// Waits, without letting time pass, until `what` has arrived `times` times.
    pub async fn wait_for(&self, what: &str, times: usize) {
        while self.count(what) < times {
            tokio::task::yield_now().await;
        }
    }
}

pub struct Fleet {
    pub broker: MemoryBroker,
    pub arrivals: Arrivals,
    pub env: Env,
    bus: Arc<MemoryBus>,
    tasks: Tasks,
    parties: Mutex<HashMap<String, Tasks>>,
}

impl Fleet {
    pub fn new() -> Self {
        let broker = MemoryBroker::new();
        let bus = Arc::new(broker.connect(MemoryOptions::named("fleet")));
        let clock = Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000_000)));
        let env = Env::simulated(clock, Arc::new(SeededEntropy::new(7)));
        Self {
            broker,
            arrivals: Arrivals::default(),
            env,
            bus,
            tasks: Tasks::new(),
            parties: Mutex::default(),
        }
    }

    pub async fn client(&self) -> Client {
        self.client_with(MemoryOptions::named(CLIENT)).await
    }

    pub async fn client_with(&self, options: MemoryOptions) -> Client {
        let bus = Arc::new(self.broker.connect(options));
        Client::builder().env(self.env.clone()).over(bus).await.unwrap()
    }

    /// Plays the coordinator; `answers` gets the number of the request, from 0 on.
    pub async fn coordinator(&self, mut answers: impl FnMut(usize) -> CannedReply + Send + 'static) {
        let mut asked = 0;
        let script = move |_: &Delivery| {
            asked += 1;
            ("locate", answers(asked - 1))
        };
        self.party("coordinator", Prefix::default().locate_all(), script).await;
    }

    /// Plays a server; `answers` gets the operation, the request and its number, from 0 on.
    pub async fn server(
        &self,
        name: &str,
        mut answers: impl FnMut(Op, &[u8], usize) -> CannedReply + Send + 'static,
    ) {
        let server = server_name(name);
        let pattern = Prefix::default().server_all(&server);
        let mut asked = 0;
        let script = move |delivery: &Delivery| {
            let route = Prefix::default().parse_server(&server, delivery.route.as_str()).unwrap();
            asked += 1;
            (route.op.as_str(), answers(route.op, &delivery.payload, asked - 1))
        };
        self.party(name, pattern, script).await;
    }

    async fn party(
        &self,
        name: &str,
        pattern: RoutePattern,
        mut script: impl FnMut(&Delivery) -> (&'static str, CannedReply) + Send + 'static,
    ) {
        let mut requests = self.bus.subscribe(pattern, SubscribeOptions::default()).await.unwrap();
        let tasks = Tasks::new();
        let (bus, arrivals, owner) = (Arc::clone(&self.bus), self.arrivals.clone(), name.to_owned());
        let (spawner, stop) = (tasks.clone(), tasks.stop().clone());
        tasks.spawn("party", async move {
            loop {
                let delivery = tokio::select! {
                    () = stop.requested() => return,
                    delivery = requests.next() => delivery,
                };
                let Some(delivery) = delivery else { return };
                let (what, answer) = script(&delivery);
                arrivals.0.lock().unwrap().push(Arrival {
                    what: format!("{owner} {what}"),
                    payload: delivery.payload.clone(),
                    time_left: time_left(&delivery.headers).unwrap(),
                });
                if let Some(reply_to) = delivery.reply_to {
                    let bus = Arc::clone(&bus);
                    spawner.spawn("answer", async move {
                        if let Some(message) = answer_to(reply_to, answer).await {
                            bus.publish(message).await.unwrap();
                        }
                    });
                }
            }
        });
        self.parties.lock().unwrap().insert(name.to_owned(), tasks);
    }

    /// Removes the party without an announcement: no service listens on its routes.
    pub async fn stop_party(&self, name: &str) {
        let tasks = self.parties.lock().unwrap().remove(name).unwrap();
        tasks.finish(Duration::from_secs(60)).await.unwrap();
    }

    /// The coordinator announces that `server` is gone.
    pub async fn announce_gone(&self, server: &str) {
        self.announce_gone_in_version(server, ProtocolVersion::CURRENT).await;
    }

    pub async fn announce_gone_in_version(&self, server: &str, v: ProtocolVersion) {
        let log = LogId::new(server_name(server), self.env.ulid());
        let announcement = GoneAnnouncement { v, log };
        self.publish(Prefix::default().gone(), encode(&announcement).unwrap()).await;
    }

    pub async fn event(&self, subject: &str, event: &Event) {
        self.event_bytes(subject, encode(event).unwrap()).await;
    }

    pub async fn event_bytes(&self, subject: &str, payload: Bytes) {
        self.publish(Prefix::default().events(&Subject::new(subject).unwrap()), payload).await;
    }

    async fn publish(&self, route: dormouse_protocol::Route, payload: Bytes) {
        self.bus.publish(Outgoing::new(route, payload)).await.unwrap();
    }

    /// Runs `work` beside the test.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn("test", work);
    }

    pub fn now(&self) -> Duration {
        self.env.boot()
    }
}

async fn answer_to(reply_to: dormouse_protocol::Route, answer: CannedReply) -> Option<Outgoing> {
    let mut answer = answer;
    while let CannedReply::Late(after, then) = answer {
        tokio::time::sleep(after).await;
        answer = *then;
    }
    match answer {
        CannedReply::Reply(payload) => Some(Outgoing::new(reply_to, payload)),
        CannedReply::Error(error) => {
            let headers = Headers(vec![
                (ErrorReply::STATUS_HEADER.to_owned(), error.code.status().to_string()),
                (ErrorReply::TEXT_HEADER.to_owned(), error.message.clone()),
            ]);
            Some(Outgoing { route: reply_to, headers, payload: encode(&error).unwrap() })
        }
        CannedReply::Silence | CannedReply::Late(..) => None,
    }
}
