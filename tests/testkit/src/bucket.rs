//! A bucket with injected faults of the network and the store, scripted or random from a seed. For tests and
//! simulations.
//!
//! Answers get lost, requests take effect after their sender has given up, and stores refuse without reason. So tests
//! can prove that a caller does not rely on more than the contract of [`Bucket`].

mod gates;
mod observed;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_bucket::{Bucket, BucketError, BucketOperation, Created, FileSummary, HeaderPatch};
use dormouse_format::checksum::Crc64;
use dormouse_format::keys::{BucketEntry, BucketKey, BucketPrefix};
use dormouse_runtime::{Env, Lock};

use gates::{CallGates, GatePoint};
use plan::{CallFault, FaultInjector};

pub use gates::CallGateGuard;
pub use observed::{BucketAnswer, BucketCall, BucketObserver, ObservedBucket, ReadCounter};
pub use plan::{BucketFault, FaultPlan};

/// A bucket with faults that are scripted ([`script`](Self::script), [`set_unreachable`](Self::set_unreachable), …) or
/// random from a seed ([`FaultPlan`]). The same calls in the same order get the same faults.
///
/// It records its calls ([`take_calls`](Self::take_calls)), and it can hold them
/// ([`hold_requests`](Self::hold_requests), [`hold_answers`](Self::hold_answers)).
pub struct FaultyBucket {
    store: Arc<SharedStore>,
    env: Env,
    faults: Lock<FaultInjector>,
    gates: CallGates,
}

/// State that all clients of one bucket share: a late request arrives even if its sender is gone.
struct SharedStore {
    inner: Arc<dyn Bucket>,
    delayed: Lock<Vec<DelayedRequest>>,
    /// When each object was written: a stale listing may lack recent ones.
    arrivals: Lock<BTreeMap<BucketKey, Duration>>,
}

/// A request that takes effect at the time `due`.
struct DelayedRequest {
    due: Duration,
    request: LateRequest,
}

enum LateRequest {
    Create(BucketKey, Bytes),
    Delete(BucketKey),
}

/// A call that has arrived at the store, with its injected fault.
struct Arrived<'a> {
    operation: BucketOperation,
    name: &'a str,
    injected: CallFault,
}

impl FaultyBucket {
    /// `inner`, with random faults from `seed`.
    #[must_use]
    pub fn new(inner: Arc<dyn Bucket>, seed: u64, plan: FaultPlan, env: Env) -> Self {
        Self::on(
            Arc::new(SharedStore { inner, delayed: Lock::default(), arrivals: Lock::default() }),
            seed,
            plan,
            env,
        )
    }

    /// Another client of the same bucket, for another server, with faults of its own.
    #[must_use]
    pub fn another_client(&self, seed: u64, plan: FaultPlan) -> Self {
        Self::on(Arc::clone(&self.store), seed, plan, self.env.clone())
    }

    fn on(store: Arc<SharedStore>, seed: u64, plan: FaultPlan, env: Env) -> Self {
        Self { store, env, faults: Lock::new(FaultInjector::new(seed, plan)), gates: CallGates::default() }
    }

    fn faults(&self) -> MutexGuard<'_, FaultInjector> {
        self.faults.lock()
    }

    /// The bucket without its faults.
    #[must_use]
    pub fn inner(&self) -> &Arc<dyn Bucket> {
        &self.store.inner
    }

    /// Replaces the plan. Ends a fault storm.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.faults().set_plan(plan);
    }

    /// Queues faults for the next calls of this kind, one fault per call. They take precedence over random faults.
    pub fn script(&self, operation: BucketOperation, faults: impl IntoIterator<Item = BucketFault>) {
        self.faults().scripts.entry(operation).or_default().extend(faults);
    }

    /// Makes the bucket unreachable, or reachable again. A request that has arrived already takes effect, and its
    /// answer is lost.
    pub fn set_unreachable(&self, gone: bool) {
        self.faults().is_unreachable = gone;
    }

    /// Loses the answers to all creates and gets, as [`BucketFault::AnswerLost`], or no longer does. A call in flight
    /// loses its answer too.
    pub fn set_answers_lost(&self, lost: bool) {
        self.faults().loses_answers = lost;
    }

    /// Holds requests of this kind before they take effect, if the name of their object contains `name_part`. They
    /// continue when the guard is dropped.
    pub fn hold_requests(&self, operation: BucketOperation, name_part: &str) -> CallGateGuard {
        self.gates.close(operation, name_part, GatePoint::Request)
    }

    /// As [`Self::hold_requests`], but the requests take effect, and their answers are held.
    pub fn hold_answers(&self, operation: BucketOperation, name_part: &str) -> CallGateGuard {
        self.gates.close(operation, name_part, GatePoint::Answer)
    }

    /// Refuses all calls that change something, or no longer does.
    pub fn set_read_only(&self, read_only: bool) {
        self.faults().read_only = read_only;
    }

    /// Makes every further read of this object [corrupt](BucketFault::Corrupt).
    pub fn corrupt(&self, key: BucketKey) {
        self.faults().corrupted_keys.insert(key);
    }

    /// Number of calls of this kind since the last [`take_calls`](Self::take_calls), with and without faults.
    #[must_use]
    pub fn calls(&self, operation: BucketOperation) -> u64 {
        self.faults().calls.iter().filter(|call| call.0 == operation).count() as u64
    }

    /// The calls since the last [`take_calls`](Self::take_calls), with the names of their objects.
    pub fn take_calls(&self) -> Vec<(BucketOperation, String)> {
        std::mem::take(&mut self.faults().calls)
    }

    /// How often each fault was injected, without [`set_unreachable`](Self::set_unreachable) and
    /// [`set_answers_lost`](Self::set_answers_lost).
    #[must_use]
    pub fn fault_counts(&self) -> BTreeMap<BucketFault, u64> {
        self.faults().injected_counts.clone()
    }

    /// Applies all [late](BucketFault::Late) requests now, of all clients of the bucket.
    ///
    /// Cancelling the call may drop some of them.
    pub async fn apply_delayed(&self) {
        self.store.arrive(Duration::MAX).await;
    }

    /// Sends a call to the store. On an error it has no effect, or not yet.
    async fn send<'a>(&self, operation: BucketOperation, name: &'a str) -> Result<Arrived<'a>, BucketError> {
        self.send_as(operation, name, None).await
    }

    /// As [`Self::send`], for a request that may arrive although its caller is gone.
    async fn send_as<'a>(
        &self,
        operation: BucketOperation,
        name: &'a str,
        request: Option<LateRequest>,
    ) -> Result<Arrived<'a>, BucketError> {
        let injected = self.faults().next_call(operation, name, self.env.boot());
        let call = Arrived { operation, name, injected };
        let request = request.filter(|_| call.injected.orphaned);
        let mut orphan = DetachedRequest { bucket: self, late_by: call.injected.late_by, request };
        let arrived = self.transmit(call.injected.before, &call).await;
        // From here on the request has arrived, or it is lost.
        orphan.request = None;
        arrived?;
        match call.injected.fault {
            BucketFault::RequestLost => Err(call.timed_out().await),
            BucketFault::ServerError => Err(call.unreachable("503 Slow Down")),
            BucketFault::Denied => {
                Err(BucketError::Denied { operation, name: name.to_owned(), source: "403 Forbidden".into() })
            }
            BucketFault::Hangs => std::future::pending().await,
            BucketFault::Panics => panic!("injected panic"),
            BucketFault::None
            | BucketFault::AnswerLost
            | BucketFault::Late
            | BucketFault::Conflict
            | BucketFault::Corrupt
            | BucketFault::Again
            | BucketFault::Orphaned
            | BucketFault::StaleList => {
                self.gates.wait(operation, name, GatePoint::Request).await;
                self.store.arrive(self.env.boot()).await;
                Ok(call)
            }
        }
    }

    /// Applies an answered call once more, later.
    fn apply_again(&self, call: &Arrived<'_>, request: impl FnOnce() -> LateRequest) {
        if call.injected.fault == BucketFault::Again {
            let due = self.env.boot() + call.injected.late_by;
            self.store.delayed().push(DelayedRequest { due, request: request() });
        }
    }

    /// Applies a call after its caller has got a timeout.
    async fn delay(&self, call: &Arrived<'_>, request: LateRequest) -> BucketError {
        let due = self.env.boot() + call.injected.timeout + call.injected.late_by;
        self.store.delayed().push(DelayedRequest { due, request });
        call.timed_out().await
    }

    /// Returns the answer to the caller.
    async fn answer(&self, call: &Arrived<'_>) -> Result<(), BucketError> {
        self.gates.wait(call.operation, call.name, GatePoint::Answer).await;
        let is_lost = self.faults().loses_answer(call.operation);
        match call.injected.fault {
            BucketFault::AnswerLost | BucketFault::Late => Err(call.timed_out().await),
            _ if is_lost => Err(call.timed_out().await),
            _ => self.transmit(call.injected.after, call).await,
        }
    }

    async fn transmit(&self, time: Duration, call: &Arrived<'_>) -> Result<(), BucketError> {
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        if self.faults().is_unreachable { Err(call.unreachable("connection refused")) } else { Ok(()) }
    }

    fn is_corrupt(&self, key: &BucketKey, call: &Arrived<'_>) -> bool {
        call.injected.fault == BucketFault::Corrupt || self.faults().corrupted_keys.contains(key)
    }

    /// Returns the read bytes to the caller.
    async fn read(
        &self,
        key: &BucketKey,
        call: &Arrived<'_>,
        found: Result<Option<Bytes>, BucketError>,
    ) -> Result<Option<Bytes>, BucketError> {
        self.answer(call).await?;
        match found? {
            Some(bytes) if self.is_corrupt(key, call) => {
                Ok(Some(with_flipped_bit(&bytes, call.injected.draw).into()))
            }
            found => Ok(found),
        }
    }
}

impl SharedStore {
    fn delayed(&self) -> MutexGuard<'_, Vec<DelayedRequest>> {
        self.delayed.lock()
    }

    /// Applies all requests that are due.
    async fn arrive(&self, now: Duration) {
        loop {
            let next = {
                let mut delayed = self.delayed();
                let first = (0..delayed.len()).min_by_key(|&at| delayed[at].due);
                match first {
                    Some(at) if delayed[at].due <= now => delayed.remove(at).request,
                    _ => return,
                }
            };
            // No caller waits for the result.
            match next {
                LateRequest::Create(key, bytes) => drop(self.create(&key, bytes, now).await),
                LateRequest::Delete(key) => drop(self.inner.delete(&key).await),
            }
        }
    }
}

impl SharedStore {
    fn record_arrival(&self, key: &BucketKey, now: Duration) {
        self.arrivals.lock().insert(key.clone(), now);
    }

    async fn create(&self, key: &BucketKey, bytes: Bytes, now: Duration) -> Result<Created, BucketError> {
        let created = self.inner.create(key, bytes).await?;
        if created == Created::New {
            self.record_arrival(key, now);
        }
        Ok(created)
    }

    /// The entries without some of those that arrived after `then`; `draw` selects them.
    fn as_of(&self, then: Duration, draw: u64, entries: Vec<BucketEntry>) -> Vec<BucketEntry> {
        let arrivals = self.arrivals.lock();
        let is_shown = |entry: &BucketEntry| {
            let is_old = arrivals.get(&entry.key).is_none_or(|since| *since <= then);
            is_old
                || (Crc64::of(entry.key.as_str().as_bytes()).to_u64() ^ draw).count_ones().is_multiple_of(2)
        };
        entries.into_iter().filter(is_shown).collect()
    }
}

/// A request whose caller may be dropped before it has arrived; then it arrives later.
struct DetachedRequest<'b> {
    bucket: &'b FaultyBucket,
    late_by: Duration,
    request: Option<LateRequest>,
}

impl Drop for DetachedRequest<'_> {
    fn drop(&mut self) {
        let Some(request) = self.request.take() else { return };
        let due = self.bucket.env.boot() + self.late_by;
        *self.bucket.faults().injected_counts.entry(BucketFault::Orphaned).or_default() += 1;
        self.bucket.store.delayed().push(DelayedRequest { due, request });
    }
}

impl Arrived<'_> {
    async fn timed_out(&self) -> BucketError {
        let timeout = self.injected.timeout;
        if !timeout.is_zero() {
            tokio::time::sleep(timeout).await;
        }
        BucketError::Timeout { operation: self.operation, name: self.name.to_owned(), timeout }
    }

    fn unreachable(&self, why: &str) -> BucketError {
        let (operation, name) = (self.operation, self.name.to_owned());
        BucketError::Unreachable { operation, name, source: why.into() }
    }
}

fn with_flipped_bit(bytes: &[u8], draw: u64) -> Vec<u8> {
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
        let call = self.send_as(BucketOperation::Create, key.as_str(), Some(request)).await?;
        let created = match call.injected.fault {
            BucketFault::Late => {
                return Err(self.delay(&call, LateRequest::Create(key.clone(), bytes)).await);
            }
            BucketFault::Conflict => Ok(Created::Exists),
            _ => self.store.create(key, bytes.clone(), self.env.boot()).await,
        };
        self.apply_again(&call, || LateRequest::Create(key.clone(), bytes));
        self.answer(&call).await?;
        created
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        let call = self.send(BucketOperation::Get, key.as_str()).await?;
        let found = self.store.inner.get(key).await;
        self.read(key, &call, found).await
    }

    async fn get_range(&self, key: &BucketKey, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        let call = self.send(BucketOperation::Get, key.as_str()).await?;
        let found = self.store.inner.get_range(key, range).await;
        self.read(key, &call, found).await
    }

    async fn get_tail(&self, key: &BucketKey, count: u64) -> Result<Option<Bytes>, BucketError> {
        let call = self.send(BucketOperation::Get, key.as_str()).await?;
        let found = self.store.inner.get_tail(key, count).await;
        self.read(key, &call, found).await
    }

    async fn put_file(
        &self,
        key: &BucketKey,
        path: &Path,
        patch: HeaderPatch,
    ) -> Result<FileSummary, BucketError> {
        let call = self.send(BucketOperation::PutFile, key.as_str()).await?;
        let summary = self.store.inner.put_file(key, path, patch).await;
        self.store.record_arrival(key, self.env.boot());
        self.answer(&call).await?;
        summary
    }

    async fn get_file(&self, key: &BucketKey, path: &Path) -> Result<Option<FileSummary>, BucketError> {
        let call = self.send(BucketOperation::GetFile, key.as_str()).await?;
        let summary = self.store.inner.get_file(key, path).await?;
        if summary.is_none() {
            return self.answer(&call).await.map(|()| None);
        }
        let corrupt_draw = self.is_corrupt(key, &call).then_some(call.injected.draw);
        let answered = self.answer(&call).await;
        let (path, failed) = (path.to_owned(), answered.is_err());
        let changed = self.env.blocking(move || corrupt_file(&path, failed, corrupt_draw)).await?;
        answered.map(|()| changed.or(summary))
    }

    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        let call = self.send(BucketOperation::List, prefix.as_str()).await?;
        let mut entries = self.store.inner.list(prefix).await;
        if call.injected.fault == BucketFault::StaleList {
            let then = self.env.boot().saturating_sub(call.injected.late_by);
            entries = entries.map(|entries| self.store.as_of(then, call.injected.draw, entries));
        }
        self.answer(&call).await?;
        entries
    }

    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError> {
        let request = Some(LateRequest::Delete(key.clone()));
        let call = self.send_as(BucketOperation::Delete, key.as_str(), request).await?;
        if call.injected.fault == BucketFault::Late {
            return Err(self.delay(&call, LateRequest::Delete(key.clone())).await);
        }
        let deleted = self.store.inner.delete(key).await;
        self.apply_again(&call, || LateRequest::Delete(key.clone()));
        self.answer(&call).await?;
        deleted
    }
}

/// A failed download leaves no file. A corrupted download has one flipped bit, and its summary matches the flipped
/// bytes.
fn corrupt_file(path: &Path, failed: bool, draw: Option<u64>) -> Result<Option<FileSummary>, BucketError> {
    let apply = || {
        if failed {
            return std::fs::remove_file(path).map(|()| None);
        }
        let Some(draw) = draw else { return Ok(None) };
        let bytes = with_flipped_bit(&std::fs::read(path)?, draw);
        std::fs::write(path, &bytes)?;
        Ok(Some(FileSummary { size_bytes: bytes.len() as u64, crc64: Crc64::of(&bytes) }))
    };
    apply().map_err(|source| BucketError::LocalFile { path: path.to_owned(), source })
}
