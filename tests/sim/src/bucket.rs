//! The paths to the bucket, observed at both ends: the requests and replies of a server, and the real effects at the
//! store.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_bucket::{Bucket, BucketError, BucketOperation, Created, FileSummary, HeaderPatch};
use dormouse_format::keys::{BucketEntry, BucketKey, BucketPrefix, ManifestNumber};
use dormouse_format::manifest::Manifest;
use dormouse_format::segment::{SlotKind, decode_header};
use dormouse_protocol::subject::Unescaped;
use dormouse_protocol::{LogId, Slot, Subject};
use dormouse_runtime::Lock;
use dormouse_testkit::bucket::{BucketFault, FaultyBucket};

use crate::bucket_outage::BucketOutage;
use crate::rng::SeededRng;
use crate::trace::{Trace, brief};

/// Is called for the effects at the store.
pub trait StoreObserver: Send + Sync + 'static {
    /// The server `by` sealed `log` in `slot`.
    fn sealed(&self, log: &LogId, slot: Slot, by: &str);

    /// This is the newest manifest of its subject, and not a release.
    fn owned(&self, manifest: &Manifest);
}

/// The store itself, observed: it records created and recreated objects.
pub struct Store {
    inner: Arc<dyn Bucket>,
    trace: Trace,
    observer: Arc<dyn StoreObserver>,
    state: Lock<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Every key that was ever created.
    ever: BTreeSet<BucketKey>,
    /// The existing slots of each log.
    slots: BTreeMap<String, BTreeSet<u64>>,
    /// The owner in the newest manifest of each subject.
    owners: BTreeMap<String, SubjectOwner>,
    /// The server that sent the last create of each object.
    wanted: BTreeMap<BucketKey, String>,
}

#[derive(Clone)]
struct SubjectOwner {
    number: u64,
    owner: LogId,
    released: bool,
    /// The previous owner.
    before: Option<LogId>,
}

fn manifest_of(subject: &str, name: &str, bytes: &[u8]) -> Option<Manifest> {
    let Ok(Unescaped::Subject(subject)) = Subject::unescape(subject) else { return None };
    let number = ManifestNumber::new(name.strip_suffix(".manifest")?.parse().ok()?);
    Manifest::decode(&subject, number, bytes).ok()
}

impl Store {
    /// Observes `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Bucket>, trace: Trace, observer: Arc<dyn StoreObserver>) -> Self {
        Self { inner, trace, observer, state: Lock::default() }
    }

    /// Records that `server` is about to create an object.
    fn wants(&self, key: &BucketKey, server: &str) {
        self.seen().wanted.insert(key.clone(), server.to_owned());
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.state.lock()
    }

    /// Records a created object.
    fn created(&self, key: &BucketKey, bytes: &Bytes) {
        let mut seen = self.seen();
        let again = !seen.ever.insert(key.clone());
        let parts: Vec<&str> = key.as_str().split('/').collect();
        match parts.as_slice() {
            ["logs", _, "index"] => self.trace.count("log indexed"),
            ["logs", log, slot] => {
                let Ok(slot) = u64::from_str_radix(slot, 16) else { return };
                let slots = seen.slots.entry((*log).to_owned()).or_default();
                let highest = slots.last().copied();
                slots.insert(slot);
                let by = seen.wanted.get(key).cloned().unwrap_or_default();
                drop(seen);
                self.slot(log, Slot::new(slot), bytes, highest, &by);
                if again {
                    self.trace.count("slot created again");
                }
            }
            ["subjects", subject, name] if name.ends_with(".manifest") => {
                self.manifest(&mut seen, subject, name, bytes, again);
            }
            ["lost", ..] => self.trace.count("lost/ written in the bucket"),
            ["subjects", _, "blobs", _] => self.trace.count("large value written"),
            _ => {}
        }
    }

    fn slot(&self, log: &str, slot: Slot, bytes: &Bytes, highest: Option<u64>, by: &str) {
        let Ok(log) = log.parse::<LogId>() else { return };
        let Ok(header) = decode_header(&log, slot, bytes) else { return };
        match header.kind {
            SlotKind::Seal => {
                if highest.is_some_and(|highest| highest > slot.get()) {
                    self.trace.count("void seal");
                } else {
                    self.trace.count("log sealed");
                    self.observer.sealed(&log, slot, by);
                }
            }
            SlotKind::Birth => self.trace.count("log created"),
            SlotKind::Data => self.trace.count("segment shipped"),
        }
    }

    fn manifest(&self, seen: &mut Seen, subject: &str, name: &str, bytes: &Bytes, again: bool) {
        if again {
            self.trace.count("recycled manifest number");
        }
        let Some(manifest) = manifest_of(subject, name, bytes) else { return };
        let known = seen.owners.get(subject).cloned();
        if known.as_ref().is_some_and(|known| manifest.number.get() < known.number) {
            self.trace.count("manifest below the newest");
            return;
        }
        let same = known.as_ref().is_some_and(|known| known.owner == manifest.owner);
        let taken = known.as_ref().is_some_and(|known| !known.released) && !same;
        self.trace.count(match (same, manifest.released) {
            (true, true) => "manifest: release",
            (false, true) => "manifest: reclaim",
            (true, false) => "manifest: compaction",
            (false, false) if taken => "manifest: takeover",
            (false, false) => "manifest: claim",
        });
        if !manifest.released {
            self.observer.owned(&manifest);
        }
        let before = if same { known.and_then(|known| known.before) } else { known.map(|known| known.owner) };
        let owned = SubjectOwner {
            number: manifest.number.get(),
            owner: manifest.owner,
            released: manifest.released,
            before,
        };
        seen.owners.insert(subject.to_owned(), owned);
    }

    /// Records a create that found an object.
    fn met(&self, key: &BucketKey, bytes: &Bytes) {
        let parts: Vec<&str> = key.as_str().split('/').collect();
        let ["subjects", subject, name] = parts.as_slice() else { return };
        let seen = self.seen();
        let (Some(manifest), Some(owned)) = (manifest_of(subject, name, bytes), seen.owners.get(*subject))
        else {
            return;
        };
        if owned.before.as_ref() == Some(&manifest.owner) && owned.owner != manifest.owner {
            self.trace.count("takeover during compaction");
        }
    }

    fn deleted(&self, key: &BucketKey) {
        let parts: Vec<&str> = key.as_str().split('/').collect();
        match parts.as_slice() {
            ["logs", log, slot] => {
                let mut seen = self.seen();
                if let (Some(slots), Ok(slot)) = (seen.slots.get_mut(*log), u64::from_str_radix(slot, 16)) {
                    slots.remove(&slot);
                }
                self.trace.count("slot deleted");
            }
            ["subjects", _, name] if name.ends_with(".manifest") => self.trace.count("manifest deleted"),
            ["subjects", _, "blobs", _] => self.trace.count("large value deleted"),
            ["subjects", ..] => self.trace.count("base deleted"),
            _ => {}
        }
    }
}

#[async_trait]
impl Bucket for Store {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        let created = self.inner.create(key, bytes.clone()).await?;
        self.trace.line(format_args!("store create {key} {:016x} {created:?}", brief(&bytes)));
        match created {
            Created::New => self.created(key, &bytes),
            Created::Exists => self.met(key, &bytes),
        }
        Ok(created)
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &BucketKey, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        self.inner.get_range(key, range).await
    }

    async fn get_tail(&self, key: &BucketKey, count: u64) -> Result<Option<Bytes>, BucketError> {
        self.inner.get_tail(key, count).await
    }

    async fn put_file(
        &self,
        key: &BucketKey,
        path: &Path,
        patch: HeaderPatch,
    ) -> Result<FileSummary, BucketError> {
        let summary = self.inner.put_file(key, path, patch).await?;
        self.trace.line(format_args!("store put {key} {}:{:?}", summary.size_bytes, summary.crc64));
        self.trace.count("file uploaded");
        Ok(summary)
    }

    async fn get_file(&self, key: &BucketKey, path: &Path) -> Result<Option<FileSummary>, BucketError> {
        self.inner.get_file(key, path).await
    }

    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        self.inner.list(prefix).await
    }

    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.inner.delete(key).await?;
        self.trace.line(format_args!("store delete {key}"));
        self.deleted(key);
        Ok(())
    }
}

/// Is called before the critical steps of a server, at which a fault has the largest effect.
pub trait StepObserver: Send + Sync + 'static {
    /// The server is about to create a manifest or a seal. `ours`: it creates a manifest of its own, not a seal in
    /// another server's log.
    fn before_create(&self, server: &str, ours: bool);
}

/// One server's path to the bucket, observed: its requests and the replies to them.
pub struct ObservedBucket {
    inner: Arc<FaultyBucket>,
    store: Arc<Store>,
    trace: Trace,
    server: String,
    rng: Arc<SeededRng>,
    create_faults: Arc<AtomicU64>,
    step_observer: Arc<OnceLock<Arc<dyn StepObserver>>>,
    outage: Arc<BucketOutage>,
}

impl ObservedBucket {
    /// Observes `inner`, the path of `server` to `store`. `create_faults` creates of manifests and seals out of a thousand get
    /// a fault, and `step_observer` is called before each of them. `outage` records the results of the creates in the server's
    /// own log.
    #[must_use]
    pub fn new(
        inner: Arc<FaultyBucket>,
        store: Arc<Store>,
        (trace, server, rng): (Trace, &str, Arc<SeededRng>),
        create_faults: Arc<AtomicU64>,
        step_observer: Arc<OnceLock<Arc<dyn StepObserver>>>,
        outage: Arc<BucketOutage>,
    ) -> Self {
        Self { inner, store, trace, server: server.to_owned(), rng, create_faults, step_observer, outage }
    }

    /// Injects a fault into the next create, if it is a critical one.
    fn inject_create_fault(&self, key: &BucketKey) {
        let parts: Vec<&str> = key.as_str().split('/').collect();
        let ours = match parts.as_slice() {
            ["logs", log, slot] if *slot != "index" => {
                if log.rsplit_once('-').is_some_and(|(server, _)| server == self.server) {
                    return;
                }
                false
            }
            ["subjects", _, name] if name.ends_with(".manifest") => true,
            _ => return,
        };
        let [drawn, kind] = [self.rng.below(1_000), self.rng.draw()];
        if drawn < self.create_faults.load(Ordering::Relaxed) {
            let faults = [
                BucketFault::Late,
                BucketFault::Again,
                BucketFault::AnswerLost,
                BucketFault::Late,
                BucketFault::Again,
                BucketFault::RequestLost,
            ];
            let fault = faults[usize::try_from(kind % 6).unwrap_or(0)];
            self.trace.line(format_args!("create-fault {} {key} {fault:?}", self.server));
            self.inner.script(BucketOperation::Create, [fault]);
        }
        if let Some(step_observer) = self.step_observer.get() {
            step_observer.before_create(&self.server, ours);
        }
    }

    fn record_reply<T>(
        &self,
        operation: &str,
        name: &dyn fmt::Display,
        outcome: Result<T, BucketError>,
        words: impl FnOnce(&T) -> String,
    ) -> Result<T, BucketError> {
        let Self { trace, server, .. } = self;
        match &outcome {
            Ok(answer) => {
                trace.line(format_args!("bucket {server} {operation} {name}: {}", words(answer)));
            }
            Err(error) => {
                trace.count(if error.is_unknown() { "bucket reply lost" } else { "bucket error" });
                let kind = match error {
                    BucketError::Timeout { .. } => "timeout",
                    BucketError::Unreachable { .. } => "unreachable",
                    BucketError::Denied { .. } => "denied",
                    BucketError::LocalFile { .. } => "local file",
                    _ => "other",
                };
                trace.line(format_args!("bucket {server} {operation} {name}: failed, {kind}"));
            }
        }
        outcome
    }

    /// Returns whether the key is a slot of the server's own log.
    fn is_own_slot(&self, key: &BucketKey) -> bool {
        key.as_str().strip_prefix("logs/").is_some_and(|log| log.starts_with(&self.server))
    }
}

fn size(found: &Option<Bytes>) -> String {
    match found {
        Some(bytes) => format!("{}:{:016x}", bytes.len(), brief(bytes)),
        None => "nothing".to_owned(),
    }
}

#[async_trait]
impl Bucket for ObservedBucket {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        self.store.wants(key, &self.server);
        self.inject_create_fault(key);
        let outcome = self.inner.create(key, bytes).await;
        if matches!(outcome, Ok(Created::Exists)) {
            self.trace.count("create found an object");
        }
        if self.is_own_slot(key) {
            self.outage.tried(self.trace.now(), outcome.is_ok());
        }
        self.record_reply("create", key, outcome, |created| format!("{created:?}"))
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        let outcome = self.inner.get(key).await;
        self.record_reply("get", key, outcome, size)
    }

    async fn get_range(&self, key: &BucketKey, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        let outcome = self.inner.get_range(key, range).await;
        self.record_reply("range", key, outcome, size)
    }

    async fn get_tail(&self, key: &BucketKey, count: u64) -> Result<Option<Bytes>, BucketError> {
        let outcome = self.inner.get_tail(key, count).await;
        if matches!(outcome, Ok(None)) && self.is_own_slot(key) {
            self.trace.count("barrier by a probe");
        }
        self.record_reply("tail", key, outcome, size)
    }

    async fn put_file(
        &self,
        key: &BucketKey,
        path: &Path,
        patch: HeaderPatch,
    ) -> Result<FileSummary, BucketError> {
        let outcome = self.inner.put_file(key, path, patch).await;
        self.record_reply("put", key, outcome, |summary| format!("{}", summary.size_bytes))
    }

    async fn get_file(&self, key: &BucketKey, path: &Path) -> Result<Option<FileSummary>, BucketError> {
        let outcome = self.inner.get_file(key, path).await;
        self.record_reply("fetch", key, outcome, |summary| {
            format!("{:?}", summary.map(|found| found.size_bytes))
        })
    }

    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        let outcome = self.inner.list(prefix).await;
        self.record_reply("list", &prefix.as_str(), outcome, |entries| {
            let names = entries.iter().map(|entry| entry.key.as_str().trim_start_matches(prefix.as_str()));
            names.collect::<Vec<_>>().join(" ")
        })
    }

    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError> {
        let outcome = self.inner.delete(key).await;
        self.record_reply("delete", key, outcome, |()| "done".to_owned())
    }
}
