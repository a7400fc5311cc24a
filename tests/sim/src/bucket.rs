//! Observers of the paths to the bucket, at both ends: the requests and replies of a server, and the real effects at the
//! store. The buckets themselves are those of the testkit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock};

use bytes::Bytes;
use dormouse_bucket::{BucketError, BucketOperation, Created};
use dormouse_format::keys::{BucketKey, ManifestNumber};
use dormouse_format::manifest::Manifest;
use dormouse_format::segment::{SlotKind, decode_header};
use dormouse_protocol::subject::Unescaped;
use dormouse_protocol::{LogId, Slot, Subject};
use dormouse_runtime::Lock;
use dormouse_testkit::bucket::{BucketAnswer, BucketCall, BucketFault, BucketObserver, FaultyBucket};

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

/// Observes the store itself: it records created and recreated objects.
pub struct StoreEffects {
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

impl StoreEffects {
    /// An observer of an empty store.
    #[must_use]
    pub fn new(trace: Trace, observer: Arc<dyn StoreObserver>) -> Self {
        Self { trace, observer, state: Lock::default() }
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

impl BucketObserver for StoreEffects {
    fn after(&self, call: BucketCall<'_>, outcome: Result<BucketAnswer<'_>, &BucketError>) {
        let Ok(answer) = outcome else { return };
        match (call, answer) {
            (BucketCall::Create(key, bytes), BucketAnswer::Created(created)) => {
                self.trace.line(format_args!("store create {key} {:016x} {created:?}", brief(bytes)));
                match created {
                    Created::New => self.created(key, bytes),
                    Created::Exists => self.met(key, bytes),
                }
            }
            (BucketCall::PutFile(key), BucketAnswer::File(Some(summary))) => {
                self.trace.line(format_args!("store put {key} {}:{:?}", summary.size_bytes, summary.crc64));
                self.trace.count("file uploaded");
            }
            (BucketCall::Delete(key), _) => {
                self.trace.line(format_args!("store delete {key}"));
                self.deleted(key);
            }
            _ => {}
        }
    }
}

/// Is called before the critical steps of a server, at which a fault has the largest effect.
pub trait StepObserver: Send + Sync + 'static {
    /// The server is about to create a manifest or a seal. `ours`: it creates a manifest of its own, not a seal in
    /// another server's log.
    fn before_create(&self, server: &str, ours: bool);
}

/// Observes one server's path to the bucket: its requests and the replies to them. It injects faults into the critical
/// creates.
pub struct ServerCalls {
    path: Arc<FaultyBucket>,
    store: Arc<StoreEffects>,
    trace: Trace,
    server: String,
    rng: Arc<SeededRng>,
    create_faults: Arc<AtomicU64>,
    step_observer: Arc<OnceLock<Arc<dyn StepObserver>>>,
    outage: Arc<BucketOutage>,
}

impl ServerCalls {
    /// Observes `path`, the path of `server` to `store`. `create_faults` creates of manifests and seals out of a thousand get
    /// a fault, and `step_observer` is called before each of them. `outage` records the results of the creates in the server's
    /// own log.
    #[must_use]
    pub fn new(
        path: Arc<FaultyBucket>,
        store: Arc<StoreEffects>,
        (trace, server, rng): (Trace, &str, Arc<SeededRng>),
        create_faults: Arc<AtomicU64>,
        step_observer: Arc<OnceLock<Arc<dyn StepObserver>>>,
        outage: Arc<BucketOutage>,
    ) -> Self {
        Self { path, store, trace, server: server.to_owned(), rng, create_faults, step_observer, outage }
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
            self.path.script(BucketOperation::Create, [fault]);
        }
        if let Some(step_observer) = self.step_observer.get() {
            step_observer.before_create(&self.server, ours);
        }
    }

    fn record_reply(&self, call: BucketCall<'_>, outcome: Result<BucketAnswer<'_>, &BucketError>) {
        let Self { trace, server, .. } = self;
        let (operation, name) = operation_and_name(call);
        match outcome {
            Ok(answer) => {
                trace.line(format_args!("bucket {server} {operation} {name}: {}", words(call, answer)));
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
    }

    /// Returns whether the key is a slot of the server's own log.
    fn is_own_slot(&self, key: &BucketKey) -> bool {
        key.as_str().strip_prefix("logs/").is_some_and(|log| log.starts_with(&self.server))
    }
}

/// Describes an answer in the trace.
fn words(call: BucketCall<'_>, answer: BucketAnswer<'_>) -> String {
    match answer {
        BucketAnswer::Created(created) => format!("{created:?}"),
        BucketAnswer::Bytes(Some(bytes)) => format!("{}:{:016x}", bytes.len(), brief(bytes)),
        BucketAnswer::Bytes(None) => "nothing".to_owned(),
        BucketAnswer::File(summary) => {
            let size = summary.map(|summary| summary.size_bytes);
            match (call, size) {
                (BucketCall::PutFile(_), Some(size)) => format!("{size}"),
                _ => format!("{size:?}"),
            }
        }
        BucketAnswer::Entries(entries) => {
            let prefix = if let BucketCall::List(prefix) = call { prefix.as_str() } else { "" };
            let names = entries.iter().map(|entry| entry.key.as_str().trim_start_matches(prefix));
            names.collect::<Vec<_>>().join(" ")
        }
        BucketAnswer::Deleted => "done".to_owned(),
    }
}

/// Names a call in the trace: its operation, and its object or prefix.
fn operation_and_name<'a>(call: BucketCall<'a>) -> (&'static str, &'a str) {
    match call {
        BucketCall::Create(key, _) => ("create", key.as_str()),
        BucketCall::Get(key) => ("get", key.as_str()),
        BucketCall::GetRange(key) => ("range", key.as_str()),
        BucketCall::GetTail(key) => ("tail", key.as_str()),
        BucketCall::PutFile(key) => ("put", key.as_str()),
        BucketCall::GetFile(key) => ("fetch", key.as_str()),
        BucketCall::List(prefix) => ("list", prefix.as_str()),
        BucketCall::Delete(key) => ("delete", key.as_str()),
    }
}

impl BucketObserver for ServerCalls {
    fn before(&self, call: BucketCall<'_>) {
        if let BucketCall::Create(key, _) = call {
            self.store.wants(key, &self.server);
            self.inject_create_fault(key);
        }
    }

    fn after(&self, call: BucketCall<'_>, outcome: Result<BucketAnswer<'_>, &BucketError>) {
        match call {
            BucketCall::Create(key, _) => {
                if matches!(outcome, Ok(BucketAnswer::Created(Created::Exists))) {
                    self.trace.count("create found an object");
                }
                if self.is_own_slot(key) {
                    self.outage.tried(self.trace.now(), outcome.is_ok());
                }
            }
            BucketCall::GetTail(key)
                if matches!(outcome, Ok(BucketAnswer::Bytes(None))) && self.is_own_slot(key) =>
            {
                self.trace.count("barrier by a probe");
            }
            _ => {}
        }
        self.record_reply(call, outcome);
    }
}
