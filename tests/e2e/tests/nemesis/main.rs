//! Real processes, a cluster of nats-servers and an S3 server, and cables between them all: each of them is killed, stands
//! still, or is cut off, in turn and then several at once, while clients use the fleet in every way. All that was said is
//! taken down, and a checker judges whether every promise was kept.
//!
//! What happens follows from a number, as far as real processes follow from a number: `DORMOUSE_NEMESIS_SEED` plays it
//! again, `DORMOUSE_NEMESIS_ROUNDS` says how many rounds there are, and `DORMOUSE_NEMESIS_KEEP` names a folder that logs and
//! disks are copied to.

mod faults;
mod load;

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use dormouse_bus::{Bus, SubscribeOptions};
use dormouse_checker::{Rules, Verdict};
use dormouse_e2e::{Dice, Fleet, Recorder};
use dormouse_protocol::{Level, ServerName};
use dormouse_runtime::{Env, Tasks};

use faults::{Fault, Nemesis};
use load::{Target, User};

/// Rounds of one run. In the first ones each fault comes alone.
const ROUNDS: u64 = 4;

/// Rounds that one fleet goes through: what was said before is judged again after each.
const ROUNDS_OF_A_FLEET: u64 = 8;

/// How many faults come in turn in one round.
const IN_TURN: usize = 7;

/// How long several come at once in one round.
const MIXED: Duration = Duration::from_secs(6);

/// How many use the fleet, each over a connection of its own.
const USERS: u32 = 3;

/// How many read at the same time over each connection.
const READERS: usize = 3;

/// How many ask any server at the same time over each connection: most of them wait for one that is struck.
const PROBES: usize = 6;

/// How many write to a subject at the same time.
const WRITERS: usize = 2;

/// Below `bucket`, what was acknowledged is in the bucket after that, if its server lives and reaches the bucket: what the
/// fleet is told, and what a busy machine may need.
const UNSHIPPED: Duration = Duration::from_millis(500 + 2_500);

/// What must have been looked at, or a clean verdict says little.
const LOOKED_AT: [&str; 6] =
    ["gets", "pages of messages", "pages of keys", "pages of changes", "infos", "refusals"];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_promise_is_kept_whoever_dies_stands_still_or_is_cut_off() -> anyhow::Result<()> {
    let seed = number("DORMOUSE_NEMESIS_SEED");
    let rounds = number("DORMOUSE_NEMESIS_ROUNDS").unwrap_or(ROUNDS);
    let first = seed.unwrap_or_else(|| Env::system().random_u64() % 1_000_000_000);
    println!("DORMOUSE_NEMESIS_SEED={first} plays this again");
    let mut done = 0;
    while done < rounds {
        let some = (rounds - done).min(ROUNDS_OF_A_FLEET);
        Fleet::builder()
            .servers(3)
            .in_memory()
            .wired()
            .coordinator_args(["--lease-ttl", "500ms"])
            .server_args(["--ship-interval", "100ms", "--max-unshipped-age", "500ms", "--max-open", "24"])
            .run(async |fleet| {
                // Whatever they complain about: what matters is judged.
                fleet.expect_warning("");
                let played = play(fleet, first + done, some).await;
                if let Some(folder) = std::env::var_os("DORMOUSE_NEMESIS_KEEP") {
                    copy(fleet.folder(), Path::new(&folder))?;
                }
                played.with_context(|| format!("DORMOUSE_NEMESIS_SEED={} plays it again", first + done))
            })
            .await?;
        done += some;
    }
    Ok(())
}

/// Plays so many rounds on one fleet.
async fn play(fleet: &mut Fleet, seed: u64, rounds: u64) -> anyhow::Result<()> {
    let servers: Vec<ServerName> =
        (1..=3).map(|number| format!("persist-{number}").parse()).collect::<Result<_, _>>()?;
    let env = Env::system();
    let rules = Rules { unshipped: UNSHIPPED, ..Rules::default() };
    let recorder = Recorder::new(env.clone(), &servers, rules);
    let tasks = Tasks::new();
    let mut users = Vec::new();
    for number in 0..USERS {
        let bus = fleet.nats_options()?.connect(env.clone(), &tasks).await?;
        users.push(User::new(std::sync::Arc::new(bus), number, &recorder, &env).await?);
    }
    // Whoever listens is not cut off with the others: what nobody was told of cannot be judged.
    fleet.wiring().add("listener").await?;
    let listener = fleet.nats_options_of("listener")?.connect(env.clone(), &tasks).await?;
    let events = listener
        .subscribe(dormouse_protocol::RoutePattern::new("persist.events.>"), SubscribeOptions::default());
    tasks.spawn("events", recorder.clone().listen(events.await?));

    let mut nemesis = Nemesis::new(&servers, &recorder);
    let mut dice = Dice::new(seed);
    let mut faults = shuffled(&mut dice);
    let mut targets: Vec<Target> = Vec::new();
    for round in 0..rounds {
        let in_turn: Vec<Fault> = faults.drain(..faults.len().min(IN_TURN)).collect();
        let fresh = begin(&users, round).await.context("the subjects cannot be made")?;
        fire(fleet, &mut nemesis, &users, &fresh, &mut dice, &in_turn).await?;
        targets.extend(fresh);
        let began = recorder.now();
        nemesis.heal(fleet).await?;
        let healed = recorder.now();
        let looks = targets.iter().zip(users.iter().cycle()).map(|(target, user)| user.look_over(target));
        for (target, looked) in targets.iter().zip(futures::future::join_all(looks).await) {
            looked.with_context(|| format!("{} is not well after everything was healed", target.subject))?;
        }
        let looked = recorder.now();
        let verdict = recorder.judge();
        println!(
            "round {round}: {:?}; healed after {} ms, looked over in {} ms, judged in {} ms",
            verdict.coverage.counts,
            (healed - began).as_millis(),
            (looked - healed).as_millis(),
            (recorder.now() - looked).as_millis()
        );
        judge(&verdict)?;
    }
    println!("what happened: {:?}", nemesis.counts);
    if rounds >= ROUNDS {
        let verdict = recorder.judge();
        for what in LOOKED_AT {
            anyhow::ensure!(verdict.coverage.counts.contains_key(what), "nobody looked at {what}");
        }
        for fault in Fault::ALL {
            let name = format!("{fault:?}");
            anyhow::ensure!(nemesis.counts.contains_key(&name), "there was no {name}");
        }
    }
    listener.close().await;
    Ok(())
}

fn judge(verdict: &Verdict) -> anyhow::Result<()> {
    anyhow::ensure!(verdict.is_clean(), "{verdict}");
    Ok(())
}

/// All faults in an order that follows from the dice, and the last one last.
fn shuffled(dice: &mut Dice) -> Vec<Fault> {
    let mut faults = Fault::ALL.to_vec();
    for at in (1..faults.len() - 1).rev() {
        let other = usize::try_from(dice.within(0..at as u64 + 1)).unwrap_or(0);
        faults.swap(at, other);
    }
    faults
}

/// Subjects that nobody has used before: of every level, with keys and without.
async fn begin(users: &[User], round: u64) -> anyhow::Result<Vec<Target>> {
    let mut targets = Vec::new();
    for level in Level::ALL {
        for (kind, keyed) in [("kv", true), ("log", false)] {
            let subject = format!("r{round}.{kind}.{level}").parse()?;
            targets.push(Target { subject, level, keyed });
        }
    }
    let configured = targets.iter().zip(users.iter().cycle()).map(|(target, user)| user.configure(target));
    futures::future::try_join_all(configured).await?;
    Ok(targets)
}

/// Has everybody use the subjects while things happen.
async fn fire(
    fleet: &mut Fleet,
    nemesis: &mut Nemesis,
    users: &[User],
    targets: &[Target],
    dice: &mut Dice,
    in_turn: &[Fault],
) -> anyhow::Result<()> {
    let stop = Cell::new(false);
    let servers = nemesis.servers.clone();
    let mut dices = dice.clone();
    let writers = targets.iter().flat_map(|target| (0..WRITERS).map(move |_| target));
    let writers = writers.zip(users.iter().cycle());
    let writers: Vec<_> =
        writers.map(|(target, user)| user.write(target, Dice::new(dices.next()), &stop)).collect();
    let readers = users.iter().flat_map(|user| (0..READERS).map(move |_| user));
    let readers: Vec<_> = readers.map(|user| user.read(targets, Dice::new(dices.next()), &stop)).collect();
    let probes = users.iter().flat_map(|user| (0..PROBES).map(move |_| user));
    let probes: Vec<_> =
        probes.map(|user| user.probe(targets, &servers, Dice::new(dices.next()), &stop)).collect();
    let raging = async {
        let raged = if in_turn.is_empty() {
            nemesis.mixed(fleet, dice, MIXED).await
        } else {
            nemesis.in_turn(fleet, dice, in_turn).await
        };
        stop.set(true);
        raged
    };
    let (raged, ..) = futures::try_join!(
        raging,
        futures::future::try_join_all(writers),
        futures::future::try_join_all(readers),
        futures::future::try_join_all(probes)
    )?;
    Ok(raged)
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
