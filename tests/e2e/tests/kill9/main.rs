//! Kills real processes repeatedly, at random moments and at fail points, wipes their disks, and pauses them for longer
//! than their lease. Every acknowledged write must exist afterwards, or its loss must be allowed for its level.
//!
//! The number of a round decides the sent values and the faults, as far as real processes on a real machine allow.
//! `DORMOUSE_KILL_SEED` repeats one round, `DORMOUSE_KILL_ROUNDS` sets the number of rounds, and `DORMOUSE_KILL_KEEP`
//! names a folder to which the fleet is copied after a failure.

mod calls;
mod chaos;
mod traffic;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use dormouse_e2e::ledger::order;
use dormouse_e2e::{Fleet, SeededRng, TIMEOUT, copy_folder};
use dormouse_protocol::{Level, Message, Position, ServerName};

use calls::Caller;
use chaos::Chaos;
use traffic::{TestedSubject, Traffic, WRITERS, read, write};

/// The rounds of one run.
const ROUNDS: u64 = 50;

/// The rounds of one fleet, so that its logs and its bucket grow.
const ROUNDS_OF_A_FLEET: u64 = 50;

/// The faults that must have happened in that many rounds, otherwise the rounds prove too little.
const FAULTS: [&str; 6] = [
    "fail point",
    "killed at a random instant",
    "killed and its disk wiped",
    "stopped past its lease",
    "resumed after a takeover",
    "restarted with a new log",
];

/// The number of parallel readers.
const READERS: usize = 6;

/// The time of fault injection in a round.
const FAULT_TIME: Duration = Duration::from_millis(1_600);

/// Below `bucket`, an acknowledged write is in the bucket after this time if its server runs: the fleet's setting, plus
/// the delay of a busy machine.
const UNSHIPPED: Duration = Duration::from_millis(500 + 1_000);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// Acknowledged writes survive random kills, fail points, wiped disks and pauses, within the limits of their level.
#[tokio::test]
async fn acked_writes_survive_kills_wiped_disks_and_pauses() -> anyhow::Result<()> {
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
                // All warnings are allowed: the test checks the relevant ones itself.
                fleet.expect_warning("");
                let result = run_rounds(fleet, first + done..first + done + some).await;
                if let Some(folder) = std::env::var_os("DORMOUSE_KILL_KEEP") {
                    copy_folder(fleet.folder(), Path::new(&folder))?;
                }
                result
            })
            .await?;
        done += some;
    }
    Ok(())
}

/// Runs these rounds on one fleet.
async fn run_rounds(fleet: &mut Fleet, seeds: std::ops::Range<u64>) -> anyhow::Result<()> {
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
            .with_context(|| format!("round {seed}: DORMOUSE_KILL_SEED={seed} repeats it"))?;
        println!(
            "round {seed}: {} sent, {} acknowledged, {} indeterminate, {} reads, {} ms",
            traffic.sent.get(),
            traffic.acknowledged.get(),
            traffic.indeterminate.get(),
            traffic.read.get(),
            (caller.now() - began).as_millis()
        );
        before = Some(traffic);
    }
    println!("events: {:#?}", chaos.counts);
    if rounds >= ROUNDS {
        for what in FAULTS {
            anyhow::ensure!(
                chaos.counts.keys().any(|kind| kind.starts_with(what)),
                "event did not occur: {what}"
            );
        }
    }
    Ok(())
}

/// Runs one round; `before` holds the writes of the previous round.
async fn round(
    fleet: &mut Fleet,
    chaos: &mut Chaos,
    caller: &Rc<Caller>,
    servers: &[ServerName],
    seed: u64,
    before: Option<Traffic>,
) -> anyhow::Result<Traffic> {
    let mut rng = SeededRng::new(seed);
    let traffic = create_subjects(caller, seed).await.context("cannot create the subjects")?;
    let writers = traffic.targets.iter().flat_map(|target| (0..WRITERS).map(move |writer| (target, writer)));
    let writers = writers.map(|(target, writer)| write(&traffic, target, writer, SeededRng::new(rng.next())));
    let writers = futures::future::join_all(writers.collect::<Vec<_>>());
    let readers = (0..READERS).map(|_| read(&traffic, servers, SeededRng::new(rng.next())));
    let readers = futures::future::join_all(readers.collect::<Vec<_>>());
    let faults = async {
        let injected = chaos.inject_faults(fleet, &traffic, &mut rng, FAULT_TIME).await;
        traffic.stop.set(true);
        injected
    };
    let (_, _, injected) = futures::join!(writers, readers, faults);
    injected?;
    let mut phases = vec![caller.now()];
    chaos.restart_all(fleet, &traffic, &mut rng).await?;
    let mut all: Vec<&TestedSubject> = traffic.targets.iter().collect();
    all.extend(before.iter().flat_map(|before| &before.targets));

    phases.push(caller.now());
    let first = check(fleet, chaos, caller, &all).await?;
    phases.push(caller.now());
    for target in &all {
        let position = caller.flush(&target.subject).await?;
        target.ledger.borrow_mut().durable(position);
    }
    phases.push(caller.now());
    chaos.kill_all(fleet, &traffic, &mut rng).await?;
    chaos.check_fail_points_armed(fleet)?;
    phases.push(caller.now());
    let second = check(fleet, chaos, caller, &all).await.context("after all servers were killed")?;
    for ((target, first), second) in all.iter().zip(&first).zip(&second) {
        check_flushed_kept(target, first, second)?;
    }
    phases.push(caller.now());
    chaos.scan_all_logs(fleet)?;
    let phases = phases.windows(2).map(|two| (two[1] - two[0]).as_millis());
    println!("restart, check, flush, kill, check in ms: {:?}", phases.collect::<Vec<_>>());
    let mut problems = traffic.problems.borrow().clone();
    problems.append(&mut chaos.problems);
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(traffic)
}

/// Creates new subjects for each round.
async fn create_subjects(caller: &Rc<Caller>, seed: u64) -> anyhow::Result<Traffic> {
    let names = Level::ALL.into_iter().flat_map(|level| {
        ["kv", "log", "kv2"].map(|kind| (format!("r{seed}.{kind}.{}", level.as_str()), level))
    });
    let created =
        names.map(|(name, level)| async move { TestedSubject::new(caller, &name, level, UNSHIPPED).await });
    Ok(Traffic {
        caller: Rc::clone(caller),
        targets: futures::future::try_join_all(created).await?,
        stop: Cell::new(false),
        problems: RefCell::default(),
        sent: Cell::new(0),
        acknowledged: Cell::new(0),
        indeterminate: Cell::new(0),
        read: Cell::new(0),
    })
}

/// Reads everything and reports violations.
async fn check(
    fleet: &Fleet,
    chaos: &mut Chaos,
    caller: &Caller,
    targets: &[&TestedSubject],
) -> anyhow::Result<Vec<Vec<Message>>> {
    let deadline = caller.now() + TIMEOUT;
    loop {
        let reads = targets.iter().map(|target| caller.read_all(&target.subject));
        let states = futures::future::try_join_all(reads).await?;
        let unsettled = chaos.unsettled(fleet)?;
        let lost = lost(fleet)?;
        let mut problems = Vec::new();
        for (target, state) in targets.iter().zip(&states) {
            let mut ledger = target.ledger.borrow_mut();
            problems.extend(ledger.violations(state, &lost, &chaos.faults));
            ledger.read(state, caller.now());
        }
        if problems.is_empty() {
            return Ok(states);
        }
        if unsettled.is_empty() || caller.now() > deadline {
            bail!("{}\nunsettled: {unsettled:?}\nfaults: {:#?}", problems.join("\n"), chaos.faults);
        }
        // The stranded writes of a restarted server may still be on their way to lost/.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Checks that flushed messages are unchanged.
fn check_flushed_kept(target: &TestedSubject, before: &[Message], after: &[Message]) -> anyhow::Result<()> {
    for message in before {
        let found = after.iter().any(|found| match &message.key {
            None => found.id() == message.id() && found.value == message.value,
            Some(_) => found.key == message.key && order(&position(found)) >= order(&position(message)),
        });
        let (subject, id) = (&target.subject, message.id());
        anyhow::ensure!(found, "{subject}: {id} was flushed, but is gone after all servers were killed");
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
                let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
                values.extend(values_in(&bytes));
            }
        }
    }
    Ok(values)
}

/// Values are stored as sent, from `@` to `;`.
fn values_in(bytes: &[u8]) -> Vec<String> {
    let begins = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'@').map(|(at, _)| at);
    let value = |at: usize| {
        let length = bytes[at..].iter().take(80).position(|byte| *byte == b';')?;
        String::from_utf8(bytes[at..=at + length].to_vec()).ok()
    };
    begins.filter_map(value).collect()
}
