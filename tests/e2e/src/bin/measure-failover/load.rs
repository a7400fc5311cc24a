//! What an application does all the time, and for how long it could not.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_client::{Error, Happened, Kv};
use dormouse_runtime::Env;

/// The pause between one call and the next.
const PACE: Duration = Duration::from_millis(1);

const KEY: &str = "k";

/// One kind of call to one subject, one after the other.
#[derive(Debug, Default)]
pub struct Lane {
    last: Cell<Duration>,
    longest: Cell<Duration>,
    /// How many succeeded since [`begin`](Self::begin).
    pub succeeded: Cell<u64>,
    /// How many changes ended without a word on whether they took effect.
    pub in_doubt: Cell<u64>,
    /// How many ended in another error.
    pub failed: Cell<u64>,
    /// What the last of them said.
    pub said: RefCell<Option<String>>,
}

impl Lane {
    /// From here on it counts. The gap that is running began with the success before.
    pub fn begin(&self) {
        self.longest.take();
        self.succeeded.take();
        self.in_doubt.take();
        self.failed.take();
        self.said.take();
    }

    /// The longest time between two successes.
    pub fn longest(&self) -> Duration {
        self.longest.get()
    }

    fn success(&self, now: Duration) {
        let last = self.last.replace(now);
        // Before the first there is no gap.
        if !last.is_zero() {
            self.longest.set(self.longest.get().max(now - last));
        }
        self.succeeded.set(self.succeeded.get() + 1);
    }

    fn failure(&self, error: &Error) {
        let count = if error.happened() == Happened::Unknown { &self.in_doubt } else { &self.failed };
        count.set(count.get() + 1);
        self.said.replace(Some(format!(
            "{error}: {:?}",
            std::error::Error::source(error).map(ToString::to_string)
        )));
    }
}

/// A subject that is written and read all the time, each by one caller.
#[derive(Debug)]
pub struct Subject {
    kv: Kv,
    /// The writes.
    pub writes: Lane,
    /// The reads.
    pub reads: Lane,
    acknowledged: Cell<u64>,
}

impl Subject {
    pub fn new(kv: Kv) -> Self {
        Self { kv, writes: Lane::default(), reads: Lane::default(), acknowledged: Cell::new(0) }
    }

    /// Goes on until told to stop.
    ///
    /// # Errors
    /// When a read shows less than was acknowledged before it.
    pub async fn run(&self, env: &Env, stop: &Cell<bool>) -> anyhow::Result<()> {
        futures::try_join!(self.write(env, stop), self.read(env, stop)).map(drop)
    }

    async fn write(&self, env: &Env, stop: &Cell<bool>) -> anyhow::Result<()> {
        for number in 1_u64.. {
            if stop.get() {
                break;
            }
            match self.kv.put(KEY, number.to_string()).await {
                Ok(_) => {
                    self.acknowledged.set(number);
                    self.writes.success(env.boot());
                }
                Err(error) => self.writes.failure(&error),
            }
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }

    async fn read(&self, env: &Env, stop: &Cell<bool>) -> anyhow::Result<()> {
        while !stop.get() {
            let at_least = self.acknowledged.get();
            match self.kv.get(KEY).await {
                Ok(found) => {
                    let number = match &found {
                        Some(value) => std::str::from_utf8(value)?.parse().context("a number was written")?,
                        None => 0,
                    };
                    ensure!(number >= at_least, "{number} was read after {at_least} had been acknowledged");
                    self.reads.success(env.boot());
                }
                Err(error) => self.reads.failure(&error),
            }
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }
}
