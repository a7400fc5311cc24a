//! The polite tenant: a get and a set each 20 ms, at the default level of the fleet, and in some trials one call more.

use std::time::Duration;

use bytes::Bytes;
use dormouse_client::{Client, Kv, Subject};
use dormouse_runtime::Env;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryStreamExt};

/// The interval at which the polite tenant starts a get and a set.
const INTERVAL: Duration = Duration::from_millis(20);

/// The number of keys that it reads and writes in turn.
const KEYS: u64 = 16;

/// The largest number of its unanswered calls. Above it, the tenant starts no further call until one ends.
const MAX_IN_FLIGHT: usize = 1_000;

/// The number of dormant subjects of the tenant, and the number of intervals between two reads of such subjects.
const DORMANT: u64 = 50;
const DORMANT_EVERY: u64 = 10;

/// What the polite tenant does besides its get and its set: a call that the aggressor makes too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoliteExtra {
    /// Nothing.
    Nothing,
    /// A look-up of a subject that was never written, in each interval.
    LookUps,
    /// A get from a subject that is dormant at first, in every tenth interval.
    DormantReads,
    /// A read of all messages, in each interval.
    Pages,
}

/// The tenant: the user `bob`.
pub struct PoliteTenant {
    client: Client,
    store: Kv,
    extra: PoliteExtra,
    env: Env,
    started: u64,
}

/// The calls of one phase.
#[derive(Debug, Clone, Default)]
pub struct PoliteFigures {
    /// The durations of the calls that succeeded.
    took: Vec<Duration>,
    /// The calls that failed, each with its error.
    pub failures: Vec<String>,
}

impl PoliteFigures {
    /// Returns the number of calls that succeeded.
    #[must_use]
    pub fn succeeded(&self) -> usize {
        self.took.len()
    }

    /// Returns the duration that this share of the successful calls does not exceed, in hundredths; zero without calls.
    #[must_use]
    pub fn percentile(&self, hundredths: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        let last = took.len().saturating_sub(1);
        took.get((took.len() * hundredths / 100).min(last)).copied().unwrap_or_default()
    }
}

type Call = BoxFuture<'static, (Duration, Result<(), String>)>;

impl PoliteTenant {
    /// Creates the tenant and writes every key once, so that its subject is open.
    ///
    /// If the call is cancelled, some keys may exist.
    ///
    /// # Errors
    /// If a write fails.
    pub async fn new(client: Client, extra: PoliteExtra, env: Env) -> anyhow::Result<Self> {
        let store = client.kv("user.bob.polite")?;
        for number in 0..KEYS {
            store.put(key(number), value(number)).await?;
        }
        Ok(Self { client, store, extra, env, started: 0 })
    }

    /// Writes the subjects that [`PoliteExtra::DormantReads`] reads. They become dormant when the server restarts.
    ///
    /// If the call is cancelled, some subjects may exist.
    ///
    /// # Errors
    /// If a write fails.
    pub async fn create_dormant(client: &Client) -> anyhow::Result<()> {
        for number in 0..DORMANT {
            client.kv(&dormant(number))?.put(key(0), value(number)).await?;
        }
        Ok(())
    }

    /// Starts a get and a set each 20 ms, until `ends` returns true for the number of intervals so far. Returns when every
    /// call has ended.
    ///
    /// If the call is cancelled, sets may have been executed.
    pub async fn work(&mut self, mut ends: impl FnMut(u64) -> bool) -> PoliteFigures {
        let mut figures = PoliteFigures::default();
        let mut calls: FuturesUnordered<Call> = FuturesUnordered::new();
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut intervals = 0;
        while !ends(intervals) || !calls.is_empty() {
            let starts = !ends(intervals) && calls.len() < MAX_IN_FLIGHT;
            tokio::select! {
                biased;
                Some((took, outcome)) = calls.next() => match outcome {
                    Ok(()) => figures.took.push(took),
                    Err(failure) => figures.failures.push(failure),
                },
                _ = ticks.tick(), if starts => {
                    intervals += 1;
                    self.started += 1;
                    calls.push(self.get(&self.store, self.started));
                    calls.push(self.set(self.started));
                    calls.extend(self.extra(self.started));
                }
            }
        }
        figures
    }

    fn extra(&self, number: u64) -> Option<Call> {
        match self.extra {
            PoliteExtra::Nothing => None,
            PoliteExtra::LookUps => {
                let (client, env) = (self.client.clone(), self.env.clone());
                Some(Box::pin(async move {
                    let began = env.boot();
                    let subject =
                        Subject::new(&format!("user.bob.new.{number}")).expect("a valid subject name");
                    let outcome = client.locate(&subject).await;
                    let outcome = outcome.map(drop).map_err(|error| format!("look-up {number}: {error}"));
                    (env.boot().saturating_sub(began), outcome)
                }))
            }
            PoliteExtra::DormantReads if number.is_multiple_of(DORMANT_EVERY) => {
                let store = self.client.kv(&dormant(number / DORMANT_EVERY % DORMANT));
                Some(self.get(&store.expect("a valid subject name"), 0))
            }
            PoliteExtra::DormantReads => None,
            PoliteExtra::Pages => Some(self.read_all(number)),
        }
    }

    fn read_all(&self, number: u64) -> Call {
        let (store, env) = (self.store.clone(), self.env.clone());
        Box::pin(async move {
            let began = env.boot();
            let entries: Result<Vec<_>, _> = store.entries("").try_collect().await;
            let outcome = match entries.map(|entries| entries.len() as u64) {
                Ok(KEYS) => Ok(()),
                Ok(found) => Err(format!("get_all {number}: {found} of {KEYS} messages")),
                Err(error) => Err(format!("get_all {number}: {error}")),
            };
            (env.boot().saturating_sub(began), outcome)
        })
    }

    fn get(&self, store: &Kv, number: u64) -> Call {
        let (store, env) = (store.clone(), self.env.clone());
        Box::pin(async move {
            let began = env.boot();
            let outcome = match store.get(key(number)).await {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(format!("get {number}: an acknowledged message is missing")),
                Err(error) => Err(format!("get {number}: {error}")),
            };
            (env.boot().saturating_sub(began), outcome)
        })
    }

    fn set(&self, number: u64) -> Call {
        let env = self.env.clone();
        let began = env.boot();
        let set = self.store.put(key(number), value(number));
        Box::pin(async move {
            let outcome = set.await.map(drop).map_err(|error| format!("set {number}: {error}"));
            (env.boot().saturating_sub(began), outcome)
        })
    }
}

fn dormant(number: u64) -> String {
    format!("user.bob.dormant.{number}")
}

fn key(number: u64) -> String {
    format!("k{}", number % KEYS)
}

fn value(number: u64) -> Bytes {
    let mut value = number.to_string().into_bytes();
    value.resize(128, b'.');
    value.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A percentile is a duration of the calls; without calls it is zero.
    #[test]
    fn polite_percentile_is_a_duration_of_the_calls() {
        let figures = |took: Vec<u64>| PoliteFigures {
            took: took.into_iter().map(Duration::from_millis).collect(),
            failures: Vec::new(),
        };
        assert_eq!(figures(vec![]).percentile(99), Duration::ZERO);
        assert_eq!(figures(vec![7]).percentile(99), Duration::from_millis(7));
        let hundred = figures((1..=100).rev().collect());
        assert_eq!(hundred.percentile(50), Duration::from_millis(51));
        assert_eq!(hundred.percentile(99), Duration::from_millis(100));
    }
}
