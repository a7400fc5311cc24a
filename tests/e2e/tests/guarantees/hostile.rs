//! Attackers send malformed, oversized, nested, replayed and reordered messages to the fleet. Other clients use it at
//! the same time, without any effect.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use dormouse_bus::{Bus, SubscribeOptions};
use dormouse_checker::Rules;
use dormouse_client::{Client, Kv};
use dormouse_e2e::{Fleet, RawNats, SeededRng, TIMEOUT};
use dormouse_harness::{mutate, workspace_root};
use dormouse_protocol::{Event, Op, RoutePattern, decode};
use dormouse_runtime::{Env, Tasks};
use dormouse_testkit::recorder::{RecordedBus, Recorder};
use futures::future::try_join_all;

/// The number of attackers, and the number of bursts of each. The number of an attacker is its seed.
const ATTACKERS: u64 = 3;
const BURSTS: u64 = 60;
const BURST: u64 = 40;

/// The largest message that nats-server carries.
const LARGEST: usize = 1024 * 1024;

/// The largest allowed growth of resident memory: much less than the attackers send.
const MAX_GROWTH: u64 = 96 * 1024 * 1024;

const SERVERS: [&str; 2] = ["persist-1", "persist-2"];
/// A request for each queue of each process that is rejected at once.
const ORDERED_ROUTES: [&str; 5] = [
    "persist.fleet.heartbeat",
    "persist.coord.locate.hostile",
    "persist.admin.servers",
    "persist.server.persist-1.explode.hostile",
    "persist.server.persist-2.explode.hostile",
];
const OTHER_SUBJECTS: [&str; 2] = ["app.orders", "app.notes"];

/// An attacker.
struct Attacker {
    raw: RawNats,
    rng: SeededRng,
    vectors: Arc<Vec<Vec<u8>>>,
    inbox: String,
    /// Recorded requests of other clients, for replay.
    recorded_requests: Vec<(String, Vec<u8>)>,
    sent_bytes: u64,
}

/// Returns the bytes of every frozen vector.
fn vectors() -> anyhow::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(workspace_root().join("crates/protocol/vectors"))? {
        let file: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(entry?.path())?)?;
        for vector in file {
            let text = vector["hex"].as_str().context("a vector without bytes")?;
            let digits: Vec<u8> =
                text.bytes().map(|digit| (digit as char).to_digit(16).unwrap_or(0) as u8).collect();
            found.push(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect());
        }
    }
    found.sort();
    Ok(found)
}

impl Attacker {
    async fn new(fleet: &Fleet, number: u64, vectors: &Arc<Vec<Vec<u8>>>) -> anyhow::Result<Self> {
        let mut raw = fleet.raw().await?;
        let inbox = format!("_INBOX.attacker{number}");
        raw.subscribe(&format!("{inbox}.>")).await?;
        raw.subscribe("persist.server.>").await?;
        raw.subscribe("persist.fleet.>").await?;
        let (rng, vectors) = (SeededRng::new(number), Arc::clone(vectors));
        Ok(Self { raw, rng, vectors, inbox, recorded_requests: Vec::new(), sent_bytes: 0 })
    }

    async fn attack(&mut self) -> anyhow::Result<()> {
        for burst in 0..BURSTS {
            for _ in 0..BURST {
                let (route, payload) = self.next_message();
                let reply_to = self.reply_address();
                self.sent_bytes += payload.len() as u64;
                self.raw.publish(&route, reply_to.as_deref(), &payload).await?;
            }
            // The rate is limited to what the fleet can process, because messages that nats-server drops prove nothing.
            // Each of these requests is answered after all earlier ones on its route.
            for (number, route) in ORDERED_ROUTES.iter().enumerate() {
                let reply = format!("{}.order.{burst}.{number}", self.inbox);
                self.raw.publish(route, Some(&reply), b"\xc1").await?;
                self.raw.next_on(&reply).await.with_context(|| format!("no more reply on {route}"))?;
            }
            self.record_requests();
        }
        Ok(())
    }

    /// Records some requests of other clients for replay.
    fn record_requests(&mut self) {
        for message in self.raw.take_arrived() {
            let is_operation = OTHER_SUBJECTS.iter().any(|subject| message.subject.ends_with(subject));
            // Reads, and writes with a request id: their replay must change nothing. A release or a join is true at one
            // moment and false at another, and only servers may send them: see `permissions`.
            let harmless = is_operation || message.subject == "persist.fleet.heartbeat";
            if harmless {
                let index = self.rng.within(0..200) as usize;
                let recorded_request = (message.subject, message.payload);
                match self.recorded_requests.get_mut(index) {
                    Some(old) => *old = recorded_request,
                    None => self.recorded_requests.push(recorded_request),
                }
            }
        }
    }

    fn next_message(&mut self) -> (String, Vec<u8>) {
        if self.rng.percent(25) && !self.recorded_requests.is_empty() {
            return self.rng.pick(&self.recorded_requests).clone();
        }
        let payload = self.payload();
        let subject = format!("hostile.{}", self.rng.within(0..12));
        let server = (*self.rng.pick(&SERVERS)).to_owned();
        let op = *self.rng.pick(Op::ALL);
        let route = match self.rng.within(0..14) {
            0..6 => format!("server.{server}.{op}.{subject}"),
            6 => format!("server.{server}.{op}.{}", "deep.".repeat(self.rng.within(1..300) as usize) + "x"),
            7 => format!("server.{server}.{}", self.noise()),
            8 => format!("coord.locate.{subject}"),
            9 => format!(
                "fleet.{}",
                self.rng.pick(&["join", "heartbeat", "leave", "claim.hostile.1", "release.hostile.1"])
            ),
            10 => format!(
                "admin.{}",
                self.rng.pick(&["servers", "subjects", "moves", "drain.persist-9", "move.hostile.1"])
            ),
            11 => format!("coord.order.{server}"),
            12 => format!("fleet.{}", self.noise()),
            // A payload that decodes as an event would be accepted as one: only permissions prevent that. Any other
            // payload must have no effect.
            _ if decode::<Event>(&payload).is_err() => format!("events.{}", self.rng.pick(&OTHER_SUBJECTS)),
            _ => "coord.gone".to_owned(),
        };
        (format!("persist.{route}"), payload)
    }

    fn payload(&mut self) -> Vec<u8> {
        match self.rng.within(0..100) {
            0..80 => {
                let vectors = Arc::clone(&self.vectors);
                let (good, other) = (self.rng.pick(&vectors).clone(), self.rng.pick(&vectors).clone());
                let mut bytes = mutate(&mut self.rng, &good, &other);
                bytes.truncate(LARGEST);
                bytes
            }
            80..88 => {
                let length = self.rng.within(0..300);
                (0..length).map(|_| self.rng.next().to_le_bytes()[0]).collect()
            }
            // Payloads of maximum size and of one kind: nested lists, nested maps, meaningless bytes.
            88..91 => vec![*self.rng.pick(&[0x91, 0x81, 0xc1, 0xdc, 0xff]); LARGEST],
            // A list with the largest possible number of empty sets.
            91..94 => {
                let mut bytes = b"\x81\xa4sets\xdd\x00\x0f\x00\x00".to_vec();
                bytes.resize(LARGEST - 1_024, 0x80);
                bytes
            }
            94..96 => Vec::new(),
            _ => self.rng.pick(&self.vectors).clone(),
        }
    }

    /// Returns one or more tokens without meaning.
    fn noise(&mut self) -> String {
        let length = self.rng.within(1..40);
        let legal: Vec<char> = "abcXYZ019.-_$=/\\\"'{}%ü漢\u{7f}\u{200d}".chars().collect();
        let text: String = (0..length).map(|_| *self.rng.pick(&legal)).collect();
        let tokens: Vec<&str> = text.split('.').filter(|token| !token.is_empty()).collect();
        if tokens.is_empty() { "x".to_owned() } else { tokens.join(".") }
    }

    fn reply_address(&mut self) -> Option<String> {
        match self.rng.within(0..10) {
            0 => None,
            1 => Some(
                (*self.rng.pick(&["persist.fleet.leave", "persist.events.app.orders", "$SYS.x"])).to_owned(),
            ),
            2 => Some(format!("_INBOX.{}", "x".repeat(1_000))),
            number => Some(format!("{}.{number}", self.inbox)),
        }
    }
}

/// Reads, writes and removes keys of its own until `stop` is set. Every call must succeed and show the last state.
async fn use_store(store: &Kv, user: u64, stop: &Cell<bool>, done: &Cell<u64>) -> anyhow::Result<()> {
    let mut rng = SeededRng::new(1_000 + user);
    let mut left: BTreeMap<String, String> = BTreeMap::new();
    for number in 0_u64.. {
        if stop.get() {
            break;
        }
        let key = format!("{user}/{}", rng.within(0..8));
        let value = format!("{user}:{number}");
        match rng.within(0..6) {
            0..3 => {
                store.put(key.clone(), value.clone()).await?;
                left.insert(key.clone(), value);
            }
            3 => {
                let there = store.delete(key.clone()).await?;
                ensure!(there == left.remove(&key).is_some(), "{key}: deleted {there}");
            }
            _ => {}
        }
        let read = store.get(key.clone()).await?;
        let wanted = left.get(&key).map(String::as_bytes);
        ensure!(read.as_deref() == wanted, "{key} is {read:?} instead of {wanted:?}");
        done.set(done.get() + 1);
    }
    for entry in store.entries(format!("{user}/")).all().await? {
        let key = entry.key.context("a key")?;
        let wanted = left.remove(&key).map(Into::into);
        ensure!(entry.value == wanted, "{key} is {:?} instead of {wanted:?}", entry.value);
    }
    ensure!(left.is_empty(), "missing: {left:?}");
    Ok(())
}

/// Under malformed, oversized and replayed requests, other clients are served correctly and memory stays bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_traffic_keeps_memory_bounded() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .in_memory()
        // No lease may expire here, and the machine is busy.
        .coordinator_args(["--lease-ttl", "20s"])
        .run(async |fleet| {
            // Faked servers expire, and bad reply addresses cause warnings. Errors are not allowed.
            fleet.expect_warning(" WARN ");
            let (env, tasks) = (Env::system(), Tasks::new());
            let recorder = Recorder::new(env.clone(), Rules::default());
            let bus: Arc<dyn Bus> = Arc::new(fleet.nats_options()?.connect(env.clone(), &tasks).await?);
            let all = RoutePattern::new("persist.events.app.>");
            let events = bus.subscribe(all, SubscribeOptions::default()).await?;
            tasks.spawn("events", recorder.clone().listen(events));
            let mut stores = Vec::new();
            for user in 0..4_u32 {
                let recorded: Arc<dyn Bus> =
                    Arc::new(RecordedBus::new(Arc::clone(&bus), user, recorder.clone()));
                let client = Client::builder().deadline(TIMEOUT).over(recorded).await?;
                let store = client.kv(OTHER_SUBJECTS[user as usize % 2])?;
                store.put("warm", format!("warm {user}")).await?;
                stores.push((u64::from(user), store));
            }
            let processes = ["coordinator", SERVERS[0], SERVERS[1]];
            let mut before = BTreeMap::new();
            for name in processes {
                before.insert(name, fleet.process(name)?.resident_bytes()?);
            }

            let (stop, done) = (Cell::new(false), Cell::new(0));
            let vectors = Arc::new(vectors()?);
            let mut attackers = Vec::new();
            for number in 0..ATTACKERS {
                attackers.push(Attacker::new(fleet, number, &vectors).await?);
            }
            let using =
                try_join_all(stores.iter().map(|(user, store)| use_store(store, *user, &stop, &done)));
            let attacking = async {
                let attacked = try_join_all(attackers.iter_mut().map(Attacker::attack)).await;
                stop.set(true);
                attacked
            };
            futures::try_join!(using, attacking)?;
            let sent: u64 = attackers.iter().map(|attacker| attacker.sent_bytes).sum();
            ensure!(sent > 3 * MAX_GROWTH, "only {sent} bytes were sent");
            ensure!(done.get() > 100, "only {} calls of other clients", done.get());
            let replayed = attackers.iter().map(|attacker| attacker.recorded_requests.len()).min();
            ensure!(replayed > Some(50), "too few requests were replayed: {replayed:?}");

            for name in processes {
                let now = fleet.process(name)?.resident_bytes()?;
                let grown = now.saturating_sub(before[name]);
                println!("{name}: {} MiB more after {} MiB of attacks", grown >> 20, sent >> 20);
                ensure!(grown < MAX_GROWTH, "{name} grew by {grown} bytes");
                ensure!(fleet.ended(name)?.is_none(), "{name} has ended");
                let log = fleet.log(name)?;
                let errors: Vec<&str> = dormouse_harness::log_problems(&log)
                    .into_iter()
                    .filter(|line| !line.contains(" WARN "))
                    .collect();
                ensure!(errors.is_empty(), "{name}: {errors:#?}");
            }
            let verdict = recorder.judge();
            ensure!(verdict.is_clean(), "{verdict}");
            println!("{} calls of other clients: {:?}", done.get(), verdict.coverage.counts);
            bus.close().await;
            Ok(())
        })
        .await
}
