//! Somebody throws at the fleet whatever can be thrown: malformed, oversized, nested, replayed and out of order. Others go on
//! using it, and nobody notices.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use dormouse_bus::{Bus, SubscribeOptions};
use dormouse_checker::Rules;
use dormouse_client::{Client, Kv};
use dormouse_e2e::{Dice, Fleet, PATIENCE, RawNats, RecordedBus, Recorder};
use dormouse_harness::{mutate, workspace_root};
use dormouse_protocol::{Event, Op, RoutePattern, ServerName, decode};
use dormouse_runtime::{Env, Tasks};
use futures::future::try_join_all;

/// How many throw things, and how often each. What they throw follows from their number.
const ATTACKERS: u64 = 3;
const BURSTS: u64 = 60;
const BURST: u64 = 40;

/// The largest message that nats-server carries.
const LARGEST: usize = 1024 * 1024;

/// Resident memory above what a process had before: much less than what was thrown at it.
const MOST_GROWTH: u64 = 96 * 1024 * 1024;

const SERVERS: [&str; 2] = ["persist-1", "persist-2"];
/// Something on each queue of each process, which is refused at once.
const IN_ORDER: [&str; 5] = [
    "persist.fleet.heartbeat",
    "persist.coord.locate.hostile",
    "persist.admin.servers",
    "persist.server.persist-1.explode.hostile",
    "persist.server.persist-2.explode.hostile",
];
const THEIRS: [&str; 2] = ["app.orders", "app.notes"];

/// One who means harm.
struct Attacker {
    raw: RawNats,
    dice: Dice,
    vectors: Arc<Vec<Vec<u8>>>,
    inbox: String,
    /// What others have asked, to be sent again.
    overheard: Vec<(String, Vec<u8>)>,
    thrown_bytes: u64,
}

/// The bytes of every frozen vector.
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
        let (dice, vectors) = (Dice::new(number), Arc::clone(vectors));
        Ok(Self { raw, dice, vectors, inbox, overheard: Vec::new(), thrown_bytes: 0 })
    }

    async fn attack(&mut self) -> anyhow::Result<()> {
        for burst in 0..BURSTS {
            for _ in 0..BURST {
                let (route, payload) = self.missile();
                let reply_to = self.reply_address();
                self.thrown_bytes += payload.len() as u64;
                self.raw.publish(&route, reply_to.as_deref(), &payload).await?;
            }
            // Not faster than the fleet can take it: what nats-server would cut off proves nothing about us. Each of these is
            // answered after all that came before on its route.
            for (number, route) in IN_ORDER.iter().enumerate() {
                let reply = format!("{}.order.{burst}.{number}", self.inbox);
                self.raw.publish(route, Some(&reply), b"\xc1").await?;
                self.raw
                    .next_on(&reply)
                    .await
                    .with_context(|| format!("{route} is not answered any more"))?;
            }
            self.overhear();
        }
        Ok(())
    }

    /// Keeps what others asked, and a part of it only.
    fn overhear(&mut self) {
        for message in self.raw.take_arrived() {
            let theirs = THEIRS.iter().any(|subject| message.subject.ends_with(subject));
            // Reading and writing with an id: sent again, it must change nothing. A release or a join that is true at one
            // moment is not at another, and nobody but servers may say it: see `permissions`.
            let harmless = theirs || message.subject == "persist.fleet.heartbeat";
            if harmless {
                let place = self.dice.within(0..200) as usize;
                let heard = (message.subject, message.payload);
                match self.overheard.get_mut(place) {
                    Some(old) => *old = heard,
                    None => self.overheard.push(heard),
                }
            }
        }
    }

    fn missile(&mut self) -> (String, Vec<u8>) {
        if self.dice.percent(25) && !self.overheard.is_empty() {
            return self.dice.pick(&self.overheard).clone();
        }
        let payload = self.payload();
        let subject = format!("hostile.{}", self.dice.within(0..12));
        let server = (*self.dice.pick(&SERVERS)).to_owned();
        let op = *self.dice.pick(Op::ALL);
        let route = match self.dice.within(0..14) {
            0..6 => format!("server.{server}.{op}.{subject}"),
            6 => format!("server.{server}.{op}.{}", "deep.".repeat(self.dice.within(1..300) as usize) + "x"),
            7 => format!("server.{server}.{}", self.noise()),
            8 => format!("coord.locate.{subject}"),
            9 => format!(
                "fleet.{}",
                self.dice.pick(&["join", "heartbeat", "leave", "claim.hostile.1", "release.hostile.1"])
            ),
            10 => format!(
                "admin.{}",
                self.dice.pick(&["servers", "subjects", "moves", "drain.persist-9", "move.hostile.1"])
            ),
            11 => format!("coord.order.{server}"),
            12 => format!("fleet.{}", self.noise()),
            // What could be read as an event would be one: only permissions keep it out. What cannot is to harm nobody.
            _ if decode::<Event>(&payload).is_err() => format!("events.{}", self.dice.pick(&THEIRS)),
            _ => "coord.gone".to_owned(),
        };
        (format!("persist.{route}"), payload)
    }

    fn payload(&mut self) -> Vec<u8> {
        match self.dice.within(0..100) {
            0..80 => {
                let vectors = Arc::clone(&self.vectors);
                let (good, other) = (self.dice.pick(&vectors).clone(), self.dice.pick(&vectors).clone());
                let mut bytes = mutate(&mut self.dice, &good, &other);
                bytes.truncate(LARGEST);
                bytes
            }
            80..88 => {
                let length = self.dice.within(0..300);
                (0..length).map(|_| self.dice.next().to_le_bytes()[0]).collect()
            }
            // As large as it gets, of one kind all through: lists in lists, maps in maps, bytes of no meaning.
            88..91 => vec![*self.dice.pick(&[0x91, 0x81, 0xc1, 0xdc, 0xff]); LARGEST],
            // A list of as many empty sets as there is room for.
            91..94 => {
                let mut bytes = b"\x81\xa4sets\xdd\x00\x0f\x00\x00".to_vec();
                bytes.resize(LARGEST - 1_024, 0x80);
                bytes
            }
            94..96 => Vec::new(),
            _ => self.dice.pick(&self.vectors).clone(),
        }
    }

    /// A token or several that name nothing.
    fn noise(&mut self) -> String {
        let length = self.dice.within(1..40);
        let legal: Vec<char> = "abcXYZ019.-_$=/\\\"'{}%ü漢\u{7f}\u{200d}".chars().collect();
        let text: String = (0..length).map(|_| *self.dice.pick(&legal)).collect();
        let tokens: Vec<&str> = text.split('.').filter(|token| !token.is_empty()).collect();
        if tokens.is_empty() { "x".to_owned() } else { tokens.join(".") }
    }

    fn reply_address(&mut self) -> Option<String> {
        match self.dice.within(0..10) {
            0 => None,
            1 => Some(
                (*self.dice.pick(&["persist.fleet.leave", "persist.events.app.orders", "$SYS.x"])).to_owned(),
            ),
            2 => Some(format!("_INBOX.{}", "x".repeat(1_000))),
            number => Some(format!("{}.{number}", self.inbox)),
        }
    }
}

/// Reads, writes and removes under keys of its own until told to stop: everything succeeds and is as it was left.
async fn use_it(store: &Kv, user: u64, stop: &Cell<bool>, done: &Cell<u64>) -> anyhow::Result<()> {
    let mut dice = Dice::new(1_000 + user);
    let mut left: BTreeMap<String, String> = BTreeMap::new();
    for number in 0_u64.. {
        if stop.get() {
            break;
        }
        let key = format!("{user}/{}", dice.within(0..8));
        let value = format!("{user}:{number}");
        match dice.within(0..6) {
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
        ensure!(read.as_deref() == wanted, "{key} holds {read:?} instead of {wanted:?}");
        done.set(done.get() + 1);
    }
    for entry in store.entries(format!("{user}/")).all().await? {
        let key = entry.key.context("a key")?;
        let wanted = left.remove(&key).map(Into::into);
        ensure!(entry.value == wanted, "{key} holds {:?} instead of {wanted:?}", entry.value);
    }
    ensure!(left.is_empty(), "gone: {left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_thrown_at_the_fleet_others_are_served_and_its_memory_stays_bounded() -> anyhow::Result<()>
{
    Fleet::builder()
        .servers(2)
        .in_memory()
        // Nobody is to die here, and the machine has much to do.
        .coordinator_args(["--lease-ttl", "20s"])
        .run(async |fleet| {
            // Servers that were made up die, and bad addresses are complained about: no error is.
            fleet.expect_warning(" WARN ");
            let names: Vec<ServerName> = SERVERS.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
            let (env, tasks) = (Env::system(), Tasks::new());
            let recorder = Recorder::new(env.clone(), &names, Rules::default());
            let bus: Arc<dyn Bus> = Arc::new(fleet.nats_options()?.connect(env.clone(), &tasks).await?);
            let all = RoutePattern::new("persist.events.app.>");
            let events = bus.subscribe(all, SubscribeOptions::default()).await?;
            tasks.spawn("events", recorder.clone().listen(events));
            let mut stores = Vec::new();
            for user in 0..4_u32 {
                let recorded: Arc<dyn Bus> =
                    Arc::new(RecordedBus::new(Arc::clone(&bus), user, recorder.clone()));
                let client = Client::builder().deadline(PATIENCE).over(recorded).await?;
                let store = client.kv(THEIRS[user as usize % 2])?;
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
            let using = try_join_all(stores.iter().map(|(user, store)| use_it(store, *user, &stop, &done)));
            let attacking = async {
                let attacked = try_join_all(attackers.iter_mut().map(Attacker::attack)).await;
                stop.set(true);
                attacked
            };
            futures::try_join!(using, attacking)?;
            let thrown: u64 = attackers.iter().map(|attacker| attacker.thrown_bytes).sum();
            ensure!(thrown > 3 * MOST_GROWTH, "only {thrown} bytes were thrown");
            ensure!(done.get() > 100, "others did only {}", done.get());
            let replayed = attackers.iter().map(|attacker| attacker.overheard.len()).min();
            ensure!(replayed > Some(50), "nothing was overheard to be sent again: {replayed:?}");

            for name in processes {
                let now = fleet.process(name)?.resident_bytes()?;
                let grown = now.saturating_sub(before[name]);
                println!("{name}: {} MiB more after {} MiB were thrown", grown >> 20, thrown >> 20);
                ensure!(grown < MOST_GROWTH, "{name} grew by {grown} bytes");
                ensure!(fleet.ended(name)?.is_none(), "{name} has ended");
                let log = fleet.log(name)?;
                let errors: Vec<&str> = dormouse_harness::complaints(&log)
                    .into_iter()
                    .filter(|line| !line.contains(" WARN "))
                    .collect();
                ensure!(errors.is_empty(), "{name}: {errors:#?}");
            }
            let verdict = recorder.judge();
            ensure!(verdict.is_clean(), "{verdict}");
            println!("others did {} things: {:?}", done.get(), verdict.coverage.counts);
            bus.close().await;
            Ok(())
        })
        .await
}
