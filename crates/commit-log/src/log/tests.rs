//! The log as a whole, over a bucket and a disk that fail, under a paused clock.

mod ends;
mod faults;
mod slow_link;
mod tasks;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bucket::{Bucket, BucketOperation as Call, ObjectStoreBucket};
use dormouse_format::entry::LogEntry;
use dormouse_format::keys::LogKeys;
use dormouse_format::record::RecordOp;
use dormouse_format::{frame, segment};
use dormouse_protocol::{ErrorCode, ErrorReply, Level, LogId, Rev, Seq, Slot, Subject, Term, Timestamp};
use dormouse_runtime::disk::LocalDisk;
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};
use dormouse_testkit::bucket::{BucketFault, FaultPlan, FaultyBucket};
use dormouse_testkit::disk::FaultyDisk;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::wal::{Wal, WalContents, read_wal};

/// A log with its bucket, disk, environment and tasks.
pub(super) struct Rig {
    pub(super) log: Log,
    pub(super) bucket: Arc<FaultyBucket>,
    pub(super) disk: FaultyDisk,
    pub(super) env: Env,
    pub(super) tasks: Tasks,
    folder: TempDir,
}

pub(super) fn id(server: &str) -> LogId {
    format!("{server}-01J9Z3ZZZZZZZZZZZZZZZZZZZZ").parse().unwrap()
}

pub(super) fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

/// An entry with one operation; `count` makes it unique.
pub(super) fn entry(after: u64, count: u64) -> LogEntry {
    LogEntry {
        term: Term::new(1),
        after: Rev::new(after),
        accept_time: Timestamp::from_micros(1),
        request: None,
        operations: vec![RecordOp::DeleteAll { end_seq: Seq::new(1), count }],
    }
}

pub(super) fn append(name: &str, after: u64, level: Level) -> Append {
    let entry = entry(after, after);
    Append {
        subject: subject(name),
        frames: frame::encode(&entry).unwrap(),
        first_after: entry.after,
        last_rev: entry.last_rev(),
        entries: 1,
        level,
        waker: Arc::new(Notify::new()),
    }
}

pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..200_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never: {what}");
}

impl Rig {
    pub(super) async fn new() -> Self {
        Self::with(1, FaultPlan::none(), LogSettings::default()).await
    }

    pub(super) async fn with(seed: u64, plan: FaultPlan, settings: LogSettings) -> Self {
        Self::over(seed, plan, settings, |bucket| bucket).await
    }

    /// A rig whose store is an in-memory bucket behind what `wrap` makes of it.
    pub(super) async fn over(
        seed: u64,
        plan: FaultPlan,
        settings: LogSettings,
        wrap: impl FnOnce(Arc<dyn Bucket>) -> Arc<dyn Bucket>,
    ) -> Self {
        let clock = Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000)));
        let env = Env::simulated(clock, Arc::new(SeededEntropy::new(seed)));
        let inner = wrap(Arc::new(ObjectStoreBucket::in_memory(env.clone())));
        let bucket = Arc::new(FaultyBucket::new(inner, seed, plan, env.clone()));
        let disk = FaultyDisk::new(Arc::new(LocalDisk), seed);
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let wal = Wal::create(folder.path(), &id("a"), Arc::new(disk.clone())).unwrap();
        let log = Log::start(
            id("a"),
            settings,
            bucket.clone(),
            wal,
            env.clone(),
            &tasks,
            LogInstruments::default(),
        )
        .await
        .unwrap();
        Self { log, bucket, disk, env, tasks, folder }
    }

    pub(super) fn append(&self, name: &str, after: u64, level: Level) -> Arc<AppendProgress> {
        self.log.append(append(name, after, level)).unwrap()
    }

    pub(super) fn refusal(&self, name: &str, after: u64, level: Level) -> ErrorCode {
        self.log.append(append(name, after, level)).unwrap_err().code
    }

    /// The final result of an append at its level.
    pub(super) async fn outcome(&self, progress: &AppendProgress, level: Level) -> Result<(), ErrorReply> {
        eventually("an outcome", || progress.reached(level).is_some()).await;
        progress.reached(level).unwrap()
    }

    pub(super) fn wal(&self) -> WalContents {
        read_wal(&LocalDisk, &PathBuf::from(self.folder.path()), self.log.id()).unwrap()
    }

    pub(super) fn sealer(&self, name: &str) -> SealedLogs {
        SealedLogs::new(self.bucket.inner().clone(), self.env.clone(), id(name))
    }

    pub(super) async fn slots(&self) -> Vec<u64> {
        let keys = LogKeys::new(self.log.id());
        let listed = self.bucket.inner().list(keys.folder()).await.unwrap();
        keys.read_listing(&listed).into_iter().map(Slot::get).collect()
    }

    pub(super) async fn own_tail(&self, name: &str) -> Vec<LogEntry> {
        let (bucket, first) = (self.bucket.inner().as_ref(), Slot::new(0));
        let subject = subject(name);
        entries(read_own_tail(&self.log, bucket, &subject, first, Rev::new(0))).await.unwrap()
    }
}

/// All entries of a tail.
pub(super) async fn entries(mut tail: TailReader<'_>) -> Result<Vec<LogEntry>, TailError> {
    let mut all = Vec::new();
    while let Some(entries) = tail.next().await? {
        all.extend(entries);
    }
    Ok(all)
}

/// Each level is reached at its own stage: acceptance, WAL write, WAL sync or segment upload.
#[tokio::test(start_paused = true)]
async fn level_is_reached_at_matching_durability_stage() {
    let rig = Rig::new().await;
    let appends = Level::ALL.map(|level| rig.append(level.as_str(), 0, level));
    assert_eq!(appends.each_ref().map(|progress| progress.stage()), [DurabilityStage::Accepted; 4]);
    let reached = appends.each_ref().map(|progress| progress.reached(Level::Memory).is_some());
    assert_eq!(reached, [true; 4]);
    assert!(appends.iter().all(|progress| progress.reached(Level::Interval).is_none()));
    // One WAL write; one sync, for the level that needs it; then one segment, for the level that needs it.
    rig.bucket.set_unreachable(true);
    eventually("the sync", || appends[2].reached(Level::Disk).is_some()).await;
    assert!(appends.iter().all(|progress| progress.stage() == DurabilityStage::Synced));
    assert_eq!(rig.log.metrics().wal_syncs, 1);
    assert_eq!(appends[3].reached(Level::Bucket), None);
    assert_eq!(rig.wal().appends.len(), 4);
    rig.bucket.set_unreachable(false);
    assert_eq!(rig.outcome(&appends[3], Level::Bucket).await, Ok(()));
    assert!(
        appends.iter().all(|progress| progress.slot() == Some(Slot::new(1))),
        "the segment includes the others"
    );
    for level in Level::ALL {
        assert_eq!(rig.own_tail(level.as_str()).await, [entry(0, 0)]);
    }
    rig.log.stop().await;
    assert!(rig.wal().appends.is_empty(), "shipped appends are recorded as shipped");
    assert_eq!(rig.refusal("late", 0, Level::Memory), ErrorCode::Unavailable);
    rig.tasks.finish(Duration::from_secs(5)).await.unwrap();
}

/// Writes that arrive during an upload share the next segment, so a thousand writes need at most twenty segments.
#[tokio::test(start_paused = true)]
async fn segment_carries_writes_queued_during_previous_upload() {
    let plan = FaultPlan { latency: Duration::from_millis(50), ..FaultPlan::none() };
    let rig = Rig::with(1, plan, LogSettings::default()).await;
    let mut appends = Vec::new();
    for number in 0..1_000 {
        appends.push(rig.append(&format!("app.s{}", number % 100), number / 100, Level::Bucket));
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    for progress in &appends {
        assert_eq!(rig.outcome(progress, Level::Bucket).await, Ok(()));
    }
    let segments = rig.log.metrics().segments;
    assert!((2..=20).contains(&segments), "{segments}");
    let tail = rig.own_tail("app.s7").await;
    assert_eq!(tail, (0..10).map(|after| entry(after, after)).collect::<Vec<_>>());
}

/// Weaker levels wait for the ship interval or a ship request, and each segment holds the previous slot's checksum.
#[tokio::test(start_paused = true)]
async fn segment_delays_weaker_levels_and_links_previous_slot() {
    let rig = Rig::new().await;
    let first = rig.append("app.one", 0, Level::Interval);
    tokio::time::sleep(Duration::from_millis(900)).await;
    let second = rig.append("app.two", 0, Level::Memory);
    assert_eq!(rig.slots().await, [0]);
    eventually("the interval to pass", || first.slot().is_some()).await;
    assert_eq!((first.slot(), second.slot()), (Some(Slot::new(1)), Some(Slot::new(1))));
    let third = rig.append("app.two", 1, Level::Memory);
    rig.log.ship();
    eventually("the requested segment", || third.slot() == Some(Slot::new(2))).await;
    assert_eq!(rig.log.next_slot(), Slot::new(3));
    let keys = LogKeys::new(rig.log.id());
    let mut objects = Vec::new();
    for slot in [1, 2].map(Slot::new) {
        let bytes = rig.bucket.inner().get(&keys.slot(slot)).await.unwrap().unwrap();
        objects.push(segment::decode(rig.log.id(), slot, bytes).unwrap());
    }
    assert_eq!(objects[1].header.previous, objects[0].checksum);
    assert_ne!(objects[0].header.nonce, objects[1].header.nonce);
}

/// In an outage the log holds weaker levels and rejects writes over the unshipped limit as `overloaded`; afterwards it
/// recovers.
#[tokio::test(start_paused = true)]
async fn write_stall_holds_weaker_levels_and_bounds_unshipped_data() {
    let settings = LogSettings { max_unshipped_bytes: 2_000, ..LogSettings::default() };
    let rig = Rig::with(1, FaultPlan::none(), settings).await;
    rig.bucket.set_unreachable(true);
    let first = rig.append("app.a", 0, Level::Interval);
    assert_eq!(rig.outcome(&first, Level::Interval).await, Ok(()));
    assert!(!rig.log.is_write_stalled());
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(rig.log.is_write_stalled());
    let mut after = 1;
    let refused = loop {
        match rig.log.append(append("app.a", after, Level::Memory)) {
            Ok(_) => after += 1,
            Err(reply) => break reply,
        }
    };
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(refused.retry_after_ms.is_some() && after > 5, "{after}: {refused:?}");
    assert!(rig.log.metrics().unshipped_bytes <= 2_000);
    rig.bucket.set_unreachable(false);
    eventually("free unshipped space", || rig.log.append(append("app.a", after, Level::Memory)).is_ok())
        .await;
    eventually("everything shipped", || rig.log.metrics().unshipped_bytes == 0).await;
    assert!(!rig.log.is_write_stalled());
    assert_eq!(rig.own_tail("app.a").await.len() as u64, after + 1);
}

/// When manifests no longer need slots, the log deletes them but keeps the highest slot.
#[tokio::test(start_paused = true)]
async fn log_trims_slots_below_the_needed_ones_except_highest() {
    let rig = Rig::new().await;
    for after in 0..5 {
        for name in ["app.a", "app.b"] {
            let progress = rig.append(name, after, Level::Bucket);
            rig.outcome(&progress, Level::Bucket).await.unwrap();
        }
    }
    let highest = rig.log.next_slot().get() - 1;
    assert_eq!(rig.log.oldest_tails(1)[0].0, subject("app.a"));
    rig.log.base_published(&subject("app.a"), Rev::new(5), rig.log.next_slot());
    assert_eq!(rig.log.tail(&subject("app.a")), None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let needed = rig.log.tail(&subject("app.b")).unwrap().first_slot.get();
    assert_eq!(rig.slots().await, (needed..=highest).collect::<Vec<_>>());
    rig.log.base_published(&subject("app.b"), Rev::new(5), rig.log.next_slot());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.slots().await, [highest]);
    assert_eq!(rig.log.metrics().retained_slots, 1);
}
