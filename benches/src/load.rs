//! How one round is measured: what was done, how long each took, and what the processes used for it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::machine::{busy_time, processor_time, resident_bytes};
use crate::target::{Member, Role};

/// The longest that is told apart: a minute.
const LONGEST_NS: u64 = 60_000_000_000;
/// How often it is looked whether a target has become quiet, and how long it may take to be.
const LOOK: Duration = Duration::from_millis(200);
const QUIET_WITHIN: Duration = Duration::from_secs(10);
/// Below this share of a core a target counts as quiet.
const QUIET: f64 = 0.05;

/// What one round showed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Round {
    /// Things done.
    pub done: u64,
    /// Things done in a second.
    pub per_second: f64,
    /// Median of how long one took, in microseconds.
    pub p50_us: f64,
    /// 99th percentile of how long one took, in microseconds.
    pub p99_us: f64,
    /// Processor time of this process for each thing done, in microseconds.
    pub client_us: f64,
    /// As `client_us`, of those who carry messages, and until the target had become quiet.
    pub broker_us: f64,
    /// As `broker_us`, of those who keep them.
    pub server_us: f64,
    /// How long after the last answer the target was at work, in milliseconds.
    pub afterwards_ms: u64,
    /// Resident memory of the target's processes after the round, in bytes.
    pub resident_bytes: u64,
    /// Cores that all others used meanwhile: what has nothing to do with the run, the kernel, and targets whose turn it was not.
    pub others_cores: f64,
}

/// A histogram of how long things took.
pub struct Took(Histogram<u64>);

impl Default for Took {
    /// Nothing yet.
    fn default() -> Self {
        // The bounds are constants that the library accepts.
        Self(Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("a histogram's bounds"))
    }
}

impl Took {
    /// One more.
    pub fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(LONGEST_NS).max(1));
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    fn quantile_us(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Processor time at the beginning of a round.
pub struct Clocks {
    began: Instant,
    client: Duration,
    members: BTreeMap<Role, Duration>,
    machine: Duration,
}

impl Clocks {
    /// Reads all clocks: the round begins.
    ///
    /// # Errors
    /// When a process of the target has ended.
    pub fn start(members: &[Member]) -> Result<Self> {
        let (members, machine) = (by_role(members)?, busy_time()?);
        Ok(Self { began: Instant::now(), client: processor_time(std::process::id())?, members, machine })
    }

    /// When the round began.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The round has ended: `done` things were. Waits until the target is quiet, so that what it does afterwards counts,
    /// and does not fall into the round of the next one.
    ///
    /// # Errors
    /// When a process of the target has ended.
    pub async fn stop(self, members: &[Member], done: u64, took: &Took) -> Result<Round> {
        let lasted = self.began.elapsed();
        let client = processor_time(std::process::id())?;
        let over = Instant::now();
        become_quiet(members).await?;
        let afterwards = over.elapsed();
        let now = by_role(members)?;
        let others = self.others(&now)?;
        let each = |later: Duration, earlier: Duration| {
            later.saturating_sub(earlier).as_secs_f64() * 1e6 / done.max(1) as f64
        };
        let role = |role| {
            let of = |clocks: &BTreeMap<Role, Duration>| clocks.get(&role).copied().unwrap_or_default();
            each(of(&now), of(&self.members))
        };
        let resident = members.iter().map(|member| resident_bytes(member.pid)).sum::<Result<u64>>()?;
        Ok(Round {
            done,
            per_second: done as f64 / lasted.as_secs_f64(),
            p50_us: took.quantile_us(0.5),
            p99_us: took.quantile_us(0.99),
            client_us: each(client, self.client),
            broker_us: role(Role::Broker),
            server_us: role(Role::Server),
            // The last look, after which it was known to be quiet, is none of its work.
            afterwards_ms: u64::try_from(afterwards.saturating_sub(LOOK).as_millis())?,
            resident_bytes: resident,
            others_cores: others,
        })
    }

    fn others(&self, members: &BTreeMap<Role, Duration>) -> Result<f64> {
        let sum = |clocks: &BTreeMap<Role, Duration>| clocks.values().sum::<Duration>();
        let all = busy_time()?.saturating_sub(self.machine);
        let client = processor_time(std::process::id())?.saturating_sub(self.client);
        let ours = sum(members).saturating_sub(sum(&self.members)) + client;
        Ok(all.saturating_sub(ours).as_secs_f64() / self.began.elapsed().as_secs_f64())
    }
}

fn by_role(members: &[Member]) -> Result<BTreeMap<Role, Duration>> {
    let mut by_role = BTreeMap::new();
    for member in members {
        *by_role.entry(member.role).or_default() += processor_time(member.pid)?;
    }
    Ok(by_role)
}

/// Waits until the target's processes use next to nothing, or for so long that they never will.
///
/// # Errors
/// When a process of the target has ended.
pub async fn become_quiet(members: &[Member]) -> Result<()> {
    let began = Instant::now();
    let used = || -> Result<Duration> { Ok(by_role(members)?.values().sum()) };
    let mut before = used()?;
    while began.elapsed() < QUIET_WITHIN {
        tokio::time::sleep(LOOK).await;
        let now = used()?;
        if now.saturating_sub(before).as_secs_f64() <= QUIET * LOOK.as_secs_f64() {
            break;
        }
        before = now;
    }
    Ok(())
}

/// When workers stop.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    /// After this time.
    pub lasts: Duration,
    /// Or when so many things were begun.
    pub most: usize,
}

/// A closed loop: `workers` do `work`, each again as soon as its last is done; `work` is told how many were begun before.
///
/// # Errors
/// The first error of any worker, or when a process of the target has ended.
pub async fn closed_loop<F>(
    members: &[Member],
    workers: usize,
    until: Until,
    work: impl Fn(usize) -> F + 'static,
) -> Result<Round>
where
    F: Future<Output = Result<()>> + 'static,
{
    let took = Rc::<RefCell<Took>>::default();
    let clocks = Clocks::start(members)?;
    work_until(&clocks, workers, until, Rc::clone(&took), work).await?;
    let took = took.take();
    clocks.stop(members, took.count(), &took).await
}

/// The loop by itself, for who measures something else meanwhile.
///
/// # Errors
/// The first error of any worker, and when nothing was done.
pub async fn work_until<F>(
    clocks: &Clocks,
    workers: usize,
    until: Until,
    took: Rc<RefCell<Took>>,
    work: impl Fn(usize) -> F + 'static,
) -> Result<()>
where
    F: Future<Output = Result<()>> + 'static,
{
    let begun = Rc::new(Cell::new(0_usize));
    let work = Rc::new(work);
    let end = clocks.began() + until.lasts;
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let (took, begun, work) = (Rc::clone(&took), Rc::clone(&begun), Rc::clone(&work));
        tasks.spawn_local(async move {
            loop {
                let (began, number) = (Instant::now(), begun.get());
                if began >= end || number >= until.most {
                    return Ok(());
                }
                begun.set(number + 1);
                work(number).await?;
                took.borrow_mut().record(began.elapsed());
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        let worked: Result<()> = ended.context("a worker panicked")?;
        worked?;
    }
    anyhow::ensure!(took.borrow().count() > 0, "nothing was done within {:?}", until.lasts);
    Ok(())
}
