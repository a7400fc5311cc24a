//! The implementation of the operations of a [`Scenario`](crate::scenario::Scenario).

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::task::JoinSet;

use crate::load::{CpuClocks, LatencyHistogram, Round, Until, closed_loop, work_until};
use crate::scenario::Operation;
use crate::target::{Running, Target};

/// Subjects that are written in turn have the numbers below these. Each other operation starts at a number of its own,
/// so that writes do not enlarge the subjects that are read.
const GET_BASE: usize = 1_000_000;
const READ_BASE: usize = 2_000_000;
const WATCH_BASE: usize = 3_000_000;
const OPEN_BASE: usize = 4_000_000;
const CREATE_BASE: usize = 5_000_000;
/// The number of subjects that are created in parallel.
const CREATED_AT_ONCE: usize = 64;
/// The time limit for a given number of them.
const CREATED_WITHIN: Duration = Duration::from_secs(60);
/// The time limit of the watchers to receive the written messages.
const RECEIVED_WITHIN: Duration = Duration::from_secs(30);
/// The number of messages of 128 bytes in a subject of about 100 kB.
const DORMANT_MESSAGES: usize = 600;

fn message() -> Bytes {
    Bytes::from_static(&[b'x'; 128])
}

/// Prepares the subjects of the rounds. Subjects of an earlier scenario on this target exist already.
///
/// # Errors
/// The target's errors.
pub async fn prepare(operation: Operation, running: &Running) -> Result<()> {
    let target = &running.target;
    match operation {
        Operation::Set { subjects, in_flight, .. } => {
            create(running, 0..subjects).await?;
            target.expect_sets(in_flight, subjects).await
        }
        Operation::Get { .. } => create(running, GET_BASE..GET_BASE + 1).await.map(drop),
        Operation::GetAll { subjects, messages } => {
            fill(running, read_numbers(subjects, messages), messages).await
        }
        Operation::Watch { .. } => create(running, WATCH_BASE..WATCH_BASE + 1).await.map(drop),
        Operation::Open { subjects } => {
            fill(running, OPEN_BASE..OPEN_BASE + subjects, DORMANT_MESSAGES).await
        }
        Operation::GetLarge { bytes } => target.put_large(bytes).await,
        Operation::Create { .. } | Operation::PutLarge { .. } => Ok(()),
    }
}

/// Runs one round on one target. `number` differs in each round, so that created subjects are new.
///
/// # Errors
/// The target's errors.
pub async fn round(operation: Operation, running: &Running, number: usize, lasts: Duration) -> Result<Round> {
    let target = Rc::clone(&running.target);
    let members = target.members();
    let until = Until { lasts, most: usize::MAX };
    match operation {
        Operation::Set { bytes, in_flight, subjects } => {
            let value = Bytes::from(vec![b'x'; bytes]);
            let set = move |begun: usize| {
                let (target, value) = (Rc::clone(&target), value.clone());
                async move { target.set(begun % subjects, value).await }
            };
            closed_loop(&members, in_flight, until, set).await
        }
        Operation::Get { in_flight } => {
            let get = move |_| {
                let target = Rc::clone(&target);
                async move { target.get(GET_BASE).await.map(drop) }
            };
            closed_loop(&members, in_flight, until, get).await
        }
        Operation::GetAll { subjects, messages } => {
            get_all(&*target, read_numbers(subjects, messages), messages, lasts).await
        }
        Operation::Watch { watchers, in_flight } => watch(&target, watchers, in_flight, until).await,
        Operation::Create { subjects } => {
            let (first, until) = match subjects {
                Some(subjects) => (CREATE_BASE, Until { lasts: CREATED_WITHIN, most: subjects }),
                None => (CREATE_BASE + (number + 1) * 1_000_000, until),
            };
            let create = move |begun| {
                let target = Rc::clone(&target);
                async move { target.create(first + begun).await }
            };
            closed_loop(&members, CREATED_AT_ONCE, until, create).await
        }
        Operation::PutLarge { bytes } => large(&*target, bytes, target.put_large(bytes)).await,
        Operation::GetLarge { bytes } => {
            let get = async {
                let size = target.get_large().await?;
                ensure!(size == bytes, "{size} of {bytes} bytes were read");
                Ok(())
            };
            large(&*target, bytes, get).await
        }
        Operation::Open { subjects } => open(&*target, OPEN_BASE..OPEN_BASE + subjects).await,
    }
}

/// Returns the numbers of the subjects of a `get_all`.
const fn read_numbers(subjects: usize, messages: usize) -> Range<usize> {
    let first = READ_BASE + messages + 1;
    first..first + subjects
}

/// Creates the missing subjects. Returns them.
async fn create(running: &Running, numbers: Range<usize>) -> Result<Vec<usize>> {
    let new: Vec<usize> = numbers.filter(|number| running.is_new(*number)).collect();
    let mut created = futures::stream::iter(new.clone())
        .map(|number| {
            let target = Rc::clone(&running.target);
            async move { target.create(number).await }
        })
        .buffer_unordered(CREATED_AT_ONCE);
    while created.try_next().await?.is_some() {}
    Ok(new)
}

/// Creates subjects with `messages` messages each, the first of which is from the creation.
async fn fill(running: &Running, numbers: Range<usize>, messages: usize) -> Result<()> {
    let new = create(running, numbers).await?;
    let mut filled = futures::stream::iter(new)
        .map(|number| {
            let target = Rc::clone(&running.target);
            async move { target.fill(number, messages - 1, message()).await }
        })
        .buffer_unordered(8);
    while filled.try_next().await?.is_some() {}
    Ok(())
}

async fn get_all(
    target: &dyn Target,
    numbers: Range<usize>,
    messages: usize,
    lasts: Duration,
) -> Result<Round> {
    let members = target.members();
    let clocks = CpuClocks::start(&members)?;
    let (mut took, mut read) = (LatencyHistogram::default(), 0_u64);
    let mut numbers = numbers.cycle();
    while clocks.began().elapsed() < lasts {
        let number = numbers.next().context("no subjects")?;
        let asked = Instant::now();
        let found = target.get_all(number).await?;
        took.record(asked.elapsed());
        ensure!(found == messages, "{found} of {messages} messages were read");
        read += found as u64;
    }
    clocks.stop(&members, read, &took).await
}

async fn large(target: &dyn Target, bytes: u64, transfer: impl Future<Output = Result<()>>) -> Result<Round> {
    let members = target.members();
    let clocks = CpuClocks::start(&members)?;
    transfer.await?;
    let mut took = LatencyHistogram::default();
    took.record(clocks.began().elapsed());
    clocks.stop(&members, bytes, &took).await
}

async fn open(target: &dyn Target, numbers: Range<usize>) -> Result<Round> {
    target.restart_empty().await?;
    let members = target.members();
    let clocks = CpuClocks::start(&members)?;
    let mut took = LatencyHistogram::default();
    for number in numbers {
        let asked = Instant::now();
        target.get(number).await?;
        took.record(asked.elapsed());
    }
    clocks.stop(&members, took.count(), &took).await
}

/// The shared state of the watchers and the writer of one round.
struct WatchProgress {
    /// The start time of the write of each message.
    sent: RefCell<Vec<Instant>>,
    took: RefCell<LatencyHistogram>,
    /// The number of messages that each watcher has received.
    counts: Vec<Cell<usize>>,
}

async fn watch(target: &Rc<dyn Target>, watchers: usize, in_flight: usize, until: Until) -> Result<Round> {
    let members = target.members();
    let received = Rc::new(WatchProgress {
        sent: RefCell::default(),
        took: RefCell::default(),
        counts: vec![Cell::new(0); watchers],
    });
    let mut tasks = JoinSet::new();
    for watcher in 0..watchers {
        let mut messages = target.watch(WATCH_BASE).await?;
        let received = Rc::clone(&received);
        tasks.spawn_local(async move {
            let count = &received.counts[watcher];
            while let Some(message) = messages.next().await {
                message?;
                // If several messages are in flight, their order may change; the result is then right on average.
                let began = received.sent.borrow().get(count.get()).copied();
                if let Some(began) = began {
                    received.took.borrow_mut().record(began.elapsed());
                }
                count.set(count.get() + 1);
            }
            anyhow::bail!("the watch ended")
        });
    }
    let clocks = CpuClocks::start(&members)?;
    let (writer, begun) = (Rc::clone(target), Rc::clone(&received));
    let write = move |_| {
        begun.sent.borrow_mut().push(Instant::now());
        let writer = Rc::clone(&writer);
        async move { writer.set(WATCH_BASE, message()).await }
    };
    work_until(&clocks, in_flight, until, Rc::default(), write).await?;
    let written = received.sent.borrow().len();
    let all_received = async {
        while received.counts.iter().any(|count| count.get() < written) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if let Some(ended) = tasks.try_join_next() {
                let ended: Result<()> = ended?;
                ended?;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(RECEIVED_WITHIN, all_received).await.with_context(|| {
        let least = received.counts.iter().map(Cell::get).min().unwrap_or(0);
        format!("one watcher received {least} of {written} messages")
    })??;
    let took = received.took.take();
    let round = clocks.stop(&members, (written * watchers) as u64, &took).await;
    tasks.shutdown().await;
    round
}
