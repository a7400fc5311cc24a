use std::sync::Arc;

use dormouse_runtime::{Env, SeededEntropy, VirtualClock};

use super::*;
use crate::bucket::ObjectStoreBucket;
use crate::bucket::faults::{Fault, FaultPlan, FaultyBucket};

const OURS: Bytes = Bytes::from_static(b"ours, nonce 1");
const ANOTHERS: Bytes = Bytes::from_static(b"another's, nonce 2");

async fn attempt(script: &[Fault], there: Option<Bytes>) -> (Result<CreateOutcome, BucketError>, u64) {
    let env =
        Env::simulated(Arc::new(VirtualClock::starting_at(Duration::ZERO)), Arc::new(SeededEntropy::new(1)));
    let bucket =
        FaultyBucket::new(Arc::new(ObjectStoreBucket::in_memory(env.clone())), 1, FaultPlan::calm(), env);
    let key = BucketKey::new("a").unwrap();
    if let Some(there) = there {
        bucket.inner().create(&key, there).await.unwrap();
    }
    bucket.script(Operation::Create, script.iter().copied());
    let until = tokio::time::sleep(Duration::from_secs(60));
    let outcome = create_once(&bucket, &key, OURS, until).await;
    bucket.settle().await;
    let found = bucket.inner().get(&key).await.unwrap();
    match &outcome {
        Ok(CreateOutcome::Ours) => assert_eq!(found.unwrap(), OURS, "always the same bytes"),
        Ok(CreateOutcome::Anothers) => assert_eq!(found.unwrap(), ANOTHERS),
        Ok(CreateOutcome::Unknown(_)) | Err(_) => {}
    }
    (outcome, bucket.calls(Operation::Create))
}

#[tokio::test(start_paused = true)]
async fn every_definite_answer_is_understood() {
    use Fault::{AnswerLost, Conflict, Late, RequestLost, ServerError};
    let cases: &[(&[Fault], Option<Bytes>, bool, u64)] = &[
        (&[Fault::None], None, true, 1),
        (&[Fault::None], Some(ANOTHERS), false, 1),
        // Our own attempt landed, and only its answer was lost.
        (&[AnswerLost], None, true, 2),
        (&[AnswerLost, RequestLost, ServerError, Conflict], None, true, 4),
        (&[AnswerLost], Some(ANOTHERS), false, 2),
        (&[RequestLost, RequestLost, ServerError], None, true, 4),
        (&[RequestLost], Some(ANOTHERS), false, 2),
        // Another attempt of ours wins, whichever arrives first.
        (&[Late], None, true, 2),
        (&[Late, Late, RequestLost], Some(ANOTHERS), false, 4),
        // "Exists", and then it does not: nothing was written.
        (&[Conflict, Conflict], None, true, 3),
    ];
    for (script, there, ours, creates) in cases {
        let (outcome, made) = attempt(script, there.clone()).await;
        let is_ours = match outcome.unwrap() {
            CreateOutcome::Ours => true,
            CreateOutcome::Anothers => false,
            CreateOutcome::Unknown(error) => panic!("{script:?}: {error}"),
        };
        assert_eq!((is_ours, made), (*ours, *creates), "{script:?} with {there:?} there");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_definite_answer_the_outcome_is_unknown() {
    let (outcome, made) = attempt(&[Fault::RequestLost; 1_000], None).await;
    assert!(matches!(outcome, Ok(CreateOutcome::Unknown(BucketError::Timeout { .. }))), "{outcome:?}");
    assert!((10..40).contains(&made), "it tries again, with growing pauses: {made} times in a minute");

    let (outcome, _) = attempt(&[Fault::Hangs], None).await;
    assert!(matches!(outcome, Ok(CreateOutcome::Unknown(BucketError::Interrupted { .. }))), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_definite_only_if_nothing_was_sent_before() {
    let (outcome, _) = attempt(&[Fault::Denied], None).await;
    assert!(matches!(outcome, Err(BucketError::Denied { .. })), "{outcome:?}");
    let (outcome, _) = attempt(&[Fault::AnswerLost, Fault::Denied], None).await;
    assert!(matches!(outcome, Ok(CreateOutcome::Unknown(_))), "{outcome:?}");
}
