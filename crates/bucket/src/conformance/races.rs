//! Repeated races of creates of one key.
//!
//! Some stores check the condition of a create and write in two steps. Then a race has several winners only if its
//! creates meet between the two steps. If one race shows that with probability p, n races miss it with probability
//! (1 - p)^n. The worst store measured so far, an S3 simulator with threads, has p = 1/15.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use dormouse_format::keys::BucketKey;
use dormouse_runtime::Env;
use futures::StreamExt;
use futures::stream;

use super::{Bucket, BucketError, ConformanceCheck, ConformanceError};

/// Number of races: (14/15)^80 = 0.4 %, so a store with p = 1/15 is found in more than 99 of 100 cases.
const RACES: u32 = 80;

/// Races at the same time: 64 requests in flight.
const RACES_AT_ONCE: usize = 4;

/// After this time the remaining races are left out.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The object that remembers a complete probe of this version: another number of races, or another kind, needs another
/// key.
const MARKER: &str = "probe/races-1";

/// Time between two samples of a running process.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(3_600);

/// How a probe without a violation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RaceProbe {
    /// An earlier probe of this bucket was complete, so none was made.
    Remembered,
    /// All races had one winner. The bucket remembers it.
    Complete,
    /// The time limit passed, or the store did not answer. The next probe repeats all of them.
    Incomplete {
        /// Races that had one winner.
        races: u32,
    },
}

/// Lets 16 creates race for one key, 80 times, unless the bucket remembers that an earlier probe was complete. Finds a
/// store that lets two creates win in one race of 15 with a probability of more than 99 %. It proves nothing about rarer
/// violations.
///
/// It makes about 1,450 requests, 1,281 of them creates, under `probe/<ulid>/`, and takes at most 10 seconds. It
/// removes its objects except the marker `probe/races-1`. If the time limit ends it, up to 4 objects may remain;
/// nothing uses them. Probes at the same time do not affect each other.
///
/// Cancelling the call leaves up to 4 objects in the bucket; nothing uses them.
///
/// # Errors
/// [`ConformanceError`], which names the violation; also if the store refuses a create, read or delete.
pub async fn probe_races(bucket: &dyn Bucket, env: &Env) -> Result<RaceProbe, ConformanceError> {
    let marker = marker();
    match bucket.get(&marker).await {
        Ok(Some(_)) => return Ok(RaceProbe::Remembered),
        Ok(None) => {}
        // The races repeat what fails.
        Err(error) if error.is_unknown() => {}
        Err(error) => return Err(error.into()),
    }
    let races = race_repeatedly(bucket, env).await?;
    if races < RACES {
        return Ok(RaceProbe::Incomplete { races });
    }
    let text = format!("dormouse: each of {RACES} races of creates had one winner\n");
    if let Err(error) = bucket.create(&marker, Bytes::from(text)).await {
        tracing::debug!(%error, "result of race probe not remembered");
    }
    Ok(RaceProbe::Complete)
}

/// Repeats one race each hour, because a store may change while a process runs. Returns at the first violation; then the
/// bucket forgets that it was probed, so the next [probe](probe_races) repeats all races.
///
/// A sample makes 18 requests, 16 of them creates. One that gets no answer finds nothing. Samples prove no more than a
/// probe does: a store with a rare violation may pass them for days.
///
/// Cancelling the call leaves up to one object in the bucket; nothing uses it.
pub async fn sample_races(bucket: &dyn Bucket, env: &Env) -> ConformanceError {
    loop {
        tokio::time::sleep(SAMPLE_INTERVAL).await;
        match race(bucket, env).await {
            Ok(()) => {}
            Err(ConformanceError::Failed(error)) => log_failure(&error),
            Err(violation) => {
                if let Err(error) = bucket.delete(&marker()).await {
                    tracing::debug!(%error, "result of race probe not forgotten");
                }
                return violation;
            }
        }
    }
}

fn marker() -> BucketKey {
    BucketKey::new(MARKER).expect("the marker is a legal key")
}

/// Returns the number of races with one winner.
async fn race_repeatedly(bucket: &dyn Bucket, env: &Env) -> Result<u32, ConformanceError> {
    let races = stream::iter(0..RACES).map(|_| race(bucket, env)).buffer_unordered(RACES_AT_ONCE);
    let mut races = pin!(races.take_until(tokio::time::sleep(TIME_LIMIT)));
    let mut passed = 0;
    while let Some(result) = races.next().await {
        match result {
            Ok(()) => passed += 1,
            Err(ConformanceError::Failed(error)) if error.is_unknown() => log_failure(&error),
            Err(error) => return Err(error),
        }
    }
    Ok(passed)
}

fn log_failure(error: &BucketError) {
    tracing::debug!(%error, "race of creates without an answer");
}

async fn race(bucket: &dyn Bucket, env: &Env) -> Result<(), ConformanceError> {
    let mut check = ConformanceCheck::new(bucket, env);
    let result = check.one_of_many_wins().await;
    let cleaned = check.clean().await;
    result.and(cleaned)
}
