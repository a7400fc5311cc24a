//! The calls of the clients: every operation, at every level, and repeats of earlier requests.

mod last;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{Bus, Outgoing, service_error};
use dormouse_client::{Client, Kv, Level, NewMessage, Stream, SubjectConfig};
use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, DeleteAllRequest, DeleteRequest, Expect, GetAllRequest, SetItem,
    SetOutcome, SetReply, SetRequest, SetResult,
};
use dormouse_protocol::deadline::time_left_headers;
use dormouse_protocol::message::Discard;
use dormouse_protocol::{
    ErrorCode, MessageId, Op, Position, RequestId, Seq, SessionId, Subject, decode, encode,
};
use dormouse_runtime::{Env, Stop};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::recorder::{ClientRecord, Recorder};
use crate::rng::SeededRng;

pub use last::final_check;

/// The deadline of a call.
const DEADLINE: Duration = Duration::from_secs(4);

/// The configuration of one client.
#[derive(Clone)]
pub struct ClientPlan {
    /// Its number.
    pub number: u32,
    /// The subjects.
    pub subjects: Vec<Subject>,
    /// The number of keys per subject.
    pub keys: u64,
    /// The longest pause between two calls, in milliseconds.
    pub pause_ms: u64,
    /// Whether subjects have levels other than `bucket`, and limits.
    pub configures: bool,
    /// Whether it deletes.
    pub deletes: bool,
    /// Whether it destroys.
    pub destroys: bool,
    /// Whether some values are objects of their own.
    pub large_values: bool,
}

/// The kinds of calls.
#[derive(Clone, Copy)]
enum ClientCall {
    Put,
    Publish,
    Create,
    Update,
    Batch,
    Several,
    Burst,
    DeleteKey,
    DeleteSeq,
    DeleteAll,
    Configure,
    Get,
    GetMany,
    GetSeq,
    Page,
    Pages,
    Keys,
    Info,
    Changes,
    Flush,
    Again,
    Hasty,
}

const CALLS: [(u64, ClientCall); 22] = [
    (20, ClientCall::Put),
    (8, ClientCall::Publish),
    (4, ClientCall::Create),
    (6, ClientCall::Update),
    (5, ClientCall::Batch),
    (3, ClientCall::Several),
    (3, ClientCall::Burst),
    (4, ClientCall::DeleteKey),
    (2, ClientCall::DeleteSeq),
    (1, ClientCall::DeleteAll),
    (2, ClientCall::Configure),
    (12, ClientCall::Get),
    (3, ClientCall::GetMany),
    (2, ClientCall::GetSeq),
    (4, ClientCall::Page),
    (2, ClientCall::Pages),
    (2, ClientCall::Keys),
    (3, ClientCall::Info),
    (7, ClientCall::Changes),
    (2, ClientCall::Flush),
    (9, ClientCall::Again),
    (4, ClientCall::Hasty),
];

/// A running client.
pub struct Worker {
    plan: ClientPlan,
    client: Client,
    bus: Arc<dyn Bus>,
    record: Arc<ClientRecord>,
    rng: Arc<SeededRng>,
    session: SessionId,
    counter: u64,
    values: u64,
    incarnation: u64,
    /// The last seen ids, by subject and key.
    seen: BTreeMap<(usize, String), MessageId>,
    positions: BTreeMap<usize, Position>,
    seqs: BTreeMap<usize, Seq>,
}

impl Worker {
    /// Connects a client with a connection of its own, the `incarnation`-th of this number.
    ///
    /// # Errors
    /// If the connection is closed at once.
    pub async fn connect(
        plan: ClientPlan,
        incarnation: u64,
        broker: &MemoryBroker,
        recorder: &Recorder,
        env: &Env,
        rng: Arc<SeededRng>,
    ) -> Result<Self, dormouse_client::Error> {
        let name = format!("client-{}", plan.number);
        let bus: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named(name)));
        let (bus, record) = recorder.connect(bus, plan.number);
        let client = Client::builder().env(env.clone()).deadline(DEADLINE).over(Arc::clone(&bus)).await?;
        Ok(Self {
            session: SessionId::new(env.ulid()),
            plan,
            client,
            bus,
            record,
            rng,
            counter: 0,
            values: 0,
            incarnation,
            seen: BTreeMap::new(),
            positions: BTreeMap::new(),
            seqs: BTreeMap::new(),
        })
    }

    /// Makes calls until `stop` is requested.
    pub async fn work(mut self, stop: Stop) {
        while !stop.is_requested() {
            self.call().await;
            // The pause is often zero, so that calls overlap.
            if self.rng.chance(700) {
                tokio::time::sleep(self.rng.millis(0..self.plan.pause_ms)).await;
            }
        }
    }

    async fn call(&mut self) {
        let at = usize::try_from(self.rng.below(self.plan.subjects.len() as u64)).unwrap_or(0);
        let what = self.rng.weighted(&CALLS);
        match what {
            ClientCall::Put => self.put(at).await,
            ClientCall::Publish => self.publish(at).await,
            ClientCall::Create | ClientCall::Update => {
                self.expecting(at, matches!(what, ClientCall::Create)).await;
            }
            ClientCall::Batch | ClientCall::Several => {
                self.batch(at, matches!(what, ClientCall::Batch)).await;
            }
            ClientCall::Burst => self.burst(at).await,
            ClientCall::DeleteSeq | ClientCall::DeleteAll if self.plan.destroys && self.rng.chance(300) => {
                drop(self.kv(at).destroy().await);
            }
            ClientCall::DeleteKey | ClientCall::DeleteSeq | ClientCall::DeleteAll if !self.plan.deletes => {
                self.put(at).await;
            }
            ClientCall::DeleteKey => self.delete_key(at).await,
            ClientCall::DeleteSeq => self.delete_seqs(at).await,
            ClientCall::DeleteAll => self.delete_all(at).await,
            ClientCall::Configure => self.configure(at).await,
            ClientCall::Get | ClientCall::GetMany | ClientCall::GetSeq => self.read(at, what).await,
            ClientCall::Page => self.page(at).await,
            ClientCall::Pages => drop(self.stream(at).get_all(..).all().await),
            ClientCall::Keys => drop(self.kv(at).keys("").all().await),
            ClientCall::Info => drop(self.kv(at).info().await),
            ClientCall::Changes => self.changes(at).await,
            ClientCall::Flush => drop(self.kv(at).flush().await),
            ClientCall::Again => self.again().await,
            ClientCall::Hasty => self.hasty(at).await,
        }
    }

    fn kv(&self, at: usize) -> Kv {
        self.client.kv(self.plan.subjects[at].as_str()).expect("a valid subject name")
    }

    fn stream(&self, at: usize) -> Stream {
        self.client.stream(self.plan.subjects[at].as_str()).expect("a valid subject name")
    }

    fn key(&self) -> String {
        format!("k{}", self.rng.below(self.plan.keys))
    }

    fn level(&self) -> Option<Level> {
        self.rng.chance(250).then(|| *self.rng.pick(&Level::ALL))
    }

    /// Returns a value that was never sent before.
    fn value(&mut self) -> Bytes {
        self.values += 1;
        let name = format!("@{}-{}-{};", self.plan.number, self.incarnation, self.values);
        let large = if self.plan.large_values { 15 } else { 0 };
        let size = self.rng.weighted(&[(700, 0), (200, 2_000), (100 - large, 12_000), (large, 270_000)]);
        let mut value = name.into_bytes();
        value.resize(value.len().max(size), b'.');
        value.into()
    }

    fn request(&mut self) -> RequestId {
        self.counter += 1;
        RequestId { session: self.session, counter: self.counter }
    }

    fn remember(&mut self, at: usize, key: Option<&str>, result: &SetResult) {
        if let Some(key) = key {
            self.seen.insert((at, key.to_owned()), result.id());
        }
        self.seqs.insert(at, result.seq);
    }

    async fn put(&mut self, at: usize) {
        let (key, value) = (self.key(), self.value());
        let mut kv = self.kv(at);
        if let Some(level) = self.level() {
            kv = kv.with_level(level);
        }
        let mut message = NewMessage::new(value);
        if self.plan.deletes && self.rng.chance(100) {
            message = message.ttl(self.rng.millis(200..20_000));
        }
        if let Ok(result) = kv.put_with(key.clone(), message).await {
            self.remember(at, Some(&key), &result);
        }
    }

    async fn publish(&mut self, at: usize) {
        let value = self.value();
        let mut stream = self.stream(at);
        if let Some(level) = self.level() {
            stream = stream.with_level(level);
        }
        if let Ok(result) = stream.publish_with(NewMessage::new(value).header("h", "v")).await {
            self.remember(at, None, &result);
        }
    }

    async fn expecting(&mut self, at: usize, create: bool) {
        let (key, value) = (self.key(), self.value());
        let known = self.seen.get(&(at, key.clone())).copied();
        let result = match known {
            Some(known) if !create => self.kv(at).update(key.clone(), value, known).await,
            _ => self.kv(at).create(key.clone(), value).await,
        };
        match result {
            Ok(result) => self.remember(at, Some(&key), &result),
            Err(
                dormouse_client::Error::WrongLast { actual } | dormouse_client::Error::KeyExists { actual },
            ) => {
                match actual {
                    Some(actual) => self.seen.insert((at, key), actual),
                    None => self.seen.remove(&(at, key)),
                };
            }
            Err(_) => {}
        }
    }

    /// Sends several sets in a request, atomic or each on its own.
    async fn batch(&mut self, at: usize, atomic: bool) {
        let mut keys: Vec<String> = Vec::new();
        let sets = (0..self.rng.within(2..5)).map(|_| {
            let key = Some(self.key()).filter(|key| !keys.contains(key) && self.rng.chance(800));
            keys.extend(key.clone());
            let known = key.as_ref().and_then(|key| self.seen.get(&(at, key.clone())).copied());
            let expect = (key.is_some() && self.rng.chance(300)).then_some(Expect::Key(known));
            SetItem { key, value: Some(self.value()), expect, ..SetItem::default() }
        });
        let sets: Vec<SetItem> = sets.collect();
        let keys: Vec<Option<String>> = sets.iter().map(|set| set.key.clone()).collect();
        let request = SetRequest {
            request: Some(self.request()),
            atomic,
            level: self.level(),
            sets,
            ..SetRequest::default()
        };
        if let Some(reply) = self.ask::<SetReply>(at, Op::Set, &request).await {
            for (key, outcome) in keys.iter().zip(&reply.results) {
                match outcome {
                    SetOutcome::Ok(result) => self.remember(at, key.as_deref(), result),
                    SetOutcome::Error(error) => {
                        if let (Some(key), Some(actual)) = (key, error.actual) {
                            self.seen.insert((at, key.clone()), actual);
                        }
                    }
                }
            }
        }
    }

    /// Sends sets one after another without waiting, with and without keys: the client may batch them.
    async fn burst(&mut self, at: usize) {
        let (mut kv, mut stream) = (self.kv(at), self.stream(at));
        if let Some(level) = self.level() {
            (kv, stream) = (kv.with_level(level), stream.with_level(level));
        }
        let sets = (0..self.rng.within(2..30)).map(|_| {
            let key = Some(self.key()).filter(|_| self.rng.chance(700));
            let value = self.value();
            match key.clone() {
                Some(name) => (key, kv.put(name, value)),
                None => (key, stream.publish(value)),
            }
        });
        // All are sent before the first reply is awaited.
        let sets: Vec<_> = sets.collect();
        let mut written = Vec::new();
        for (key, set) in sets {
            let result = set.await.ok();
            if let Some(result) = &result {
                self.remember(at, key.as_deref(), result);
            }
            written.push(result.map(|result| Position { term: result.term, rev: result.rev }));
        }
        self.record.burst(&self.plan.subjects[at], written);
    }

    async fn delete_key(&mut self, at: usize) {
        let key = self.key();
        let known = self.seen.remove(&(at, key.clone()));
        match known {
            Some(known) if self.rng.chance(300) => {
                drop(self.kv(at).delete_expect_revision(key, known).await);
            }
            _ => drop(self.kv(at).delete(key).await),
        }
    }

    async fn delete_seqs(&mut self, at: usize) {
        let last = self.seqs.get(&at).map_or(1, |seq| seq.get());
        let seq = Seq::new(last.saturating_sub(self.rng.below(6)).max(1));
        let request = DeleteRequest {
            request: Some(self.request()),
            level: self.level(),
            seqs: vec![seq],
            ..DeleteRequest::default()
        };
        let _: Option<dormouse_protocol::data::DeleteReply> = self.ask(at, Op::Delete, &request).await;
    }

    async fn delete_all(&mut self, at: usize) {
        let last = self.seqs.get(&at).map_or(1, |seq| seq.get());
        let (end_seq, keep_last) = match self.rng.below(3) {
            0 => (None, Some(self.rng.below(5))),
            1 => (Some(Seq::new(last.saturating_sub(self.rng.below(10)))), None),
            _ => (None, None),
        };
        let request = DeleteAllRequest {
            request: Some(self.request()),
            level: self.level(),
            end_seq,
            keep_last,
            ..DeleteAllRequest::default()
        };
        let _: Option<dormouse_protocol::data::DeleteAllReply> = self.ask(at, Op::DeleteAll, &request).await;
    }

    async fn configure(&mut self, at: usize) {
        if !self.plan.configures {
            return self.put(at).await;
        }
        let level = self.rng.chance(800).then(|| *self.rng.pick(&Level::ALL));
        let mut config = SubjectConfig { level, ..SubjectConfig::default() };
        if self.plan.deletes && self.rng.chance(400) {
            config.max_msgs = self.rng.chance(600).then(|| self.rng.within(2..12));
            config.max_bytes = self.rng.chance(300).then(|| self.rng.within(4_000..40_000));
            config.max_age_ms = self.rng.chance(300).then(|| self.rng.within(500..60_000));
            config.discard = self.rng.chance(400).then_some(Discard::New);
        }
        let _ = self.kv(at).configure(config).await;
    }

    async fn read(&mut self, at: usize, what: ClientCall) {
        match what {
            ClientCall::GetMany => {
                let keys: Vec<String> = (0..3).map(|_| self.key()).collect();
                let _ = self.kv(at).get_many(keys).await;
            }
            ClientCall::GetSeq => {
                let last = self.seqs.get(&at).map_or(1, |seq| seq.get());
                let seq = Seq::new(last.saturating_sub(self.rng.below(6)).max(1));
                let _ = self.stream(at).get(seq).await;
            }
            _ => {
                let key = self.key();
                if let Ok(found) = self.kv(at).entry(key.clone()).await {
                    match found {
                        Some(entry) => self.seen.insert((at, key), entry.revision),
                        None => self.seen.remove(&(at, key)),
                    };
                }
            }
        }
    }

    async fn page(&mut self, at: usize) {
        let request = GetAllRequest {
            start_seq: self.rng.chance(300).then(|| Seq::new(self.rng.below(20))),
            end_seq: self.rng.chance(300).then(|| Seq::new(self.rng.below(60))),
            key_prefix: self.rng.chance(300).then(|| "k".to_owned()),
            reverse: self.rng.chance(300),
            limit: self.rng.chance(500).then(|| self.rng.within(1..10)),
            ..GetAllRequest::default()
        };
        let _: Option<dormouse_protocol::data::GetAllReply> = self.ask(at, Op::GetAll, &request).await;
    }

    async fn changes(&mut self, at: usize) {
        let after = self.positions.get(&at).copied().unwrap_or_default();
        let limit = self.rng.chance(300).then(|| self.rng.within(1..5));
        let request = ChangesRequest { after, limit, ..ChangesRequest::default() };
        if let Some(reply) = self.ask::<ChangesReply>(at, Op::Changes, &request).await {
            let next = if reply.resync { Position::default() } else { reply.position };
            self.positions.insert(at, next);
        }
    }

    /// Repeats an earlier request, byte for byte, to the current server of the subject.
    async fn again(&mut self) {
        let sent = self.record.sent();
        if sent.is_empty() {
            return;
        }
        let recent = self.rng.chance(700);
        let back = self.rng.below(if recent { 3 } else { sent.len() as u64 });
        let place = (sent.len() - 1).saturating_sub(usize::try_from(back).unwrap_or(0));
        let one = sent[place].clone();
        let _ = self.send(&one.subject, one.op, one.payload).await;
    }

    /// Sends a set whose time left is shorter than the client waits, or is zero: such a set must not be executed.
    async fn hasty(&mut self, at: usize) {
        let left = if self.rng.chance(400) { Duration::ZERO } else { self.rng.millis(1..400) };
        let set = SetItem { key: Some(self.key()), value: Some(self.value()), ..SetItem::default() };
        let request = SetRequest {
            request: Some(self.request()),
            level: self.level(),
            sets: vec![set],
            ..SetRequest::default()
        };
        let subject = self.plan.subjects[at].clone();
        let Ok(server) = self.client.locate(&subject).await else { return };
        let message = Outgoing {
            route: self.client.prefix().server(&server, Op::Set, &subject),
            headers: time_left_headers(left),
            payload: encode(&request).expect("a request encodes"),
        };
        let Ok(reply) = self.bus.request(message, DEADLINE).await else { return };
        let is_executed = service_error(&reply).is_none()
            && decode::<SetReply>(&reply.payload).is_ok_and(|reply| {
                reply.results.iter().any(|one| matches!(one, SetOutcome::Ok(result) if !result.duplicate))
            });
        if is_executed && left.is_zero() {
            self.record.violation(format!("a set to {subject} without time left was executed"));
        }
    }

    async fn ask<R: DeserializeOwned>(&self, at: usize, op: Op, request: &impl Serialize) -> Option<R> {
        let payload = encode(request).expect("a request encodes");
        let reply = self.send(&self.plan.subjects[at], op, payload).await?;
        decode(&reply).ok()
    }

    /// Sends a request to the server of the subject that the coordinator names, and follows redirects a few times.
    async fn send(&self, subject: &Subject, op: Op, payload: Bytes) -> Option<Bytes> {
        for _ in 0..3 {
            let server = self.client.locate(subject).await.ok()?;
            let route = self.client.prefix().server(&server, op, subject);
            let reply = self.bus.request(Outgoing::new(route, payload.clone()), DEADLINE).await.ok()?;
            match service_error(&reply) {
                None => return Some(reply.payload),
                Some(error) if error.code == ErrorCode::NotOwner || error.code == ErrorCode::Unavailable => {
                    tokio::time::sleep(self.rng.millis(10..200)).await;
                }
                Some(_) => return None,
            }
        }
        None
    }
}
