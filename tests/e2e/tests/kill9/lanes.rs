//! Writers and readers: what they send is new each time, and what they hear goes into the ledger.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use dormouse_e2e::Dice;
use dormouse_e2e::ledger::{Ledger, Promise, order};
use dormouse_protocol::data::{
    ConfigureReply, ConfigureRequest, GetReply, GetRequest, SetItem, SetOutcome, SetReply, SetRequest,
};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, Op, Position, RequestId, ServerName, SessionId, Subject};

use crate::calls::{Caller, may_have_happened};

/// How many keys a writer of a key-value store owns.
const KEYS: u64 = 3;

/// How often a request is tried.
const TRIES: usize = 4;

/// A subject under test.
pub struct Target {
    pub subject: Subject,
    pub keyed: bool,
    pub ledger: RefCell<Ledger>,
    /// Who acknowledged last, and when it was asked.
    pub server: RefCell<Option<(ServerName, Duration)>>,
}

/// What all writers and readers of a round share.
pub struct Traffic {
    pub caller: Rc<Caller>,
    pub targets: Vec<Target>,
    pub stop: Cell<bool>,
    /// What should not be so.
    pub wrong: RefCell<Vec<String>>,
    pub sent: Cell<u64>,
    pub acknowledged: Cell<u64>,
    pub in_doubt: Cell<u64>,
    pub read: Cell<u64>,
}

impl Target {
    /// A subject `name` of this level, made known to the fleet.
    pub async fn new(caller: &Caller, name: &str, level: Level, unshipped: Duration) -> anyhow::Result<Self> {
        let subject: Subject = name.parse()?;
        let config = SubjectConfig { level: Some(level), ..SubjectConfig::default() };
        let request = ConfigureRequest { config, ..ConfigureRequest::default() };
        let reply: ConfigureReply = caller.insist(Op::Configure, &subject, &request).await?;
        let mut ledger = Ledger::new(name, level, unshipped);
        ledger.durable(reply.position);
        let keyed = name.contains("kv");
        Ok(Self { subject, keyed, ledger: RefCell::new(ledger), server: RefCell::default() })
    }
}

/// One writer: one request at a time, under keys of its own.
pub async fn write(traffic: &Traffic, target: &Target, lane: u64, mut dice: Dice) {
    let session = SessionId::new(traffic.caller.env().ulid());
    let name = target.subject.as_str().replace('.', "-");
    for number in 0.. {
        if traffic.stop.get() {
            return;
        }
        let value = format!("@{name}-{lane}-{number};");
        let key = target.keyed.then(|| key(lane, number));
        // Enough now and then for a base to be worth its while.
        let filling = match dice.within(0..100) {
            // An object of its own.
            0 => 300_000,
            1..=10 => 6_000,
            _ => dice.within(0..200),
        };
        let filled = format!("{value}{}", "x".repeat(usize::try_from(filling).unwrap_or(0)));
        let item = SetItem { key: key.clone(), value: Some(filled.into()), ..SetItem::default() };
        let request = SetRequest {
            request: Some(RequestId { session, counter: number }),
            level: dice.percent(5).then_some(Level::Bucket),
            sets: vec![item],
            ..SetRequest::default()
        };
        target.ledger.borrow_mut().sent(&value, key.as_deref());
        traffic.sent.set(traffic.sent.get() + 1);
        carry_out(traffic, target, &value, &request, &mut dice).await;
        tokio::time::sleep(Duration::from_millis(dice.within(1..15))).await;
    }
}

pub fn key(lane: u64, number: u64) -> String {
    format!("key-{lane}-{}", number % KEYS)
}

/// Tries a request, the same one again and again, and writes down what became of it.
async fn carry_out(traffic: &Traffic, target: &Target, value: &str, request: &SetRequest, dice: &mut Dice) {
    let mut in_doubt = false;
    let mut tries = 0;
    while tries < TRIES && !(traffic.stop.get() && tries > 0) {
        tries += 1;
        match once(traffic, target, value, request).await {
            Some(Answer::Done) => {
                // Whoever asks again is told the same, and nothing happens a second time.
                if dice.percent(10) {
                    once(traffic, target, value, request).await;
                }
                traffic.acknowledged.set(traffic.acknowledged.get() + 1);
                return;
            }
            Some(Answer::InDoubt) => {
                in_doubt = true;
                // Some never ask again.
                if dice.percent(40) {
                    break;
                }
            }
            Some(Answer::Refused) | None => {}
        }
        tokio::time::sleep(Duration::from_millis(dice.within(10..80))).await;
    }
    if in_doubt {
        traffic.in_doubt.set(traffic.in_doubt.get() + 1);
    } else {
        target.ledger.borrow_mut().refused(value);
    }
}

enum Answer {
    Done,
    InDoubt,
    Refused,
}

/// Sends a request once; `None`: nobody to send it to.
async fn once(traffic: &Traffic, target: &Target, value: &str, request: &SetRequest) -> Option<Answer> {
    let caller = &traffic.caller;
    let server = caller.server_of(&target.subject).await?;
    let asked = caller.now();
    let answer = caller.ask::<_, SetReply>(&server, Op::Set, &target.subject, request).await;
    match answer {
        Ok(reply) => match reply.results.first() {
            Some(SetOutcome::Ok(result)) => {
                let promise = Promise {
                    server: Some(server.clone()),
                    level: request.level.unwrap_or(Level::Memory),
                    id: result.id(),
                    rev: result.rev,
                    asked,
                    at: caller.now(),
                };
                target.ledger.borrow_mut().acknowledged(value, promise);
                *target.server.borrow_mut() = Some((server, asked));
                Some(Answer::Done)
            }
            _ => Some(Answer::Refused),
        },
        Err(error) => {
            caller.forget(&target.subject);
            Some(if may_have_happened(&error) { Answer::InDoubt } else { Answer::Refused })
        }
    }
}

/// One reader: whatever it is told is no older than what was acknowledged before it asked.
pub async fn read(traffic: &Traffic, servers: &[ServerName], mut dice: Dice) {
    let keyed: Vec<&Target> = traffic.targets.iter().filter(|target| target.keyed).collect();
    while !traffic.stop.get() {
        let target = dice.pick(&keyed);
        // Now and then whoever may not serve it any more.
        let server = if dice.percent(5) {
            Some(dice.pick(servers).clone())
        } else {
            traffic.caller.server_of(&target.subject).await
        };
        if let Some(server) = server {
            let key = key(dice.within(0..LANES), dice.within(0..KEYS));
            read_one(traffic, target, &server, &key).await;
        }
        tokio::time::sleep(Duration::from_millis(dice.within(1..20))).await;
    }
}

/// How many writers a subject has.
pub const LANES: u64 = 2;

/// Reads a key from this server and checks what it says.
pub async fn read_one(traffic: &Traffic, target: &Target, server: &ServerName, key: &str) {
    let must_show = target.ledger.borrow().must_show(key);
    let caller = &traffic.caller;
    let reply: Result<GetReply, _> =
        caller.ask(server, Op::Get, &target.subject, &GetRequest::key(key)).await;
    let Ok(reply) = reply else { return caller.forget(&target.subject) };
    traffic.read.set(traffic.read.get() + 1);
    let shown = reply.messages.first().map(|message| Position { term: message.term, rev: message.rev });
    if shown.as_ref().map(order) < must_show.as_ref().map(order) {
        let subject = &target.subject;
        traffic.wrong.borrow_mut().push(format!(
            "stale read: {server} showed {key} of {subject} at {shown:?}, and {must_show:?} was there before"
        ));
    }
    target.ledger.borrow_mut().read(&reply.messages, caller.now());
}

/// What a server serves that was started at `started`, as far as the last acknowledgements tell.
pub fn served(traffic: &Traffic, server: &ServerName, started: Duration) -> HashSet<Subject> {
    let is_its = |target: &&Target| {
        target.server.borrow().as_ref().is_some_and(|(name, asked)| name == server && *asked >= started)
    };
    traffic.targets.iter().filter(is_its).map(|target| target.subject.clone()).collect()
}
