//! What subjects cost that nobody asks for: at start, in memory, and in processor time while nothing happens.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_client::{Client, NatsOptions, ServerName, Subject};
use dormouse_coordinator::store::sled_store::SledStore;
use dormouse_coordinator::store::{Change, Store};
use dormouse_harness::{NatsServer, NatsServerOptions, Process, ProcessSpec, our_program};
use serde::{Deserialize, Serialize};

use crate::machine::processor_time;

/// How long anything may take that is not measured.
const READY: Duration = Duration::from_secs(120);
/// For how long nobody asks for anything.
const IDLE: Duration = Duration::from_secs(10);
/// Assignments that are written at once.
const PAGE: usize = 10_000;
/// The server's name.
const SERVER: &str = "persist-1";
/// The one subject that holds something.
const REAL: &str = "bench.real";

/// A fleet of one server, with so many subjects asleep in its bucket and known to its coordinator.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sleepers {
    /// How many sleep.
    pub subjects: usize,
    /// From the start of the coordinator and the server to the coordinator's first answer about a sleeping subject, in
    /// seconds.
    pub first_locate_s: f64,
    /// From the start of both to the first message that was read, in seconds.
    pub both_first_answer_s: f64,
    /// From a start of the server, while the coordinator runs, to the first message that was read, in seconds.
    pub first_answer_s: f64,
    /// The server's resident memory then, in bytes.
    pub server_bytes: u64,
    /// The coordinator's.
    pub coordinator_bytes: u64,
    /// Cores that both use together while nobody asks for anything.
    pub idle_cores: f64,
}

/// Lets `subjects` sleep, starts a fleet on them, and measures.
///
/// # Errors
/// When the programs are not built, or the fleet does not answer.
pub async fn measure(subjects: usize) -> Result<Sleepers> {
    let folder = tempfile::tempdir()?;
    let nats = NatsServer::start(NatsServerOptions::default()).await?;
    std::fs::create_dir(folder.path().join("bucket"))?;
    let client =
        Client::builder().deadline(READY).connect(NatsOptions::new(vec![nats.url().parse()?])).await?;
    let real = client.stream(REAL)?;

    let programs = Programs::of(folder.path(), &nats)?;
    let (mut coordinator, mut server) = (programs.coordinator.start()?, programs.server.start()?);
    let written = real.publish("value").await?;
    server.terminate(READY).await?;
    coordinator.terminate(READY).await?;
    lay_to_sleep(folder.path(), subjects)?;

    let began = Instant::now();
    let (coordinator, mut server) = (programs.coordinator.start()?, programs.server.start()?);
    client.locate(&sleeper(subjects / 2)?).await?;
    let first_locate = began.elapsed();
    real.get(written.seq).await?.context("what was written is gone")?;
    let both_first_answer = began.elapsed();

    server.terminate(READY).await?;
    let began = Instant::now();
    let server = programs.server.start()?;
    real.get(written.seq).await?.context("what was written is gone")?;
    let first_answer = began.elapsed();

    let used = || -> Result<Duration> { Ok(cpu(&coordinator)? + cpu(&server)?) };
    let before = used()?;
    tokio::time::sleep(IDLE).await;
    let idle = used()?.saturating_sub(before);
    Ok(Sleepers {
        subjects,
        first_locate_s: first_locate.as_secs_f64(),
        both_first_answer_s: both_first_answer.as_secs_f64(),
        first_answer_s: first_answer.as_secs_f64(),
        server_bytes: server.resident_bytes()?,
        coordinator_bytes: coordinator.resident_bytes()?,
        idle_cores: idle.as_secs_f64() / IDLE.as_secs_f64(),
    })
}

struct Programs {
    coordinator: ProcessSpec,
    server: ProcessSpec,
}

impl Programs {
    fn of(folder: &Path, nats: &NatsServer) -> Result<Self> {
        let at = |part: &str| folder.join(part).display().to_string();
        let url = nats.url();
        let coordinator = ProcessSpec::new("coordinator", our_program("dormouse-coordinator")?, folder)
            .args(["--nats", &url, "--data-dir", &at("coordinator")]);
        let server = ProcessSpec::new("server", our_program("dormouse-persist-server")?, folder)
            .args(["--nats", &url, "--name", SERVER, "--data-dir", &at("data")])
            .args(["--bucket", &format!("file://{}", at("bucket"))]);
        Ok(Self { coordinator, server })
    }
}

/// 53 bytes, in no particular order, as names with an id of an application in them are.
fn sleeper(number: usize) -> Result<Subject> {
    let scattered = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Ok(Subject::new(&format!("measure.application.customers.{scattered:016x}.orders"))?)
}

/// A folder with a manifest for each in the bucket, and an assignment in the coordinator's memory, while neither runs.
/// Nobody reads the manifests, or it would be no sleep.
fn lay_to_sleep(folder: &Path, subjects: usize) -> Result<()> {
    let bucket = folder.join("bucket/subjects");
    let store = SledStore::open(&folder.join("coordinator/state"))?;
    let server = ServerName::new(SERVER)?;
    for first in (0..subjects).step_by(PAGE) {
        let mut changes = Vec::with_capacity(PAGE);
        for number in first..subjects.min(first + PAGE) {
            let subject = sleeper(number)?;
            let folder = bucket.join(subject.as_str());
            std::fs::create_dir(&folder)?;
            std::fs::write(folder.join("000000000001.manifest"), b"{}")?;
            changes.push(Change::Assign { subject, previous: None, server: server.clone() });
        }
        store.write(&changes)?;
        store.flush()?;
    }
    Ok(())
}

fn cpu(process: &Process) -> Result<Duration> {
    processor_time(process.pid().context("it has ended")?)
}
