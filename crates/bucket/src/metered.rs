//! Counts and measures the calls to a bucket.

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_format::keys::{BucketEntry, BucketKey, BucketPrefix};
use dormouse_metrics::{ByLabel, ByLabels, Counter, DurationHistogram, MetricsRegistry, labels};
use dormouse_runtime::Env;

use super::{Bucket, BucketError, Created, FileSummary, HeaderPatch};

labels! {
    /// A call of [`Bucket`].
    pub enum BucketCall as "op" {
        /// [`Bucket::create`].
        Create = "create",
        /// [`Bucket::get`].
        Get = "get",
        /// [`Bucket::get_range`] and [`Bucket::get_tail`].
        GetRange = "get_range",
        /// [`Bucket::put_file`].
        PutFile = "put_file",
        /// [`Bucket::get_file`].
        GetFile = "get_file",
        /// [`Bucket::list`].
        List = "list",
        /// [`Bucket::delete`].
        Delete = "delete",
    }
}

labels! {
    /// How a call ended.
    pub enum CallOutcome as "outcome" {
        /// It did what it was asked to.
        Ok = "ok",
        /// A create found an object of this name.
        Exists = "exists",
        /// A read found no object.
        Missing = "missing",
        /// It failed definitely.
        Failed = "failed",
        /// It failed, and may have taken effect.
        Unknown = "unknown",
        /// Its caller stopped waiting.
        Cancelled = "cancelled",
    }
}

/// The instruments of a bucket. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct BucketInstruments {
    durations: ByLabel<BucketCall, DurationHistogram>,
    calls: ByLabels<BucketCall, CallOutcome, Counter>,
    read_bytes: Counter,
    written_bytes: Counter,
}

impl BucketInstruments {
    /// Adds the metrics to a registry.
    pub fn register(&self, registry: &mut MetricsRegistry) {
        registry.register("dormouse_bucket_call_seconds", "Time of the calls to the bucket", &self.durations);
        registry.register("dormouse_bucket_calls_total", "Calls to the bucket by outcome", &self.calls);
        registry.register("dormouse_bucket_read_bytes_total", "Bytes read from the bucket", &self.read_bytes);
        let help = "Bytes written to the bucket";
        registry.register("dormouse_bucket_written_bytes_total", help, &self.written_bytes);
    }
}

/// A bucket whose calls are counted and measured. It changes no call and no answer.
pub struct MeteredBucket {
    inner: Arc<dyn Bucket>,
    instruments: BucketInstruments,
    env: Env,
}

impl MeteredBucket {
    /// Measures the calls to `inner` with the clock of `env`.
    #[must_use]
    pub fn new(inner: Arc<dyn Bucket>, instruments: BucketInstruments, env: Env) -> Self {
        Self { inner, instruments, env }
    }

    async fn measure<T>(
        &self,
        call: BucketCall,
        outcome: impl Fn(&T) -> CallOutcome,
        work: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        let started = self.env.boot();
        let mut ending =
            CallGuard { counters: &self.instruments.calls, call, outcome: CallOutcome::Cancelled };
        let done = work.await;
        ending.outcome = match &done {
            Ok(answer) => outcome(answer),
            Err(error) if error.is_unknown() => CallOutcome::Unknown,
            Err(_) => CallOutcome::Failed,
        };
        self.instruments.durations.of(call).observe(self.env.boot().saturating_sub(started));
        done
    }
}

/// Counts a call when it ends, also if it is cancelled.
struct CallGuard<'a> {
    counters: &'a ByLabels<BucketCall, CallOutcome, Counter>,
    call: BucketCall,
    outcome: CallOutcome,
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        self.counters.of(self.call, self.outcome).inc();
    }
}

fn found<T>(answer: &Option<T>) -> CallOutcome {
    if answer.is_some() { CallOutcome::Ok } else { CallOutcome::Missing }
}

fn done<T>(_: &T) -> CallOutcome {
    CallOutcome::Ok
}

#[async_trait]
impl Bucket for MeteredBucket {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        let outcome = |created: &Created| match created {
            Created::New => CallOutcome::Ok,
            Created::Exists => CallOutcome::Exists,
        };
        let size_bytes = bytes.len() as u64;
        let created = self.measure(BucketCall::Create, outcome, self.inner.create(key, bytes)).await?;
        if created == Created::New {
            self.instruments.written_bytes.inc_by(size_bytes);
        }
        Ok(created)
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        let answer = self.measure(BucketCall::Get, found, self.inner.get(key)).await?;
        self.count_read(answer.as_ref());
        Ok(answer)
    }

    async fn get_range(&self, key: &BucketKey, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        let answer = self.measure(BucketCall::GetRange, found, self.inner.get_range(key, range)).await?;
        self.count_read(answer.as_ref());
        Ok(answer)
    }

    async fn get_tail(&self, key: &BucketKey, count: u64) -> Result<Option<Bytes>, BucketError> {
        let answer = self.measure(BucketCall::GetRange, found, self.inner.get_tail(key, count)).await?;
        self.count_read(answer.as_ref());
        Ok(answer)
    }

    async fn put_file(
        &self,
        key: &BucketKey,
        path: &Path,
        patch: HeaderPatch,
    ) -> Result<FileSummary, BucketError> {
        let summary = self.measure(BucketCall::PutFile, done, self.inner.put_file(key, path, patch)).await?;
        self.instruments.written_bytes.inc_by(summary.size_bytes);
        Ok(summary)
    }

    async fn get_file(&self, key: &BucketKey, path: &Path) -> Result<Option<FileSummary>, BucketError> {
        let summary = self.measure(BucketCall::GetFile, found, self.inner.get_file(key, path)).await?;
        self.instruments.read_bytes.inc_by(summary.map_or(0, |summary| summary.size_bytes));
        Ok(summary)
    }

    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        self.measure(BucketCall::List, done, self.inner.list(prefix)).await
    }

    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.measure(BucketCall::Delete, done, self.inner.delete(key)).await
    }
}

impl MeteredBucket {
    fn count_read(&self, answer: Option<&Bytes>) {
        self.instruments.read_bytes.inc_by(answer.map_or(0, |bytes| bytes.len() as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectStoreBucket;

    /// Calls are counted by kind and outcome, with their bytes, and a cancelled call counts too.
    #[tokio::test]
    async fn bucket_calls_are_counted_by_outcome() {
        let env = Env::system();
        let instruments = BucketInstruments::default();
        let inner = Arc::new(ObjectStoreBucket::in_memory(env.clone()));
        let bucket = MeteredBucket::new(inner, instruments.clone(), env);
        let key = BucketKey::new("a/b").unwrap();
        assert_eq!(bucket.get(&key).await.unwrap(), None);
        assert_eq!(bucket.create(&key, "four".into()).await.unwrap(), Created::New);
        assert_eq!(bucket.create(&key, "other".into()).await.unwrap(), Created::Exists);
        assert_eq!(bucket.get_tail(&key, 2).await.unwrap().as_deref(), Some(&b"ur"[..]));
        let hangs = std::future::pending::<Result<(), BucketError>>();
        let hangs = bucket.measure(BucketCall::Delete, done, hangs);
        drop(Box::pin(futures::future::select(Box::pin(hangs), std::future::ready(()))).await);
        let calls = |call, outcome| instruments.calls.of(call, outcome).get();
        assert_eq!(calls(BucketCall::Get, CallOutcome::Missing), 1);
        assert_eq!(calls(BucketCall::Create, CallOutcome::Ok), 1);
        assert_eq!(calls(BucketCall::Create, CallOutcome::Exists), 1);
        assert_eq!(calls(BucketCall::GetRange, CallOutcome::Ok), 1);
        assert_eq!(calls(BucketCall::Delete, CallOutcome::Cancelled), 1);
        assert_eq!((instruments.written_bytes.get(), instruments.read_bytes.get()), (4, 2));
    }
}
