//! Behavior of the log's tasks under load and after failures.

use super::*;
use crate::log::disk::{self, DiskSchedule, DiskWork, MAX_UNMARKED_GROUPS};
use crate::log::sealed::MAX_CACHED_LOGS;
use crate::wal::Lsn;

/// The disk task's next work under a load that never empties the queue. The log's own tasks do not run meanwhile: this
/// code never awaits.
fn next_under_load(rig: &Rig, schedule: &DiskSchedule, round: u64) -> DiskWork {
    rig.append("app.a", round, Level::Interval);
    let work = disk::next(&rig.log.0, schedule);
    if matches!(work, DiskWork::Group(..)) {
        rig.log.0.lock().group_written();
    }
    work
}

/// Under constant load, the disk task requests a sync once the sync interval has passed.
#[tokio::test(start_paused = true)]
async fn wal_sync_is_not_delayed_by_constant_load() {
    let rig = Rig::new().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let now = rig.env.boot();
    let early =
        DiskSchedule { unsynced_since: Some(now - Duration::from_millis(999)), ..DiskSchedule::default() };
    assert!(matches!(next_under_load(&rig, &early, 0), DiskWork::Group(_, false)));
    let due = DiskSchedule { unsynced_since: Some(now - Duration::from_secs(1)), ..DiskSchedule::default() };
    assert!(matches!(next_under_load(&rig, &due, 1), DiskWork::Group(_, true)));
}

/// Under constant load, the disk task records the shipped position after a bounded number of groups.
#[tokio::test(start_paused = true)]
async fn wal_shipped_mark_is_written_under_constant_load() {
    let rig = Rig::new().await;
    let marker = (Lsn::ZERO.next(), Slot::new(1));
    rig.log.0.lock().marker = Some(marker);
    let few = DiskSchedule { unmarked_groups: MAX_UNMARKED_GROUPS - 1, ..DiskSchedule::default() };
    assert!(matches!(next_under_load(&rig, &few, 0), DiskWork::Group(..)));
    let many = DiskSchedule { unmarked_groups: MAX_UNMARKED_GROUPS, ..DiskSchedule::default() };
    let DiskWork::Mark(through, slot) = next_under_load(&rig, &many, 1) else { panic!("no marker was due") };
    assert_eq!((through, slot), marker);
    assert!(matches!(next_under_load(&rig, &many, 2), DiskWork::Group(..)), "there is no marker to write");
}

/// A log stops on a full disk, and its unacked write fails with `unavailable`.
#[tokio::test(start_paused = true)]
async fn log_stop_completes_on_full_disk() {
    let rig = Rig::new().await;
    rig.disk.limit_free_space(Some(0));
    let refused = rig.append("app.a", 0, Level::Interval);
    tokio::time::timeout(Duration::from_secs(60), rig.log.stop()).await.unwrap();
    assert_eq!(refused.failure().unwrap().code, ErrorCode::Unavailable);
    assert_eq!(rig.log.end(), Some(LogEnd::Stopped));
}

/// After a task panic, every waiter of the log is notified of its end.
async fn ends_by_panic(rig: Rig, waiting: Option<Arc<AppendProgress>>) {
    let ended = tokio::time::timeout(Duration::from_secs(5), rig.log.ended()).await;
    assert_eq!(ended, Ok(LogEnd::Poisoned));
    assert_eq!(rig.log.end_cause(), Some(LogEnd::Poisoned));
    if let Some(progress) = waiting {
        assert_eq!(rig.outcome(&progress, Level::Bucket).await.unwrap_err().code, ErrorCode::Indeterminate);
    }
    assert_eq!(rig.refusal("app.z", 0, Level::Memory), ErrorCode::Unavailable);
    assert_eq!(rig.log.barrier().await.unwrap_err().code, ErrorCode::Unavailable);
    rig.tasks.finish(Duration::from_secs(5)).await.unwrap();
}

/// A panic in the ship task ends the log, and the waiting write is `indeterminate`.
#[tokio::test(start_paused = true)]
async fn ship_task_panic_ends_log() {
    let rig = Rig::new().await;
    rig.bucket.script(Call::Create, [BucketFault::Panics]);
    let progress = rig.append("app.a", 0, Level::Bucket);
    ends_by_panic(rig, Some(progress)).await;
}

/// A panic in the disk task ends the log, and the waiting write is `indeterminate`.
#[tokio::test(start_paused = true)]
async fn disk_task_panic_ends_log() {
    let rig = Rig::new().await;
    rig.bucket.set_unreachable(true);
    rig.disk.panic_in_syncs();
    let progress = rig.append("app.a", 0, Level::Disk);
    ends_by_panic(rig, Some(progress)).await;
}

/// If recording the failed writes of a sealed log panics, the log still ends and the waiting write is `indeterminate`.
#[tokio::test(start_paused = true)]
async fn disk_task_panic_after_seal_fails_waiting_writes() {
    let rig = Rig::new().await;
    rig.sealer("b").seal_only(rig.log.id()).await.unwrap();
    rig.disk.panic_in_syncs();
    let progress = rig.append("app.a", 0, Level::Bucket);
    let ended = tokio::time::timeout(Duration::from_secs(5), rig.log.ended()).await;
    assert_eq!(ended, Ok(LogEnd::Sealed));
    assert_eq!(progress.failure().unwrap().code, ErrorCode::Indeterminate);
}

/// A panic in the probe task ends the log, and the waiting read barrier fails with `unavailable`.
#[tokio::test(start_paused = true)]
async fn probe_task_panic_ends_log() {
    let rig = Rig::new().await;
    rig.bucket.script(Call::Get, [BucketFault::Panics]);
    let read = tokio::time::timeout(Duration::from_secs(5), rig.log.barrier()).await.unwrap();
    assert_eq!(read.unwrap_err().code, ErrorCode::Unavailable);
    ends_by_panic(rig, None).await;
}

/// A panic in the trim task ends the log.
#[tokio::test(start_paused = true)]
async fn trim_task_panic_ends_log() {
    let rig = Rig::new().await;
    rig.bucket.script(Call::Delete, [BucketFault::Panics]);
    queue_trim(&rig, 1, 2);
    ends_by_panic(rig, None).await;
}

fn queue_trim(rig: &Rig, from: u64, to: u64) {
    rig.log.0.lock().trimmable_slots.push_back((Slot::new(from), Slot::new(to)));
    rig.log.0.wakers.trim.notify_one();
}

/// Trim deletes as many slots per second as the log can write, despite a slow bucket.
#[tokio::test(start_paused = true)]
async fn trim_deletes_slots_at_max_put_rate() {
    let rig = Rig::new().await;
    let latency = Duration::from_millis(140);
    rig.bucket.set_plan(FaultPlan { latency, ..FaultPlan::none() });
    queue_trim(&rig, 1, 501);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.bucket.calls(Call::Delete), 500);
}

/// A failed slot delete is retried later and delays no other delete.
#[tokio::test(start_paused = true)]
async fn trim_failed_delete_is_retried_and_delays_no_other() {
    let rig = Rig::new().await;
    for after in 0..12 {
        let progress = rig.append("app.a", after, Level::Bucket);
        rig.outcome(&progress, Level::Bucket).await.unwrap();
    }
    let highest = rig.log.next_slot().get() - 1;
    rig.bucket.script(Call::Delete, [BucketFault::Denied, BucketFault::Denied, BucketFault::Hangs]);
    rig.log.base_published(&subject("app.a"), Rev::new(12), rig.log.next_slot());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.slots().await, [1, 2, 3, highest]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(rig.slots().await, [3, highest], "one delete never gets a reply");
}

/// A wait for a subject's pending writes ends at once when they ship, fail or the log ends; other subjects do not
/// matter.
#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_methods)] // The test waits for the task.
async fn log_settled_wait_ends_as_soon_as_writes_resolve() {
    let rig = Rig::new().await;
    let (name, other) = (subject("app.a"), subject("app.other"));
    let limit = Duration::from_secs(60);
    let start = rig.env.boot();
    let progress = rig.append("app.a", 0, Level::Memory);
    tokio::time::timeout(limit, rig.log.wait_resolved(&name)).await.unwrap();
    assert_eq!(progress.stage(), DurabilityStage::Shipped);
    assert!(rig.env.boot() - start < Duration::from_millis(10), "{:?}", rig.env.boot() - start);
    // A failed append.
    rig.disk.limit_free_space(Some(0));
    rig.append("app.a", 1, Level::Interval);
    tokio::time::timeout(limit, rig.log.wait_resolved(&name)).await.unwrap();
    rig.disk.limit_free_space(None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // An append stays unshipped while the bucket does not answer; it blocks no other subject. The end of the log then
    // leaves it in the WAL.
    rig.bucket.set_unreachable(true);
    rig.append("app.a", 1, Level::Bucket);
    rig.log.wait_resolved(&other).await;
    assert!(tokio::time::timeout(limit, rig.log.wait_resolved(&name)).await.is_err());
    let wait = {
        let log = rig.log.clone();
        tokio::spawn(async move { log.wait_resolved(&name).await })
    };
    tokio::task::yield_now().await;
    rig.log.0.lock().stop_now(&rig.log.0.wakers);
    tokio::time::timeout(limit, wait).await.unwrap().unwrap();
}

/// The cache of sealed logs stays bounded after many failed seal attempts.
#[tokio::test(start_paused = true)]
async fn sealed_log_cache_is_bounded_after_failed_seals() {
    let rig = Rig::new().await;
    let logs = rig.sealer("b");
    for number in 0..3 * MAX_CACHED_LOGS {
        logs.seal(&id(&format!("never-created-{number}"))).await.unwrap_err();
    }
    assert!(logs.known.lock().len() <= MAX_CACHED_LOGS);
}
