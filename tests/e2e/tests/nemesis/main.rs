//! Runs real processes, a cluster of nats-servers and an S3 server, with proxies between all of them. Each process is
//! killed, paused or cut off, first one at a time and then several together, while clients use every operation. All
//! requests and replies are recorded, and a checker judges the history.
//!
//! A seed decides the faults, as far as real processes allow. `DORMOUSE_NEMESIS_SEED` repeats a run,
//! `DORMOUSE_NEMESIS_ROUNDS` sets the number of rounds, and `DORMOUSE_NEMESIS_KEEP` names a folder to which logs and
//! disks are copied.

mod faults;
mod load;

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use dormouse_bus::{Bus, SubscribeOptions};
use dormouse_checker::{Rules, Verdict};
use dormouse_e2e::{Fleet, SeededRng, copy_folder};
use dormouse_protocol::{Level, ServerName};
use dormouse_runtime::{Env, Tasks};
use dormouse_testkit::recorder::Recorder;

use faults::{Fault, Nemesis};
use load::{UsedSubject, User};

/// The rounds of one run. In the first ones, faults come one at a time.
const ROUNDS: u64 = 4;

/// The rounds of one fleet: the history of earlier rounds is judged again after each.
const ROUNDS_OF_A_FLEET: u64 = 8;

/// The number of single faults in one round.
const IN_TURN: usize = 7;

/// The time of parallel faults in one round.
const MIXED: Duration = Duration::from_secs(6);

/// The number of users of the fleet, each with a connection of its own.
const USERS: u32 = 3;

/// The number of parallel readers per connection.
const READERS: usize = 3;

/// The number of parallel direct readers per connection: most of them wait for a server with a fault.
const PROBES: usize = 6;

/// The number of parallel writers per subject.
const WRITERS: usize = 2;

/// Below `bucket`, an acknowledged write is in the bucket after this time if its server runs and reaches the bucket:
/// the fleet's setting, plus the delay of a busy machine.
const UNSHIPPED: Duration = Duration::from_millis(500 + 2_500);

/// The kinds of items that must have been judged, otherwise a clean verdict means little.
const REQUIRED_COVERAGE: [&str; 6] =
    ["gets", "pages of messages", "pages of keys", "pages of changes", "infos", "refusals"];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// The checker finds no violation while processes are killed, paused and cut off, one at a time and together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_keeps_guarantees_under_kills_pauses_and_cuts() -> anyhow::Result<()> {
    let seed = number("DORMOUSE_NEMESIS_SEED");
    let rounds = number("DORMOUSE_NEMESIS_ROUNDS").unwrap_or(ROUNDS);
    let first = seed.unwrap_or_else(|| Env::system().random_u64() % 1_000_000_000);
    println!("DORMOUSE_NEMESIS_SEED={first} repeats this run");
    let mut done = 0;
    while done < rounds {
        let some = (rounds - done).min(ROUNDS_OF_A_FLEET);
        Fleet::builder()
            .servers(3)
            .in_memory()
            .proxied()
            .coordinator_args(["--lease-ttl", "500ms"])
            .server_args(["--ship-interval", "100ms", "--max-unshipped-age", "500ms", "--max-open", "24"])
            .run(async |fleet| {
                // All warnings are allowed: the checker judges the history.
                fleet.expect_warning("");
                let result = run_rounds(fleet, first + done, some).await;
                if let Some(folder) = std::env::var_os("DORMOUSE_NEMESIS_KEEP") {
                    copy_folder(fleet.folder(), Path::new(&folder))?;
                }
                result.with_context(|| format!("DORMOUSE_NEMESIS_SEED={} repeats it", first + done))
            })
            .await?;
        done += some;
    }
    Ok(())
}

/// Runs `rounds` rounds on one fleet.
async fn run_rounds(fleet: &mut Fleet, seed: u64, rounds: u64) -> anyhow::Result<()> {
    let servers: Vec<ServerName> =
        (1..=3).map(|number| format!("persist-{number}").parse()).collect::<Result<_, _>>()?;
    let env = Env::system();
    let rules = Rules { unshipped: UNSHIPPED, ..Rules::default() };
    let recorder = Recorder::new(env.clone(), rules);
    let tasks = Tasks::new();
    let mut users = Vec::new();
    for number in 0..USERS {
        let bus = fleet.nats_options()?.connect(env.clone(), &tasks).await?;
        users.push(User::new(std::sync::Arc::new(bus), number, &recorder, &env).await?);
    }
    // The listener is not cut off with the other clients: unreported events cannot be judged.
    fleet.proxies().add("listener").await?;
    let listener = fleet.nats_options_of("listener")?.connect(env.clone(), &tasks).await?;
    let events = listener
        .subscribe(dormouse_protocol::RoutePattern::new("persist.events.>"), SubscribeOptions::default());
    tasks.spawn("events", recorder.clone().listen(events.await?));

    let mut nemesis = Nemesis::new(&servers, &recorder);
    let mut rng = SeededRng::new(seed);
    let mut faults = shuffled(&mut rng);
    let mut targets: Vec<UsedSubject> = Vec::new();
    for round in 0..rounds {
        let in_turn: Vec<Fault> = faults.drain(..faults.len().min(IN_TURN)).collect();
        let new_targets = create_subjects(&users, round).await.context("cannot create the subjects")?;
        run_load_with_faults(fleet, &mut nemesis, &users, &new_targets, &mut rng, &in_turn).await?;
        targets.extend(new_targets);
        let began = recorder.now();
        nemesis.heal(fleet).await?;
        let healed = recorder.now();
        let checks =
            targets.iter().zip(users.iter().cycle()).map(|(target, user)| user.check_subject(target));
        for (target, checked) in targets.iter().zip(futures::future::join_all(checks).await) {
            checked
                .with_context(|| format!("{} does not work after the end of the faults", target.subject))?;
        }
        let checked = recorder.now();
        let verdict = recorder.judge();
        println!(
            "round {round}: {:?}; healed after {} ms, checked in {} ms, judged in {} ms",
            verdict.coverage.counts,
            (healed - began).as_millis(),
            (checked - healed).as_millis(),
            (recorder.now() - checked).as_millis()
        );
        judge(&verdict)?;
    }
    println!("events: {:?}", nemesis.counts);
    if rounds >= ROUNDS {
        let verdict = recorder.judge();
        for what in REQUIRED_COVERAGE {
            anyhow::ensure!(verdict.coverage.counts.contains_key(what), "no {what} were judged");
        }
        for fault in Fault::ALL {
            let name = format!("{fault:?}");
            anyhow::ensure!(nemesis.counts.contains_key(&name), "fault {name} did not occur");
        }
    }
    listener.close().await;
    Ok(())
}

fn judge(verdict: &Verdict) -> anyhow::Result<()> {
    anyhow::ensure!(verdict.is_clean(), "{verdict}");
    Ok(())
}

/// Returns all faults in an order that the seed decides, except that the last one stays last.
fn shuffled(rng: &mut SeededRng) -> Vec<Fault> {
    let mut faults = Fault::ALL.to_vec();
    for at in (1..faults.len() - 1).rev() {
        let other = usize::try_from(rng.within(0..at as u64 + 1)).unwrap_or(0);
        faults.swap(at, other);
    }
    faults
}

/// Creates new subjects: of every level, with keys and without.
async fn create_subjects(users: &[User], round: u64) -> anyhow::Result<Vec<UsedSubject>> {
    let mut targets = Vec::new();
    for level in Level::ALL {
        for (kind, keyed) in [("kv", true), ("log", false)] {
            let subject = format!("r{round}.{kind}.{level}").parse()?;
            targets.push(UsedSubject { subject, level, keyed });
        }
    }
    let configured = targets.iter().zip(users.iter().cycle()).map(|(target, user)| user.configure(target));
    futures::future::try_join_all(configured).await?;
    Ok(targets)
}

/// Runs the load on the subjects while faults happen.
async fn run_load_with_faults(
    fleet: &mut Fleet,
    nemesis: &mut Nemesis,
    users: &[User],
    targets: &[UsedSubject],
    rng: &mut SeededRng,
    in_turn: &[Fault],
) -> anyhow::Result<()> {
    let stop = Cell::new(false);
    let servers = nemesis.servers.clone();
    let mut rngs = rng.clone();
    let writers = targets.iter().flat_map(|target| (0..WRITERS).map(move |_| target));
    let writers = writers.zip(users.iter().cycle());
    let writers: Vec<_> =
        writers.map(|(target, user)| user.write(target, SeededRng::new(rngs.next()), &stop)).collect();
    let readers = users.iter().flat_map(|user| (0..READERS).map(move |_| user));
    let readers: Vec<_> =
        readers.map(|user| user.read(targets, SeededRng::new(rngs.next()), &stop)).collect();
    let probes = users.iter().flat_map(|user| (0..PROBES).map(move |_| user));
    let probes: Vec<_> =
        probes.map(|user| user.probe(targets, &servers, SeededRng::new(rngs.next()), &stop)).collect();
    let injecting = async {
        let injected = if in_turn.is_empty() {
            nemesis.mixed(fleet, rng, MIXED).await
        } else {
            nemesis.in_turn(fleet, rng, in_turn).await
        };
        stop.set(true);
        injected
    };
    let (injected, ..) = futures::try_join!(
        injecting,
        futures::future::try_join_all(writers),
        futures::future::try_join_all(readers),
        futures::future::try_join_all(probes)
    )?;
    Ok(injected)
}
