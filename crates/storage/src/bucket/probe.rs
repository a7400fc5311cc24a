//! Does the store keep the contract of [`Bucket`]? Some that speak S3 ignore the condition of a conditional create
//! without a word; on those, two servers would both own a subject. So a server asks before it serves.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use dormouse_runtime::Env;
use futures::future::join_all;

use super::{Bucket, BucketError, BucketKey, BucketPrefix, Created};

/// How many creates of one key race against each other.
const RACERS: usize = 16;

/// How many further objects a listing must show.
const LISTED_OBJECTS: usize = 4;

/// How often a create is tried, and the pause after the first attempt.
const CREATE_ATTEMPTS: u32 = 4;
const CREATE_PAUSE: Duration = Duration::from_millis(200);

/// What keeps a bucket from being used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The bucket did not do what was asked at all.
    #[error("the bucket cannot be used")]
    Failed(#[from] BucketError),
    /// A create of an existing key succeeded.
    #[error(
        "the bucket cannot be used: it silently overwrites. A second create of {key} succeeded, although the object existed: the store ignores the condition of a conditional write"
    )]
    Overwrites {
        /// The object.
        key: BucketKey,
    },
    /// Several creates of one key at the same time succeeded.
    #[error(
        "the bucket cannot be used: of {RACERS} creates of {key} at the same time {winners} succeeded, where at most one may: the store checks the condition and writes in two steps"
    )]
    SeveralWinners {
        /// The object.
        key: BucketKey,
        /// How many succeeded.
        winners: usize,
    },
    /// All creates of one key at the same time were refused, and there is no object.
    #[error("the bucket cannot be used: of {RACERS} creates of {key} at the same time none succeeded")]
    NoWinner {
        /// The object.
        key: BucketKey,
    },
    /// What was written is not what is read.
    #[error("the bucket cannot be used: reading {key} {found}: the store does not read what was written")]
    WrongRead {
        /// The object.
        key: BucketKey,
        /// What was read instead of what must be there.
        found: &'static str,
    },
    /// A listing does not show what is there.
    #[error(
        "the bucket cannot be used: a listing does not show {key}, whose creation was complete: listings are incomplete"
    )]
    IncompleteList {
        /// An object that is missing in it.
        key: BucketKey,
    },
    /// A listing shows what is not there.
    #[error(
        "the bucket cannot be used: a listing shows {key}, which {why}: listings are out of date or unsorted"
    )]
    WrongList {
        /// The object.
        key: BucketKey,
        /// Why it should not be there.
        why: &'static str,
    },
}

/// Finds out whether `bucket` keeps its contract, with a few objects under `probe/<ulid>/`, which are removed
/// afterwards. Takes about ten round trips.
///
/// Cancelling the call leaves those objects behind; they do no harm.
///
/// # Errors
/// [`ProbeError`], which names what the store did wrong.
pub async fn probe(bucket: &dyn Bucket, env: &Env) -> Result<(), ProbeError> {
    let mut probe = Probe { bucket, folder: format!("probe/{}/", env.ulid()), created: BTreeSet::new() };
    let found = probe.run().await;
    if found.is_err() {
        // The finding is what counts; a store that breaks its contract may well refuse this too.
        probe.clean().await.ok();
    }
    found
}

struct Probe<'a> {
    bucket: &'a dyn Bucket,
    folder: String,
    created: BTreeSet<BucketKey>,
}

impl Probe<'_> {
    async fn run(&mut self) -> Result<(), ProbeError> {
        self.second_create_is_refused().await?;
        self.one_of_many_wins().await?;
        self.listings_are_complete().await?;
        self.clean().await?;
        self.deleted_is_gone().await
    }

    fn key(&mut self, name: &str) -> BucketKey {
        let key = BucketKey::of_legal(format!("{}{name}", self.folder));
        self.created.insert(key.clone());
        key
    }

    /// Fresh for each call: the folder is drawn for this probe, and `who` differs.
    fn bytes(&self, key: &BucketKey, who: usize) -> Bytes {
        format!("dormouse looks whether this bucket keeps its contract: {key}, writer {who}\n").into()
    }

    /// A store that is busy for a moment is not unfit. Nothing else in the bucket depends on what comes of these
    /// creates, so they may simply be repeated.
    async fn create(&self, key: &BucketKey, bytes: &Bytes) -> Result<Created, BucketError> {
        let mut attempt = 1;
        loop {
            match self.bucket.create(key, bytes.clone()).await {
                Err(BucketError::Unreachable { .. }) if attempt < CREATE_ATTEMPTS => {
                    tokio::time::sleep(CREATE_PAUSE * attempt).await;
                    attempt += 1;
                }
                answer => return answer,
            }
        }
    }

    async fn expect(&self, key: &BucketKey, expected: &Bytes) -> Result<(), ProbeError> {
        let found = match self.bucket.get(key).await? {
            Some(found) if found == expected => return Ok(()),
            Some(_) => "returned other bytes",
            None => "returned nothing",
        };
        Err(ProbeError::WrongRead { key: key.clone(), found })
    }

    async fn second_create_is_refused(&mut self) -> Result<(), ProbeError> {
        let key = self.key("twice");
        let (first, second) = (self.bytes(&key, 1), self.bytes(&key, 2));
        // `Exists` for a fresh key: the answer to a first attempt was lost.
        let (Created::New | Created::Exists) = self.create(&key, &first).await?;
        self.expect(&key, &first).await?;
        match self.create(&key, &second).await? {
            Created::New => Err(ProbeError::Overwrites { key }),
            Created::Exists => self.expect(&key, &first).await,
        }
    }

    async fn one_of_many_wins(&mut self) -> Result<(), ProbeError> {
        let key = self.key("race");
        let offers: Vec<Bytes> = (0..RACERS).map(|who| self.bytes(&key, who)).collect();
        let answers = join_all(offers.iter().map(|offer| self.create(&key, offer))).await;
        let mut winners = Vec::new();
        for (offer, answer) in offers.iter().zip(answers) {
            if answer? == Created::New {
                winners.push(offer);
            }
        }
        match winners[..] {
            [winner] => self.expect(&key, winner).await,
            [] => match self.bucket.get(&key).await? {
                // The winner's answer was lost.
                Some(found) if offers.contains(&found) => Ok(()),
                Some(_) => Err(ProbeError::WrongRead { key, found: "returned bytes that nobody wrote" }),
                None => Err(ProbeError::NoWinner { key }),
            },
            _ => Err(ProbeError::SeveralWinners { key, winners: winners.len() }),
        }
    }

    async fn listings_are_complete(&mut self) -> Result<(), ProbeError> {
        for number in 0..LISTED_OBJECTS {
            let key = self.key(&format!("listed/{number:012}"));
            let bytes = self.bytes(&key, number);
            self.create(&key, &bytes).await?;
            self.expect(&key, &bytes).await?;
            self.expect_listed().await?;
        }
        Ok(())
    }

    async fn expect_listed(&self) -> Result<(), ProbeError> {
        let listed: Vec<BucketKey> =
            self.bucket.list(&self.prefix()).await?.into_iter().map(|entry| entry.key).collect();
        if let Some(key) = self.created.iter().find(|key| !listed.contains(key)) {
            return Err(ProbeError::IncompleteList { key: key.clone() });
        }
        if let Some(key) = listed.iter().find(|key| !self.created.contains(key)) {
            return Err(ProbeError::WrongList { key: key.clone(), why: "was never written, or is deleted" });
        }
        match listed.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => Err(ProbeError::WrongList { key: pair[1].clone(), why: "comes out of order" }),
            None => Ok(()),
        }
    }

    async fn clean(&mut self) -> Result<(), ProbeError> {
        for key in &self.created {
            self.bucket.delete(key).await?;
        }
        self.created.clear();
        Ok(())
    }

    async fn deleted_is_gone(&mut self) -> Result<(), ProbeError> {
        self.expect_listed().await?;
        let key = self.key("twice");
        match self.bucket.get(&key).await? {
            None => Ok(()),
            Some(_) => Err(ProbeError::WrongRead { key, found: "returned what was deleted" }),
        }
    }

    fn prefix(&self) -> BucketPrefix {
        BucketPrefix::of_legal(self.folder.clone())
    }
}
