//! What clients do meanwhile, at every level.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{Bus, ask};
use dormouse_client::{Client, Error, Kv, NewMessage, Stream};
use dormouse_e2e::{Dice, RecordedBus, Recorder, until};
use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, DeleteReply, DeleteRequest, GetReply, GetRequest, SetItem, SetReply,
    SetRequest,
};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, MessageId, Op, Position, RequestId, Seq, ServerName, SessionId, Subject};
use dormouse_runtime::Env;

/// How long a client tries.
const DEADLINE: Duration = Duration::from_secs(2);

/// How long one who asks by hand waits, before it asks the same again.
const BY_HAND: Duration = Duration::from_millis(500);

/// Under how many keys each subject has something.
const KEYS: u64 = 6;

/// Above this a value is an object of its own.
const LARGE_BYTES: usize = 270 * 1_024;

/// One of those who use the fleet, over a connection of its own on which everything is taken down.
pub struct User {
    client: Client,
    bus: Arc<dyn Bus>,
    recorder: Recorder,
    session: SessionId,
    counter: Cell<u64>,
    values: Cell<u64>,
    number: u32,
}

/// A subject that is used.
#[derive(Debug, Clone)]
pub struct Target {
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

    /// The same user, who tries as long as a test waits.
    pub fn patient(&self, target: &Target) -> anyhow::Result<Stream> {
        Ok(self.client.stream(target.subject.as_str())?.with_deadline(dormouse_e2e::PATIENCE))
    }

    /// Makes a subject what it shall be.
    pub async fn configure(&self, target: &Target) -> anyhow::Result<()> {
        let config = SubjectConfig { level: Some(target.level), ..SubjectConfig::default() };
        let stream = self.patient(target)?;
        // What became of a try may be unknown: a server that was struck before may be announced as gone only now. To
        // configure the same again does no harm.
        until(&format!("{} is configured", target.subject), async || {
            Ok(stream.configure(config.clone()).await.ok().map(drop))
        })
        .await
    }

    /// A value that nobody has written.
    fn value(&self, dice: &mut Dice) -> Vec<u8> {
        self.values.set(self.values.get() + 1);
        let mut value = format!("{}:{};", self.number, self.values.get()).into_bytes();
        let fill = if dice.within(0..1_000) < 4 { LARGE_BYTES } else { dice.within(0..200) as usize };
        value.resize(value.len() + fill, b'x');
        value
    }

    fn next_request(&self) -> Option<RequestId> {
        self.counter.set(self.counter.get() + 1);
        Some(RequestId { session: self.session, counter: self.counter.get() })
    }

    /// Writes and removes, one after the other, until told to stop.
    pub async fn write(&self, target: &Target, mut dice: Dice, stop: &Cell<bool>) -> anyhow::Result<()> {
        let store = self.client.kv(target.subject.as_str())?;
        let stream = self.client.stream(target.subject.as_str())?;
        let mut last = None;
        while !stop.get() {
            if dice.percent(25) {
                self.by_hand(target, &mut dice).await;
            } else if target.keyed {
                self.write_key(&store, &mut dice, &mut last).await;
            } else {
                self.append(&stream, &mut dice, &mut last).await;
            }
            tokio::time::sleep(Duration::from_millis(dice.within(15..90))).await;
        }
        Ok(())
    }

    async fn write_key(&self, store: &Kv, dice: &mut Dice, last: &mut Option<(String, MessageId)>) {
        let key = key(dice);
        let raised = if dice.percent(10) { store.clone().with_level(Level::Bucket) } else { store.clone() };
        let written = match dice.within(0..10) {
            0..4 => raised.put(key.clone(), self.value(dice)).await,
            4 => store.create(key.clone(), self.value(dice)).await,
            5 | 6 => match last.take() {
                Some((known, id)) => {
                    return note(last, &known, &store.update(known.clone(), self.value(dice), id).await);
                }
                None => store.create(key.clone(), self.value(dice)).await,
            },
            7 => {
                let many: Vec<_> = (0..3).map(|_| (self::key(dice), self.value(dice))).collect();
                store.put_many(many).await;
                return;
            }
            _ => {
                let _ = raised.delete(key).await;
                return;
            }
        };
        note(last, &key, &written);
    }

    async fn append(&self, stream: &Stream, dice: &mut Dice, last: &mut Option<(String, MessageId)>) {
        match dice.within(0..10) {
            0..5 => note(last, "", &stream.publish(self.value(dice)).await),
            5 | 6 => {
                let message = NewMessage::new(self.value(dice)).expect_last(last.take().map(|(_, id)| id));
                note(last, "", &stream.publish_with(message).await);
            }
            7 => {
                let many: Vec<_> = (0..4).map(|_| self.value(dice)).collect();
                stream.publish_batch(many).await;
            }
            8 => {
                let newest = last.as_ref().map_or(1, |(_, id)| id.seq.get());
                let _ = stream.delete([Seq::new(dice.within(0..newest.max(1)) + 1)]).await;
            }
            _ if dice.percent(30) => drop(stream.keep_last(dice.within(5..40)).await),
            _ => {}
        }
    }

    /// Asks for the same until it is answered, and now and then once more.
    async fn by_hand(&self, target: &Target, dice: &mut Dice) {
        let sets = 1 + dice.within(0..3);
        let item = |this: &Self, dice: &mut Dice, number: u64| SetItem {
            key: target.keyed.then(|| format!("k{number}")),
            value: Some(this.value(dice).into()),
            ..SetItem::default()
        };
        let first = dice.within(0..KEYS);
        let sets: Vec<_> = (0..sets).map(|number| item(self, dice, (first + number) % KEYS)).collect();
        let (request, atomic) = (self.next_request(), dice.percent(60));
        let set = SetRequest { request, atomic, sets, ..SetRequest::default() };
        let keys = vec![key(dice)];
        let delete = DeleteRequest { request: self.next_request(), keys, ..DeleteRequest::default() };
        let deletes = target.keyed && dice.percent(25);
        for _ in 0..6 {
            let answered = if deletes {
                self.ask::<_, DeleteReply>(target, Op::Delete, &delete).await.is_some()
            } else {
                self.ask::<_, SetReply>(target, Op::Set, &set).await.is_some()
            };
            if answered && dice.percent(80) {
                return;
            }
            if dice.percent(10) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(dice.within(10..120))).await;
        }
    }

    async fn ask<Req, Rep>(&self, target: &Target, op: Op, request: &Req) -> Option<Rep>
    where
        Req: serde::Serialize + Sync,
        Rep: serde::de::DeserializeOwned,
    {
        let located = tokio::time::timeout(BY_HAND, self.client.locate(&target.subject)).await;
        let server = located.ok()?.ok()?;
        let route = self.client.prefix().server(&server, op, &target.subject);
        ask(&*self.bus, route, request, BY_HAND).await.ok()
    }

    /// Reads in every way there is until told to stop.
    pub async fn read(&self, targets: &[Target], mut dice: Dice, stop: &Cell<bool>) -> anyhow::Result<()> {
        let mut known: Vec<Position> = vec![Position::default(); targets.len()];
        while !stop.get() {
            let at = dice.within(0..targets.len() as u64) as usize;
            let target = &targets[at];
            let store = self.client.kv(target.subject.as_str())?;
            let stream = self.client.stream(target.subject.as_str())?;
            match dice.within(0..12) {
                0..5 if target.keyed => drop(store.entry(key(&mut dice)).await),
                0..5 => drop(stream.get(Seq::new(dice.within(1..80))).await),
                5 if target.keyed => drop(store.keys("").all().await),
                5 => drop(stream.get_all(dormouse_client::SeqRange::all().reverse().limit(20)).all().await),
                6 | 7 => drop(stream.get_all(..).all().await),
                8 => drop(stream.info().await),
                9 if dice.percent(30) => drop(stream.flush().await),
                _ => {
                    let request = ChangesRequest { after: known[at], ..ChangesRequest::default() };
                    let reply: Option<ChangesReply> = self.ask(target, Op::Changes, &request).await;
                    if let Some(reply) = reply {
                        known[at] = if dice.percent(80) { reply.position } else { known[at] };
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(dice.within(5..60))).await;
        }
        Ok(())
    }

    /// Asks any server, also who may not serve the subject any more: whatever it says must be true now. Who stands still or
    /// hears nothing answers when it is back.
    pub async fn probe(
        &self,
        targets: &[Target],
        servers: &[ServerName],
        mut dice: Dice,
        stop: &Cell<bool>,
    ) -> anyhow::Result<()> {
        while !stop.get() {
            let (target, server) = (dice.pick(targets).clone(), dice.pick(servers).clone());
            let request = if target.keyed {
                GetRequest::key(key(&mut dice))
            } else {
                GetRequest::seq(Seq::new(dice.within(1..80)))
            };
            let route = self.client.prefix().server(&server, Op::Get, &target.subject);
            let _: Result<GetReply, _> = ask(&*self.bus, route, &request, DEADLINE).await;
            tokio::time::sleep(Duration::from_millis(dice.within(5..40))).await;
        }
        Ok(())
    }

    /// Reads everything, whoever serves it, and writes once more: the subject is well.
    pub async fn look_over(&self, target: &Target) -> anyhow::Result<()> {
        let stream = self.patient(target)?;
        stream.get_all(..).all().await?;
        stream.info().await?;
        let began = self.recorder.now();
        let item = NewMessage::new(self.value(&mut Dice::new(1)));
        loop {
            match stream.publish_with(item.clone()).await {
                Ok(_) => return Ok(()),
                // What nobody knows is not asked for again by the client; here it may be the last word of a fault.
                Err(error) if self.recorder.now() - began > dormouse_e2e::PATIENCE => {
                    return Err(error.into());
                }
                Err(_) => {
                    let value = self.value(&mut Dice::new(1));
                    if stream.publish(value).await.is_ok() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn note(last: &mut Option<(String, MessageId)>, key: &str, written: &Result<dormouse_client::Ack, Error>) {
    match written {
        Ok(ack) => *last = Some((key.to_owned(), ack.id())),
        Err(Error::WrongLast { actual: Some(actual) } | Error::KeyExists { actual: Some(actual) }) => {
            *last = Some((key.to_owned(), *actual));
        }
        Err(_) => *last = None,
    }
}

fn key(dice: &mut Dice) -> String {
    format!("k{}", dice.within(0..KEYS))
}
