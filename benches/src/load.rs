//! The measurement of one round: the operations, their durations, and the resources of the processes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::machine::{busy_time, processor_time, resident_bytes};
use crate::target::{Role, TargetProcess};

/// The longest duration that is distinguished: a minute.
const LONGEST_NS: u64 = 60_000_000_000;
/// The interval of the idle checks of a target, and the time limit until it is idle.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(200);
const IDLE_WITHIN: Duration = Duration::from_secs(10);
/// Below this share of a core, a target counts as idle.
const IDLE_CORES: f64 = 0.05;

/// The result of one round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Round {
    /// The number of operations.
    pub done: u64,
    /// Operations per second.
    pub per_second: f64,
    /// The median duration, in microseconds.
    pub p50_us: f64,
    /// The 99th percentile of the durations, in microseconds.
    pub p99_us: f64,
    /// Processor time of this process per operation, in microseconds.
    pub client_us: f64,
    /// The same for the processes that carry messages, until the target is idle.
    pub broker_us: f64,
    /// The same for the processes that store messages.
    pub server_us: f64,
    /// The time from the last reply until the target is idle, in milliseconds.
    pub afterwards_ms: u64,
    /// The resident memory of the target's processes after the round, in bytes.
    pub resident_bytes: u64,
    /// The cores that all other processes used during the round: unrelated processes, the kernel, and the other
    /// targets.
    pub others_cores: f64,
}

/// A histogram of durations.
pub struct LatencyHistogram(Histogram<u64>);

impl Default for LatencyHistogram {
    /// Creates an empty histogram.
    fn default() -> Self {
        // The bounds are constants that the library accepts.
        Self(Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("a histogram's bounds"))
    }
}

impl LatencyHistogram {
    /// Adds a duration.
    pub fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(LONGEST_NS).max(1));
    }

    /// Returns the number of durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    fn quantile_us(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// The processor times at the start of a round.
pub struct CpuClocks {
    began: Instant,
    client: Duration,
    members: BTreeMap<Role, Duration>,
    machine: Duration,
}

impl CpuClocks {
    /// Reads all clocks at the start of a round.
    ///
    /// # Errors
    /// If a process of the target has ended.
    pub fn start(members: &[TargetProcess]) -> Result<Self> {
        let (members, machine) = (by_role(members)?, busy_time()?);
        Ok(Self { began: Instant::now(), client: processor_time(std::process::id())?, members, machine })
    }

    /// Returns the start of the round.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Ends a round of `done` operations. Waits until the target is idle, so that its later work counts too, and does
    /// not fall into the round of the next target.
    ///
    /// # Errors
    /// If a process of the target has ended.
    pub async fn stop(self, members: &[TargetProcess], done: u64, took: &LatencyHistogram) -> Result<Round> {
        let lasted = self.began.elapsed();
        let client = processor_time(std::process::id())?;
        let over = Instant::now();
        wait_until_idle(members).await?;
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
            // The last interval, after which the target was known to be idle, is not part of its work.
            afterwards_ms: u64::try_from(afterwards.saturating_sub(IDLE_CHECK_INTERVAL).as_millis())?,
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

fn by_role(members: &[TargetProcess]) -> Result<BTreeMap<Role, Duration>> {
    let mut by_role = BTreeMap::new();
    for member in members {
        *by_role.entry(member.role).or_default() += processor_time(member.pid)?;
    }
    Ok(by_role)
}

/// Waits until the target's processes use almost no processor time, or the time limit is reached.
///
/// # Errors
/// If a process of the target has ended.
pub async fn wait_until_idle(members: &[TargetProcess]) -> Result<()> {
    let began = Instant::now();
    let used = || -> Result<Duration> { Ok(by_role(members)?.values().sum()) };
    let mut before = used()?;
    while began.elapsed() < IDLE_WITHIN {
        tokio::time::sleep(IDLE_CHECK_INTERVAL).await;
        let now = used()?;
        if now.saturating_sub(before).as_secs_f64() <= IDLE_CORES * IDLE_CHECK_INTERVAL.as_secs_f64() {
            break;
        }
        before = now;
    }
    Ok(())
}

/// The condition for the end of a loop.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    /// The end of this time.
    pub lasts: Duration,
    /// Or the start of this number of operations.
    pub most: usize,
}

/// Runs a closed loop: `workers` run `work` repeatedly; `work` gets the number of operations that were started before.
///
/// # Errors
/// The first error of any worker, or the end of a process of the target.
pub async fn closed_loop<F>(
    members: &[TargetProcess],
    workers: usize,
    until: Until,
    work: impl Fn(usize) -> F + 'static,
) -> Result<Round>
where
    F: Future<Output = Result<()>> + 'static,
{
    let took = Rc::<RefCell<LatencyHistogram>>::default();
    let clocks = CpuClocks::start(members)?;
    work_until(&clocks, workers, until, Rc::clone(&took), work).await?;
    let took = took.take();
    clocks.stop(members, took.count(), &took).await
}

/// Runs the loop without a measurement of resources, for callers that measure something else.
///
/// # Errors
/// The first error of any worker, or if no operation was done.
pub async fn work_until<F>(
    clocks: &CpuClocks,
    workers: usize,
    until: Until,
    took: Rc<RefCell<LatencyHistogram>>,
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
    anyhow::ensure!(took.borrow().count() > 0, "no operation was done within {:?}", until.lasts);
    Ok(())
}
