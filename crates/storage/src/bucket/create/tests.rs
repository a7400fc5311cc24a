use std::collections::VecDeque;
use std::future::pending;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::bucket::{BucketEntry, BucketPrefix, FileSummary, HeaderPatch};

/// What the network makes of a create.
#[derive(Debug, Clone, Copy)]
enum Create {
    /// Arrives and is answered.
    Arrives,
    /// Arrives, and the answer is lost.
    AnswerLost,
    /// Never arrives.
    Lost,
    /// Is refused because of another create at the same moment, which then fails.
    Conflict,
    /// Is refused for lack of permission.
    Denied,
    /// Never answers.
    Hangs,
}

/// One object on a network that follows a script.
#[derive(Default)]
struct Scripted {
    script: Mutex<VecDeque<Create>>,
    object: Mutex<Option<Bytes>>,
    creates: Mutex<Vec<Bytes>>,
}

fn lost(operation: Operation) -> BucketError {
    BucketError::Timeout { operation, name: "a".to_owned(), timeout: Duration::from_secs(1) }
}

#[async_trait]
impl Bucket for Scripted {
    async fn create(&self, _: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        self.creates.lock().unwrap().push(bytes.clone());
        let fate = self.script.lock().unwrap().pop_front().unwrap_or(Create::Arrives);
        match fate {
            Create::Lost => return Err(lost(Operation::Create)),
            Create::Conflict => return Ok(Created::Exists),
            Create::Denied => {
                let (operation, name) = (Operation::Create, "a".to_owned());
                return Err(BucketError::Denied { operation, name, source: "no".into() });
            }
            Create::Hangs => pending::<()>().await,
            Create::Arrives | Create::AnswerLost => {}
        }
        let mut object = self.object.lock().unwrap();
        let created = if object.is_some() { Created::Exists } else { Created::New };
        object.get_or_insert(bytes);
        if matches!(fate, Create::AnswerLost) { Err(lost(Operation::Create)) } else { Ok(created) }
    }

    async fn get(&self, _: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        Ok(self.object.lock().unwrap().clone())
    }

    async fn get_range(&self, _: &BucketKey, _: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        unreachable!("nothing here reads parts")
    }

    async fn get_tail(&self, _: &BucketKey, _: u64) -> Result<Option<Bytes>, BucketError> {
        unreachable!("nothing here reads parts")
    }

    async fn put_file(&self, _: &BucketKey, _: &Path, _: HeaderPatch) -> Result<FileSummary, BucketError> {
        unreachable!("nothing here moves files")
    }

    async fn get_file(&self, _: &BucketKey, _: &Path) -> Result<Option<FileSummary>, BucketError> {
        unreachable!("nothing here moves files")
    }

    async fn list(&self, _: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        unreachable!("nothing here lists")
    }

    async fn delete(&self, _: &BucketKey) -> Result<(), BucketError> {
        unreachable!("nothing here deletes")
    }
}

const OURS: Bytes = Bytes::from_static(b"ours, nonce 1");
const ANOTHERS: Bytes = Bytes::from_static(b"another's, nonce 2");

async fn attempt(script: &[Create], there: Option<Bytes>) -> (Result<CreateOutcome, BucketError>, usize) {
    let bucket = Scripted {
        script: Mutex::new(script.iter().copied().collect()),
        object: Mutex::new(there),
        creates: Mutex::default(),
    };
    let until = tokio::time::sleep(Duration::from_secs(60));
    let outcome = create_once(&bucket, &BucketKey::new("a").unwrap(), OURS, until).await;
    let creates = bucket.creates.into_inner().unwrap();
    assert!(creates.iter().all(|bytes| *bytes == OURS), "always the same bytes");
    (outcome, creates.len())
}

#[tokio::test(start_paused = true)]
async fn every_definite_answer_is_understood() {
    use Create::*;
    let cases: &[(&[Create], Option<Bytes>, bool, usize)] = &[
        (&[Arrives], None, true, 1),
        (&[Arrives], Some(ANOTHERS), false, 1),
        // Our own attempt landed, and only its answer was lost.
        (&[AnswerLost], None, true, 2),
        (&[AnswerLost, Lost, Lost, Conflict], None, true, 4),
        (&[AnswerLost], Some(ANOTHERS), false, 2),
        (&[Lost, Lost, Lost], None, true, 4),
        (&[Lost], Some(ANOTHERS), false, 2),
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
    let (outcome, made) = attempt(&[Create::Lost; 1_000], None).await;
    assert!(matches!(outcome, Ok(CreateOutcome::Unknown(BucketError::Timeout { .. }))), "{outcome:?}");
    assert!((10..40).contains(&made), "it tries again, with growing pauses: {made} times in a minute");

    let (outcome, _) = attempt(&[Create::Hangs], None).await;
    assert!(matches!(outcome, Ok(CreateOutcome::Unknown(BucketError::Interrupted { .. }))), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_definite_only_if_nothing_was_sent_before() {
    let (outcome, _) = attempt(&[Create::Denied], None).await;
    assert!(matches!(outcome, Err(BucketError::Denied { .. })), "{outcome:?}");
    let (outcome, _) = attempt(&[Create::AnswerLost, Create::Denied], None).await;
    assert!(matches!(outcome, Ok(CreateOutcome::Unknown(_))), "{outcome:?}");
}
