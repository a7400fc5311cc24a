//! How what a [`Scenario`](crate::scenario::Scenario) names is done.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::task::JoinSet;

use crate::load::{Clocks, Round, Took, Until, closed_loop, work_until};
use crate::scenario::Deed;
use crate::target::{Running, Target};

/// Subjects that are written in turn have the numbers below; each use of others begins at a number of its own, so that
/// writes do not make grow what is read.
const GOT: usize = 1_000_000;
const READ: usize = 2_000_000;
const WATCHED: usize = 3_000_000;
const SLEEPING: usize = 4_000_000;
const CREATED: usize = 5_000_000;
/// How many subjects are created at a time.
const CREATED_AT_ONCE: usize = 64;
/// How long a given number of them may take.
const CREATED_WITHIN: Duration = Duration::from_secs(60);
/// How long watchers may take to hear of what was written.
const HEARD_WITHIN: Duration = Duration::from_secs(30);
/// How many messages of 128 bytes make a subject of about 100 kB.
const ASLEEP_MESSAGES: usize = 600;

fn message() -> Bytes {
    Bytes::from_static(&[b'x'; 128])
}

/// Makes what the rounds need. What an earlier scenario made at this target is there already.
///
/// # Errors
/// What the target says.
pub async fn prepare(deed: Deed, running: &Running) -> Result<()> {
    let target = &running.target;
    match deed {
        Deed::Set { subjects, in_flight, .. } => {
            create(running, 0..subjects).await?;
            target.expect_sets(in_flight, subjects).await
        }
        Deed::Get { .. } => create(running, GOT..GOT + 1).await.map(drop),
        Deed::GetAll { subjects, messages } => {
            fill(running, read_numbers(subjects, messages), messages).await
        }
        Deed::Watch { .. } => create(running, WATCHED..WATCHED + 1).await.map(drop),
        Deed::Wake { subjects } => fill(running, SLEEPING..SLEEPING + subjects, ASLEEP_MESSAGES).await,
        Deed::GetLarge { bytes } => target.put_large(bytes).await,
        Deed::Create { .. } | Deed::PutLarge { .. } => Ok(()),
    }
}

/// One round at one target. `number` is another one each time, so that what is created is new.
///
/// # Errors
/// What the target says.
pub async fn round(deed: Deed, running: &Running, number: usize, lasts: Duration) -> Result<Round> {
    let target = Rc::clone(&running.target);
    let members = target.members();
    let until = Until { lasts, most: usize::MAX };
    match deed {
        Deed::Set { bytes, in_flight, subjects } => {
            let value = Bytes::from(vec![b'x'; bytes]);
            let set = move |begun: usize| {
                let (target, value) = (Rc::clone(&target), value.clone());
                async move { target.set(begun % subjects, value).await }
            };
            closed_loop(&members, in_flight, until, set).await
        }
        Deed::Get { in_flight } => {
            let get = move |_| {
                let target = Rc::clone(&target);
                async move { target.get(GOT).await.map(drop) }
            };
            closed_loop(&members, in_flight, until, get).await
        }
        Deed::GetAll { subjects, messages } => {
            get_all(&*target, read_numbers(subjects, messages), messages, lasts).await
        }
        Deed::Watch { watchers, in_flight } => watch(&target, watchers, in_flight, until).await,
        Deed::Create { subjects } => {
            let (first, until) = match subjects {
                Some(subjects) => (CREATED, Until { lasts: CREATED_WITHIN, most: subjects }),
                None => (CREATED + (number + 1) * 1_000_000, until),
            };
            let create = move |begun| {
                let target = Rc::clone(&target);
                async move { target.create(first + begun).await }
            };
            closed_loop(&members, CREATED_AT_ONCE, until, create).await
        }
        Deed::PutLarge { bytes } => large(&*target, bytes, target.put_large(bytes)).await,
        Deed::GetLarge { bytes } => {
            let get = async {
                let size = target.get_large().await?;
                ensure!(size == bytes, "{size} bytes came back of {bytes}");
                Ok(())
            };
            large(&*target, bytes, get).await
        }
        Deed::Wake { subjects } => wake(&*target, SLEEPING..SLEEPING + subjects).await,
    }
}

/// Where the subjects of a `get_all` begin.
const fn read_numbers(subjects: usize, messages: usize) -> Range<usize> {
    let first = READ + messages + 1;
    first..first + subjects
}

/// Makes those that are not there yet. Returns them.
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

/// Makes subjects of so many messages, one of which each has from the start.
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
    let clocks = Clocks::start(&members)?;
    let (mut took, mut read) = (Took::default(), 0_u64);
    let mut numbers = numbers.cycle();
    while clocks.began().elapsed() < lasts {
        let number = numbers.next().context("no subjects")?;
        let asked = Instant::now();
        let found = target.get_all(number).await?;
        took.record(asked.elapsed());
        ensure!(found == messages, "{found} messages came back of {messages}");
        read += found as u64;
    }
    clocks.stop(&members, read, &took).await
}

async fn large(target: &dyn Target, bytes: u64, transfer: impl Future<Output = Result<()>>) -> Result<Round> {
    let members = target.members();
    let clocks = Clocks::start(&members)?;
    transfer.await?;
    let mut took = Took::default();
    took.record(clocks.began().elapsed());
    clocks.stop(&members, bytes, &took).await
}

async fn wake(target: &dyn Target, numbers: Range<usize>) -> Result<Round> {
    target.sleep().await?;
    let members = target.members();
    let clocks = Clocks::start(&members)?;
    let mut took = Took::default();
    for number in numbers {
        let asked = Instant::now();
        target.get(number).await?;
        took.record(asked.elapsed());
    }
    clocks.stop(&members, took.count(), &took).await
}

/// What the watchers of one round share with who writes.
struct Heard {
    /// When each message began to be written.
    sent: RefCell<Vec<Instant>>,
    took: RefCell<Took>,
    /// How many messages each watcher has heard.
    counts: Vec<Cell<usize>>,
}

async fn watch(target: &Rc<dyn Target>, watchers: usize, in_flight: usize, until: Until) -> Result<Round> {
    let members = target.members();
    let heard = Rc::new(Heard {
        sent: RefCell::default(),
        took: RefCell::default(),
        counts: vec![Cell::new(0); watchers],
    });
    let mut tasks = JoinSet::new();
    for watcher in 0..watchers {
        let mut messages = target.watch(WATCHED).await?;
        let heard = Rc::clone(&heard);
        tasks.spawn_local(async move {
            let count = &heard.counts[watcher];
            while let Some(message) = messages.next().await {
                message?;
                // Of several under way the answers may overtake each other; then this is right on average.
                let began = heard.sent.borrow().get(count.get()).copied();
                if let Some(began) = began {
                    heard.took.borrow_mut().record(began.elapsed());
                }
                count.set(count.get() + 1);
            }
            anyhow::bail!("the watch ended")
        });
    }
    let clocks = Clocks::start(&members)?;
    let (writer, begun) = (Rc::clone(target), Rc::clone(&heard));
    let write = move |_| {
        begun.sent.borrow_mut().push(Instant::now());
        let writer = Rc::clone(&writer);
        async move { writer.set(WATCHED, message()).await }
    };
    work_until(&clocks, in_flight, until, Rc::default(), write).await?;
    let written = heard.sent.borrow().len();
    let all_heard = async {
        while heard.counts.iter().any(|count| count.get() < written) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if let Some(ended) = tasks.try_join_next() {
                let ended: Result<()> = ended?;
                ended?;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(HEARD_WITHIN, all_heard).await.with_context(|| {
        let least = heard.counts.iter().map(Cell::get).min().unwrap_or(0);
        format!("of {written} messages one watcher heard {least}")
    })??;
    let took = heard.took.take();
    let round = clocks.stop(&members, (written * watchers) as u64, &took).await;
    tasks.shutdown().await;
    round
}
