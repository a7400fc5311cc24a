use std::fmt::Write as _;

use dormouse_bucket::{CreateOutcome, ObjectStoreBucket, create_once};
use dormouse_runtime::{SeededEntropy, VirtualClock};
use tempfile::TempDir;

use super::*;

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

/// The results of many calls under a seed, with the times of their answers.
async fn trace_of(seed: u64) -> String {
    let bucket = faulty(seed, FaultPlan { corrupt: 50, ..FaultPlan::frequent() });
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
    write!(trace, "{:?}", bucket.fault_counts()).unwrap();
    trace
}

/// The same seed injects the same faults at the same times, and another seed injects different ones.
#[tokio::test(start_paused = true)]
async fn fault_injector_same_seed_repeats_trace() {
    let trace = trace_of(7).await;
    assert_eq!(trace, trace_of(7).await);
    assert_ne!(trace, trace_of(8).await);
    use BucketFault::*;
    for fault in [RequestLost, AnswerLost, Late, ServerError, Conflict, Corrupt] {
        assert!(trace.contains(&format!("{fault:?}: ")), "{fault:?} is never drawn:\n{trace}");
    }
}

/// Each injected fault gives one create its documented error and effect and leaves the next call alone.
#[tokio::test(start_paused = true)]
async fn fault_injector_applies_each_create_fault() {
    for (fault, unknown, there) in [
        (BucketFault::RequestLost, true, false),
        (BucketFault::AnswerLost, true, true),
        (BucketFault::Late, true, false),
        (BucketFault::ServerError, true, false),
        (BucketFault::Denied, false, false),
    ] {
        let bucket = faulty(1, FaultPlan::none());
        bucket.script(BucketOperation::Create, [fault]);
        let error = bucket.create(&key("a"), Bytes::from("a")).await.unwrap_err();
        assert_eq!(error.is_unknown(), unknown, "{fault:?}: {error:?}");
        let found = bucket.inner().get(&key("a")).await.unwrap();
        assert_eq!(found.is_some(), there, "{fault:?}");
        bucket.create(&key("a"), Bytes::from("b")).await.expect("the fault applies to one call only");
        assert_eq!((bucket.calls(BucketOperation::Create), &bucket.fault_counts()[&fault]), (2, &1));
    }
    let bucket = faulty(1, FaultPlan::none());
    bucket.script(BucketOperation::Create, [BucketFault::Conflict, BucketFault::Hangs]);
    assert_eq!(bucket.create(&key("a"), Bytes::from("a")).await.unwrap(), Created::Exists);
    let at = key("a");
    let hanging = tokio::time::timeout(Duration::from_secs(3_600), bucket.create(&at, Bytes::from("a")));
    assert!(hanging.await.is_err());
    assert_eq!(bucket.inner().get(&key("a")).await.unwrap(), None);
}

/// A delayed create takes effect after its sender is dropped, and a delayed delete takes effect later too.
#[tokio::test(start_paused = true)]
async fn delayed_request_applies_after_sender_is_dropped() {
    let plan = FaultPlan { late_by: Duration::from_secs(100), ..FaultPlan::none() };
    let sender = faulty(3, plan);
    let other = sender.another_client(4, FaultPlan::none());
    sender.script(BucketOperation::Create, [BucketFault::Late]);
    sender.create(&key("a"), Bytes::from("late")).await.unwrap_err();
    drop(sender);
    assert_eq!(other.get(&key("a")).await.unwrap(), None, "the create is delayed");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(other.get(&key("a")).await.unwrap().unwrap(), "late");

    other.script(BucketOperation::Delete, [BucketFault::Late]);
    other.delete(&key("a")).await.unwrap_err();
    assert!(other.get(&key("a")).await.unwrap().is_some());
    other.apply_delayed().await;
    assert_eq!(other.get(&key("a")).await.unwrap(), None);
}

/// A delayed create does not overwrite an object that was created in the meantime.
#[tokio::test(start_paused = true)]
async fn delayed_create_loses_to_newer_object() {
    let bucket = faulty(3, FaultPlan::none());
    bucket.script(BucketOperation::Create, [BucketFault::Late]);
    bucket.create(&key("a"), Bytes::from("late")).await.unwrap_err();
    assert_eq!(bucket.create(&key("a"), Bytes::from("meanwhile")).await.unwrap(), Created::New);
    bucket.apply_delayed().await;
    assert_eq!(bucket.get(&key("a")).await.unwrap().unwrap(), "meanwhile");
}

/// A corrupt read flips one bit of one reply, and a corrupted object has one flipped bit in every read.
#[tokio::test(start_paused = true)]
async fn bucket_corrupt_read_flips_one_bit() {
    let scratch = TempDir::new().unwrap();
    let bucket = faulty(5, FaultPlan::none());
    let content = Bytes::from_static(b"0123456789");
    bucket.create(&key("a"), content.clone()).await.unwrap();
    let wrong_bits = |found: &[u8]| -> u32 {
        assert_eq!(found.len(), content.len());
        found.iter().zip(&content).map(|(one, other)| (one ^ other).count_ones()).sum()
    };
    bucket.script(BucketOperation::Get, [BucketFault::Corrupt; 3]);
    assert_eq!(wrong_bits(&bucket.get(&key("a")).await.unwrap().unwrap()), 1);
    assert_eq!(wrong_bits(&bucket.get_range(&key("a"), 0..10).await.unwrap().unwrap()), 1);
    assert_eq!(wrong_bits(&bucket.get_tail(&key("a"), 10).await.unwrap().unwrap()), 1);
    assert_eq!(
        bucket.get(&key("a")).await.unwrap().unwrap(),
        content,
        "the fault changed the answer, not the stored object"
    );

    bucket.corrupt(key("a"));
    let file = scratch.path().join("file");
    let summary = bucket.get_file(&key("a"), &file).await.unwrap().unwrap();
    let corrupted = std::fs::read(&file).unwrap();
    assert_eq!(wrong_bits(&corrupted), 1);
    assert_eq!(summary.crc64, Crc64::of(&corrupted), "the summary matches the received bytes");
    assert_eq!(wrong_bits(&bucket.get(&key("a")).await.unwrap().unwrap()), 1);
}

/// A failed download leaves no file, and an upload with a lost reply still takes effect.
#[tokio::test(start_paused = true)]
async fn download_failure_leaves_no_file() {
    let scratch = TempDir::new().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("target"));
    std::fs::write(&source, "content").unwrap();
    let bucket = faulty(5, FaultPlan::none());
    bucket.script(BucketOperation::PutFile, [BucketFault::AnswerLost]);
    bucket.put_file(&key("a"), &source, HeaderPatch::None).await.unwrap_err();
    bucket.script(BucketOperation::GetFile, [BucketFault::AnswerLost, BucketFault::RequestLost]);
    for _ in 0..2 {
        bucket.get_file(&key("a"), &target).await.unwrap_err();
        assert!(!target.exists());
    }
    bucket.get_file(&key("a"), &target).await.unwrap().expect("the upload took effect");
}

/// An unreachable bucket fails all calls, and an object created before its reply was lost is still there afterwards.
#[tokio::test(start_paused = true)]
async fn bucket_outage_fails_calls_and_keeps_objects() {
    let bucket = faulty(6, FaultPlan::none());
    bucket.set_unreachable(true);
    let error = bucket.create(&key("a"), Bytes::from("a")).await.unwrap_err();
    assert!(matches!(error, BucketError::Unreachable { .. }), "{error:?}");
    bucket.set_unreachable(false);
    assert_eq!(bucket.get(&key("a")).await.unwrap(), None);

    // The bucket becomes unreachable between the request and its answer.
    bucket.set_plan(FaultPlan { latency: Duration::from_secs(1), ..FaultPlan::none() });
    let at = key("b");
    let creating = bucket.create(&at, Bytes::from("b"));
    let going = async {
        while bucket.inner().get(&at).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bucket.set_unreachable(true);
    };
    let (created, ()) = futures::future::join(creating, going).await;
    assert!(matches!(created, Err(BucketError::Unreachable { .. })), "{created:?}");
    bucket.set_unreachable(false);
    assert_eq!(bucket.get(&at).await.unwrap().unwrap(), "b");
}

/// A read-only bucket denies creates, uploads and deletes, and it serves reads and listings.
#[tokio::test(start_paused = true)]
async fn bucket_read_only_denies_changes_and_serves_reads() {
    let scratch = TempDir::new().unwrap();
    let file = scratch.path().join("file");
    std::fs::write(&file, "content").unwrap();
    let bucket = faulty(6, FaultPlan::none());
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

/// A fault storm fails calls for its whole length and then ends.
#[tokio::test(start_paused = true)]
async fn bucket_fault_storm_lasts_and_ends() {
    let plan = FaultPlan { storm: 1_000, storm_length: Duration::from_secs(60), ..FaultPlan::none() };
    let bucket = faulty(9, plan);
    bucket.get(&key("a")).await.unwrap_err();
    bucket.get(&key("a")).await.unwrap_err();
    bucket.faults().plan.storm = 0;
    bucket.get(&key("a")).await.expect_err("the storm continues by itself");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bucket.get(&key("a")).await.unwrap(), None);
}

/// With frequent faults, one of several concurrent creates under one key wins. Each caller learns whether it won, and
/// the stored object is the winner's.
#[tokio::test(start_paused = true)]
async fn conditional_create_race_tells_each_caller_the_owner() {
    let mut injected_counts = BTreeMap::<BucketFault, u64>::new();
    for seed in 0..300 {
        let first = faulty(seed, FaultPlan::frequent());
        let clients = [
            first.another_client(seed + 1_000, FaultPlan::frequent()),
            first.another_client(seed + 2_000, FaultPlan::frequent()),
            first,
        ];
        let at = key("slot");
        let offers = [0, 1, 2].map(|number| Bytes::from(format!("nonce {number}")));
        let creates = clients
            .iter()
            .zip(&offers)
            .map(|(client, offer)| create_once(client, &at, offer.clone(), std::future::pending()));
        let outcomes = futures::future::join_all(creates).await;
        clients[0].apply_delayed().await;
        let there = clients[0].inner().get(&at).await.unwrap().unwrap();
        for (outcome, offer) in outcomes.into_iter().zip(&offers) {
            match outcome.unwrap() {
                CreateOutcome::Ours => assert_eq!(there, offer, "seed {seed}"),
                CreateOutcome::Foreign => assert_ne!(there, offer, "seed {seed}"),
                CreateOutcome::Unknown(error) => panic!("seed {seed}: {error:?}"),
            }
        }
        for (fault, count) in clients.iter().flat_map(FaultyBucket::fault_counts) {
            *injected_counts.entry(fault).or_default() += count;
        }
    }
    assert!(
        injected_counts.len() >= 5 && injected_counts.values().all(|&count| count >= 10),
        "{injected_counts:?}"
    );
}

/// A create or delete that already got its reply can take effect a second time later.
#[tokio::test(start_paused = true)]
async fn bucket_request_may_apply_again_after_reply() {
    let bucket = faulty(1, FaultPlan { late_by: Duration::from_secs(100), ..FaultPlan::none() });
    bucket.script(BucketOperation::Create, [BucketFault::Again]);
    assert_eq!(bucket.create(&key("a"), Bytes::from("a")).await.unwrap(), Created::New);
    bucket.delete(&key("a")).await.unwrap();
    assert_eq!(bucket.get(&key("a")).await.unwrap(), None);
    bucket.apply_delayed().await;
    assert_eq!(bucket.get(&key("a")).await.unwrap(), Some(Bytes::from("a")));
    bucket.script(BucketOperation::Delete, [BucketFault::Again]);
    bucket.delete(&key("a")).await.unwrap();
    bucket.create(&key("a"), Bytes::from("b")).await.unwrap();
    bucket.apply_delayed().await;
    assert_eq!(bucket.get(&key("a")).await.unwrap(), None);
}

/// A request with a dropped caller still takes effect if the fault plan says so; an awaited request applies once.
#[tokio::test(start_paused = true)]
async fn detached_request_may_apply_after_caller_is_dropped() {
    for (orphaned, there) in [(0, false), (1_000, true)] {
        let latency = Duration::from_secs(10);
        let bucket = faulty(1, FaultPlan { orphaned, latency, ..FaultPlan::none() });
        let at = key("a");
        let abandoned = tokio::time::timeout(Duration::from_millis(1), bucket.create(&at, Bytes::from("a")));
        assert!(abandoned.await.is_err());
        assert_eq!(bucket.inner().get(&at).await.unwrap(), None);
        bucket.apply_delayed().await;
        assert_eq!(bucket.inner().get(&at).await.unwrap().is_some(), there);
        // A caller that waits for the answer has sent one request.
        bucket.create(&key("b"), Bytes::from("b")).await.unwrap();
        bucket.inner().delete(&key("b")).await.unwrap();
        bucket.apply_delayed().await;
        assert_eq!(bucket.inner().get(&key("b")).await.unwrap(), None);
    }
}

/// A stale listing holds old objects and lacks some recent ones; the next listing is complete.
#[tokio::test(start_paused = true)]
async fn bucket_stale_listing_lacks_new_objects() {
    let bucket = faulty(1, FaultPlan { late_by: Duration::from_secs(1), ..FaultPlan::none() });
    bucket.create(&key("old"), Bytes::from("a")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for n in 0..10 {
        bucket.create(&key(&format!("new/{n}")), Bytes::from("a")).await.unwrap();
    }
    tokio::time::sleep(Duration::from_nanos(1)).await;
    bucket.script(BucketOperation::List, [BucketFault::StaleList]);
    let shown = bucket.list(&BucketPrefix::ALL).await.unwrap();
    assert!((2..10).contains(&shown.len()), "{shown:?}");
    assert!(shown.iter().any(|entry| entry.key == key("old")));
    assert_eq!(bucket.list(&BucketPrefix::ALL).await.unwrap().len(), 11);
}

/// A held request has no effect until its gate opens. A held answer arrives after its gate opens, and the request has
/// taken effect before. Other calls pass.
#[tokio::test(start_paused = true)]
async fn bucket_gate_holds_requests_or_answers() {
    for hold_answer in [false, true] {
        let bucket = faulty(1, FaultPlan::none());
        let gate = if hold_answer {
            bucket.hold_answers(BucketOperation::Create, "logs/")
        } else {
            bucket.hold_requests(BucketOperation::Create, "logs/")
        };
        let at = key("logs/a");
        let mut held = bucket.create(&at, Bytes::from("a"));
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut held).await.is_err());
        assert_eq!(gate.reached(), 1);
        assert_eq!(bucket.get(&at).await.unwrap().is_some(), hold_answer);
        bucket.create(&key("subjects/a"), Bytes::from("a")).await.unwrap();
        assert_eq!(gate.reached(), 1);
        drop(gate);
        assert_eq!(held.await.unwrap(), Created::New);
        bucket.create(&key("logs/b"), Bytes::from("b")).await.unwrap();
    }
}

/// While answers are lost, creates and gets fail with a timeout, and creates take effect. Other calls get answers.
#[tokio::test(start_paused = true)]
async fn bucket_without_answers_applies_creates() {
    let bucket = faulty(1, FaultPlan { timeout: Duration::ZERO, ..FaultPlan::none() });
    let before = bucket.env.boot();
    bucket.set_answers_lost(true);
    let created = bucket.create(&key("a"), Bytes::from("a")).await;
    assert!(matches!(created, Err(BucketError::Timeout { .. })), "{created:?}");
    assert!(bucket.get(&key("a")).await.is_err());
    assert_eq!(bucket.env.boot(), before, "without a timeout, the errors take no time");
    assert_eq!(bucket.list(&BucketPrefix::ALL).await.unwrap().len(), 1);
    bucket.set_answers_lost(false);
    assert_eq!(bucket.get(&key("a")).await.unwrap(), Some(Bytes::from("a")));
}

/// The bucket records all calls with their names, also those that fail.
#[tokio::test(start_paused = true)]
async fn bucket_calls_are_recorded_until_taken() {
    let bucket = faulty(1, FaultPlan::none());
    bucket.set_unreachable(true);
    bucket.create(&key("a"), Bytes::from("a")).await.unwrap_err();
    bucket.get(&key("b")).await.unwrap_err();
    assert_eq!(bucket.calls(BucketOperation::Get), 1);
    let calls = bucket.take_calls();
    assert_eq!(calls, [(BucketOperation::Create, "a".to_owned()), (BucketOperation::Get, "b".to_owned())]);
    assert_eq!((bucket.calls(BucketOperation::Get), bucket.take_calls().len()), (0, 0));
}

#[derive(Default)]
struct CallLog(Lock<Vec<String>>);

impl BucketObserver for CallLog {
    fn before(&self, call: BucketCall<'_>) {
        self.0.lock().push(format!("{call:?}"));
    }

    fn after(&self, call: BucketCall<'_>, outcome: Result<BucketAnswer<'_>, &BucketError>) {
        let outcome = outcome.map_err(BucketError::is_unknown);
        self.0.lock().push(format!("{call:?}: {outcome:?}"));
    }
}

/// An observer sees each call before it is sent, and its answer or error afterwards.
#[tokio::test(start_paused = true)]
async fn observed_bucket_reports_calls_and_outcomes() {
    let inner = Arc::new(faulty(1, FaultPlan::none()));
    let log = Arc::new(CallLog::default());
    let bucket = ObservedBucket::new(Arc::clone(&inner) as Arc<dyn Bucket>, Arc::clone(&log) as _);
    let seen = || std::mem::take(&mut *log.0.lock());
    assert_eq!(bucket.create(&key("a"), Bytes::from("b")).await.unwrap(), Created::New);
    let call = r#"Create(BucketKey("a"), b"b")"#;
    assert_eq!(seen(), [call.to_owned(), format!("{call}: Ok(Created(New))")]);
    assert_eq!(bucket.get_tail(&key("a"), 1).await.unwrap(), Some(Bytes::from("b")));
    let call = r#"GetTail(BucketKey("a"))"#;
    assert_eq!(seen(), [call.to_owned(), format!(r#"{call}: Ok(Bytes(Some(b"b")))"#)]);
    inner.script(BucketOperation::Delete, [BucketFault::ServerError]);
    bucket.delete(&key("a")).await.unwrap_err();
    let call = r#"Delete(BucketKey("a"))"#;
    assert_eq!(seen(), [call.to_owned(), format!("{call}: Err(true)")]);
}
