//! Logs that are ended: by others, and by their own process.

use super::*;
use crate::log::handle::Wakers;
use crate::log::state::State;

#[tokio::test(start_paused = true)]
async fn a_sealed_log_acknowledges_nothing_more_and_its_successor_has_all_it_acknowledged() {
    let rig = Rig::new().await;
    let durable = rig.append("app.a", 0, Level::Bucket);
    assert_eq!(rig.outcome(&durable, Level::Bucket).await, Ok(()));
    let sealed = rig.sealer("b").seal(rig.log.id()).await.unwrap();
    assert_eq!(sealed.seal(), Slot::new(2));
    // The zombie does not know yet.
    let weaker = rig.append("app.a", 1, Level::Interval);
    assert_eq!(rig.outcome(&weaker, Level::Interval).await, Ok(()));
    let refused = rig.append("app.a", 2, Level::Bucket);
    let behind = rig.append("app.a", 3, Level::Memory);
    assert_eq!(rig.outcome(&refused, Level::Bucket).await.unwrap_err().code, ErrorCode::NotOwner);
    assert_eq!(rig.outcome(&behind, Level::Memory).await.unwrap_err().code, ErrorCode::NotOwner);
    assert_eq!(rig.log.ended().await, LogEnd::Sealed);
    assert_eq!(rig.refusal("app.a", 2, Level::Memory), ErrorCode::NotOwner);
    assert_eq!(rig.log.barrier().await.unwrap_err().code, ErrorCode::NotOwner);
    // What was acknowledged at a weaker level stays on the local disk; what failed does not come back.
    let surplus: Vec<Rev> = rig.wal().appends.iter().map(|append| append.first_after).collect();
    assert_eq!(surplus, [Rev::new(1)]);
    assert_eq!(sealed.tail(&subject("app.a"), Slot::new(0), Rev::new(0)).await.unwrap(), [entry(0, 0)]);
    assert_eq!(rig.slots().await.last(), Some(&2), "the seal is the end");
    rig.tasks.finish(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_barrier_tells_a_zombie_that_it_is_one() {
    let rig = Rig::new().await;
    assert_eq!(rig.log.barrier().await, Ok(()));
    assert!(rig.sealer("b").seal_only(rig.log.id()).await.unwrap());
    assert_eq!(rig.log.barrier().await.unwrap_err().code, ErrorCode::NotOwner);
    assert_eq!(rig.log.ended().await, LogEnd::Sealed);
}

#[tokio::test(start_paused = true)]
async fn one_look_serves_all_reads_that_wait_for_it() {
    let plan = FaultPlan { latency: Duration::from_millis(50), ..FaultPlan::calm() };
    let rig = Rig::with(1, plan, LogSettings::default()).await;
    let reads: Vec<_> = (0..100).map(|_| rig.log.barrier()).collect();
    for answer in futures::future::join_all(reads).await {
        assert_eq!(answer, Ok(()));
    }
    assert!(rig.log.figures().probes <= 2, "{:?}", rig.log.figures());
}

#[tokio::test(start_paused = true)]
async fn what_the_bucket_does_not_settle_before_the_end_is_not_known() {
    let rig = Rig::new().await;
    rig.bucket.set_gone(true);
    let unsettled = rig.append("app.a", 0, Level::Bucket);
    let acknowledged = rig.append("app.b", 0, Level::Memory);
    assert_eq!(acknowledged.reached(Level::Memory), Some(Ok(())));
    tokio::time::sleep(Duration::from_millis(100)).await;
    rig.tasks.finish(Duration::from_secs(5)).await.unwrap();
    let failure = unsettled.reached(Level::Bucket).unwrap().unwrap_err();
    assert_eq!(failure.code, ErrorCode::Indeterminate);
    assert_eq!(rig.log.end(), Some(LogEnd::Stopped));
    assert_eq!(rig.wal().appends.len(), 2, "a restart brings both into the log");
}

#[tokio::test(start_paused = true)]
async fn two_sealers_agree_and_the_index_is_written_once() {
    let rig = Rig::new().await;
    for after in 0..3 {
        let ticket = rig.append("app.a", after, Level::Bucket);
        rig.outcome(&ticket, Level::Bucket).await.unwrap();
    }
    let ticket = rig.append("app.b", 0, Level::Bucket);
    rig.outcome(&ticket, Level::Bucket).await.unwrap();
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
    assert_eq!(third.tail(&first, Slot::new(0), Rev::new(1)).await.unwrap(), [entry(1, 1), entry(2, 2)]);
    assert!(third.tail(&subject("app.none"), Slot::new(0), Rev::new(0)).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_said_to_be_missing_and_a_seal_never_goes() {
    let rig = Rig::new().await;
    for after in 0..3 {
        let ticket = rig.append("app.a", after, Level::Bucket);
        rig.outcome(&ticket, Level::Bucket).await.unwrap();
    }
    let sealed = rig.sealer("b").seal(rig.log.id()).await.unwrap();
    assert_eq!(sealed.delete_slot(sealed.seal()).await.unwrap_err().code, ErrorCode::Internal);
    sealed.delete_slot(Slot::new(2)).await.unwrap();
    let name = subject("app.a");
    let missing = sealed.tail(&name, Slot::new(0), Rev::new(0)).await.unwrap_err();
    assert!(matches!(missing, TailError::Missing { .. }), "{missing}");
    assert_eq!(sealed.tail(&name, Slot::new(0), Rev::new(2)).await.unwrap(), [entry(2, 2)]);
    // Whoever makes a new index knows nothing of what is gone, and notices the hole.
    sealed.delete_index().await.unwrap();
    let again = rig.sealer("c").seal(rig.log.id()).await.unwrap();
    let missing = again.tail(&name, Slot::new(0), Rev::new(0)).await.unwrap_err();
    assert!(matches!(missing, TailError::Missing { .. }), "{missing}");
    // Not even when what is left follows itself without a hole.
    sealed.delete_slot(Slot::new(1)).await.unwrap();
    again.delete_index().await.unwrap();
    let last = rig.sealer("d").seal(rig.log.id()).await.unwrap();
    let missing = last.tail(&name, Slot::new(0), Rev::new(1)).await.unwrap_err();
    assert!(matches!(missing, TailError::Missing { .. }), "{missing}");
    assert_eq!(again.list().await.unwrap().last(), Some(&again.seal()));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_never_born_has_no_entries_to_give() {
    let rig = Rig::new().await;
    let sealer = rig.sealer("b");
    assert_eq!(sealer.seal_only(&id("never")).await, Ok(false));
    assert_eq!(sealer.seal(&id("never")).await.unwrap_err().code, ErrorCode::Corrupt);
    assert_eq!(sealer.seal(&id("b")).await.unwrap_err().code, ErrorCode::Internal, "its own log");
}

#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_methods)] // A task that outlives nothing: the test waits for it.
async fn an_end_is_known_before_its_last_words_are_on_the_disk() {
    for (cause, end) in [
        (LogEnd::Sealed, State::sealed as fn(&mut State, &Wakers)),
        (LogEnd::Poisoned, State::poison),
        (LogEnd::Stopped, |state, _| state.stop()),
    ] {
        let rig = Rig::new().await;
        let seen = {
            let log = rig.log.clone();
            tokio::spawn(async move {
                log.over().await;
                (log.is_over(), log.end_cause())
            })
        };
        tokio::task::yield_now().await;
        assert_eq!((rig.log.is_over(), rig.log.end_cause()), (false, None));
        end(&mut rig.log.0.lock(), &rig.log.0.wakers);
        // Nothing else has run since.
        assert_eq!((rig.log.is_over(), rig.log.end_cause(), rig.log.end()), (true, Some(cause), None));
        assert_eq!(seen.await.unwrap(), (true, Some(cause)));
        rig.log.0.lock().sealed(&rig.log.0.wakers);
        assert_eq!(rig.log.end_cause(), Some(cause), "it ends once");
        rig.log.stop().await;
        assert_eq!(rig.log.end(), Some(cause));
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_cut_short_while_something_waits_to_be_shipped_ends_at_once() {
    let settings = LogSettings { ship_interval: Duration::from_secs(3_600), ..LogSettings::default() };
    let rig = Rig::with(1, FaultPlan::calm(), settings).await;
    let ticket = rig.append("s", 0, Level::Disk);
    rig.outcome(&ticket, Level::Disk).await.unwrap();
    let before = rig.env.boot();
    rig.tasks.stop().give();
    // On one thread: nobody runs beside a task that does not let go.
    assert_eq!(rig.log.ended().await, LogEnd::Stopped);
    assert_eq!(rig.env.boot(), before);
}
