use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::bucket::{BucketEntry, FileSummary, HeaderPatch, ObjectStoreBucket};

/// What a store does wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    /// A create always succeeds and always writes.
    Overwrites,
    /// A create says that the object exists, and writes all the same.
    RefusesAndOverwrites,
    /// Looks and writes in two steps.
    LooksThenWrites,
    /// A read answers as of the write before the last.
    ReadsStale,
    /// A listing lacks the object written last.
    ListsLate,
    /// A listing still shows what is deleted.
    ListsDeleted,
    /// A listing is not sorted.
    ListsUnsorted,
    /// Creates of one key at once are all refused.
    RefusesAll,
    /// A deleted object can still be read.
    KeepsDeleted,
}

/// A bucket that tells one lie and is right otherwise.
struct Liar {
    lie: Lie,
    objects: Mutex<BTreeMap<BucketKey, Vec<Bytes>>>,
    last_written: Mutex<Option<BucketKey>>,
    deleted: Mutex<BTreeMap<BucketKey, Vec<Bytes>>>,
}

impl Liar {
    fn new(lie: Lie) -> Self {
        let (objects, deleted) = (Mutex::default(), Mutex::default());
        Self { lie, objects, last_written: Mutex::default(), deleted }
    }

    fn write(&self, key: &BucketKey, bytes: Bytes) {
        self.objects.lock().unwrap().entry(key.clone()).or_default().push(bytes);
        *self.last_written.lock().unwrap() = Some(key.clone());
    }
}

#[async_trait]
impl Bucket for Liar {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        let exists = self.objects.lock().unwrap().contains_key(key);
        match self.lie {
            Lie::LooksThenWrites => tokio::task::yield_now().await,
            Lie::RefusesAll if key.as_str().ends_with("race") => return Ok(Created::Exists),
            Lie::RefusesAndOverwrites if exists => self.write(key, bytes.clone()),
            _ => {}
        }
        if exists && self.lie != Lie::Overwrites {
            return Ok(Created::Exists);
        }
        self.write(key, bytes);
        Ok(Created::New)
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        let objects = self.objects.lock().unwrap();
        let versions = match objects.get(key) {
            None if self.lie == Lie::KeepsDeleted => self.deleted.lock().unwrap().get(key).cloned(),
            found => found.cloned(),
        };
        let behind = usize::from(self.lie == Lie::ReadsStale);
        Ok(versions.and_then(|versions| versions.iter().rev().nth(behind).cloned()))
    }

    async fn get_range(&self, _: &BucketKey, _: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        unreachable!("the probe reads no parts")
    }

    async fn get_tail(&self, _: &BucketKey, _: u64) -> Result<Option<Bytes>, BucketError> {
        unreachable!("the probe reads no parts")
    }

    async fn put_file(&self, _: &BucketKey, _: &Path, _: HeaderPatch) -> Result<FileSummary, BucketError> {
        unreachable!("the probe moves no files")
    }

    async fn get_file(&self, _: &BucketKey, _: &Path) -> Result<Option<FileSummary>, BucketError> {
        unreachable!("the probe moves no files")
    }

    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        let mut keys: Vec<BucketKey> = self.objects.lock().unwrap().keys().cloned().collect();
        match self.lie {
            Lie::ListsLate => keys.retain(|key| Some(key) != self.last_written.lock().unwrap().as_ref()),
            Lie::ListsDeleted => keys.extend(self.deleted.lock().unwrap().keys().cloned()),
            Lie::ListsUnsorted => keys.reverse(),
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

async fn finding(lie: Lie) -> ProbeError {
    let liar = Liar::new(lie);
    let error = probe(&liar, &Env::system()).await.expect_err("a lie must be found out");
    assert!(error.to_string().starts_with("the bucket cannot be used"), "{error}");
    assert!(liar.objects.lock().unwrap().is_empty(), "{lie:?}: what was found out is cleaned up too");
    error
}

#[tokio::test]
async fn a_store_that_keeps_the_contract_passes() {
    let bucket = ObjectStoreBucket::in_memory(Env::system());
    probe(&bucket, &Env::system()).await.unwrap();
    assert!(bucket.list(&BucketPrefix::ALL).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_store_that_overwrites_is_refused() {
    assert!(matches!(finding(Lie::Overwrites).await, ProbeError::Overwrites { .. }));
    let hidden = finding(Lie::RefusesAndOverwrites).await;
    assert!(matches!(hidden, ProbeError::WrongRead { .. }), "{hidden}");
}

#[tokio::test]
async fn a_store_with_several_winners_is_refused() {
    let error = finding(Lie::LooksThenWrites).await;
    assert!(matches!(error, ProbeError::SeveralWinners { winners: RACERS, .. }), "{error}");
}

#[tokio::test]
async fn a_store_without_a_winner_is_refused() {
    assert!(matches!(finding(Lie::RefusesAll).await, ProbeError::NoWinner { .. }));
}

#[tokio::test]
async fn a_store_that_reads_stale_is_refused() {
    assert!(matches!(finding(Lie::ReadsStale).await, ProbeError::WrongRead { .. }));
    assert!(matches!(finding(Lie::KeepsDeleted).await, ProbeError::WrongRead { .. }));
}

#[tokio::test]
async fn a_store_whose_listings_are_wrong_is_refused() {
    assert!(matches!(finding(Lie::ListsLate).await, ProbeError::IncompleteList { .. }));
    assert!(matches!(finding(Lie::ListsDeleted).await, ProbeError::WrongList { .. }));
    assert!(matches!(finding(Lie::ListsUnsorted).await, ProbeError::WrongList { .. }));
}
