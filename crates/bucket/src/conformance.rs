//! The conformance check: whether a store keeps the contract of [`Bucket`]. Some stores with an S3 interface silently
//! ignore the condition of a conditional create; with them, two servers could own one subject. So a server runs this
//! check before it serves.

mod races;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dormouse_format::keys::{BucketKey, BucketPrefix};
use dormouse_runtime::Env;
use futures::future::join_all;

use super::{Backoff, Bucket, BucketError, Created};

pub use races::{RaceProbe, probe_races, sample_races};

/// Number of concurrent creates of one key.
const RACERS: usize = 16;

/// Number of further objects that a listing must show.
const LISTED_OBJECTS: usize = 4;

/// Why a bucket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConformanceError {
    /// A call to the bucket failed.
    #[error("the bucket cannot be used")]
    Failed(#[from] BucketError),
    /// A create of an existing key succeeded.
    #[error(
        "the bucket cannot be used: a second create of {key} succeeded although the object existed: the store ignores the condition of a conditional create"
    )]
    ConditionIgnored {
        /// The object.
        key: BucketKey,
    },
    /// Several concurrent creates of one key succeeded.
    #[error(
        "the bucket cannot be used: {winners} of {RACERS} concurrent creates of {key} succeeded, and at most one may: the store checks the condition and writes in two steps"
    )]
    MultipleWinners {
        /// The object.
        key: BucketKey,
        /// How many succeeded.
        winners: usize,
    },
    /// All concurrent creates of one key were refused, and there is no object.
    #[error("the bucket cannot be used: none of {RACERS} concurrent creates of {key} succeeded")]
    NoWinner {
        /// The object.
        key: BucketKey,
    },
    /// A read does not return the written bytes.
    #[error("the bucket cannot be used: reading {key} {found}: the store does not return the written object")]
    StaleRead {
        /// The object.
        key: BucketKey,
        /// Description of the wrong result.
        found: &'static str,
    },
    /// A listing lacks an object.
    #[error(
        "the bucket cannot be used: a listing does not show {key}, which was created before it: listings are incomplete"
    )]
    IncompleteList {
        /// A missing object.
        key: BucketKey,
    },
    /// A listing shows an object that must not be there.
    #[error(
        "the bucket cannot be used: a listing shows {key}, which {why}: listings are out of date or unsorted"
    )]
    StaleList {
        /// The object.
        key: BucketKey,
        /// Why it must not be there.
        why: &'static str,
    },
}

/// Checks whether `bucket` keeps its contract, with a few objects under `probe/<ulid>/`, which it removes afterwards.
/// Takes about ten round trips, and repeats a call that fails without a definite answer for 10 seconds.
///
/// Of creates at the same time it sees one race only; [`probe_races`] repeats it.
///
/// Cancelling the call leaves those objects in the bucket; nothing uses them.
///
/// # Errors
/// [`ConformanceError`], which names the violation.
pub async fn probe(bucket: &dyn Bucket, env: &Env) -> Result<(), ConformanceError> {
    let mut check = ConformanceCheck::new(bucket, env);
    let result = check.run().await;
    if result.is_err() {
        // The first error is reported; a store that breaks its contract may refuse the clean-up too.
        check.clean().await.ok();
    }
    result
}

struct ConformanceCheck<'a> {
    bucket: &'a dyn Bucket,
    folder: String,
    created: BTreeSet<BucketKey>,
    env: &'a Env,
    /// Whether a create was repeated. Then an earlier copy of it may arrive later, and create a deleted object again.
    has_repeated_create: AtomicBool,
}

impl<'a> ConformanceCheck<'a> {
    fn new(bucket: &'a dyn Bucket, env: &'a Env) -> Self {
        let (folder, created) = (format!("probe/{}/", env.ulid()), BTreeSet::new());
        Self { bucket, folder, created, env, has_repeated_create: AtomicBool::new(false) }
    }

    async fn run(&mut self) -> Result<(), ConformanceError> {
        self.second_create_is_refused().await?;
        self.one_of_many_wins().await?;
        self.listings_are_complete().await?;
        self.clean().await?;
        self.deleted_is_gone().await
    }

    fn key(&mut self, name: &str) -> BucketKey {
        let key = BucketKey::new(&format!("{}{name}", self.folder)).expect("a probe has legal keys");
        self.created.insert(key.clone());
        key
    }

    /// Unique for each call: the folder is new for each check, and `writer` differs.
    fn bytes(&self, key: &BucketKey, writer: usize) -> Bytes {
        format!("dormouse looks whether this bucket keeps its contract: {key}, writer {writer}\n").into()
    }

    /// Repeats a call that fails without a definite answer, because a busy store can still conform. No other object depends
    /// on these calls, so repeating them is safe.
    async fn repeat<T, Answer>(&self, call: impl Fn() -> Answer) -> Result<T, BucketError>
    where
        Answer: Future<Output = Result<T, BucketError>>,
    {
        let mut backoff = None;
        loop {
            let error = match call().await {
                Err(error) if error.is_unknown() => error,
                answer => return answer,
            };
            let now = self.env.boot();
            let Some(pause) = backoff.get_or_insert(Backoff::from(now)).pause(now) else { return Err(error) };
            tracing::debug!(%error, ?pause, "conformance check call failed, retrying");
            tokio::time::sleep(pause).await;
        }
    }

    async fn create(&self, key: &BucketKey, bytes: &Bytes) -> Result<Created, BucketError> {
        let is_first = AtomicBool::new(true);
        self.repeat(|| {
            if !is_first.swap(false, Ordering::Relaxed) {
                self.has_repeated_create.store(true, Ordering::Relaxed);
            }
            self.bucket.create(key, bytes.clone())
        })
        .await
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        self.repeat(|| self.bucket.get(key)).await
    }

    async fn expect(&self, key: &BucketKey, expected: &Bytes) -> Result<(), ConformanceError> {
        let found = match self.get(key).await? {
            Some(found) if found == expected => return Ok(()),
            Some(_) => "returned other bytes",
            None => "returned nothing",
        };
        Err(ConformanceError::StaleRead { key: key.clone(), found })
    }

    async fn second_create_is_refused(&mut self) -> Result<(), ConformanceError> {
        let key = self.key("twice");
        let (first, second) = (self.bytes(&key, 1), self.bytes(&key, 2));
        // `Exists` for a fresh key: the answer to an earlier attempt was lost.
        let (Created::New | Created::Exists) = self.create(&key, &first).await?;
        self.expect(&key, &first).await?;
        match self.create(&key, &second).await? {
            Created::New => Err(ConformanceError::ConditionIgnored { key }),
            Created::Exists => self.expect(&key, &first).await,
        }
    }

    async fn one_of_many_wins(&mut self) -> Result<(), ConformanceError> {
        let key = self.key("race");
        let offers: Vec<Bytes> = (0..RACERS).map(|writer| self.bytes(&key, writer)).collect();
        let answers = join_all(offers.iter().map(|offer| self.create(&key, offer))).await;
        let mut winners = Vec::new();
        for (offer, answer) in offers.iter().zip(answers) {
            if answer? == Created::New {
                winners.push(offer);
            }
        }
        match winners[..] {
            [winner] => self.expect(&key, winner).await,
            [] => match self.get(&key).await? {
                // The winner's answer was lost.
                Some(found) if offers.contains(&found) => Ok(()),
                Some(_) => {
                    Err(ConformanceError::StaleRead { key, found: "returned bytes that were never written" })
                }
                None => Err(ConformanceError::NoWinner { key }),
            },
            _ => Err(ConformanceError::MultipleWinners { key, winners: winners.len() }),
        }
    }

    async fn listings_are_complete(&mut self) -> Result<(), ConformanceError> {
        for number in 0..LISTED_OBJECTS {
            let key = self.key(&format!("listed/{number:012}"));
            let bytes = self.bytes(&key, number);
            self.create(&key, &bytes).await?;
            self.expect(&key, &bytes).await?;
            self.expect_listed().await?;
        }
        Ok(())
    }

    async fn expect_listed(&self) -> Result<(), ConformanceError> {
        let prefix = self.prefix();
        let listed = self.repeat(|| self.bucket.list(&prefix)).await?;
        let listed: Vec<BucketKey> = listed.into_iter().map(|entry| entry.key).collect();
        if let Some(key) = self.created.iter().find(|key| !listed.contains(key)) {
            return Err(ConformanceError::IncompleteList { key: key.clone() });
        }
        if let Some(key) = listed.iter().find(|key| !self.created.contains(key)) {
            return Err(ConformanceError::StaleList {
                key: key.clone(),
                why: "was never written, or is deleted",
            });
        }
        match listed.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => {
                Err(ConformanceError::StaleList { key: pair[1].clone(), why: "comes out of order" })
            }
            None => Ok(()),
        }
    }

    async fn clean(&mut self) -> Result<(), ConformanceError> {
        for key in &self.created {
            self.repeat(|| self.bucket.delete(key)).await?;
        }
        self.created.clear();
        Ok(())
    }

    async fn deleted_is_gone(&mut self) -> Result<(), ConformanceError> {
        if self.has_repeated_create.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.expect_listed().await?;
        let key = self.key("twice");
        match self.get(&key).await? {
            None => Ok(()),
            Some(_) => Err(ConformanceError::StaleRead { key, found: "returned a deleted object" }),
        }
    }

    fn prefix(&self) -> BucketPrefix {
        BucketPrefix::new(&self.folder).expect("a probe has a legal folder")
    }
}
