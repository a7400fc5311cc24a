//! What the log's tasks do under load and when they fail.

use super::*;
use crate::log::disk::{self, DiskPace, MOST_GROUPS_UNMARKED, Work};
use crate::log::sealed::MOST_REMEMBERED;
use crate::wal::Lsn;

/// The disk's next steps under a load that never lets the queue run empty. The log's own tasks do not run meanwhile:
/// nothing is awaited.
fn next_under_load(rig: &Rig, pace: &DiskPace, round: u64) -> Work {
    rig.append("app.a", round, Level::Interval);
    let work = disk::next(&rig.log.0, pace);
    if matches!(work, Work::Group(..)) {
        rig.log.0.lock().group_written();
    }
    work
}

#[tokio::test(start_paused = true)]
async fn a_sync_that_is_due_does_not_wait_for_the_load_to_end() {
    let rig = Rig::new().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let now = rig.env.boot();
    let early = DiskPace { unsynced_since: Some(now - Duration::from_millis(999)), ..DiskPace::default() };
    assert!(matches!(next_under_load(&rig, &early, 0), Work::Group(_, false)));
    let due = DiskPace { unsynced_since: Some(now - Duration::from_secs(1)), ..DiskPace::default() };
    assert!(matches!(next_under_load(&rig, &due, 1), Work::Group(_, true)));
}

#[tokio::test(start_paused = true)]
async fn what_is_shipped_is_noted_while_the_load_goes_on() {
    let rig = Rig::new().await;
    let marker = (Lsn::ZERO.next(), Slot::new(1));
    rig.log.0.lock().marker = Some(marker);
    let few = DiskPace { unmarked_groups: MOST_GROUPS_UNMARKED - 1, ..DiskPace::default() };
    assert!(matches!(next_under_load(&rig, &few, 0), Work::Group(..)));
    let many = DiskPace { unmarked_groups: MOST_GROUPS_UNMARKED, ..DiskPace::default() };
    let Work::Mark(through, slot) = next_under_load(&rig, &many, 1) else { panic!("no note was due") };
    assert_eq!((through, slot), marker);
    assert!(matches!(next_under_load(&rig, &many, 2), Work::Group(..)), "there is nothing to note");
}

#[tokio::test(start_paused = true)]
async fn stopping_comes_to_its_end_though_the_disk_is_full() {
    let rig = Rig::new().await;
    rig.disk.limit_room(Some(0));
    let refused = rig.append("app.a", 0, Level::Interval);
    tokio::time::timeout(Duration::from_secs(60), rig.log.stop()).await.unwrap();
    assert_eq!(refused.failure().unwrap().code, ErrorCode::Unavailable);
    assert_eq!(rig.log.end(), Some(LogEnd::Stopped));
}

/// Whatever waits for the log of a server of which a task has panicked learns that it is over.
async fn ends_by_panic(rig: Rig, waiting: Option<Arc<Ticket>>) {
    let ended = tokio::time::timeout(Duration::from_secs(5), rig.log.ended()).await;
    assert_eq!(ended, Ok(LogEnd::Poisoned));
    assert_eq!(rig.log.end_cause(), Some(LogEnd::Poisoned));
    if let Some(ticket) = waiting {
        assert_eq!(rig.outcome(&ticket, Level::Bucket).await.unwrap_err().code, ErrorCode::Indeterminate);
    }
    assert_eq!(rig.refusal("app.z", 0, Level::Memory), ErrorCode::Unavailable);
    assert_eq!(rig.log.barrier().await.unwrap_err().code, ErrorCode::Unavailable);
    rig.tasks.finish(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_shipping_ends_the_log() {
    let rig = Rig::new().await;
    rig.bucket.script(Call::Create, [Fault::Panics]);
    let ticket = rig.append("app.a", 0, Level::Bucket);
    ends_by_panic(rig, Some(ticket)).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_at_the_disk_ends_the_log() {
    let rig = Rig::new().await;
    rig.bucket.set_gone(true);
    rig.disk.panic_in_syncs();
    let ticket = rig.append("app.a", 0, Level::Disk);
    ends_by_panic(rig, Some(ticket)).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_at_the_last_words_ends_the_log_and_fails_who_waits_for_them() {
    let rig = Rig::new().await;
    rig.sealer("b").seal_only(rig.log.id()).await.unwrap();
    rig.disk.panic_in_syncs();
    let ticket = rig.append("app.a", 0, Level::Bucket);
    let ended = tokio::time::timeout(Duration::from_secs(5), rig.log.ended()).await;
    assert_eq!(ended, Ok(LogEnd::Sealed));
    assert_eq!(ticket.failure().unwrap().code, ErrorCode::Indeterminate);
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_looking_ends_the_log() {
    let rig = Rig::new().await;
    rig.bucket.script(Call::Get, [Fault::Panics]);
    let read = tokio::time::timeout(Duration::from_secs(5), rig.log.barrier()).await.unwrap();
    assert_eq!(read.unwrap_err().code, ErrorCode::Unavailable);
    ends_by_panic(rig, None).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_trimming_ends_the_log() {
    let rig = Rig::new().await;
    rig.bucket.script(Call::Delete, [Fault::Panics]);
    doom(&rig, 1, 2);
    ends_by_panic(rig, None).await;
}

fn doom(rig: &Rig, from: u64, to: u64) {
    rig.log.0.lock().doomed_slots.push_back((Slot::new(from), Slot::new(to)));
    rig.log.0.wakers.trim.notify_one();
}

#[tokio::test(start_paused = true)]
async fn as_many_slots_go_in_a_second_as_may_be_written_in_one() {
    let rig = Rig::new().await;
    let latency = Duration::from_millis(140);
    rig.bucket.set_plan(FaultPlan { latency, ..FaultPlan::calm() });
    doom(&rig, 1, 501);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.bucket.calls(Call::Delete), 500);
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_cannot_be_deleted_holds_up_no_other_and_is_tried_again() {
    let rig = Rig::new().await;
    for after in 0..12 {
        let ticket = rig.append("app.a", after, Level::Bucket);
        rig.outcome(&ticket, Level::Bucket).await.unwrap();
    }
    let highest = rig.log.next_slot().get() - 1;
    rig.bucket.script(Call::Delete, [Fault::Denied, Fault::Denied, Fault::Hangs]);
    rig.log.based(&subject("app.a"), Rev::new(12), rig.log.next_slot());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.slots().await, [1, 2, 3, highest]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(rig.slots().await, [3, highest], "no answer ever comes for one of them");
}

#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_methods)] // A task that outlives nothing: the test waits for it.
async fn whoever_waits_for_a_subject_to_settle_is_told_at_once() {
    let rig = Rig::new().await;
    let (name, other) = (subject("app.a"), subject("app.other"));
    let limit = Duration::from_secs(60);
    let start = rig.env.boot();
    let ticket = rig.append("app.a", 0, Level::Memory);
    tokio::time::timeout(limit, rig.log.settled(&name)).await.unwrap();
    assert_eq!(ticket.stage(), Stage::Shipped);
    assert!(rig.env.boot() - start < Duration::from_millis(10), "{:?}", rig.env.boot() - start);
    // Failed.
    rig.disk.limit_room(Some(0));
    rig.append("app.a", 1, Level::Interval);
    tokio::time::timeout(limit, rig.log.settled(&name)).await.unwrap();
    rig.disk.limit_room(None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // On its way as long as the bucket does not answer, which is nothing to others; then left by the end of the log.
    rig.bucket.set_gone(true);
    rig.append("app.a", 1, Level::Bucket);
    rig.log.settled(&other).await;
    assert!(tokio::time::timeout(limit, rig.log.settled(&name)).await.is_err());
    let settled = {
        let log = rig.log.clone();
        tokio::spawn(async move { log.settled(&name).await })
    };
    tokio::task::yield_now().await;
    rig.log.0.lock().cut_short(&rig.log.0.wakers);
    tokio::time::timeout(limit, settled).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn logs_that_could_not_be_sealed_are_not_remembered_for_ever() {
    let rig = Rig::new().await;
    let logs = rig.sealer("b");
    for number in 0..3 * MOST_REMEMBERED {
        logs.seal(&id(&format!("never-born-{number}"))).await.unwrap_err();
    }
    assert!(logs.known.lock().unwrap().len() <= MOST_REMEMBERED);
}
