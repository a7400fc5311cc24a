//! Buckets that lose answers and disks that fail.

use super::*;

/// Writes at all levels through a stormy bucket, and takes the whole log apart afterwards.
async fn storm(seed: u64) {
    let plan = FaultPlan {
        request_lost: 60,
        answer_lost: 60,
        late: 60,
        server_error: 60,
        conflict: 60,
        corrupt: 60,
        storm: 5,
        latency: Duration::from_millis(30),
        ..FaultPlan::calm()
    };
    let rig = Rig::with(seed, plan, LogSettings::default()).await;
    let names = ["app.a", "app.b", "app.c"];
    for round in 0..30_u64 {
        let level = Level::ALL[(round % 4) as usize];
        let tickets = names.map(|name| rig.append(name, round, level));
        for ticket in &tickets {
            assert_eq!(rig.outcome(ticket, level).await, Ok(()), "seed {seed}");
        }
        if round % 5 == 0 {
            assert_eq!(rig.log.barrier().await, Ok(()), "seed {seed}");
        }
    }
    rig.log.stop().await;
    rig.bucket.settle().await;
    assert!(rig.wal().appends.is_empty());
    let sealed = rig.sealer("b").seal(rig.log.id()).await.unwrap();
    for name in names {
        let expected: Vec<Entry> = (0..30).map(|after| entry(after, after)).collect();
        assert_eq!(
            sealed.tail(&subject(name), Slot::new(0), Rev::new(0)).await.unwrap(),
            expected,
            "seed {seed}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_answers_are_lost_everything_is_in_the_log_once_and_in_order() {
    for seed in 0..20 {
        storm(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_back_that_lies_does_not_end_the_log() {
    let rig = Rig::new().await;
    rig.bucket.script(Call::Create, [Fault::AnswerLost]);
    rig.bucket.script(Call::Get, [Fault::Corrupt]);
    let ticket = rig.append("app.a", 0, Level::Bucket);
    assert_eq!(rig.outcome(&ticket, Level::Bucket).await, Ok(()));
    assert!(rig.bucket.suffered().contains_key(&Fault::Corrupt));
    let next = rig.append("app.a", 1, Level::Bucket);
    assert_eq!(rig.outcome(&next, Level::Bucket).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_refusing_bucket_is_asked_again() {
    let rig = Rig::new().await;
    rig.bucket.script(Call::Create, [Fault::Denied, Fault::RequestLost, Fault::Denied]);
    let ticket = rig.append("app.a", 0, Level::Bucket);
    assert_eq!(rig.outcome(&ticket, Level::Bucket).await, Ok(()));
    assert_eq!(rig.slots().await.last(), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_fails_what_is_not_acknowledged_and_recovers_by_itself() {
    let rig = Rig::new().await;
    rig.disk.limit_room(Some(0));
    let kept = rig.append("app.a", 0, Level::Memory);
    assert_eq!(kept.reached(Level::Memory), Some(Ok(())));
    let failed = rig.append("app.b", 0, Level::Interval);
    let after_it = rig.append("app.b", 1, Level::Memory);
    for ticket in [&failed, &after_it] {
        let failure = rig.outcome(ticket, Level::Interval).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Unavailable);
    }
    assert_eq!(rig.refusal("app.c", 0, Level::Memory), ErrorCode::Unavailable);
    // What was acknowledged goes to the bucket all the same.
    eventually("the acknowledged write shipped", || kept.slot().is_some()).await;
    assert_eq!(rig.own_tail("app.a").await, [entry(0, 0)]);
    assert!(rig.own_tail("app.b").await.is_empty());
    rig.disk.limit_room(None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The writer has not seen yet that its earlier write failed: what builds on it is refused.
    assert_eq!(rig.refusal("app.b", 2, Level::Memory), ErrorCode::Unavailable);
    assert_eq!(rig.refusal("app.b", 1, Level::Memory), ErrorCode::Unavailable);
    let again = rig.append("app.b", 0, Level::Disk);
    assert_eq!(rig.outcome(&again, Level::Disk).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_ends_all_acknowledging() {
    let rig = Rig::new().await;
    rig.bucket.set_gone(true);
    let shipping = rig.append("app.a", 0, Level::Bucket);
    eventually("the write to be in flight", || rig.log.figures().unshipped_bytes > 0).await;
    rig.disk.fail_syncs(1);
    let weaker = rig.append("app.b", 0, Level::Interval);
    assert_eq!(rig.outcome(&weaker, Level::Memory).await, Ok(()));
    let synced = rig.append("app.c", 0, Level::Disk);
    for (ticket, level) in [(&synced, Level::Disk), (&shipping, Level::Bucket)] {
        assert_eq!(rig.outcome(ticket, level).await.unwrap_err().code, ErrorCode::Indeterminate);
    }
    assert_eq!(rig.log.ended().await, LogEnd::Poisoned);
    assert_eq!(rig.refusal("app.d", 0, Level::Memory), ErrorCode::Unavailable);
    assert_eq!(rig.log.barrier().await.unwrap_err().code, ErrorCode::Unavailable);
    rig.tasks.finish(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn interval_writes_are_synced_each_second() {
    let rig = Rig::new().await;
    rig.bucket.set_gone(true);
    let ticket = rig.append("app.a", 0, Level::Interval);
    assert_eq!(rig.outcome(&ticket, Level::Interval).await, Ok(()));
    assert_eq!(rig.log.figures().syncs, 0);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!((ticket.stage(), rig.log.figures().syncs), (Stage::Synced, 1));
    rig.disk.power_loss().unwrap();
    assert_eq!(rig.wal().appends.len(), 1);
}
