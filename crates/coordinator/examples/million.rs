//! Measures the cost of recorded assignments for a coordinator: the time to open and to the first reply, and the memory at
//! rest, after many locates, and after a list of all assignments.
//!
//! `cargo run --release -p dormouse-coordinator --example million -- [ASSIGNMENTS]` (default 1,000,000) fills a store in a
//! temporary directory. Then it starts a coordinator on the store in a separate process, which is the measured one, and
//! removes the directory.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{Bus, Callers, InboxPrefixes, ask};
use dormouse_coordinator::store::sled_store::SledStore;
use dormouse_coordinator::store::{Store, StoreChange};
use dormouse_coordinator::{Coordinator, CoordinatorOptions};
use dormouse_protocol::admin::{SubjectsReply, SubjectsRequest};
use dormouse_protocol::fleet::{JoinRequest, LeaseReply, LocateReply, LocateRequest};
use dormouse_protocol::{LogId, Prefix, ProtocolVersion, ServerName, Subject, TenantRule};
use dormouse_runtime::{Env, Tasks};

const SERVERS: usize = 8;
const LOOKUPS: usize = 100_000;
const DEADLINE: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [measured, folder, number] = words.as_slice()
        && measured == "measure"
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(measure(Path::new(folder), number.parse()?));
    }
    let number: usize = words.first().map_or(Ok(1_000_000), |word| word.replace(',', "").parse())?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("state");
    fill(&path, number)?;
    let bytes: u64 = std::fs::read_dir(&path)?
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .map(|metadata| metadata.len())
        .sum();
    println!("| {number} assignments on the disk | {} MB |", bytes / 1_000_000);
    let program = std::env::current_exe()?;
    let status = Command::new(program).arg("measure").arg(&path).arg(number.to_string()).status()?;
    ensure!(status.success(), "the measuring process failed");
    Ok(())
}

fn server(number: usize) -> anyhow::Result<ServerName> {
    Ok(ServerName::new(&format!("persist-{}", number % SERVERS + 1))?)
}

/// 53 bytes, in no particular order, like names that contain an application's id.
fn subject(number: usize) -> anyhow::Result<Subject> {
    let scattered = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Ok(Subject::new(&format!("measure.application.customers.{scattered:016x}.orders"))?)
}

fn fill(path: &Path, number: usize) -> anyhow::Result<()> {
    let store = SledStore::open(path)?;
    for begin in (0..number).step_by(10_000) {
        let changes: anyhow::Result<Vec<_>> = (begin..number.min(begin + 10_000))
            .map(|n| Ok(StoreChange::Assign { subject: subject(n)?, previous: None, server: server(n)? }))
            .collect();
        store.write(&changes?)?;
        store.flush()?;
    }
    Ok(())
}

/// The resident memory of this process, in megabytes.
fn resident() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1_024 / 1_000_000)
}

/// The processor time of this process so far. One tick is a hundredth of a second, as on Linux.
fn processor_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The 12th and 13th field after the name, which is in parentheses and may contain any character.
    let (_, fields) = stat.rsplit_once(')').context("no name in the stat file")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

async fn measure(path: &Path, number: usize) -> anyhow::Result<()> {
    let (env, tasks, prefix) = (Env::system(), Tasks::new(), Prefix::default());
    let begun = env.boot();
    let store = Arc::new(SledStore::open(path)?);
    let (opened, worked) = (env.boot() - begun, processor_time()?);
    let broker = MemoryBroker::new();
    let options = CoordinatorOptions {
        prefix: prefix.clone(),
        lease_ttl: Duration::from_secs(20),
        inbox_prefixes: InboxPrefixes::default(),
        callers: Callers::default(),
        tenant_rule: TenantRule::default(),
    };
    let bus = Arc::new(broker.connect(MemoryOptions::named("coordinator")));
    let _coordinator = Coordinator::start(options, store, bus, env.clone(), &tasks).await?;
    let asker: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("asker")));
    for n in 0..SERVERS {
        let request = JoinRequest {
            v: ProtocolVersion::CURRENT,
            log: LogId::new(server(n)?, env.ulid()),
            predecessor: None,
            capacity: 100,
            version: String::new(),
        };
        let _: LeaseReply = ask(&*asker, prefix.join(), &request, DEADLINE).await?;
    }
    let locate = async |n: usize| -> anyhow::Result<LocateReply> {
        Ok(ask(&*asker, prefix.locate(&subject(n)?), &LocateRequest::default(), DEADLINE).await?)
    };
    ensure!(locate(number / 2).await?.server == server(number / 2)?, "the stored assignment was not used");
    let answered = env.boot() - begun;
    println!("| to open it | {} ms, {} ms of processor time |", opened.as_millis(), worked.as_millis());
    println!("| to the first locate, {SERVERS} servers joined | {} ms |", answered.as_millis());
    println!("| resident memory then | {} MB |", resident()?);
    let begun = env.boot();
    for begin in (0..LOOKUPS).step_by(256) {
        let asked = (begin..LOOKUPS.min(begin + 256)).map(|n| locate(n.wrapping_mul(7_919) % number));
        futures::future::try_join_all(asked).await?;
    }
    let rate = LOOKUPS as f64 / (env.boot() - begun).as_secs_f64();
    println!("| locates, 256 at once | {rate:.0}/s |");
    println!("| resident memory after {LOOKUPS} of them | {} MB |", resident()?);
    let begun = env.boot();
    let (mut listed, mut pages, mut after) = (0, 0, None);
    loop {
        let request = SubjectsRequest { after, ..SubjectsRequest::default() };
        let page: SubjectsReply = ask(&*asker, prefix.admin_subjects(), &request, DEADLINE).await?;
        (listed, pages, after) = (listed + page.subjects.len(), pages + 1, page.cursor);
        if after.is_none() {
            break;
        }
    }
    ensure!(listed >= number, "{listed} of {number} were listed");
    println!("| to list all of them, {pages} pages | {:.1} s |", (env.boot() - begun).as_secs_f64());
    println!("| resident memory after that | {} MB |", resident()?);
    Ok(())
}
