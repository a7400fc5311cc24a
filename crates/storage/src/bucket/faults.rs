//! A bucket behind a network and a store that fail, as told or as drawn from a seed. For tests and simulations.
//!
//! Answers get lost, requests take effect after their sender has given up, stores refuse for no reason: whatever a
//! caller may not rely on, it can be shown not to rely on here.

mod fate;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_runtime::Env;

use super::{
    Bucket, BucketEntry, BucketError, BucketKey, BucketPrefix, Created, FileSummary, HeaderPatch, Operation,
};
use crate::checksum::Crc64;
use fate::{Fate, Faults};
pub use fate::{Fault, FaultPlan};

/// A bucket that fails as told ([`script`](Self::script), [`set_gone`](Self::set_gone), …) or as drawn from a seed
/// ([`FaultPlan`]). The same calls in the same order suffer the same.
pub struct FaultyBucket {
    store: Arc<Store>,
    env: Env,
    faults: Mutex<Faults>,
}

/// What several ways to one bucket share: a late request arrives whatever has become of its sender.
struct Store {
    inner: Arc<dyn Bucket>,
    under_way: Mutex<Vec<UnderWay>>,
    /// When what was written last arrived: a stale listing does not show it.
    arrivals: Mutex<BTreeMap<BucketKey, Duration>>,
}

/// A request that takes effect when this time has come.
struct UnderWay {
    due: Duration,
    request: LateRequest,
}

enum LateRequest {
    Create(BucketKey, Bytes),
    Delete(BucketKey),
}

/// A call that has arrived at the store.
struct Arrived<'a> {
    operation: Operation,
    name: &'a str,
    fate: Fate,
}

impl FaultyBucket {
    /// `inner`, with faults drawn from `seed`.
    #[must_use]
    pub fn new(inner: Arc<dyn Bucket>, seed: u64, plan: FaultPlan, env: Env) -> Self {
        Self::on(
            Arc::new(Store { inner, under_way: Mutex::default(), arrivals: Mutex::default() }),
            seed,
            plan,
            env,
        )
    }

    /// Another way to the same bucket, for another server: with faults of its own.
    #[must_use]
    pub fn another(&self, seed: u64, plan: FaultPlan) -> Self {
        Self::on(Arc::clone(&self.store), seed, plan, self.env.clone())
    }

    fn on(store: Arc<Store>, seed: u64, plan: FaultPlan, env: Env) -> Self {
        Self { store, env, faults: Mutex::new(Faults::new(seed, plan)) }
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bucket without its faults.
    #[must_use]
    pub fn inner(&self) -> &Arc<dyn Bucket> {
        &self.store.inner
    }

    /// From now on this plan holds. Ends a storm.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.faults().set_plan(plan);
    }

    /// What befalls the next calls of this kind, one each, before chance has its say again.
    pub fn script(&self, operation: Operation, faults: impl IntoIterator<Item = Fault>) {
        self.faults().scripts.entry(operation).or_default().extend(faults);
    }

    /// Nothing is to be reached, or is again. What is at the store already takes effect, and its answer is lost.
    pub fn set_gone(&self, gone: bool) {
        self.faults().gone = gone;
    }

    /// Whatever would change something is refused, or no longer is.
    pub fn set_read_only(&self, read_only: bool) {
        self.faults().read_only = read_only;
    }

    /// From now on every read of this object is [corrupt](Fault::Corrupt).
    pub fn rot(&self, key: BucketKey) {
        self.faults().rotten.insert(key);
    }

    /// How many calls of this kind there were, whatever befell them.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.faults().calls.get(&operation).copied().unwrap_or(0)
    }

    /// What befell calls how often, apart from [`set_gone`](Self::set_gone).
    #[must_use]
    pub fn suffered(&self) -> BTreeMap<Fault, u64> {
        self.faults().suffered.clone()
    }

    /// Lets everything that is [late](Fault::Late) take effect now, on all ways to the bucket.
    ///
    /// Cancelling the call lets a part of it be forgotten.
    pub async fn settle(&self) {
        self.store.arrive(Duration::MAX).await;
    }

    /// Brings a call to the store. Otherwise it has no effect, or not yet.
    async fn send<'a>(&self, operation: Operation, name: &'a str) -> Result<Arrived<'a>, BucketError> {
        self.send_as(operation, name, None).await
    }

    /// As [`Self::send`], of what may arrive though its caller is gone.
    async fn send_as<'a>(
        &self,
        operation: Operation,
        name: &'a str,
        request: Option<LateRequest>,
    ) -> Result<Arrived<'a>, BucketError> {
        let fate = self.faults().fate(operation, self.env.boot());
        let call = Arrived { operation, name, fate };
        let request = request.filter(|_| call.fate.orphaned);
        let mut orphan = Orphan { bucket: self, late_by: call.fate.late_by, request };
        let arrived = self.on_the_way(call.fate.before, &call).await;
        // From here on it is there, or lost.
        orphan.request = None;
        arrived?;
        match call.fate.fault {
            Fault::RequestLost => Err(call.unanswered().await),
            Fault::ServerError => Err(call.unreachable("503 Slow Down")),
            Fault::Denied => {
                Err(BucketError::Denied { operation, name: name.to_owned(), source: "403 Forbidden".into() })
            }
            Fault::Hangs => std::future::pending().await,
            Fault::Panics => panic!("the call was told to panic"),
            Fault::None
            | Fault::AnswerLost
            | Fault::Late
            | Fault::Conflict
            | Fault::Corrupt
            | Fault::Again
            | Fault::Orphaned
            | Fault::StaleList => {
                self.store.arrive(self.env.boot()).await;
                Ok(call)
            }
        }
    }

    /// Has a call that was answered take effect once more.
    fn repeat(&self, call: &Arrived<'_>, request: impl FnOnce() -> LateRequest) {
        if call.fate.fault == Fault::Again {
            let due = self.env.boot() + call.fate.late_by;
            self.store.under_way().push(UnderWay { due, request: request() });
        }
    }

    /// Has a call take effect after its caller was told that there is no answer.
    async fn delay(&self, call: &Arrived<'_>, request: LateRequest) -> BucketError {
        let due = self.env.boot() + call.fate.patience + call.fate.late_by;
        self.store.under_way().push(UnderWay { due, request });
        call.unanswered().await
    }

    /// Brings the answer back.
    async fn answer(&self, call: &Arrived<'_>) -> Result<(), BucketError> {
        match call.fate.fault {
            Fault::AnswerLost | Fault::Late => Err(call.unanswered().await),
            _ => self.on_the_way(call.fate.after, call).await,
        }
    }

    async fn on_the_way(&self, time: Duration, call: &Arrived<'_>) -> Result<(), BucketError> {
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        if self.faults().gone { Err(call.unreachable("connection refused")) } else { Ok(()) }
    }

    fn is_corrupt(&self, key: &BucketKey, call: &Arrived<'_>) -> bool {
        call.fate.fault == Fault::Corrupt || self.faults().rotten.contains(key)
    }

    /// Brings what was read back.
    async fn read(
        &self,
        key: &BucketKey,
        call: &Arrived<'_>,
        found: Result<Option<Bytes>, BucketError>,
    ) -> Result<Option<Bytes>, BucketError> {
        self.answer(call).await?;
        match found? {
            Some(bytes) if self.is_corrupt(key, call) => {
                Ok(Some(with_wrong_bit(&bytes, call.fate.draw).into()))
            }
            found => Ok(found),
        }
    }
}

impl Store {
    fn under_way(&self) -> MutexGuard<'_, Vec<UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that is due takes effect.
    async fn arrive(&self, now: Duration) {
        loop {
            let next = {
                let mut under_way = self.under_way();
                let first = (0..under_way.len()).min_by_key(|&at| under_way[at].due);
                match first {
                    Some(at) if under_way[at].due <= now => under_way.remove(at).request,
                    _ => return,
                }
            };
            // Nobody waits for the answer any more, whatever it is.
            match next {
                LateRequest::Create(key, bytes) => drop(self.create(&key, bytes, now).await),
                LateRequest::Delete(key) => drop(self.inner.delete(&key).await),
            }
        }
    }
}

impl Store {
    fn note(&self, key: &BucketKey, now: Duration) {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), now);
    }

    async fn create(&self, key: &BucketKey, bytes: Bytes, now: Duration) -> Result<Created, BucketError> {
        let created = self.inner.create(key, bytes).await?;
        if created == Created::New {
            self.note(key, now);
        }
        Ok(created)
    }

    /// The entries without some of those that arrived after `then`, which of them `draw` says.
    fn as_of(&self, then: Duration, draw: u64, entries: Vec<BucketEntry>) -> Vec<BucketEntry> {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let is_shown = |entry: &BucketEntry| {
            let is_old = arrivals.get(&entry.key).is_none_or(|since| *since <= then);
            is_old
                || (Crc64::of(entry.key.as_str().as_bytes()).to_u64() ^ draw).count_ones().is_multiple_of(2)
        };
        entries.into_iter().filter(is_shown).collect()
    }
}

/// A request whose caller may go before it has arrived; then it arrives later.
struct Orphan<'b> {
    bucket: &'b FaultyBucket,
    late_by: Duration,
    request: Option<LateRequest>,
}

impl Drop for Orphan<'_> {
    fn drop(&mut self) {
        let Some(request) = self.request.take() else { return };
        let due = self.bucket.env.boot() + self.late_by;
        *self.bucket.faults().suffered.entry(Fault::Orphaned).or_default() += 1;
        self.bucket.store.under_way().push(UnderWay { due, request });
    }
}

impl Arrived<'_> {
    async fn unanswered(&self) -> BucketError {
        let timeout = self.fate.patience;
        tokio::time::sleep(timeout).await;
        BucketError::Timeout { operation: self.operation, name: self.name.to_owned(), timeout }
    }

    fn unreachable(&self, why: &str) -> BucketError {
        let (operation, name) = (self.operation, self.name.to_owned());
        BucketError::Unreachable { operation, name, source: why.into() }
    }
}

fn with_wrong_bit(bytes: &[u8], draw: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if !bytes.is_empty() {
        let at = draw % (bytes.len() as u64 * 8);
        bytes[(at / 8) as usize] ^= 1 << (at % 8);
    }
    bytes
}

#[async_trait]
impl Bucket for FaultyBucket {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        let request = LateRequest::Create(key.clone(), bytes.clone());
        let call = self.send_as(Operation::Create, key.as_str(), Some(request)).await?;
        let created = match call.fate.fault {
            Fault::Late => return Err(self.delay(&call, LateRequest::Create(key.clone(), bytes)).await),
            Fault::Conflict => Ok(Created::Exists),
            _ => self.store.create(key, bytes.clone(), self.env.boot()).await,
        };
        self.repeat(&call, || LateRequest::Create(key.clone(), bytes));
        self.answer(&call).await?;
        created
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        let call = self.send(Operation::Get, key.as_str()).await?;
        let found = self.store.inner.get(key).await;
        self.read(key, &call, found).await
    }

    async fn get_range(&self, key: &BucketKey, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        let call = self.send(Operation::Get, key.as_str()).await?;
        let found = self.store.inner.get_range(key, range).await;
        self.read(key, &call, found).await
    }

    async fn get_tail(&self, key: &BucketKey, count: u64) -> Result<Option<Bytes>, BucketError> {
        let call = self.send(Operation::Get, key.as_str()).await?;
        let found = self.store.inner.get_tail(key, count).await;
        self.read(key, &call, found).await
    }

    async fn put_file(
        &self,
        key: &BucketKey,
        path: &Path,
        patch: HeaderPatch,
    ) -> Result<FileSummary, BucketError> {
        let call = self.send(Operation::PutFile, key.as_str()).await?;
        let summary = self.store.inner.put_file(key, path, patch).await;
        self.store.note(key, self.env.boot());
        self.answer(&call).await?;
        summary
    }

    async fn get_file(&self, key: &BucketKey, path: &Path) -> Result<Option<FileSummary>, BucketError> {
        let call = self.send(Operation::GetFile, key.as_str()).await?;
        let summary = self.store.inner.get_file(key, path).await?;
        if summary.is_none() {
            return self.answer(&call).await.map(|()| None);
        }
        let spoilt = self.is_corrupt(key, &call).then_some(call.fate.draw);
        let answered = self.answer(&call).await;
        let (path, failed) = (path.to_owned(), answered.is_err());
        let changed = self.env.blocking(move || spoil_file(&path, failed, spoilt)).await?;
        answered.map(|()| changed.or(summary))
    }

    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        let call = self.send(Operation::List, prefix.as_str()).await?;
        let mut entries = self.store.inner.list(prefix).await;
        if call.fate.fault == Fault::StaleList {
            let then = self.env.boot().saturating_sub(call.fate.late_by);
            entries = entries.map(|entries| self.store.as_of(then, call.fate.draw, entries));
        }
        self.answer(&call).await?;
        entries
    }

    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError> {
        let request = Some(LateRequest::Delete(key.clone()));
        let call = self.send_as(Operation::Delete, key.as_str(), request).await?;
        if call.fate.fault == Fault::Late {
            return Err(self.delay(&call, LateRequest::Delete(key.clone())).await);
        }
        let deleted = self.store.inner.delete(key).await;
        self.repeat(&call, || LateRequest::Delete(key.clone()));
        self.answer(&call).await?;
        deleted
    }
}

/// A download that failed leaves no file; one that was spoilt has a wrong bit, and a summary that says so.
fn spoil_file(path: &Path, failed: bool, draw: Option<u64>) -> Result<Option<FileSummary>, BucketError> {
    let spoil = || {
        if failed {
            return std::fs::remove_file(path).map(|()| None);
        }
        let Some(draw) = draw else { return Ok(None) };
        let bytes = with_wrong_bit(&std::fs::read(path)?, draw);
        std::fs::write(path, &bytes)?;
        Ok(Some(FileSummary { size_bytes: bytes.len() as u64, crc64: Crc64::of(&bytes) }))
    };
    spoil().map_err(|source| BucketError::LocalFile { path: path.to_owned(), source })
}
