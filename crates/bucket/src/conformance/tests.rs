use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_format::checksum::Crc64;
use dormouse_format::keys::BucketEntry;
use dormouse_runtime::{SeededEntropy, VirtualClock};

use super::*;
use crate::{FileSummary, HeaderPatch, ObjectStoreBucket};

/// A violation of the bucket's contract.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Violation {
    /// A create always succeeds and always writes.
    Overwrites,
    /// A create says that the object exists, and writes all the same.
    RefusesAndOverwrites,
    /// A create checks and writes in two steps.
    ChecksThenWrites,
    /// The same for one key of 15.
    SometimesChecksThenWrites,
    /// A read returns the version before the last.
    ReadsStale,
    /// A listing lacks the object written last.
    ListsLate,
    /// A listing still shows what is deleted.
    ListsDeleted,
    /// A listing is not sorted.
    ListsUnsorted,
    /// All concurrent creates of one key are refused.
    RefusesAll,
    /// A deleted object can still be read.
    KeepsDeleted,
}

/// A bucket with one violation that is correct otherwise.
struct ViolatingBucket {
    violation: Violation,
    objects: Mutex<BTreeMap<BucketKey, Vec<Bytes>>>,
    last_written: Mutex<Option<BucketKey>>,
    deleted: Mutex<BTreeMap<BucketKey, Vec<Bytes>>>,
}

impl ViolatingBucket {
    fn new(violation: Violation) -> Self {
        let (objects, deleted) = (Mutex::default(), Mutex::default());
        Self { violation, objects, last_written: Mutex::default(), deleted }
    }

    fn write(&self, key: &BucketKey, bytes: Bytes) {
        self.objects.lock().unwrap().entry(key.clone()).or_default().push(bytes);
        *self.last_written.lock().unwrap() = Some(key.clone());
    }
}

#[async_trait]
impl Bucket for ViolatingBucket {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        let exists = self.objects.lock().unwrap().contains_key(key);
        match self.violation {
            Violation::ChecksThenWrites => tokio::task::yield_now().await,
            Violation::SometimesChecksThenWrites
                if Crc64::of(key.as_str().as_bytes()).to_u64().is_multiple_of(15) =>
            {
                tokio::task::yield_now().await;
            }
            Violation::RefusesAll if key.as_str().ends_with("race") => return Ok(Created::Exists),
            Violation::RefusesAndOverwrites if exists => self.write(key, bytes.clone()),
            _ => {}
        }
        if exists && self.violation != Violation::Overwrites {
            return Ok(Created::Exists);
        }
        self.write(key, bytes);
        Ok(Created::New)
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        let objects = self.objects.lock().unwrap();
        let versions = match objects.get(key) {
            None if self.violation == Violation::KeepsDeleted => {
                self.deleted.lock().unwrap().get(key).cloned()
            }
            found => found.cloned(),
        };
        let behind = usize::from(self.violation == Violation::ReadsStale);
        Ok(versions.and_then(|versions| versions.iter().rev().nth(behind).cloned()))
    }

    async fn get_range(&self, _: &BucketKey, _: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        unreachable!("the check reads no ranges")
    }

    async fn get_tail(&self, _: &BucketKey, _: u64) -> Result<Option<Bytes>, BucketError> {
        unreachable!("the check reads no ranges")
    }

    async fn put_file(&self, _: &BucketKey, _: &Path, _: HeaderPatch) -> Result<FileSummary, BucketError> {
        unreachable!("the check transfers no files")
    }

    async fn get_file(&self, _: &BucketKey, _: &Path) -> Result<Option<FileSummary>, BucketError> {
        unreachable!("the check transfers no files")
    }

    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        let mut keys: Vec<BucketKey> = self.objects.lock().unwrap().keys().cloned().collect();
        match self.violation {
            Violation::ListsLate => {
                keys.retain(|key| Some(key) != self.last_written.lock().unwrap().as_ref());
            }
            Violation::ListsDeleted => keys.extend(self.deleted.lock().unwrap().keys().cloned()),
            Violation::ListsUnsorted => keys.reverse(),
            _ => {}
        }
        keys.retain(|key| key.as_str().starts_with(prefix.as_str()));
        Ok(keys.into_iter().map(|key| BucketEntry { key, size_bytes: 0 }).collect())
    }

    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError> {
        if let Some(versions) = self.objects.lock().unwrap().remove(key) {
            self.deleted.lock().unwrap().insert(key.clone(), versions);
        }
        Ok(())
    }
}

async fn finding(violation: Violation) -> ConformanceError {
    let bucket = ViolatingBucket::new(violation);
    let error = probe(&bucket, &Env::system()).await.expect_err("the check must find the violation");
    assert!(error.to_string().starts_with("the bucket cannot be used"), "{error}");
    assert!(bucket.objects.lock().unwrap().is_empty(), "{violation:?}: the check cleans up after an error");
    error
}

/// A store that keeps the contract passes the conformance check, which leaves no object behind.
#[tokio::test]
async fn conformance_check_accepts_correct_store() {
    let bucket = ObjectStoreBucket::in_memory(Env::system());
    probe(&bucket, &Env::system()).await.unwrap();
    assert!(bucket.list(&BucketPrefix::ALL).await.unwrap().is_empty());
}

/// The conformance check rejects a store that overwrites an existing object, even if it reports that the object exists.
#[tokio::test]
async fn conformance_check_rejects_overwriting_store() {
    assert!(matches!(finding(Violation::Overwrites).await, ConformanceError::ConditionIgnored { .. }));
    let hidden = finding(Violation::RefusesAndOverwrites).await;
    assert!(matches!(hidden, ConformanceError::StaleRead { .. }), "{hidden}");
}

/// The conformance check rejects a store where several concurrent creates of one key succeed.
#[tokio::test]
async fn conformance_check_rejects_multiple_winners() {
    let error = finding(Violation::ChecksThenWrites).await;
    assert!(matches!(error, ConformanceError::MultipleWinners { winners: RACERS, .. }), "{error}");
}

/// The conformance check rejects a store where no concurrent create of one key succeeds.
#[tokio::test]
async fn conformance_check_rejects_race_without_winner() {
    assert!(matches!(finding(Violation::RefusesAll).await, ConformanceError::NoWinner { .. }));
}

/// The conformance check rejects a store that returns an older version or a deleted object.
#[tokio::test]
async fn conformance_check_rejects_stale_reads() {
    assert!(matches!(finding(Violation::ReadsStale).await, ConformanceError::StaleRead { .. }));
    assert!(matches!(finding(Violation::KeepsDeleted).await, ConformanceError::StaleRead { .. }));
}

/// The conformance check rejects listings that lack new objects, show deleted objects or are unsorted.
#[tokio::test]
async fn conformance_check_rejects_wrong_listings() {
    assert!(matches!(finding(Violation::ListsLate).await, ConformanceError::IncompleteList { .. }));
    assert!(matches!(finding(Violation::ListsDeleted).await, ConformanceError::StaleList { .. }));
    assert!(matches!(finding(Violation::ListsUnsorted).await, ConformanceError::StaleList { .. }));
}

fn env(seed: u64) -> Env {
    let clock = Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000)));
    Env::simulated(clock, Arc::new(SeededEntropy::new(seed)))
}

/// A store that lets several creates win in one race of 15 is found with a probability of at least 99 %. One race alone
/// seldom finds it.
#[tokio::test(start_paused = true)]
async fn race_probe_finds_rare_double_winners() {
    let (mut found, mut found_by_one) = (0, 0);
    for seed in 0..300 {
        let bucket = ViolatingBucket::new(Violation::SometimesChecksThenWrites);
        match probe_races(&bucket, &env(seed)).await {
            Err(ConformanceError::MultipleWinners { .. }) => found += 1,
            Ok(RaceProbe::Complete) => {}
            other => panic!("{other:?}"),
        }
        let bucket = ViolatingBucket::new(Violation::SometimesChecksThenWrites);
        found_by_one += u32::from(probe(&bucket, &env(seed)).await.is_err());
    }
    assert!(found >= 297, "{found} of 300");
    assert!(found_by_one < 60, "{found_by_one} of 300");
}

/// A bucket remembers a complete race probe, which leaves only its marker. The next one makes a single request.
#[tokio::test(start_paused = true)]
async fn race_probe_of_known_bucket_is_skipped() {
    let bucket = ObjectStoreBucket::in_memory(Env::system());
    assert_eq!(probe_races(&bucket, &env(1)).await.unwrap(), RaceProbe::Complete);
    let left = bucket.list(&BucketPrefix::ALL).await.unwrap();
    assert_eq!(left.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["probe/races-1"]);
    assert_eq!(probe_races(&bucket, &env(2)).await.unwrap(), RaceProbe::Remembered);
}

/// Samples find a store whose creates lose their atomicity while a process runs. The bucket then forgets that it was
/// probed.
#[tokio::test(start_paused = true)]
async fn race_samples_find_store_that_changed() {
    let bucket = ViolatingBucket::new(Violation::SometimesChecksThenWrites);
    let marker = BucketKey::new("probe/races-1").unwrap();
    bucket.create(&marker, Bytes::from_static(b"probed before the change")).await.unwrap();
    let early = tokio::time::timeout(Duration::from_secs(3_599), sample_races(&bucket, &env(1))).await;
    assert!(early.is_err(), "one race an hour");
    let violation = sample_races(&bucket, &env(1)).await;
    assert!(matches!(violation, ConformanceError::MultipleWinners { .. }), "{violation}");
    assert_eq!(bucket.get(&marker).await.unwrap(), None);
}
