//! Buckets that lose replies, and disks that fail.

use super::*;

/// Writes at all levels over a bucket with fault storms, then checks the whole log.
async fn run_with_faults(seed: u64) {
    let plan = FaultPlan {
        request_lost: 60,
        answer_lost: 60,
        late: 60,
        server_error: 60,
        conflict: 60,
        corrupt: 60,
        storm: 5,
        latency: Duration::from_millis(30),
        ..FaultPlan::none()
    };
    let rig = Rig::with(seed, plan, LogSettings::default()).await;
    let names = ["app.a", "app.b", "app.c"];
    for round in 0..30_u64 {
        let level = Level::ALL[(round % 4) as usize];
        let appends = names.map(|name| rig.append(name, round, level));
        for progress in &appends {
            assert_eq!(rig.outcome(progress, level).await, Ok(()), "seed {seed}");
        }
        if round % 5 == 0 {
            assert_eq!(rig.log.barrier().await, Ok(()), "seed {seed}");
        }
    }
    rig.log.stop().await;
    rig.bucket.apply_delayed().await;
    assert!(rig.wal().appends.is_empty());
    let sealed = rig.sealer("b").seal(rig.log.id()).await.unwrap();
    for name in names {
        let expected: Vec<LogEntry> = (0..30).map(|after| entry(after, after)).collect();
        assert_eq!(
            entries(sealed.tail(&subject(name), Slot::new(0), Rev::new(0))).await.unwrap(),
            expected,
            "seed {seed}"
        );
    }
}

/// With lost replies and storms, every acked entry is in the log exactly once and in order.
#[tokio::test(start_paused = true)]
async fn log_on_lossy_bucket_keeps_each_entry_once_in_order() {
    for seed in 0..20 {
        run_with_faults(seed).await;
    }
}

/// A corrupt read of a slot after a lost reply does not end the log, and later writes succeed.
#[tokio::test(start_paused = true)]
async fn log_survives_corrupt_read_of_own_slot() {
    let rig = Rig::new().await;
    rig.bucket.script(Call::Create, [BucketFault::AnswerLost]);
    rig.bucket.script(Call::Get, [BucketFault::Corrupt]);
    let progress = rig.append("app.a", 0, Level::Bucket);
    assert_eq!(rig.outcome(&progress, Level::Bucket).await, Ok(()));
    assert!(rig.bucket.fault_counts().contains_key(&BucketFault::Corrupt));
    let next = rig.append("app.a", 1, Level::Bucket);
    assert_eq!(rig.outcome(&next, Level::Bucket).await, Ok(()));
}

/// The log retries a segment upload that the bucket denies until it succeeds, in the same slot.
#[tokio::test(start_paused = true)]
async fn segment_upload_is_retried_after_denial() {
    let rig = Rig::new().await;
    rig.bucket.script(Call::Create, [BucketFault::Denied, BucketFault::RequestLost, BucketFault::Denied]);
    let progress = rig.append("app.a", 0, Level::Bucket);
    assert_eq!(rig.outcome(&progress, Level::Bucket).await, Ok(()));
    assert_eq!(rig.slots().await.last(), Some(&1));
}

/// A full disk fails unacked writes and writes that build on them; acked writes still ship, and the log recovers.
#[tokio::test(start_paused = true)]
async fn disk_full_fails_unacked_writes_and_log_recovers() {
    let rig = Rig::new().await;
    rig.disk.limit_free_space(Some(0));
    let kept = rig.append("app.a", 0, Level::Memory);
    assert_eq!(kept.reached(Level::Memory), Some(Ok(())));
    let failed = rig.append("app.b", 0, Level::Interval);
    let after_it = rig.append("app.b", 1, Level::Memory);
    for progress in [&failed, &after_it] {
        let failure = rig.outcome(progress, Level::Interval).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Unavailable);
    }
    assert_eq!(rig.refusal("app.c", 0, Level::Memory), ErrorCode::Unavailable);
    // Acknowledged writes still go to the bucket.
    eventually("the acknowledged write shipped", || kept.slot().is_some()).await;
    assert_eq!(rig.own_tail("app.a").await, [entry(0, 0)]);
    assert!(rig.own_tail("app.b").await.is_empty());
    rig.disk.limit_free_space(None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The writer has not yet seen that its earlier write failed: writes that build on it are rejected.
    assert_eq!(rig.refusal("app.b", 2, Level::Memory), ErrorCode::Unavailable);
    assert_eq!(rig.refusal("app.b", 1, Level::Memory), ErrorCode::Unavailable);
    let again = rig.append("app.b", 0, Level::Disk);
    assert_eq!(rig.outcome(&again, Level::Disk).await, Ok(()));
}

/// A failed sync makes pending writes `indeterminate`, and the log then rejects all writes and reads.
#[tokio::test(start_paused = true)]
async fn wal_sync_failure_stops_all_acks() {
    let rig = Rig::new().await;
    rig.bucket.set_unreachable(true);
    let shipping = rig.append("app.a", 0, Level::Bucket);
    eventually("the write to be in flight", || rig.log.metrics().unshipped_bytes > 0).await;
    rig.disk.fail_syncs(1);
    let weaker = rig.append("app.b", 0, Level::Interval);
    assert_eq!(rig.outcome(&weaker, Level::Memory).await, Ok(()));
    let synced = rig.append("app.c", 0, Level::Disk);
    for (progress, level) in [(&synced, Level::Disk), (&shipping, Level::Bucket)] {
        assert_eq!(rig.outcome(progress, level).await.unwrap_err().code, ErrorCode::Indeterminate);
    }
    assert_eq!(rig.log.ended().await, LogEnd::Poisoned);
    assert_eq!(rig.refusal("app.d", 0, Level::Memory), ErrorCode::Unavailable);
    assert_eq!(rig.log.barrier().await.unwrap_err().code, ErrorCode::Unavailable);
    rig.tasks.finish(Duration::from_secs(5)).await.unwrap();
}

/// A write at level `interval` is synced within about one second and then survives a power loss.
#[tokio::test(start_paused = true)]
async fn wal_syncs_interval_writes_each_second() {
    let rig = Rig::new().await;
    rig.bucket.set_unreachable(true);
    let progress = rig.append("app.a", 0, Level::Interval);
    assert_eq!(rig.outcome(&progress, Level::Interval).await, Ok(()));
    assert_eq!(rig.log.metrics().wal_syncs, 0);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!((progress.stage(), rig.log.metrics().wal_syncs), (DurabilityStage::Synced, 1));
    rig.disk.power_loss().unwrap();
    assert_eq!(rig.wal().appends.len(), 1);
}
