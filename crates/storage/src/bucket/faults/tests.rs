use std::fmt::Write as _;

use dormouse_runtime::{SeededEntropy, VirtualClock};
use tempfile::TempDir;

use super::*;
use crate::bucket::{CreateOutcome, ObjectStoreBucket, create_once};

fn simulated() -> Env {
    let clock = VirtualClock::starting_at(Duration::from_secs(1_700_000_000));
    Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)))
}

fn faulty(seed: u64, plan: FaultPlan) -> FaultyBucket {
    let env = simulated();
    FaultyBucket::new(Arc::new(ObjectStoreBucket::in_memory(env.clone())), seed, plan, env)
}

fn key(text: &str) -> BucketKey {
    BucketKey::new(text).unwrap()
}

/// What many calls under a seed come to, with the times of their answers.
async fn trace_of(seed: u64) -> String {
    let bucket = faulty(seed, FaultPlan { corrupt: 50, ..FaultPlan::rough() });
    let mut trace = String::new();
    for n in 0..100 {
        let at = key(&format!("objects/{}", n % 7));
        let created = bucket.create(&at, Bytes::from(format!("object {n}"))).await;
        let read = bucket.get(&at).await;
        let listed = bucket.list(&BucketPrefix::ALL).await;
        let deleted = if n % 5 == 0 { Some(bucket.delete(&at).await) } else { None };
        let now = bucket.env.boot();
        writeln!(trace, "{now:?} {created:?} {read:?} {listed:?} {deleted:?}").unwrap();
    }
    write!(trace, "{:?}", bucket.suffered()).unwrap();
    trace
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_does_the_same() {
    let trace = trace_of(7).await;
    assert_eq!(trace, trace_of(7).await);
    assert_ne!(trace, trace_of(8).await);
    use Fault::*;
    for fault in [RequestLost, AnswerLost, Late, ServerError, Conflict, Corrupt] {
        assert!(trace.contains(&format!("{fault:?}: ")), "{fault:?} is never drawn:\n{trace}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_fault_does_to_a_create_what_it_says() {
    for (fault, unknown, there) in [
        (Fault::RequestLost, true, false),
        (Fault::AnswerLost, true, true),
        (Fault::Late, true, false),
        (Fault::ServerError, true, false),
        (Fault::Denied, false, false),
    ] {
        let bucket = faulty(1, FaultPlan::calm());
        bucket.script(Operation::Create, [fault]);
        let error = bucket.create(&key("a"), Bytes::from("a")).await.unwrap_err();
        assert_eq!(error.is_unknown(), unknown, "{fault:?}: {error:?}");
        let found = bucket.inner().get(&key("a")).await.unwrap();
        assert_eq!(found.is_some(), there, "{fault:?}");
        bucket.create(&key("a"), Bytes::from("b")).await.expect("one call suffers it, not the next");
        assert_eq!((bucket.calls(Operation::Create), &bucket.suffered()[&fault]), (2, &1));
    }
    let bucket = faulty(1, FaultPlan::calm());
    bucket.script(Operation::Create, [Fault::Conflict, Fault::Hangs]);
    assert_eq!(bucket.create(&key("a"), Bytes::from("a")).await.unwrap(), Created::Exists);
    let at = key("a");
    let hanging = tokio::time::timeout(Duration::from_secs(3_600), bucket.create(&at, Bytes::from("a")));
    assert!(hanging.await.is_err());
    assert_eq!(bucket.inner().get(&key("a")).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_late_request_arrives_whatever_has_become_of_its_sender() {
    let plan = FaultPlan { late_by: Duration::from_secs(100), ..FaultPlan::calm() };
    let sender = faulty(3, plan);
    let other = sender.another(4, FaultPlan::calm());
    sender.script(Operation::Create, [Fault::Late]);
    sender.create(&key("a"), Bytes::from("late")).await.unwrap_err();
    drop(sender);
    assert_eq!(other.get(&key("a")).await.unwrap(), None, "it is under way");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(other.get(&key("a")).await.unwrap().unwrap(), "late");

    other.script(Operation::Delete, [Fault::Late]);
    other.delete(&key("a")).await.unwrap_err();
    assert!(other.get(&key("a")).await.unwrap().is_some());
    other.settle().await;
    assert_eq!(other.get(&key("a")).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_late_create_loses_against_what_came_meanwhile() {
    let bucket = faulty(3, FaultPlan::calm());
    bucket.script(Operation::Create, [Fault::Late]);
    bucket.create(&key("a"), Bytes::from("late")).await.unwrap_err();
    assert_eq!(bucket.create(&key("a"), Bytes::from("meanwhile")).await.unwrap(), Created::New);
    bucket.settle().await;
    assert_eq!(bucket.get(&key("a")).await.unwrap().unwrap(), "meanwhile");
}

#[tokio::test(start_paused = true)]
async fn what_is_read_has_one_wrong_bit() {
    let scratch = TempDir::new().unwrap();
    let bucket = faulty(5, FaultPlan::calm());
    let content = Bytes::from_static(b"0123456789");
    bucket.create(&key("a"), content.clone()).await.unwrap();
    let wrong_bits = |found: &[u8]| -> u32 {
        assert_eq!(found.len(), content.len());
        found.iter().zip(&content).map(|(one, other)| (one ^ other).count_ones()).sum()
    };
    bucket.script(Operation::Get, [Fault::Corrupt; 3]);
    assert_eq!(wrong_bits(&bucket.get(&key("a")).await.unwrap().unwrap()), 1);
    assert_eq!(wrong_bits(&bucket.get_range(&key("a"), 0..10).await.unwrap().unwrap()), 1);
    assert_eq!(wrong_bits(&bucket.get_tail(&key("a"), 10).await.unwrap().unwrap()), 1);
    assert_eq!(bucket.get(&key("a")).await.unwrap().unwrap(), content, "it was on the way, not in the store");

    bucket.rot(key("a"));
    let file = scratch.path().join("file");
    let summary = bucket.get_file(&key("a"), &file).await.unwrap().unwrap();
    let spoilt = std::fs::read(&file).unwrap();
    assert_eq!(wrong_bits(&spoilt), 1);
    assert_eq!(summary.crc64, Crc64::of(&spoilt), "the summary is of what came");
    assert_eq!(wrong_bits(&bucket.get(&key("a")).await.unwrap().unwrap()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_download_leaves_no_file() {
    let scratch = TempDir::new().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("target"));
    std::fs::write(&source, "content").unwrap();
    let bucket = faulty(5, FaultPlan::calm());
    bucket.script(Operation::PutFile, [Fault::AnswerLost]);
    bucket.put_file(&key("a"), &source, HeaderPatch::None).await.unwrap_err();
    bucket.script(Operation::GetFile, [Fault::AnswerLost, Fault::RequestLost]);
    for _ in 0..2 {
        bucket.get_file(&key("a"), &target).await.unwrap_err();
        assert!(!target.exists());
    }
    bucket.get_file(&key("a"), &target).await.unwrap().expect("the upload took effect");
}

#[tokio::test(start_paused = true)]
async fn gone_and_back() {
    let bucket = faulty(6, FaultPlan::calm());
    bucket.set_gone(true);
    let error = bucket.create(&key("a"), Bytes::from("a")).await.unwrap_err();
    assert!(matches!(error, BucketError::Unreachable { .. }), "{error:?}");
    bucket.set_gone(false);
    assert_eq!(bucket.get(&key("a")).await.unwrap(), None);

    // Gone between the request and its answer.
    bucket.set_plan(FaultPlan { latency: Duration::from_secs(1), ..FaultPlan::calm() });
    let at = key("b");
    let creating = bucket.create(&at, Bytes::from("b"));
    let going = async {
        while bucket.inner().get(&at).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bucket.set_gone(true);
    };
    let (created, ()) = futures::future::join(creating, going).await;
    assert!(matches!(created, Err(BucketError::Unreachable { .. })), "{created:?}");
    bucket.set_gone(false);
    assert_eq!(bucket.get(&at).await.unwrap().unwrap(), "b");
}

#[tokio::test(start_paused = true)]
async fn read_only_refuses_changes_and_nothing_else() {
    let scratch = TempDir::new().unwrap();
    let file = scratch.path().join("file");
    std::fs::write(&file, "content").unwrap();
    let bucket = faulty(6, FaultPlan::calm());
    bucket.create(&key("a"), Bytes::from("a")).await.unwrap();
    bucket.set_read_only(true);
    let refusals = [
        bucket.create(&key("b"), Bytes::from("b")).await.map(drop).unwrap_err(),
        bucket.put_file(&key("c"), &file, HeaderPatch::None).await.map(drop).unwrap_err(),
        bucket.delete(&key("a")).await.unwrap_err(),
    ];
    assert!(refusals.iter().all(|refusal| matches!(refusal, BucketError::Denied { .. })), "{refusals:?}");
    assert_eq!(bucket.get(&key("a")).await.unwrap().unwrap(), "a");
    assert_eq!(bucket.list(&BucketPrefix::ALL).await.unwrap().len(), 1);
    bucket.set_read_only(false);
    bucket.delete(&key("a")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_storm_lasts_and_passes() {
    let plan = FaultPlan { storm: 1_000, storm_length: Duration::from_secs(60), ..FaultPlan::calm() };
    let bucket = faulty(9, plan);
    bucket.get(&key("a")).await.unwrap_err();
    bucket.get(&key("a")).await.unwrap_err();
    bucket.faults().plan.storm = 0;
    bucket.get(&key("a")).await.expect_err("the storm goes on by itself");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bucket.get(&key("a")).await.unwrap(), None);
}

/// However rough it is: of those who create one object each under the same name, one learns that it is his, all others
/// that it is not, and what lies there is his.
#[tokio::test(start_paused = true)]
async fn everybody_learns_whose_object_it_is() {
    let mut suffered = BTreeMap::<Fault, u64>::new();
    for seed in 0..300 {
        let first = faulty(seed, FaultPlan::rough());
        let ways = [
            first.another(seed + 1_000, FaultPlan::rough()),
            first.another(seed + 2_000, FaultPlan::rough()),
            first,
        ];
        let at = key("slot");
        let offers = [0, 1, 2].map(|who| Bytes::from(format!("nonce {who}")));
        let creates = ways
            .iter()
            .zip(&offers)
            .map(|(way, offer)| create_once(way, &at, offer.clone(), std::future::pending()));
        let outcomes = futures::future::join_all(creates).await;
        ways[0].settle().await;
        let there = ways[0].inner().get(&at).await.unwrap().unwrap();
        for (outcome, offer) in outcomes.into_iter().zip(&offers) {
            match outcome.unwrap() {
                CreateOutcome::Ours => assert_eq!(there, offer, "seed {seed}"),
                CreateOutcome::Anothers => assert_ne!(there, offer, "seed {seed}"),
                CreateOutcome::Unknown(error) => panic!("seed {seed}: {error:?}"),
            }
        }
        for (fault, count) in ways.iter().flat_map(FaultyBucket::suffered) {
            *suffered.entry(fault).or_default() += count;
        }
    }
    assert!(suffered.len() >= 5 && suffered.values().all(|&count| count >= 10), "{suffered:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_may_arrive_once_more() {
    let bucket = faulty(1, FaultPlan { late_by: Duration::from_secs(100), ..FaultPlan::calm() });
    bucket.script(Operation::Create, [Fault::Again]);
    assert_eq!(bucket.create(&key("a"), Bytes::from("a")).await.unwrap(), Created::New);
    bucket.delete(&key("a")).await.unwrap();
    assert_eq!(bucket.get(&key("a")).await.unwrap(), None);
    bucket.settle().await;
    assert_eq!(bucket.get(&key("a")).await.unwrap(), Some(Bytes::from("a")));
    bucket.script(Operation::Delete, [Fault::Again]);
    bucket.delete(&key("a")).await.unwrap();
    bucket.create(&key("a"), Bytes::from("b")).await.unwrap();
    bucket.settle().await;
    assert_eq!(bucket.get(&key("a")).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_caller_is_gone_may_arrive() {
    for (orphaned, there) in [(0, false), (1_000, true)] {
        let latency = Duration::from_secs(10);
        let bucket = faulty(1, FaultPlan { orphaned, latency, ..FaultPlan::calm() });
        let at = key("a");
        let abandoned = tokio::time::timeout(Duration::from_millis(1), bucket.create(&at, Bytes::from("a")));
        assert!(abandoned.await.is_err());
        assert_eq!(bucket.inner().get(&at).await.unwrap(), None);
        bucket.settle().await;
        assert_eq!(bucket.inner().get(&at).await.unwrap().is_some(), there);
        // Who stays until the answer has sent one request.
        bucket.create(&key("b"), Bytes::from("b")).await.unwrap();
        bucket.inner().delete(&key("b")).await.unwrap();
        bucket.settle().await;
        assert_eq!(bucket.inner().get(&key("b")).await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_listing_lacks_what_is_new() {
    let bucket = faulty(1, FaultPlan { late_by: Duration::from_secs(1), ..FaultPlan::calm() });
    bucket.create(&key("old"), Bytes::from("a")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for n in 0..10 {
        bucket.create(&key(&format!("new/{n}")), Bytes::from("a")).await.unwrap();
    }
    tokio::time::sleep(Duration::from_nanos(1)).await;
    bucket.script(Operation::List, [Fault::StaleList]);
    let shown = bucket.list(&BucketPrefix::ALL).await.unwrap();
    assert!((2..10).contains(&shown.len()), "{shown:?}");
    assert!(shown.iter().any(|entry| entry.key == key("old")));
    assert_eq!(bucket.list(&BucketPrefix::ALL).await.unwrap().len(), 11);
}
