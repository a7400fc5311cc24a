//! The load of the clients during the faults, at every level.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{Bus, ask};
use dormouse_client::{Client, Error, Kv, NewMessage, Stream};
use dormouse_e2e::{SeededRng, until};
use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, DeleteReply, DeleteRequest, GetReply, GetRequest, SetItem, SetReply,
    SetRequest,
};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, MessageId, Op, Position, RequestId, Seq, ServerName, SessionId, Subject};
use dormouse_runtime::Env;
use dormouse_testkit::recorder::{RecordedBus, Recorder};

/// The deadline of a client call.
const DEADLINE: Duration = Duration::from_secs(2);

/// The time after which a direct request is repeated.
const REPEAT_AFTER: Duration = Duration::from_millis(500);

/// The number of keys per subject.
const KEYS: u64 = 6;

/// Larger values are stored as blobs.
const LARGE_BYTES: usize = 270 * 1_024;

/// A user of the fleet, with a recorded connection of its own.
pub struct User {
    client: Client,
    bus: Arc<dyn Bus>,
    recorder: Recorder,
    session: SessionId,
    counter: Cell<u64>,
    values: Cell<u64>,
    number: u32,
}

/// A subject under load.
#[derive(Debug, Clone)]
pub struct UsedSubject {
    pub subject: Subject,
    pub level: Level,
    pub keyed: bool,
}

impl User {
    pub async fn new(bus: Arc<dyn Bus>, number: u32, recorder: &Recorder, env: &Env) -> anyhow::Result<Self> {
        let bus: Arc<dyn Bus> = Arc::new(RecordedBus::new(bus, number, recorder.clone()));
        let client = Client::builder().deadline(DEADLINE).over(Arc::clone(&bus)).await?;
        let session = SessionId::new(env.ulid());
        let (counter, values) = (Cell::new(0), Cell::new(0));
        Ok(Self { client, bus, recorder: recorder.clone(), session, counter, values, number })
    }

    /// Returns the stream of a subject, with the long deadline of a test.
    pub fn stream_with_long_deadline(&self, target: &UsedSubject) -> anyhow::Result<Stream> {
        Ok(self.client.stream(target.subject.as_str())?.with_deadline(dormouse_e2e::TIMEOUT))
    }

    /// Configures a subject.
    pub async fn configure(&self, target: &UsedSubject) -> anyhow::Result<()> {
        let config = SubjectConfig { level: Some(target.level), ..SubjectConfig::default() };
        let stream = self.stream_with_long_deadline(target)?;
        // The result of an attempt may be unknown: the coordinator may declare a server dead late. Repeating the same
        // configure has no further effect.
        until(&format!("{} is configured", target.subject), async || {
            Ok(stream.configure(config.clone()).await.ok().map(drop))
        })
        .await
    }

    /// Returns a value that was never written.
    fn value(&self, rng: &mut SeededRng) -> Vec<u8> {
        self.values.set(self.values.get() + 1);
        let mut value = format!("{}:{};", self.number, self.values.get()).into_bytes();
        let fill = if rng.within(0..1_000) < 4 { LARGE_BYTES } else { rng.within(0..200) as usize };
        value.resize(value.len() + fill, b'x');
        value
    }

    fn next_request(&self) -> Option<RequestId> {
        self.counter.set(self.counter.get() + 1);
        Some(RequestId { session: self.session, counter: self.counter.get() })
    }

    /// Writes and deletes, one call after the other, until `stop` is set.
    pub async fn write(
        &self,
        target: &UsedSubject,
        mut rng: SeededRng,
        stop: &Cell<bool>,
    ) -> anyhow::Result<()> {
        let store = self.client.kv(target.subject.as_str())?;
        let stream = self.client.stream(target.subject.as_str())?;
        let mut last = None;
        while !stop.get() {
            if rng.percent(25) {
                self.send_until_answered(target, &mut rng).await;
            } else if target.keyed {
                self.write_key(&store, &mut rng, &mut last).await;
            } else {
                self.append(&stream, &mut rng, &mut last).await;
            }
            tokio::time::sleep(Duration::from_millis(rng.within(15..90))).await;
        }
        Ok(())
    }

    async fn write_key(&self, store: &Kv, rng: &mut SeededRng, last: &mut Option<(String, MessageId)>) {
        let key = key(rng);
        let raised = if rng.percent(10) { store.clone().with_level(Level::Bucket) } else { store.clone() };
        let written = match rng.within(0..10) {
            0..4 => raised.put(key.clone(), self.value(rng)).await,
            4 => store.create(key.clone(), self.value(rng)).await,
            5 | 6 => match last.take() {
                Some((known, id)) => {
                    return remember_message(
                        last,
                        &known,
                        &store.update(known.clone(), self.value(rng), id).await,
                    );
                }
                None => store.create(key.clone(), self.value(rng)).await,
            },
            7 => {
                let many: Vec<_> = (0..3).map(|_| (self::key(rng), self.value(rng))).collect();
                store.put_many(many).await;
                return;
            }
            _ => {
                let _ = raised.delete(key).await;
                return;
            }
        };
        remember_message(last, &key, &written);
    }

    async fn append(&self, stream: &Stream, rng: &mut SeededRng, last: &mut Option<(String, MessageId)>) {
        match rng.within(0..10) {
            0..5 => remember_message(last, "", &stream.publish(self.value(rng)).await),
            5 | 6 => {
                let message = NewMessage::new(self.value(rng)).expect_last(last.take().map(|(_, id)| id));
                remember_message(last, "", &stream.publish_with(message).await);
            }
            7 => {
                let many: Vec<_> = (0..4).map(|_| self.value(rng)).collect();
                stream.publish_batch(many).await;
            }
            8 => {
                let newest = last.as_ref().map_or(1, |(_, id)| id.seq.get());
                let _ = stream.delete([Seq::new(rng.within(0..newest.max(1)) + 1)]).await;
            }
            _ if rng.percent(30) => drop(stream.keep_last(rng.within(5..40)).await),
            _ => {}
        }
    }

    /// Repeats a request until it is answered, and sometimes once more.
    async fn send_until_answered(&self, target: &UsedSubject, rng: &mut SeededRng) {
        let sets = 1 + rng.within(0..3);
        let item = |this: &Self, rng: &mut SeededRng, number: u64| SetItem {
            key: target.keyed.then(|| format!("k{number}")),
            value: Some(this.value(rng).into()),
            ..SetItem::default()
        };
        let first = rng.within(0..KEYS);
        let sets: Vec<_> = (0..sets).map(|number| item(self, rng, (first + number) % KEYS)).collect();
        let (request, atomic) = (self.next_request(), rng.percent(60));
        let set = SetRequest { request, atomic, sets, ..SetRequest::default() };
        let keys = vec![key(rng)];
        let delete = DeleteRequest { request: self.next_request(), keys, ..DeleteRequest::default() };
        let deletes = target.keyed && rng.percent(25);
        for _ in 0..6 {
            let answered = if deletes {
                self.ask::<_, DeleteReply>(target, Op::Delete, &delete).await.is_some()
            } else {
                self.ask::<_, SetReply>(target, Op::Set, &set).await.is_some()
            };
            if answered && rng.percent(80) {
                return;
            }
            if rng.percent(10) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(rng.within(10..120))).await;
        }
    }

    async fn ask<Req, Rep>(&self, target: &UsedSubject, op: Op, request: &Req) -> Option<Rep>
    where
        Req: serde::Serialize + Sync,
        Rep: serde::de::DeserializeOwned,
    {
        let located = tokio::time::timeout(REPEAT_AFTER, self.client.locate(&target.subject)).await;
        let server = located.ok()?.ok()?;
        let route = self.client.prefix().server(&server, op, &target.subject);
        ask(&*self.bus, route, request, REPEAT_AFTER).await.ok()
    }

    /// Reads with every operation until `stop` is set.
    pub async fn read(
        &self,
        targets: &[UsedSubject],
        mut rng: SeededRng,
        stop: &Cell<bool>,
    ) -> anyhow::Result<()> {
        let mut known: Vec<Position> = vec![Position::default(); targets.len()];
        while !stop.get() {
            let at = rng.within(0..targets.len() as u64) as usize;
            let target = &targets[at];
            let store = self.client.kv(target.subject.as_str())?;
            let stream = self.client.stream(target.subject.as_str())?;
            match rng.within(0..12) {
                0..5 if target.keyed => drop(store.entry(key(&mut rng)).await),
                0..5 => drop(stream.get(Seq::new(rng.within(1..80))).await),
                5 if target.keyed => drop(store.keys("").all().await),
                5 => drop(stream.get_all(dormouse_client::SeqRange::all().reverse().limit(20)).all().await),
                6 | 7 => drop(stream.get_all(..).all().await),
                8 => drop(stream.info().await),
                9 if rng.percent(30) => drop(stream.flush().await),
                _ => {
                    let request = ChangesRequest { after: known[at], ..ChangesRequest::default() };
                    let reply: Option<ChangesReply> = self.ask(target, Op::Changes, &request).await;
                    if let Some(reply) = reply {
                        known[at] = if rng.percent(80) { reply.position } else { known[at] };
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(rng.within(5..60))).await;
        }
        Ok(())
    }

    /// Asks any server, including servers that may no longer own the subject: every reply must be current. A paused or
    /// disconnected server answers after the fault.
    pub async fn probe(
        &self,
        targets: &[UsedSubject],
        servers: &[ServerName],
        mut rng: SeededRng,
        stop: &Cell<bool>,
    ) -> anyhow::Result<()> {
        while !stop.get() {
            let (target, server) = (rng.pick(targets).clone(), rng.pick(servers).clone());
            let request = if target.keyed {
                GetRequest::key(key(&mut rng))
            } else {
                GetRequest::seq(Seq::new(rng.within(1..80)))
            };
            let route = self.client.prefix().server(&server, Op::Get, &target.subject);
            let _: Result<GetReply, _> = ask(&*self.bus, route, &request, DEADLINE).await;
            tokio::time::sleep(Duration::from_millis(rng.within(5..40))).await;
        }
        Ok(())
    }

    /// Reads everything from the current owner and writes once more, to check that the subject works.
    pub async fn check_subject(&self, target: &UsedSubject) -> anyhow::Result<()> {
        let stream = self.stream_with_long_deadline(target)?;
        stream.get_all(..).all().await?;
        stream.info().await?;
        let began = self.recorder.now();
        let item = NewMessage::new(self.value(&mut SeededRng::new(1)));
        loop {
            match stream.publish_with(item.clone()).await {
                Ok(_) => return Ok(()),
                // The client does not repeat a request with an unknown result. Here, such a result may be a late effect
                // of a fault.
                Err(error) if self.recorder.now() - began > dormouse_e2e::TIMEOUT => {
                    return Err(error.into());
                }
                Err(_) => {
                    let value = self.value(&mut SeededRng::new(1));
                    if stream.publish(value).await.is_ok() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn remember_message(
    last: &mut Option<(String, MessageId)>,
    key: &str,
    written: &Result<dormouse_client::Ack, Error>,
) {
    match written {
        Ok(ack) => *last = Some((key.to_owned(), ack.id())),
        Err(Error::WrongLast { actual: Some(actual) } | Error::KeyExists { actual: Some(actual) }) => {
            *last = Some((key.to_owned(), *actual));
        }
        Err(_) => *last = None,
    }
}

fn key(rng: &mut SeededRng) -> String {
    format!("k{}", rng.within(0..KEYS))
}
