//! Log ends: by another process, and by the log's own process.

use super::*;
use crate::log::handle::Wakers;
use crate::log::state::LogState;

/// Once the owner meets the seal, the log rejects appends with `not_owner`, and the sealer has every `bucket` write
/// acked before.
#[tokio::test(start_paused = true)]
async fn sealed_log_rejects_appends() {
    let rig = Rig::new().await;
    let durable = rig.append("app.a", 0, Level::Bucket);
    assert_eq!(rig.outcome(&durable, Level::Bucket).await, Ok(()));
    let sealed = rig.sealer("b").seal(rig.log.id()).await.unwrap();
    assert_eq!(sealed.seal(), Slot::new(2));
    // The owner does not know of the seal yet.
    let weaker = rig.append("app.a", 1, Level::Interval);
    assert_eq!(rig.outcome(&weaker, Level::Interval).await, Ok(()));
    let refused = rig.append("app.a", 2, Level::Bucket);
    let behind = rig.append("app.a", 3, Level::Memory);
    assert_eq!(rig.outcome(&refused, Level::Bucket).await.unwrap_err().code, ErrorCode::NotOwner);
    assert_eq!(rig.outcome(&behind, Level::Memory).await.unwrap_err().code, ErrorCode::NotOwner);
    assert_eq!(rig.log.ended().await, LogEnd::Sealed);
    assert_eq!(rig.refusal("app.a", 2, Level::Memory), ErrorCode::NotOwner);
    assert_eq!(rig.log.barrier().await.unwrap_err().code, ErrorCode::NotOwner);
    // Writes acknowledged at a weaker level stay in the WAL; failed writes are never applied.
    let stranded: Vec<Rev> = rig.wal().appends.iter().map(|append| append.first_after).collect();
    assert_eq!(stranded, [Rev::new(1)]);
    assert_eq!(
        entries(sealed.tail(&subject("app.a"), Slot::new(0), Rev::new(0))).await.unwrap(),
        [entry(0, 0)]
    );
    assert_eq!(rig.slots().await.last(), Some(&2), "the seal is the last slot");
    rig.tasks.finish(Duration::from_secs(5)).await.unwrap();
}

/// A read barrier on a log that another process sealed fails with `not_owner` and ends the log.
#[tokio::test(start_paused = true)]
async fn read_barrier_detects_sealed_log() {
    let rig = Rig::new().await;
    assert_eq!(rig.log.barrier().await, Ok(()));
    assert!(rig.sealer("b").seal_only(rig.log.id()).await.unwrap());
    assert_eq!(rig.log.barrier().await.unwrap_err().code, ErrorCode::NotOwner);
    assert_eq!(rig.log.ended().await, LogEnd::Sealed);
}

/// One or two probes serve a hundred concurrent read barriers.
#[tokio::test(start_paused = true)]
async fn slot_probe_serves_all_waiting_reads() {
    let plan = FaultPlan { latency: Duration::from_millis(50), ..FaultPlan::none() };
    let rig = Rig::with(1, plan, LogSettings::default()).await;
    let reads: Vec<_> = (0..100).map(|_| rig.log.barrier()).collect();
    for answer in futures::future::join_all(reads).await {
        assert_eq!(answer, Ok(()));
    }
    assert!(rig.log.metrics().read_barriers <= 2, "{:?}", rig.log.metrics());
}

/// A `bucket` write that the bucket does not confirm before the stop is `indeterminate` and stays in the WAL.
#[tokio::test(start_paused = true)]
async fn write_unconfirmed_at_stop_is_indeterminate() {
    let rig = Rig::new().await;
    rig.bucket.set_unreachable(true);
    let unconfirmed = rig.append("app.a", 0, Level::Bucket);
    let acknowledged = rig.append("app.b", 0, Level::Memory);
    assert_eq!(acknowledged.reached(Level::Memory), Some(Ok(())));
    tokio::time::sleep(Duration::from_millis(100)).await;
    rig.tasks.finish(Duration::from_secs(5)).await.unwrap();
    let failure = unconfirmed.reached(Level::Bucket).unwrap().unwrap_err();
    assert_eq!(failure.code, ErrorCode::Indeterminate);
    assert_eq!(rig.log.end(), Some(LogEnd::Stopped));
    assert_eq!(rig.wal().appends.len(), 2, "a restart ships both");
}

/// Concurrent sealers find the same seal, the index is written once, and it gives each subject's entries.
#[tokio::test(start_paused = true)]
async fn sealers_agree_on_seal_and_write_index_once() {
    let rig = Rig::new().await;
    for after in 0..3 {
        let progress = rig.append("app.a", after, Level::Bucket);
        rig.outcome(&progress, Level::Bucket).await.unwrap();
    }
    let progress = rig.append("app.b", 0, Level::Bucket);
    rig.outcome(&progress, Level::Bucket).await.unwrap();
    let (one, other) = (rig.sealer("b"), rig.sealer("c"));
    assert!(!one.is_sealed(rig.log.id()).await.unwrap());
    let (one, other) = tokio::join!(one.seal(rig.log.id()), other.seal(rig.log.id()));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.seal(), other.seal());
    let index = LogKeys::new(rig.log.id()).index();
    let written = rig.bucket.inner().get(&index).await.unwrap().unwrap();
    let third = rig.sealer("d");
    assert!(third.is_sealed(rig.log.id()).await.unwrap());
    let third = third.seal(rig.log.id()).await.unwrap();
    assert_eq!(rig.bucket.inner().get(&index).await.unwrap().unwrap(), written);
    assert_eq!(third.subjects(), 2);
    let (first, slots) = third.next_subject(None).unwrap();
    assert_eq!((first.clone(), slots.len()), (subject("app.a"), 3));
    assert_eq!(third.next_subject(Some(&first)).unwrap().0, subject("app.b"));
    assert_eq!(third.next_subject(Some(&subject("app.b"))), None);
    assert_eq!(
        entries(third.tail(&first, Slot::new(0), Rev::new(1))).await.unwrap(),
        [entry(1, 1), entry(2, 2)]
    );
    assert!(entries(third.tail(&subject("app.none"), Slot::new(0), Rev::new(0))).await.unwrap().is_empty());
}

/// A read that needs a deleted slot reports it missing, even with a new index, and the seal cannot be deleted.
#[tokio::test(start_paused = true)]
async fn sealed_log_reports_deleted_slots_and_keeps_seal() {
    let rig = Rig::new().await;
    for after in 0..3 {
        let progress = rig.append("app.a", after, Level::Bucket);
        rig.outcome(&progress, Level::Bucket).await.unwrap();
    }
    let sealed = rig.sealer("b").seal(rig.log.id()).await.unwrap();
    assert_eq!(sealed.delete_slot(sealed.seal()).await.unwrap_err().code, ErrorCode::Internal);
    sealed.delete_slot(Slot::new(2)).await.unwrap();
    let name = subject("app.a");
    let missing = entries(sealed.tail(&name, Slot::new(0), Rev::new(0))).await.unwrap_err();
    assert!(matches!(missing, TailError::Missing { .. }), "{missing}");
    assert_eq!(entries(sealed.tail(&name, Slot::new(0), Rev::new(2))).await.unwrap(), [entry(2, 2)]);
    // The writer of a new index does not know the deleted slots, but detects the gap.
    sealed.delete_index().await.unwrap();
    let again = rig.sealer("c").seal(rig.log.id()).await.unwrap();
    let missing = entries(again.tail(&name, Slot::new(0), Rev::new(0))).await.unwrap_err();
    assert!(matches!(missing, TailError::Missing { .. }), "{missing}");
    // The gap is also detected if the remaining entries form a run without a gap.
    sealed.delete_slot(Slot::new(1)).await.unwrap();
    again.delete_index().await.unwrap();
    let last = rig.sealer("d").seal(rig.log.id()).await.unwrap();
    let missing = entries(last.tail(&name, Slot::new(0), Rev::new(1))).await.unwrap_err();
    assert!(matches!(missing, TailError::Missing { .. }), "{missing}");
    assert_eq!(again.list().await.unwrap().last(), Some(&again.seal()));
}

/// A log that never existed cannot be sealed for reading, and a process cannot seal its own log.
#[tokio::test(start_paused = true)]
async fn sealer_rejects_nonexistent_log_and_own_log() {
    let rig = Rig::new().await;
    let sealer = rig.sealer("b");
    assert_eq!(sealer.seal_only(&id("never")).await, Ok(false));
    assert_eq!(sealer.seal(&id("never")).await.unwrap_err().code, ErrorCode::Corrupt);
    assert_eq!(sealer.seal(&id("b")).await.unwrap_err().code, ErrorCode::Internal, "its own log");
}

/// The end of a log and its first cause are visible at once, before the disk task has finished.
#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_methods)] // The test waits for the task.
async fn log_end_is_visible_before_failed_writes_are_recorded() {
    for (cause, end) in [
        (LogEnd::Sealed, LogState::sealed as fn(&mut LogState, &Wakers)),
        (LogEnd::Poisoned, LogState::poison),
        (LogEnd::Stopped, |state, _| state.stop()),
    ] {
        let rig = Rig::new().await;
        let seen = {
            let log = rig.log.clone();
            tokio::spawn(async move {
                log.closed().await;
                (log.is_closed(), log.end_cause())
            })
        };
        tokio::task::yield_now().await;
        assert_eq!((rig.log.is_closed(), rig.log.end_cause()), (false, None));
        end(&mut rig.log.0.lock(), &rig.log.0.wakers);
        // No other code has run since.
        assert_eq!((rig.log.is_closed(), rig.log.end_cause(), rig.log.end()), (true, Some(cause), None));
        assert_eq!(seen.await.unwrap(), (true, Some(cause)));
        rig.log.0.lock().sealed(&rig.log.0.wakers);
        assert_eq!(rig.log.end_cause(), Some(cause), "the first cause stays");
        rig.log.stop().await;
        assert_eq!(rig.log.end(), Some(cause));
    }
}

/// On the stop signal, a log with unshipped writes ends at once and does not wait for the ship interval.
#[tokio::test(start_paused = true)]
async fn log_stopped_with_unshipped_writes_ends_at_once() {
    let settings = LogSettings { ship_interval: Duration::from_secs(3_600), ..LogSettings::default() };
    let rig = Rig::with(1, FaultPlan::none(), settings).await;
    let progress = rig.append("s", 0, Level::Disk);
    rig.outcome(&progress, Level::Disk).await.unwrap();
    let before = rig.env.boot();
    rig.tasks.stop().request();
    // On one thread: no other task runs beside one that does not yield.
    assert_eq!(rig.log.ended().await, LogEnd::Stopped);
    assert_eq!(rig.env.boot(), before);
}
