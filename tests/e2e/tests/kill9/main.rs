//! Real processes are killed again and again, at random instants and between two steps, lose their disks, stand still
//! past their lease and wake: what was acknowledged is there, or its loss is within the row of its level.
//!
//! Every round has a number from which it follows what is sent and what happens, as far as a few processes on a real
//! machine follow from a number: `DORMOUSE_KILL_SEED` plays one again, `DORMOUSE_KILL_ROUNDS` says how many there are, and
//! `DORMOUSE_KILL_KEEP` names a folder that a fleet is copied to where something was wrong.

mod calls;
mod chaos;
mod lanes;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use dormouse_e2e::ledger::order;
use dormouse_e2e::{Dice, Fleet, PATIENCE};
use dormouse_protocol::{Level, Message, Position, ServerName};

use calls::Caller;
use chaos::Chaos;
use lanes::{LANES, Target, Traffic, read, write};

/// Rounds of one run.
const ROUNDS: u64 = 50;

/// Rounds that one fleet goes through: its logs and its bucket grow.
const ROUNDS_OF_A_FLEET: u64 = 50;

/// What must have happened in so many rounds, or they prove less than they say.
const FAULTS: [&str; 6] = [
    "fail point",
    "killed at a random instant",
    "killed and its disk wiped",
    "stopped past its lease",
    "woken after it was overtaken",
    "went on with a fresh log",
];

/// How many read at the same time.
const READERS: usize = 6;

/// How long servers are under fire in a round.
const FIRE: Duration = Duration::from_millis(1_600);

/// Below `bucket`, what was acknowledged is in the bucket after that, if its server lives: what the fleet is told, and as
/// much again as a busy machine may need.
const UNSHIPPED: Duration = Duration::from_millis(500 + 1_000);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

#[tokio::test]
async fn what_was_acknowledged_is_there_whoever_dies_and_whenever() -> anyhow::Result<()> {
    let seed = number("DORMOUSE_KILL_SEED");
    let rounds = number("DORMOUSE_KILL_ROUNDS").unwrap_or(if seed.is_some() { 1 } else { ROUNDS });
    let first = seed.unwrap_or_else(|| dormouse_runtime::Env::system().random_u64() % 1_000_000_000);
    let mut done = 0;
    while done < rounds {
        let some = (rounds - done).min(ROUNDS_OF_A_FLEET);
        let fleet = Fleet::builder()
            .servers(3)
            .in_memory()
            .coordinator_args(["--lease-ttl", "500ms"])
            .server_args(["--ship-interval", "100ms", "--max-unshipped-age", "500ms", "--max-open", "12"]);
        fleet
            .run(async |fleet| {
                // Whatever they complain about: what matters is looked for.
                fleet.expect_warning("");
                let played = play(fleet, first + done..first + done + some).await;
                if let Some(folder) = std::env::var_os("DORMOUSE_KILL_KEEP") {
                    copy(fleet.folder(), Path::new(&folder))?;
                }
                played
            })
            .await?;
        done += some;
    }
    Ok(())
}

/// Plays these rounds on one fleet.
async fn play(fleet: &mut Fleet, seeds: std::ops::Range<u64>) -> anyhow::Result<()> {
    let servers: Vec<ServerName> =
        (1..=3).map(|number| format!("persist-{number}").parse()).collect::<Result<_, _>>()?;
    let caller = Rc::new(Caller::new(fleet).await?);
    let mut chaos = Chaos::new(fleet, &servers, caller.now());
    let mut before = None;
    let rounds = seeds.end - seeds.start;
    for seed in seeds {
        let began = caller.now();
        let traffic = round(fleet, &mut chaos, &caller, &servers, seed, before.take())
            .await
            .with_context(|| format!("round {seed}: DORMOUSE_KILL_SEED={seed} plays it again"))?;
        println!(
            "round {seed}: {} sent, {} acknowledged, {} in doubt, {} reads, {} ms",
            traffic.sent.get(),
            traffic.acknowledged.get(),
            traffic.in_doubt.get(),
            traffic.read.get(),
            (caller.now() - began).as_millis()
        );
        before = Some(traffic);
    }
    println!("what happened: {:#?}", chaos.counts);
    if rounds >= ROUNDS {
        for what in FAULTS {
            anyhow::ensure!(chaos.counts.keys().any(|kind| kind.starts_with(what)), "nobody was {what}");
        }
    }
    Ok(())
}

/// One round; `before` is what the round before has written.
async fn round(
    fleet: &mut Fleet,
    chaos: &mut Chaos,
    caller: &Rc<Caller>,
    servers: &[ServerName],
    seed: u64,
    before: Option<Traffic>,
) -> anyhow::Result<Traffic> {
    let mut dice = Dice::new(seed);
    let traffic = begin(caller, seed).await.context("the subjects cannot be made")?;
    let writers = traffic.targets.iter().flat_map(|target| (0..LANES).map(move |lane| (target, lane)));
    let writers = writers.map(|(target, lane)| write(&traffic, target, lane, Dice::new(dice.next())));
    let writers = futures::future::join_all(writers.collect::<Vec<_>>());
    let readers = (0..READERS).map(|_| read(&traffic, servers, Dice::new(dice.next())));
    let readers = futures::future::join_all(readers.collect::<Vec<_>>());
    let fire = async {
        let raged = chaos.rage(fleet, &traffic, &mut dice, FIRE).await;
        traffic.stop.set(true);
        raged
    };
    let (_, _, raged) = futures::join!(writers, readers, fire);
    raged?;
    let mut phases = vec![caller.now()];
    chaos.calm(fleet, &traffic, &mut dice).await?;
    let mut all: Vec<&Target> = traffic.targets.iter().collect();
    all.extend(before.iter().flat_map(|before| &before.targets));

    phases.push(caller.now());
    let first = check(fleet, chaos, caller, &all).await?;
    phases.push(caller.now());
    for target in &all {
        let position = caller.flush(&target.subject).await?;
        target.ledger.borrow_mut().durable(position);
    }
    phases.push(caller.now());
    chaos.kill_all(fleet, &traffic, &mut dice).await?;
    chaos.are_armed(fleet)?;
    phases.push(caller.now());
    let second = check(fleet, chaos, caller, &all).await.context("after everybody was killed")?;
    for ((target, first), second) in all.iter().zip(&first).zip(&second) {
        still_there(target, first, second)?;
    }
    phases.push(caller.now());
    chaos.look_through_all(fleet)?;
    let phases = phases.windows(2).map(|two| (two[1] - two[0]).as_millis());
    println!("calm, check, flush, kill, check in ms: {:?}", phases.collect::<Vec<_>>());
    let mut wrong = traffic.wrong.borrow().clone();
    wrong.append(&mut chaos.wrong);
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(traffic)
}

/// Subjects that nobody has used before.
async fn begin(caller: &Rc<Caller>, seed: u64) -> anyhow::Result<Traffic> {
    let names = Level::ALL.into_iter().flat_map(|level| {
        ["kv", "log", "kv2"].map(|kind| (format!("r{seed}.{kind}.{}", level.as_str()), level))
    });
    let made = names.map(|(name, level)| async move { Target::new(caller, &name, level, UNSHIPPED).await });
    Ok(Traffic {
        caller: Rc::clone(caller),
        targets: futures::future::try_join_all(made).await?,
        stop: Cell::new(false),
        wrong: RefCell::default(),
        sent: Cell::new(0),
        acknowledged: Cell::new(0),
        in_doubt: Cell::new(0),
        read: Cell::new(0),
    })
}

/// Reads everything and says what should not be so.
async fn check(
    fleet: &Fleet,
    chaos: &mut Chaos,
    caller: &Caller,
    targets: &[&Target],
) -> anyhow::Result<Vec<Vec<Message>>> {
    let deadline = caller.now() + PATIENCE;
    loop {
        let reads = targets.iter().map(|target| caller.read_all(&target.subject));
        let states = futures::future::try_join_all(reads).await?;
        let unsettled = chaos.unsettled(fleet)?;
        let lost = lost(fleet)?;
        let mut wrong = Vec::new();
        for (target, state) in targets.iter().zip(&states) {
            let mut ledger = target.ledger.borrow_mut();
            wrong.extend(ledger.violations(state, &lost, &chaos.blows));
            ledger.read(state, caller.now());
        }
        if wrong.is_empty() {
            return Ok(states);
        }
        if unsettled.is_empty() || caller.now() > deadline {
            bail!("{}\nunsettled: {unsettled:?}\nblows: {:#?}", wrong.join("\n"), chaos.blows);
        }
        // What a returned server has too much may still be on its way to lost/.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What was flushed, and so is in the bucket, is there as it was.
fn still_there(target: &Target, before: &[Message], after: &[Message]) -> anyhow::Result<()> {
    for message in before {
        let found = after.iter().any(|found| match &message.key {
            None => found.id() == message.id() && found.value == message.value,
            Some(_) => found.key == message.key && order(&position(found)) >= order(&position(message)),
        });
        let (subject, id) = (&target.subject, message.id());
        anyhow::ensure!(found, "{subject}: {id} was flushed, and is gone after everybody was killed");
    }
    Ok(())
}

const fn position(message: &Message) -> Position {
    Position { term: message.term, rev: message.rev }
}

/// The values that are kept in `lost/`, on all disks and in the bucket.
fn lost(fleet: &Fleet) -> anyhow::Result<BTreeSet<String>> {
    let mut values = BTreeSet::new();
    let mut folders: Vec<_> =
        (1..=3).map(|number| fleet.data_dir(&format!("persist-{number}")).join("lost")).collect();
    folders.push(fleet.bucket_dir().join("lost"));
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "delta") {
                values.extend(values_in(&std::fs::read(&path)?));
            }
        }
    }
    Ok(values)
}

/// Values stand in a file as they were sent, from `@` to `;`.
fn values_in(bytes: &[u8]) -> Vec<String> {
    let begins = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'@').map(|(at, _)| at);
    let value = |at: usize| {
        let length = bytes[at..].iter().take(80).position(|byte| *byte == b';')?;
        String::from_utf8(bytes[at..=at + length].to_vec()).ok()
    };
    begins.filter_map(value).collect()
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
