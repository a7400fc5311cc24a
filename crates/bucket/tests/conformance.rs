//! The conformance check on a store that is busy, or that refuses calls.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bucket::{
    BucketError, BucketOperation, ConformanceError, ObjectStoreBucket, RaceProbe, probe, probe_races,
};
use dormouse_runtime::{Env, SeededEntropy, VirtualClock};
use dormouse_testkit::bucket::{BucketFault, FaultPlan, FaultyBucket};

fn bucket() -> (FaultyBucket, Env) {
    let clock = Arc::new(VirtualClock::starting_at(Duration::ZERO));
    let env = Env::simulated(clock, Arc::new(SeededEntropy::new(1)));
    let store = Arc::new(ObjectStoreBucket::in_memory(env.clone()));
    (FaultyBucket::new(store, 1, FaultPlan::none(), env.clone()), env)
}

/// The conformance check repeats throttled and unanswered calls of each kind.
#[tokio::test(start_paused = true)]
async fn conformance_check_repeats_throttled_calls() {
    use BucketOperation::{Create, Delete, Get, List};
    let (bucket, env) = bucket();
    for operation in [Create, Get, List, Delete] {
        let faults = [[BucketFault::ServerError; 3], [BucketFault::RequestLost; 3]];
        bucket.script(operation, faults.into_iter().flatten());
    }
    probe(&bucket, &env).await.unwrap();
    bucket.script(Create, [BucketFault::ServerError; 20]);
    assert_eq!(probe_races(&bucket, &env).await.unwrap(), RaceProbe::Complete);
}

/// A race probe of a store that does not answer ends after 10 seconds, proves nothing and is not remembered.
#[tokio::test(start_paused = true)]
async fn race_probe_without_answers_is_incomplete() {
    let (bucket, env) = bucket();
    bucket.set_unreachable(true);
    let started = env.boot();
    let result = probe_races(&bucket, &env).await.unwrap();
    assert_eq!(result, RaceProbe::Incomplete { races: 0 });
    assert!(env.boot() - started <= Duration::from_secs(10), "{:?}", env.boot() - started);
    bucket.set_unreachable(false);
    assert_eq!(probe_races(&bucket, &env).await.unwrap(), RaceProbe::Complete);
}

/// A race probe fails on a store that refuses deletes, because a server needs them.
#[tokio::test(start_paused = true)]
async fn race_probe_fails_if_deletes_are_refused() {
    let (bucket, env) = bucket();
    bucket.script(BucketOperation::Delete, [BucketFault::Denied; 100]);
    let refused = probe_races(&bucket, &env).await.unwrap_err();
    assert!(matches!(refused, ConformanceError::Failed(BucketError::Denied { .. })), "{refused}");
}
