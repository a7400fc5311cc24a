//! The cost of dormant subjects: at the start, in memory, and in processor time without requests.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_client::{Client, NatsOptions, ServerName, Subject};
use dormouse_coordinator::store::sled_store::SledStore;
use dormouse_coordinator::store::{Store, StoreChange};
use dormouse_harness::{NatsServer, NatsServerOptions, Process, ProcessSpec, our_program};
use serde::{Deserialize, Serialize};

use crate::machine::processor_time;

/// The time limit of steps that are not measured.
const READY: Duration = Duration::from_secs(120);
/// The length of the phase without requests.
const IDLE: Duration = Duration::from_secs(10);
/// The number of assignments that are written at once.
const PAGE: usize = 10_000;
/// The server's name.
const SERVER: &str = "persist-1";
/// The only subject with a message.
const REAL: &str = "bench.real";

/// The costs of a fleet of one server, with many dormant subjects in its bucket that the coordinator knows.
#[derive(Debug, Serialize, Deserialize)]
pub struct IdleSubjects {
    /// The number of dormant subjects.
    pub subjects: usize,
    /// Seconds from the start of coordinator and server to the coordinator's first reply about a dormant subject.
    pub first_locate_s: f64,
    /// Seconds from the start of both to the first message that was read.
    pub both_first_answer_s: f64,
    /// Seconds from a start of the server to the first message that was read, with a running coordinator.
    pub first_answer_s: f64,
    /// The server's resident memory at that time, in bytes.
    pub server_bytes: u64,
    /// The coordinator's resident memory.
    pub coordinator_bytes: u64,
    /// The cores that both use together without requests.
    pub idle_cores: f64,
}

/// Creates `subjects` dormant subjects, starts a fleet on them, and measures.
///
/// # Errors
/// If the programs are not built, or the fleet does not answer.
pub async fn measure(subjects: usize) -> Result<IdleSubjects> {
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
    create_dormant(folder.path(), subjects)?;

    let began = Instant::now();
    let (coordinator, mut server) = (programs.coordinator.start()?, programs.server.start()?);
    client.locate(&dormant_subject(subjects / 2)?).await?;
    let first_locate = began.elapsed();
    real.get(written.seq).await?.context("the written message is gone")?;
    let both_first_answer = began.elapsed();

    server.terminate(READY).await?;
    let began = Instant::now();
    let server = programs.server.start()?;
    real.get(written.seq).await?.context("the written message is gone")?;
    let first_answer = began.elapsed();

    let used = || -> Result<Duration> { Ok(cpu(&coordinator)? + cpu(&server)?) };
    let before = used()?;
    tokio::time::sleep(IDLE).await;
    let idle = used()?.saturating_sub(before);
    Ok(IdleSubjects {
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

/// Returns a name of 53 bytes. The names have no particular order, like application names that contain an id.
fn dormant_subject(number: usize) -> Result<Subject> {
    let scattered = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Ok(Subject::new(&format!("measure.application.customers.{scattered:016x}.orders"))?)
}

/// Creates a folder with a manifest for each subject in the bucket, and an assignment in the coordinator's store, while
/// neither process runs. No process reads the manifests, because the subjects stay dormant.
fn create_dormant(folder: &Path, subjects: usize) -> Result<()> {
    let bucket = folder.join("bucket/subjects");
    let store = SledStore::open(&folder.join("coordinator/state"))?;
    let server = ServerName::new(SERVER)?;
    for first in (0..subjects).step_by(PAGE) {
        let mut changes = Vec::with_capacity(PAGE);
        for number in first..subjects.min(first + PAGE) {
            let subject = dormant_subject(number)?;
            let folder = bucket.join(subject.as_str());
            std::fs::create_dir(&folder)?;
            std::fs::write(folder.join("000000000001.manifest"), b"{}")?;
            changes.push(StoreChange::Assign { subject, previous: None, server: server.clone() });
        }
        store.write(&changes)?;
        store.flush()?;
    }
    Ok(())
}

fn cpu(process: &Process) -> Result<Duration> {
    processor_time(process.pid().context("the process has ended")?)
}
