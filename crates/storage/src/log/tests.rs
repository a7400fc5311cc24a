//! The log as a whole, over a bucket and a disk that fail, under a paused clock.

mod ends;
mod faults;
mod tasks;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorCode, ErrorReply, Level, LogId, Rev, Seq, Slot, Subject, Term, Timestamp};
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};
use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::bucket::faults::{Fault, FaultPlan, FaultyBucket};
use crate::bucket::{ObjectStoreBucket, Operation as Call};
use crate::entry::Entry;
use crate::format::{frame, segment};
use crate::keys::LogKeys;
use crate::plan::Operation;
use crate::wal::faults::FaultyStorage;
use crate::wal::{FileSystem, Wal, WalContents, read_wal};

/// A log with everything around it.
pub(super) struct Rig {
    pub(super) log: Log,
    pub(super) bucket: Arc<FaultyBucket>,
    pub(super) disk: FaultyStorage,
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

/// An entry with one operation, told apart by `count`.
pub(super) fn entry(after: u64, count: u64) -> Entry {
    Entry {
        term: Term::new(1),
        after: Rev::new(after),
        accept_time: Timestamp::from_micros(1),
        request: None,
        operations: vec![Operation::DeleteAll { end_seq: Seq::new(1), count }],
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
        Self::with(1, FaultPlan::calm(), LogSettings::default()).await
    }

    pub(super) async fn with(seed: u64, plan: FaultPlan, settings: LogSettings) -> Self {
        let clock = Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000)));
        let env = Env::simulated(clock, Arc::new(SeededEntropy::new(seed)));
        let inner = Arc::new(ObjectStoreBucket::in_memory(env.clone()));
        let bucket = Arc::new(FaultyBucket::new(inner, seed, plan, env.clone()));
        let disk = FaultyStorage::new(Arc::new(FileSystem), seed);
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let wal = Wal::create(folder.path(), &id("a"), Arc::new(disk.clone())).unwrap();
        let log = Log::start(id("a"), settings, bucket.clone(), wal, env.clone(), &tasks).await.unwrap();
        Self { log, bucket, disk, env, tasks, folder }
    }

    pub(super) fn append(&self, name: &str, after: u64, level: Level) -> Arc<Ticket> {
        self.log.append(append(name, after, level)).unwrap()
    }

    pub(super) fn refusal(&self, name: &str, after: u64, level: Level) -> ErrorCode {
        self.log.append(append(name, after, level)).unwrap_err().code
    }

    /// What the ticket comes to at its level.
    pub(super) async fn outcome(&self, ticket: &Ticket, level: Level) -> Result<(), ErrorReply> {
        eventually("an outcome", || ticket.reached(level).is_some()).await;
        ticket.reached(level).unwrap()
    }

    pub(super) fn wal(&self) -> WalContents {
        read_wal(&FileSystem, &PathBuf::from(self.folder.path()), self.log.id()).unwrap()
    }

    pub(super) fn sealer(&self, name: &str) -> SealedLogs {
        SealedLogs::new(self.bucket.inner().clone(), self.env.clone(), id(name))
    }

    pub(super) async fn slots(&self) -> Vec<u64> {
        let keys = LogKeys::new(self.log.id());
        let listed = self.bucket.inner().list(keys.folder()).await.unwrap();
        keys.read_listing(&listed).into_iter().map(Slot::get).collect()
    }

    pub(super) async fn own_tail(&self, name: &str) -> Vec<Entry> {
        let (bucket, first) = (self.bucket.inner().as_ref(), Slot::new(0));
        read_own_tail(&self.log, bucket, &subject(name), first, Rev::new(0)).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn each_level_is_reached_where_it_says() {
    let rig = Rig::new().await;
    let tickets = Level::ALL.map(|level| rig.append(level.as_str(), 0, level));
    assert_eq!(tickets.each_ref().map(|ticket| ticket.stage()), [Stage::Accepted; 4]);
    let reached = tickets.each_ref().map(|ticket| ticket.reached(Level::Memory).is_some());
    assert_eq!(reached, [true; 4]);
    assert!(tickets.iter().all(|ticket| ticket.reached(Level::Interval).is_none()));
    // One write and, for the one that asks, one sync; then one segment, for the one that asks.
    rig.bucket.set_gone(true);
    eventually("the sync", || tickets[2].reached(Level::Disk).is_some()).await;
    assert!(tickets.iter().all(|ticket| ticket.stage() == Stage::Synced));
    assert_eq!(rig.log.figures().syncs, 1);
    assert_eq!(tickets[3].reached(Level::Bucket), None);
    assert_eq!(rig.wal().appends.len(), 4);
    rig.bucket.set_gone(false);
    assert_eq!(rig.outcome(&tickets[3], Level::Bucket).await, Ok(()));
    assert!(tickets.iter().all(|ticket| ticket.slot() == Some(Slot::new(1))), "the others ride along");
    for level in Level::ALL {
        assert_eq!(rig.own_tail(level.as_str()).await, [entry(0, 0)]);
    }
    rig.log.stop().await;
    assert!(rig.wal().appends.is_empty(), "what is shipped is known to be");
    assert_eq!(rig.refusal("late", 0, Level::Memory), ErrorCode::Unavailable);
    rig.tasks.finish(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn all_that_waits_while_a_segment_is_in_flight_goes_in_the_next() {
    let plan = FaultPlan { latency: Duration::from_millis(50), ..FaultPlan::calm() };
    let rig = Rig::with(1, plan, LogSettings::default()).await;
    let mut tickets = Vec::new();
    for number in 0..1_000 {
        tickets.push(rig.append(&format!("app.s{}", number % 100), number / 100, Level::Bucket));
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    for ticket in &tickets {
        assert_eq!(rig.outcome(ticket, Level::Bucket).await, Ok(()));
    }
    let segments = rig.log.figures().segments;
    assert!((2..=20).contains(&segments), "{segments}");
    let tail = rig.own_tail("app.s7").await;
    assert_eq!(tail, (0..10).map(|after| entry(after, after)).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn weaker_levels_wait_for_company_and_each_slot_names_the_one_before() {
    let rig = Rig::new().await;
    let first = rig.append("app.one", 0, Level::Interval);
    tokio::time::sleep(Duration::from_millis(900)).await;
    let second = rig.append("app.two", 0, Level::Memory);
    assert_eq!(rig.slots().await, [0]);
    eventually("the interval to pass", || first.slot().is_some()).await;
    assert_eq!((first.slot(), second.slot()), (Some(Slot::new(1)), Some(Slot::new(1))));
    let third = rig.append("app.two", 1, Level::Memory);
    rig.log.ship();
    eventually("what was asked for", || third.slot() == Some(Slot::new(2))).await;
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

#[tokio::test(start_paused = true)]
async fn a_bucket_that_is_away_holds_weaker_levels_and_fills_a_bounded_budget() {
    let settings = LogSettings { max_unshipped_bytes: 2_000, ..LogSettings::default() };
    let rig = Rig::with(1, FaultPlan::calm(), settings).await;
    rig.bucket.set_gone(true);
    let first = rig.append("app.a", 0, Level::Interval);
    assert_eq!(rig.outcome(&first, Level::Interval).await, Ok(()));
    assert!(!rig.log.holds_weaker());
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(rig.log.holds_weaker());
    let mut after = 1;
    let refused = loop {
        match rig.log.append(append("app.a", after, Level::Memory)) {
            Ok(_) => after += 1,
            Err(reply) => break reply,
        }
    };
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(refused.retry_after_ms.is_some() && after > 5, "{after}: {refused:?}");
    assert!(rig.log.figures().unshipped_bytes <= 2_000);
    rig.bucket.set_gone(false);
    eventually("room again", || rig.log.append(append("app.a", after, Level::Memory)).is_ok()).await;
    eventually("everything shipped", || rig.log.figures().unshipped_bytes == 0).await;
    assert!(!rig.log.holds_weaker());
    assert_eq!(rig.own_tail("app.a").await.len() as u64, after + 1);
}

#[tokio::test(start_paused = true)]
async fn slots_go_when_verified_manifests_need_them_no_more_and_never_the_highest() {
    let rig = Rig::new().await;
    for after in 0..5 {
        for name in ["app.a", "app.b"] {
            let ticket = rig.append(name, after, Level::Bucket);
            rig.outcome(&ticket, Level::Bucket).await.unwrap();
        }
    }
    let highest = rig.log.next_slot().get() - 1;
    assert_eq!(rig.log.oldest_tails(1)[0].0, subject("app.a"));
    rig.log.based(&subject("app.a"), Rev::new(5), rig.log.next_slot());
    assert_eq!(rig.log.tail(&subject("app.a")), None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let needed = rig.log.tail(&subject("app.b")).unwrap().first_slot.get();
    assert_eq!(rig.slots().await, (needed..=highest).collect::<Vec<_>>());
    rig.log.based(&subject("app.b"), Rev::new(5), rig.log.next_slot());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.slots().await, [highest]);
    assert_eq!(rig.log.figures().slots, 1);
}
