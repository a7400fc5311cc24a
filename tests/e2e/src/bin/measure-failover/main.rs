//! Measures how long an application cannot write or read after a fault of the server of its subjects.
//!
//! The measurement runs a real fleet of three servers on a local directory. One client writes and reads the subjects of
//! one server every millisecond while the fault happens. Each line of standard output is a measurement in JSON;
//! `scripts/measure-failover` makes a table of them.

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

use crate::load::{LoadLoop, Subject};

/// The server with the fault.
const TARGET: &str = "persist-1";

/// The number of calls of each kind that must succeed on each subject before and after the fault.
const ENOUGH: u64 = 20;

/// Measures how long an application cannot write or read after a fault of the server of its subjects.
#[derive(Debug, Parser)]
struct Arguments {
    /// Time to live of a lease; may be given several times
    #[arg(long = "ttl", value_name = "DURATION", default_values = ["3s", "500ms"])]
    ttls: Vec<humantime::Duration>,

    /// The number of rounds of each fault
    #[arg(long, default_value = "5")]
    rounds: u32,

    /// The number of subjects that are written and read
    #[arg(long, default_value = "4")]
    subjects: usize,

    /// Only these faults; may be given several times [default: all]
    #[arg(long = "fault", value_name = "NAME", value_enum)]
    faults: Vec<Fault>,
}

/// The fault of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Fault {
    /// No fault, for the same time: shows the effect of other work on the machine.
    Nothing,
    /// SIGKILL.
    Kill,
    /// SIGSTOP, until the other servers have taken over.
    Stop,
    /// SIGTERM.
    Terminate,
    /// `dormouse server drain`.
    Drain,
    /// SIGKILL of the coordinator, which restarts after two TTLs.
    Coordinator,
}

/// The result of one round.
#[derive(Debug, Serialize)]
struct Measurement {
    ttl_ms: u128,
    fault: Fault,
    round: u32,
    /// The longest time between two acknowledged writes, for each subject.
    writes_ms: Vec<f64>,
    /// The same for reads.
    reads_ms: Vec<f64>,
    /// Writes that ended as indeterminate.
    in_doubt: u64,
    /// Calls that ended with another error.
    failed: u64,
    /// The text of the last such error.
    said: Option<String>,
    /// The time from the fault to the coordinator's announcement that the server is gone.
    announced_ms: Option<f64>,
    /// The load of the machine.
    load: f64,
}

// One thread: child processes end with the thread that started them, and a client is faster on one thread.
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
                // All warnings are caused by the faults.
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
    let subjects = subjects_of_target(fleet, &client, count).await?;
    let (stop, announced) = (Cell::new(false), Cell::new(None));
    let loops = || subjects.iter().flat_map(|subject| [&subject.writes, &subject.reads]);

    let applications = try_join_all(subjects.iter().map(|subject| subject.run(&env, &stop)));
    let conductor = async {
        wait_for_load(loops()).await?;
        loops().for_each(LoadLoop::begin);
        announced.set(None);
        let begun = env.boot();
        inject(fleet, fault, ttl).await?;
        let succeeded: Vec<_> = loops().map(|load_loop| load_loop.succeeded.get()).collect();
        until("every operation works again", async || {
            let mut recovered =
                loops().zip(&succeeded).map(|(load_loop, before)| load_loop.succeeded.get() - before);
            Ok(recovered.all(|calls| calls >= ENOUGH).then_some(()))
        })
        .await?;
        let measured = result(&subjects, ttl, fault, round, announced.get().map(|at: Duration| at - begun))?;
        restore(fleet, fault).await?;
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

/// Creates new subjects in each round, so that rounds do not affect each other.
async fn subjects_of_target(fleet: &Fleet, client: &Client, count: usize) -> anyhow::Result<Vec<Subject>> {
    let family = Env::system().ulid();
    let mut subjects = Vec::new();
    for number in 0.. {
        if subjects.len() == count {
            break;
        }
        let name = format!("measure.{family}.{number}");
        if fleet.owner(client, &name).await? == TARGET {
            subjects.push(Subject::new(client.kv(&name)?));
        }
    }
    Ok(subjects)
}

async fn wait_for_load<'l>(loops: impl Iterator<Item = &'l LoadLoop> + Clone) -> anyhow::Result<()> {
    until("the load runs", async || {
        Ok(loops.clone().all(|load_loop| load_loop.succeeded.get() >= ENOUGH).then_some(()))
    })
    .await
}

/// Injects the fault. Returns when it is over, or when its end can only be awaited.
async fn inject(fleet: &mut Fleet, fault: Fault, ttl: Duration) -> anyhow::Result<()> {
    match fault {
        Fault::Nothing => tokio::time::sleep(2 * ttl).await,
        Fault::Kill => fleet.kill9(TARGET).await?,
        Fault::Stop => fleet.pause(TARGET).await?,
        Fault::Terminate => fleet.stop(TARGET).await?,
        Fault::Drain => drop(fleet.cli_ok(&["server", "drain", TARGET]).await?),
        Fault::Coordinator => {
            fleet.kill9("coordinator").await?;
            tokio::time::sleep(2 * ttl).await;
            fleet.restart("coordinator").await?;
        }
    }
    Ok(())
}

/// Restores the fleet.
async fn restore(fleet: &mut Fleet, fault: Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Nothing | Fault::Coordinator => {}
        Fault::Kill | Fault::Terminate => fleet.restart(TARGET).await?,
        Fault::Stop => fleet.resume(TARGET)?,
        Fault::Drain => {
            fleet.cli_ok(&["server", "undrain", TARGET]).await?;
            // The server gets the undrain with its next heartbeat. Until then it still hands over its subjects.
            fleet.wait_ready(TARGET).await?;
        }
    }
    for name in ["coordinator", "persist-1", "persist-2", "persist-3"] {
        fleet.wait_serving(name).await?;
    }
    let client = fleet.client().await?;
    until("every process is alive", async || {
        let servers = client.servers().await?.servers;
        let alive = servers.iter().all(|server| server.state == dormouse_protocol::fleet::ServerState::Alive);
        Ok(alive.then_some(()))
    })
    .await
}

/// Records when the coordinator announces that a server is gone. Ends with the connection.
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
    let loops = || subjects.iter().flat_map(|subject| [&subject.writes, &subject.reads]);
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(Measurement {
        ttl_ms: ttl.as_millis(),
        fault,
        round,
        writes_ms: subjects.iter().map(|subject| milliseconds(subject.writes.longest())).collect(),
        reads_ms: subjects.iter().map(|subject| milliseconds(subject.reads.longest())).collect(),
        in_doubt: loops().map(|load_loop| load_loop.indeterminate.get()).sum(),
        failed: loops().map(|load_loop| load_loop.failed.get()).sum(),
        said: loops().find_map(|load_loop| load_loop.last_error.borrow().clone()),
        announced_ms: announced.map(milliseconds),
        load: load.split(' ').next().context("no load")?.parse()?,
    })
}
