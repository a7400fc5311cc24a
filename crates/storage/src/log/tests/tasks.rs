//! What the log's tasks do under load and when they fail.

use super::*;
use crate::log::disk::{self, DiskPace, MOST_GROUPS_UNMARKED, Work};
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
