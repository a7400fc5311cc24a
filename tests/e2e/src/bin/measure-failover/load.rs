//! The constant load of an application, and the gaps in it.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_client::{Error, Executed, Kv};
use dormouse_runtime::Env;

/// The pause between one call and the next.
const PACE: Duration = Duration::from_millis(1);

const KEY: &str = "k";

/// Repeated calls of one kind to one subject, one after the other.
#[derive(Debug, Default)]
pub struct LoadLoop {
    last: Cell<Duration>,
    longest: Cell<Duration>,
    /// The number of successful calls since [`begin`](Self::begin).
    pub succeeded: Cell<u64>,
    /// The number of changes that ended as indeterminate.
    pub indeterminate: Cell<u64>,
    /// The number of calls that ended with another error.
    pub failed: Cell<u64>,
    /// The text of the last such error.
    pub last_error: RefCell<Option<String>>,
}

impl LoadLoop {
    /// Starts the measurement. The current gap began with the previous success.
    pub fn begin(&self) {
        self.longest.take();
        self.succeeded.take();
        self.indeterminate.take();
        self.failed.take();
        self.last_error.take();
    }

    /// Returns the longest time between two successes.
    pub fn longest(&self) -> Duration {
        self.longest.get()
    }

    fn success(&self, now: Duration) {
        let last = self.last.replace(now);
        // Before the first success there is no gap.
        if !last.is_zero() {
            self.longest.set(self.longest.get().max(now - last));
        }
        self.succeeded.set(self.succeeded.get() + 1);
    }

    fn failure(&self, error: &Error) {
        let count = if error.executed() == Executed::Unknown { &self.indeterminate } else { &self.failed };
        count.set(count.get() + 1);
        self.last_error.replace(Some(format!(
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
    pub writes: LoadLoop,
    /// The reads.
    pub reads: LoadLoop,
    acknowledged: Cell<u64>,
}

impl Subject {
    pub fn new(kv: Kv) -> Self {
        Self { kv, writes: LoadLoop::default(), reads: LoadLoop::default(), acknowledged: Cell::new(0) }
    }

    /// Runs until `stop` is set.
    ///
    /// # Errors
    /// If a read shows less than was acknowledged before it.
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
