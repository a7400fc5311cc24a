//! Writers and readers: every sent value is new, and every reply goes into the ledger.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use dormouse_e2e::SeededRng;
use dormouse_e2e::ledger::{Ack, Ledger, order};
use dormouse_protocol::data::{
    ConfigureReply, ConfigureRequest, GetReply, GetRequest, SetItem, SetOutcome, SetReply, SetRequest,
};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, Op, Position, RequestId, ServerName, SessionId, Subject};

use crate::calls::{Caller, may_have_executed};

/// The number of keys of each writer of a key-value store.
const KEYS: u64 = 3;

/// The number of attempts per request.
const ATTEMPTS: usize = 4;

/// A subject under test.
pub struct TestedSubject {
    pub subject: Subject,
    pub keyed: bool,
    pub ledger: RefCell<Ledger>,
    /// The server of the last acknowledgement, and the time of that request.
    pub server: RefCell<Option<(ServerName, Duration)>>,
}

/// The shared state of all writers and readers of a round.
pub struct Traffic {
    pub caller: Rc<Caller>,
    pub targets: Vec<TestedSubject>,
    pub stop: Cell<bool>,
    /// Violations that were found during the round.
    pub problems: RefCell<Vec<String>>,
    pub sent: Cell<u64>,
    pub acknowledged: Cell<u64>,
    pub indeterminate: Cell<u64>,
    pub read: Cell<u64>,
}

impl TestedSubject {
    /// Creates a subject `name` of this level in the fleet.
    pub async fn new(caller: &Caller, name: &str, level: Level, unshipped: Duration) -> anyhow::Result<Self> {
        let subject: Subject = name.parse()?;
        let config = SubjectConfig { level: Some(level), ..SubjectConfig::default() };
        let request = ConfigureRequest { config, ..ConfigureRequest::default() };
        let reply: ConfigureReply = caller.call_until_answered(Op::Configure, &subject, &request).await?;
        let mut ledger = Ledger::new(name, level, unshipped);
        ledger.durable(reply.position);
        let keyed = name.contains("kv");
        Ok(Self { subject, keyed, ledger: RefCell::new(ledger), server: RefCell::default() })
    }
}

/// One writer: one request at a time, with keys of its own.
pub async fn write(traffic: &Traffic, target: &TestedSubject, writer: u64, mut rng: SeededRng) {
    let session = SessionId::new(traffic.caller.env().ulid());
    let name = target.subject.as_str().replace('.', "-");
    for number in 0.. {
        if traffic.stop.get() {
            return;
        }
        let value = format!("@{name}-{writer}-{number};");
        let key = target.keyed.then(|| key(writer, number));
        // Values are sometimes large, so that a new base is worth its cost.
        let padding = match rng.within(0..100) {
            // Stored as a blob.
            0 => 300_000,
            1..=10 => 6_000,
            _ => rng.within(0..200),
        };
        let padded = format!("{value}{}", "x".repeat(usize::try_from(padding).unwrap_or(0)));
        let item = SetItem { key: key.clone(), value: Some(padded.into()), ..SetItem::default() };
        let request = SetRequest {
            request: Some(RequestId { session, counter: number }),
            level: rng.percent(5).then_some(Level::Bucket),
            sets: vec![item],
            ..SetRequest::default()
        };
        target.ledger.borrow_mut().sent(&value, key.as_deref());
        traffic.sent.set(traffic.sent.get() + 1);
        send_with_retries(traffic, target, &value, &request, &mut rng).await;
        tokio::time::sleep(Duration::from_millis(rng.within(1..15))).await;
    }
}

pub fn key(writer: u64, number: u64) -> String {
    format!("key-{writer}-{}", number % KEYS)
}

/// Sends a request, repeats it if necessary, and records its status.
async fn send_with_retries(
    traffic: &Traffic,
    target: &TestedSubject,
    value: &str,
    request: &SetRequest,
    rng: &mut SeededRng,
) {
    let mut indeterminate = false;
    let mut attempts = 0;
    while attempts < ATTEMPTS && !(traffic.stop.get() && attempts > 0) {
        attempts += 1;
        match send_once(traffic, target, value, request).await {
            Some(SendOutcome::Acknowledged) => {
                // A repeat must get the same reply, and must not execute again.
                if rng.percent(10) {
                    send_once(traffic, target, value, request).await;
                }
                traffic.acknowledged.set(traffic.acknowledged.get() + 1);
                return;
            }
            Some(SendOutcome::Indeterminate) => {
                indeterminate = true;
                // Some writers never repeat.
                if rng.percent(40) {
                    break;
                }
            }
            Some(SendOutcome::Rejected) | None => {}
        }
        tokio::time::sleep(Duration::from_millis(rng.within(10..80))).await;
    }
    if indeterminate {
        traffic.indeterminate.set(traffic.indeterminate.get() + 1);
    } else {
        target.ledger.borrow_mut().refused(value);
    }
}

enum SendOutcome {
    Acknowledged,
    Indeterminate,
    Rejected,
}

/// Sends a request once; `None`: no server is known.
async fn send_once(
    traffic: &Traffic,
    target: &TestedSubject,
    value: &str,
    request: &SetRequest,
) -> Option<SendOutcome> {
    let caller = &traffic.caller;
    let server = caller.server_of(&target.subject).await?;
    let asked = caller.now();
    let answer = caller.ask::<_, SetReply>(&server, Op::Set, &target.subject, request).await;
    match answer {
        Ok(reply) => match reply.results.first() {
            Some(SetOutcome::Ok(result)) => {
                let ack = Ack {
                    server: Some(server.clone()),
                    level: request.level.unwrap_or(Level::Memory),
                    id: result.id(),
                    rev: result.rev,
                    asked,
                    at: caller.now(),
                };
                target.ledger.borrow_mut().acknowledged(value, ack);
                *target.server.borrow_mut() = Some((server, asked));
                Some(SendOutcome::Acknowledged)
            }
            _ => Some(SendOutcome::Rejected),
        },
        Err(error) => {
            caller.forget(&target.subject);
            Some(if may_have_executed(&error) { SendOutcome::Indeterminate } else { SendOutcome::Rejected })
        }
    }
}

/// One reader: no reply may be older than an acknowledgement from before the request.
pub async fn read(traffic: &Traffic, servers: &[ServerName], mut rng: SeededRng) {
    let keyed: Vec<&TestedSubject> = traffic.targets.iter().filter(|target| target.keyed).collect();
    while !traffic.stop.get() {
        let target = rng.pick(&keyed);
        // Sometimes it asks a server that may no longer own the subject.
        let server = if rng.percent(5) {
            Some(rng.pick(servers).clone())
        } else {
            traffic.caller.server_of(&target.subject).await
        };
        if let Some(server) = server {
            let key = key(rng.within(0..WRITERS), rng.within(0..KEYS));
            read_one(traffic, target, &server, &key).await;
        }
        tokio::time::sleep(Duration::from_millis(rng.within(1..20))).await;
    }
}

/// The number of writers per subject.
pub const WRITERS: u64 = 2;

/// Reads a key from this server and checks the reply.
pub async fn read_one(traffic: &Traffic, target: &TestedSubject, server: &ServerName, key: &str) {
    let must_show = target.ledger.borrow().must_show(key);
    let caller = &traffic.caller;
    let reply: Result<GetReply, _> =
        caller.ask(server, Op::Get, &target.subject, &GetRequest::key(key)).await;
    let Ok(reply) = reply else { return caller.forget(&target.subject) };
    traffic.read.set(traffic.read.get() + 1);
    let shown = reply.messages.first().map(|message| Position { term: message.term, rev: message.rev });
    if shown.as_ref().map(order) < must_show.as_ref().map(order) {
        let subject = &target.subject;
        traffic.problems.borrow_mut().push(format!(
            "stale read: {server} showed {key} of {subject} at {shown:?}, but {must_show:?} was acknowledged before"
        ));
    }
    target.ledger.borrow_mut().read(&reply.messages, caller.now());
}

/// Returns the subjects that a server serves since `started`, from the last acknowledgements.
pub fn served(traffic: &Traffic, server: &ServerName, started: Duration) -> HashSet<Subject> {
    let is_served = |target: &&TestedSubject| {
        target.server.borrow().as_ref().is_some_and(|(name, asked)| name == server && *asked >= started)
    };
    traffic.targets.iter().filter(is_served).map(|target| target.subject.clone()).collect()
}
