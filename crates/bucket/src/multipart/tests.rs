use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_format::keys::BucketKey;
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};
use object_store::memory::InMemory;
use object_store::{MultipartId, PutResult, Result as StoreResult};

use super::*;
use crate::{Bucket, HeaderPatch};

/// The result of an attempt to send a part.
#[derive(Debug, Clone, Copy)]
enum PartAnswer {
    Stored,
    /// The part is stored, and the answer is an error.
    StoredWithError,
    Failed,
    /// No answer ever comes.
    NoAnswer,
    Denied,
    /// The upload no longer exists.
    UploadMissing,
}

/// The result of an attempt to complete the upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CompleteAnswer {
    Completed,
    /// The object is there, and the answer is an error.
    CompletedWithError,
    /// The object is there, and no answer ever comes.
    CompletedWithoutAnswer,
    /// The object is there after some minutes, and no answer ever comes.
    CompletedLateWithoutAnswer,
    /// The answer is an error at once, and the object is there after some minutes.
    CompletedLateWithError,
    /// Another object is there, and no answer ever comes.
    OtherObject,
    Failed,
    NoAnswer,
    Denied,
    UploadMissing,
}

/// A store whose answers depend on the number of a part and on how often it was sent before.
#[derive(Debug)]
struct ScriptedStore {
    store: Arc<InMemory>,
    /// Runs completions whose connection was cut.
    tasks: Tasks,
    answer: fn(usize, usize) -> PartAnswer,
    /// The answer to each completion. The last one applies to all further ones.
    completions: &'static [CompleteAnswer],
    /// How often the completion was sent.
    completed: Mutex<usize>,
    /// How often each part was sent.
    sent: Mutex<Vec<usize>>,
    aborted: Mutex<usize>,
}

#[async_trait]
impl MultipartStore for ScriptedStore {
    async fn create_multipart(&self, path: &ObjectPath) -> StoreResult<MultipartId> {
        self.store.create_multipart(path).await
    }

    async fn put_part(
        &self,
        path: &ObjectPath,
        id: &MultipartId,
        number: usize,
        part: PutPayload,
    ) -> StoreResult<PartId> {
        let before = {
            let mut sent = self.sent.lock().unwrap();
            let parts = sent.len().max(number + 1);
            sent.resize(parts, 0);
            sent[number] += 1;
            sent[number] - 1
        };
        let answer = (self.answer)(number, before);
        if matches!(answer, PartAnswer::Stored | PartAnswer::StoredWithError) {
            let put = self.store.put_part(path, id, number, part).await;
            if matches!(answer, PartAnswer::Stored) {
                return put;
            }
        }
        let (source, path) = ("scripted error".into(), path.to_string());
        Err(match answer {
            PartAnswer::NoAnswer => std::future::pending().await,
            PartAnswer::Denied => StoreError::PermissionDenied { path, source },
            PartAnswer::UploadMissing => StoreError::NotFound { path, source },
            PartAnswer::Stored | PartAnswer::StoredWithError | PartAnswer::Failed => {
                StoreError::Generic { store: "scripted", source }
            }
        })
    }

    async fn complete_multipart(
        &self,
        path: &ObjectPath,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> StoreResult<PutResult> {
        let number = {
            let mut completed = self.completed.lock().unwrap();
            *completed += 1;
            *completed
        };
        let answer = self.completions[number.min(self.completions.len()) - 1];
        match answer {
            CompleteAnswer::CompletedLateWithoutAnswer => tokio::time::sleep(Duration::from_secs(200)).await,
            CompleteAnswer::CompletedLateWithError => {
                let (store, path, id) = (Arc::clone(&self.store), path.clone(), id.clone());
                self.tasks.spawn("late completion", async move {
                    tokio::time::sleep(Duration::from_secs(200)).await;
                    store.complete_multipart(&path, &id, parts).await.unwrap();
                });
                return Err(StoreError::Generic { store: "scripted", source: "connection cut".into() });
            }
            CompleteAnswer::OtherObject => {
                let size_bytes = UPLOAD_BYTES;
                self.store.put(path, PutPayload::from(vec![7; size_bytes])).await?;
            }
            _ => {}
        }
        if matches!(
            answer,
            CompleteAnswer::Completed
                | CompleteAnswer::CompletedWithError
                | CompleteAnswer::CompletedWithoutAnswer
                | CompleteAnswer::CompletedLateWithoutAnswer
        ) {
            let completed = self.store.complete_multipart(path, id, parts).await;
            if answer == CompleteAnswer::Completed {
                return completed;
            }
        }
        let (source, path) = ("scripted error".into(), path.to_string());
        Err(match answer {
            CompleteAnswer::Denied => StoreError::PermissionDenied { path, source },
            CompleteAnswer::UploadMissing => StoreError::NotFound { path, source },
            CompleteAnswer::Completed | CompleteAnswer::CompletedWithError | CompleteAnswer::Failed => {
                StoreError::Generic { store: "scripted", source }
            }
            CompleteAnswer::CompletedWithoutAnswer
            | CompleteAnswer::CompletedLateWithoutAnswer
            | CompleteAnswer::CompletedLateWithError
            | CompleteAnswer::OtherObject
            | CompleteAnswer::NoAnswer => std::future::pending().await,
        })
    }

    async fn abort_multipart(&self, path: &ObjectPath, id: &MultipartId) -> StoreResult<()> {
        *self.aborted.lock().unwrap() += 1;
        self.store.abort_multipart(path, id).await
    }
}

/// Bytes whose order matters.
pub(crate) fn pattern(size_bytes: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=250).collect::<Vec<u8>>().repeat(size_bytes / 251 + 1);
    bytes.truncate(size_bytes);
    bytes
}

/// Size of the uploaded file: three parts.
const UPLOAD_BYTES: usize = 20 << 20;

/// Result of an upload of three parts.
struct Outcome {
    end: Result<(), BucketError>,
    /// Whether the object equals the file.
    is_whole: bool,
    is_absent: bool,
    sent: Vec<usize>,
    aborted: usize,
    completed: usize,
    took: Duration,
}

async fn upload(answer: fn(usize, usize) -> PartAnswer) -> Outcome {
    upload_and_complete(answer, &[CompleteAnswer::Completed]).await
}

/// An upload whose parts are stored at once.
async fn complete_with(completions: &'static [CompleteAnswer]) -> Outcome {
    upload_and_complete(|_, _| PartAnswer::Stored, completions).await
}

async fn upload_and_complete(
    answer: fn(usize, usize) -> PartAnswer,
    completions: &'static [CompleteAnswer],
) -> Outcome {
    let env = Env::simulated(
        Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000))),
        Arc::new(SeededEntropy::new(1)),
    );
    let began = env.boot();
    let store = Arc::new(InMemory::new());
    let (sent, aborted, completed) = (Mutex::default(), Mutex::default(), Mutex::default());
    let memory = Arc::clone(&store);
    let scripted = Arc::new(ScriptedStore {
        store: memory,
        tasks: env.tasks(),
        answer,
        completions,
        completed,
        sent,
        aborted,
    });
    let bucket = ObjectStoreBucket::new(store, ObjectPath::ROOT, "memory:///".to_owned(), env.clone());
    let bucket = bucket.with_parts(Arc::clone(&scripted) as Arc<dyn MultipartStore>);
    let folder = tempfile::tempdir().unwrap();
    let bytes = pattern(UPLOAD_BYTES);
    std::fs::write(folder.path().join("up"), &bytes).unwrap();
    let key = BucketKey::new("logs/large").unwrap();
    let end = bucket.put_file(&key, &folder.path().join("up"), HeaderPatch::None).await;
    let took = env.boot() - began;
    let found = bucket.get_file(&key, &folder.path().join("down")).await.unwrap();
    let is_whole = found.is_some() && std::fs::read(folder.path().join("down")).unwrap() == bytes;
    let (sent, aborted) = (scripted.sent.lock().unwrap().clone(), *scripted.aborted.lock().unwrap());
    Outcome {
        end: end.map(drop),
        is_whole,
        is_absent: found.is_none(),
        sent,
        aborted,
        completed: *scripted.completed.lock().unwrap(),
        took,
    }
}

/// A multipart upload sends failed or unanswered parts again and sends all other parts once.
#[tokio::test(start_paused = true)]
async fn multipart_upload_resends_only_failed_parts() {
    let outcome = upload(|part, before| match (part, before) {
        (1, 0 | 1) => PartAnswer::Failed,
        (1, 2) => PartAnswer::StoredWithError,
        (2, 0) => PartAnswer::NoAnswer,
        _ => PartAnswer::Stored,
    })
    .await;
    outcome.end.unwrap();
    assert!(outcome.is_whole);
    assert_eq!((outcome.sent, outcome.aborted), (vec![1, 4, 2], 0));
}

/// If a part fails for longer than the retry limit, the upload fails, aborts and leaves no object.
#[tokio::test(start_paused = true)]
async fn multipart_upload_part_failing_past_limit_aborts() {
    let outcome = upload(|part, _| if part == 1 { PartAnswer::Failed } else { PartAnswer::Stored }).await;
    assert!(matches!(outcome.end, Err(BucketError::Unreachable { .. })));
    assert!(outcome.is_absent);
    assert_eq!((outcome.sent, outcome.aborted), (vec![1, 10], 1));
    // Only the pauses take time.
    assert!(outcome.took < Duration::from_secs(11), "{:?}", outcome.took);
}

/// A completion that took effect counts as soon as the object shows it, whatever the store answers, and is sent once. A
/// completion that did not arrive is sent again.
#[tokio::test(start_paused = true)]
async fn upload_completion_is_decided_by_the_object() {
    use CompleteAnswer::{
        Completed, CompletedLateWithError, CompletedLateWithoutAnswer, CompletedWithError,
        CompletedWithoutAnswer, Failed, UploadMissing,
    };
    let cases: [(&[CompleteAnswer], usize, u64); 7] = [
        (&[Completed], 1, 0),
        (&[CompletedWithError], 1, 0),
        // One period of silence, and then the object is there.
        (&[CompletedWithoutAnswer], 1, 30),
        (&[CompletedLateWithoutAnswer], 1, 210),
        (&[Failed, Failed, Completed], 3, 0),
        (&[Failed, CompletedWithError, UploadMissing], 2, 0),
        // The connection was cut, and the store completes the first request meanwhile.
        (&[CompletedLateWithError, UploadMissing], 2, 205),
    ];
    for (completions, completed, seconds) in cases {
        let outcome = complete_with(completions).await;
        outcome.end.unwrap();
        assert!(outcome.is_whole, "{completions:?}");
        assert_eq!((outcome.sent, outcome.aborted), (vec![1, 1, 1], 0), "{completions:?}");
        assert_eq!((outcome.completed, outcome.took.as_secs()), (completed, seconds), "{completions:?}");
    }
}

/// A completion whose connection is cut for a minute is sent again until the store answers, and no part is sent again.
#[tokio::test(start_paused = true)]
async fn upload_completion_outlasts_cut_of_a_minute() {
    use CompleteAnswer::{Completed, Failed};
    let outcome = complete_with(&[
        Failed, Failed, Failed, Failed, Failed, Failed, Failed, Failed, Failed, Failed, Failed, Failed,
        Completed,
    ])
    .await;
    outcome.end.unwrap();
    assert!(outcome.is_whole);
    assert_eq!((outcome.sent, outcome.aborted, outcome.completed), (vec![1, 1, 1], 0, 13));
    assert!(outcome.took > Duration::from_secs(55), "{:?}", outcome.took);
}

/// A completion that never takes effect fails and leaves no object. An object with other bytes is no success.
#[tokio::test(start_paused = true)]
async fn upload_completion_without_object_fails() {
    let denied = complete_with(&[CompleteAnswer::Denied]).await;
    assert!(matches!(denied.end, Err(BucketError::Denied { .. })));
    let gone = complete_with(&[CompleteAnswer::UploadMissing]).await;
    assert!(matches!(gone.end, Err(BucketError::Unreachable { .. })));
    let failing = complete_with(&[CompleteAnswer::Failed]).await;
    assert!(matches!(failing.end, Err(BucketError::Unreachable { .. })));
    let silent = complete_with(&[CompleteAnswer::NoAnswer]).await;
    assert!(matches!(silent.end, Err(BucketError::Timeout { .. })));
    assert_eq!(silent.took, complete::LONGEST_COMPLETION);
    let rest = complete::LONGEST_COMPLETION - failing.took;
    assert!(rest < Duration::from_secs(15), "{rest:?} were left");
    assert_eq!((denied.completed, gone.completed, failing.completed, silent.completed), (1, 1, 68, 1));
    for outcome in [denied, gone, failing, silent] {
        assert!(outcome.is_absent);
        assert_eq!(outcome.aborted, 1);
    }
    let other = complete_with(&[CompleteAnswer::OtherObject]).await;
    assert!(matches!(other.end, Err(BucketError::Corrupt { .. })));
    assert!(!other.is_whole);
}

/// The retry limit applies to each part alone, so all parts together can take longer.
#[tokio::test(start_paused = true)]
async fn multipart_upload_retry_limit_applies_per_part() {
    // Each part fails for almost the retry limit, so that all parts together take longer.
    let outcome = upload(|_, before| if before < 9 { PartAnswer::Failed } else { PartAnswer::Stored }).await;
    outcome.end.unwrap();
    assert!(outcome.is_whole);
    assert_eq!(outcome.sent, [10, 10, 10]);
}

/// A denied part or a missing upload is not retried; the upload aborts and leaves no object.
#[tokio::test(start_paused = true)]
async fn multipart_upload_permanent_error_is_not_retried() {
    let denied = upload(|part, _| if part == 1 { PartAnswer::Denied } else { PartAnswer::Stored }).await;
    assert!(matches!(denied.end, Err(BucketError::Denied { .. })));
    let gone = upload(|part, _| if part == 1 { PartAnswer::UploadMissing } else { PartAnswer::Stored }).await;
    assert!(matches!(gone.end, Err(BucketError::Unreachable { .. })));
    for outcome in [denied, gone] {
        assert!(outcome.is_absent);
        assert_eq!((outcome.sent, outcome.aborted), (vec![1, 1], 1));
    }
}
