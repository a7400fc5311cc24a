//! The interpretation of the answers to a conditional create.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bucket::{BucketError, BucketOperation, CreateOutcome, ObjectStoreBucket, create_once};
use dormouse_format::keys::BucketKey;
use dormouse_runtime::{Env, SeededEntropy, VirtualClock};
use dormouse_testkit::bucket::{BucketFault, FaultPlan, FaultyBucket};

const OURS: Bytes = Bytes::from_static(b"ours, nonce 1");
const ANOTHERS: Bytes = Bytes::from_static(b"another's, nonce 2");

async fn attempt(script: &[BucketFault], there: Option<Bytes>) -> (Result<CreateOutcome, BucketError>, u64) {
    let env =
        Env::simulated(Arc::new(VirtualClock::starting_at(Duration::ZERO)), Arc::new(SeededEntropy::new(1)));
    let bucket =
        FaultyBucket::new(Arc::new(ObjectStoreBucket::in_memory(env.clone())), 1, FaultPlan::none(), env);
    let key = BucketKey::new("a").unwrap();
    if let Some(there) = there {
        bucket.inner().create(&key, there).await.unwrap();
    }
    bucket.script(BucketOperation::Create, script.iter().copied());
    let until = tokio::time::sleep(Duration::from_secs(60));
    let outcome = create_once(&bucket, &key, OURS, until).await;
    bucket.apply_delayed().await;
    let found = bucket.inner().get(&key).await.unwrap();
    match &outcome {
        Ok(CreateOutcome::Ours) => assert_eq!(found.unwrap(), OURS, "always the same bytes"),
        Ok(CreateOutcome::Foreign) => assert_eq!(found.unwrap(), ANOTHERS),
        Ok(CreateOutcome::Unknown(_)) | Err(_) => {}
    }
    (outcome, bucket.calls(BucketOperation::Create))
}

/// A conditional create retries after lost and failed replies and reports correctly whether its own bytes are stored.
#[tokio::test(start_paused = true)]
async fn conditional_create_resolves_owner_after_lost_replies() {
    use BucketFault::{AnswerLost, Conflict, Late, RequestLost, ServerError};
    let cases: &[(&[BucketFault], Option<Bytes>, bool, u64)] = &[
        (&[BucketFault::None], None, true, 1),
        (&[BucketFault::None], Some(ANOTHERS), false, 1),
        // Our own attempt took effect, and only its answer was lost.
        (&[AnswerLost], None, true, 2),
        (&[AnswerLost, RequestLost, ServerError, Conflict], None, true, 4),
        (&[AnswerLost], Some(ANOTHERS), false, 2),
        (&[RequestLost, RequestLost, ServerError], None, true, 4),
        (&[RequestLost], Some(ANOTHERS), false, 2),
        // Another attempt of ours wins, whichever arrives first.
        (&[Late], None, true, 2),
        (&[Late, Late, RequestLost], Some(ANOTHERS), false, 4),
        // The answer is `Exists`, but there is no object: nothing was written.
        (&[Conflict, Conflict], None, true, 3),
    ];
    for (script, there, ours, creates) in cases {
        let (outcome, creates_made) = attempt(script, there.clone()).await;
        let is_ours = match outcome.unwrap() {
            CreateOutcome::Ours => true,
            CreateOutcome::Foreign => false,
            CreateOutcome::Unknown(error) => panic!("{script:?}: {error}"),
        };
        assert_eq!((is_ours, creates_made), (*ours, *creates), "{script:?}, existing object {there:?}");
    }
}

/// If no definite reply arrives in time, a conditional create retries with growing pauses and reports an unknown
/// outcome.
#[tokio::test(start_paused = true)]
async fn conditional_create_without_reply_is_indeterminate() {
    let (outcome, creates_made) = attempt(&[BucketFault::RequestLost; 1_000], None).await;
    assert!(matches!(outcome, Ok(CreateOutcome::Unknown(BucketError::Timeout { .. }))), "{outcome:?}");
    assert!((10..40).contains(&creates_made), "{creates_made} creates in a minute with growing pauses");

    let (outcome, _) = attempt(&[BucketFault::Hangs], None).await;
    assert!(matches!(outcome, Ok(CreateOutcome::Unknown(BucketError::Interrupted { .. }))), "{outcome:?}");
}

/// A denial is a definite failure only if no earlier attempt was sent; otherwise the outcome is unknown.
#[tokio::test(start_paused = true)]
async fn conditional_create_denial_is_definite_only_on_first_try() {
    let (outcome, _) = attempt(&[BucketFault::Denied], None).await;
    assert!(matches!(outcome, Err(BucketError::Denied { .. })), "{outcome:?}");
    let (outcome, _) = attempt(&[BucketFault::AnswerLost, BucketFault::Denied], None).await;
    assert!(matches!(outcome, Ok(CreateOutcome::Unknown(_))), "{outcome:?}");
}
