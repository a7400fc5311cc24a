//! Measures how long an application cannot write or read when something befalls the server of its subjects.
//!
//! A real fleet of three servers on a local directory; subjects of one server are written and read at the pace of a
//! millisecond by one client while the fault happens. Each line of standard output is a measurement in JSON;
//! `scripts/measure-failover` makes the table of them.

mod load;

use std::cell::Cell;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use dormouse_bus::{SubscribeOptions, Subscription};
use dormouse_client::Client;
use dormouse_e2e::{Fleet, until};
use dormouse_runtime::Env;
use futures::future::try_join_all;
use serde::Serialize;

use crate::load::{Lane, Subject};

/// The server that it befalls.
const VICTIM: &str = "persist-1";

/// How many calls of each kind must succeed on each subject before and after.
const ENOUGH: u64 = 20;

/// Measures how long an application cannot write or read when something befalls the server of its subjects.
#[derive(Debug, Parser)]
struct Arguments {
    /// Time to live of a lease; may be given several times
    #[arg(long = "ttl", value_name = "DURATION", default_values = ["3s", "500ms"])]
    ttls: Vec<humantime::Duration>,

    /// How many rounds of every fault
    #[arg(long, default_value = "5")]
    rounds: u32,

    /// How many subjects of the server are written and read
    #[arg(long, default_value = "4")]
    subjects: usize,

    /// Only these faults; may be given several times [default: all]
    #[arg(long = "fault", value_name = "NAME", value_enum)]
    faults: Vec<Fault>,
}

/// What befalls the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Fault {
    /// Nothing at all, for the same time: what the machine's other work looks like.
    Nothing,
    /// SIGKILL.
    Kill,
    /// SIGSTOP, until the others have taken over.
    Stop,
    /// SIGTERM.
    Terminate,
    /// `dormouse server drain`.
    Drain,
    /// SIGKILL of the coordinator, which comes back after two TTLs.
    Coordinator,
}

/// What one round showed.
#[derive(Debug, Serialize)]
struct Measurement {
    ttl_ms: u128,
    fault: Fault,
    round: u32,
    /// The longest time between two acknowledged writes, of each subject.
    writes_ms: Vec<f64>,
    /// The same of reads.
    reads_ms: Vec<f64>,
    /// Writes that ended without a word on whether they took effect.
    in_doubt: u64,
    /// Calls that ended in another error.
    failed: u64,
    /// What the last of them said.
    said: Option<String>,
    /// From the fault to the coordinator's announcement that the server is gone.
    announced_ms: Option<f64>,
    /// What the machine had to do.
    load: f64,
}

// One thread: children die with the thread that started them, and a client is faster that way.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let faults: &[Fault] = if arguments.faults.is_empty() {
        <Fault as clap::ValueEnum>::value_variants()
    } else {
        &arguments.faults
    };
    for ttl in &arguments.ttls {
        let ttl = Duration::from(*ttl);
        let lease = format!("{}ms", ttl.as_millis());
        let fleet = Fleet::builder().servers(3).coordinator_args(["--lease-ttl", &lease]);
        fleet
            .run(async |fleet| {
                // Whatever is said is said because of what is done here.
                fleet.expect_warning("");
                for round in 1..=arguments.rounds {
                    for fault in faults {
                        let measured = measure(fleet, ttl, *fault, round, arguments.subjects).await;
                        let measured = measured.with_context(|| format!("{fault:?} in round {round}"))?;
                        println!("{}", serde_json::to_string(&measured)?);
                    }
                }
                Ok(())
            })
            .await?;
    }
    Ok(())
}

async fn measure(
    fleet: &mut Fleet,
    ttl: Duration,
    fault: Fault,
    round: u32,
    count: usize,
) -> anyhow::Result<Measurement> {
    let env = Env::system();
    let client = Client::connect(&fleet.url()).await?;
    let gone = client.bus().subscribe(client.prefix().gone().into(), SubscribeOptions::default()).await?;
    let subjects = subjects_of_the_victim(fleet, &client, count).await?;
    let (stop, announced) = (Cell::new(false), Cell::new(None));
    let lanes = || subjects.iter().flat_map(|subject| [&subject.writes, &subject.reads]);

    let applications = try_join_all(subjects.iter().map(|subject| subject.run(&env, &stop)));
    let conductor = async {
        enough(lanes()).await?;
        lanes().for_each(Lane::begin);
        announced.set(None);
        let begun = env.boot();
        commit(fleet, fault, ttl).await?;
        let succeeded: Vec<_> = lanes().map(|lane| lane.succeeded.get()).collect();
        until("everything works again", async || {
            let mut again = lanes().zip(&succeeded).map(|(lane, before)| lane.succeeded.get() - before);
            Ok(again.all(|calls| calls >= ENOUGH).then_some(()))
        })
        .await?;
        let measured = result(&subjects, ttl, fault, round, announced.get().map(|at: Duration| at - begun))?;
        mend(fleet, fault).await?;
        stop.set(true);
        anyhow::Ok(measured)
    };
    let work = async { futures::try_join!(applications, conductor) };
    let (_, measured) = tokio::select! {
        worked = work => worked?,
        () = listen(gone, &env, &announced) => anyhow::bail!("the connection is lost"),
    };
    client.close().await;
    Ok(measured)
}

/// New subjects each time, so that no round finds what another left.
async fn subjects_of_the_victim(
    fleet: &Fleet,
    client: &Client,
    count: usize,
) -> anyhow::Result<Vec<Subject>> {
    let family = Env::system().ulid();
    let mut subjects = Vec::new();
    for number in 0.. {
        if subjects.len() == count {
            break;
        }
        let name = format!("measure.{family}.{number}");
        if fleet.owner(client, &name).await? == VICTIM {
            subjects.push(Subject::new(client.kv(&name)?));
        }
    }
    Ok(subjects)
}

async fn enough<'l>(lanes: impl Iterator<Item = &'l Lane> + Clone) -> anyhow::Result<()> {
    until("the load runs", async || {
        Ok(lanes.clone().all(|lane| lane.succeeded.get() >= ENOUGH).then_some(()))
    })
    .await
}

/// Has it happen, and returns when it is over or can only be waited for.
async fn commit(fleet: &mut Fleet, fault: Fault, ttl: Duration) -> anyhow::Result<()> {
    match fault {
        Fault::Nothing => tokio::time::sleep(2 * ttl).await,
        Fault::Kill => fleet.kill9(VICTIM).await?,
        Fault::Stop => fleet.pause(VICTIM).await?,
        Fault::Terminate => fleet.stop(VICTIM).await?,
        Fault::Drain => drop(fleet.cli_ok(&["server", "drain", VICTIM]).await?),
        Fault::Coordinator => {
            fleet.kill9("coordinator").await?;
            tokio::time::sleep(2 * ttl).await;
            fleet.restart("coordinator").await?;
        }
    }
    Ok(())
}

/// Makes the fleet whole again.
async fn mend(fleet: &mut Fleet, fault: Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Nothing | Fault::Coordinator => {}
        Fault::Kill | Fault::Terminate => fleet.restart(VICTIM).await?,
        Fault::Stop => fleet.resume(VICTIM)?,
        Fault::Drain => drop(fleet.cli_ok(&["server", "undrain", VICTIM]).await?),
    }
    for name in ["coordinator", "persist-1", "persist-2", "persist-3"] {
        fleet.wait_serving(name).await?;
    }
    let client = fleet.client().await?;
    until("everybody is alive", async || {
        let servers = client.servers().await?.servers;
        let alive = servers.iter().all(|server| server.state == dormouse_protocol::fleet::ServerState::Alive);
        Ok(alive.then_some(()))
    })
    .await
}

/// Notes when the coordinator announces that a server is gone. Ends with the connection.
async fn listen(mut gone: Subscription, env: &Env, announced: &Cell<Option<Duration>>) {
    while gone.next().await.is_some() {
        announced.set(Some(announced.get().unwrap_or_else(|| env.boot())));
    }
}

fn result(
    subjects: &[Subject],
    ttl: Duration,
    fault: Fault,
    round: u32,
    announced: Option<Duration>,
) -> anyhow::Result<Measurement> {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let lanes = || subjects.iter().flat_map(|subject| [&subject.writes, &subject.reads]);
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(Measurement {
        ttl_ms: ttl.as_millis(),
        fault,
        round,
        writes_ms: subjects.iter().map(|subject| milliseconds(subject.writes.longest())).collect(),
        reads_ms: subjects.iter().map(|subject| milliseconds(subject.reads.longest())).collect(),
        in_doubt: lanes().map(|lane| lane.in_doubt.get()).sum(),
        failed: lanes().map(|lane| lane.failed.get()).sum(),
        said: lanes().find_map(|lane| lane.said.borrow().clone()),
        announced_ms: announced.map(milliseconds),
        load: load.split(' ').next().context("no load")?.parse()?,
    })
}
