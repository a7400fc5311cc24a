use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_runtime::{Env, SeededEntropy, VirtualClock};
use object_store::memory::InMemory;
use object_store::{MultipartId, PutResult, Result as StoreResult};

use super::*;
use crate::bucket::{Bucket, BucketKey, HeaderPatch};

/// What becomes of an attempt to send a part.
#[derive(Debug, Clone, Copy)]
enum Mood {
    Good,
    /// It is there, and nobody is told.
    GoodUnheard,
    Bad,
    /// No answer ever comes.
    Silent,
    Denied,
    /// There is no such upload any more.
    Gone,
}

/// A store with moods: by the number of a part and how often it was sent before.
#[derive(Debug)]
struct Moody {
    store: Arc<InMemory>,
    mood: fn(usize, usize) -> Mood,
    /// How often each part was sent.
    sent: Mutex<Vec<usize>>,
    aborted: Mutex<usize>,
}

#[async_trait]
impl MultipartStore for Moody {
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
        let mood = (self.mood)(number, before);
        if matches!(mood, Mood::Good | Mood::GoodUnheard) {
            let put = self.store.put_part(path, id, number, part).await;
            if matches!(mood, Mood::Good) {
                return put;
            }
        }
        let (source, path) = ("a mood".into(), path.to_string());
        Err(match mood {
            Mood::Silent => std::future::pending().await,
            Mood::Denied => StoreError::PermissionDenied { path, source },
            Mood::Gone => StoreError::NotFound { path, source },
            Mood::Good | Mood::GoodUnheard | Mood::Bad => StoreError::Generic { store: "moody", source },
        })
    }

    async fn complete_multipart(
        &self,
        path: &ObjectPath,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> StoreResult<PutResult> {
        self.store.complete_multipart(path, id, parts).await
    }

    async fn abort_multipart(&self, path: &ObjectPath, id: &MultipartId) -> StoreResult<()> {
        *self.aborted.lock().unwrap() += 1;
        self.store.abort_multipart(path, id).await
    }
}

/// What came of a file of three parts.
struct Outcome {
    end: Result<(), BucketError>,
    /// Whether the object is there, as it was sent.
    is_whole: bool,
    is_absent: bool,
    sent: Vec<usize>,
    aborted: usize,
    took: Duration,
}

async fn upload(mood: fn(usize, usize) -> Mood) -> Outcome {
    let env = Env::simulated(
        Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000))),
        Arc::new(SeededEntropy::new(1)),
    );
    let began = env.boot();
    let store = Arc::new(InMemory::new());
    let (sent, aborted) = (Mutex::default(), Mutex::default());
    let moody = Arc::new(Moody { store: Arc::clone(&store), mood, sent, aborted });
    let bucket = ObjectStoreBucket::new(store, ObjectPath::ROOT, "memory:///".to_owned(), env.clone());
    let bucket = bucket.with_parts(Arc::clone(&moody) as Arc<dyn MultipartStore>);
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..20 << 20).map(|at: u32| (at % 251) as u8).collect();
    std::fs::write(folder.path().join("up"), &bytes).unwrap();
    let key = BucketKey::new("logs/large").unwrap();
    let end = bucket.put_file(&key, &folder.path().join("up"), HeaderPatch::None).await;
    let found = bucket.get_file(&key, &folder.path().join("down")).await.unwrap();
    let is_whole = found.is_some() && std::fs::read(folder.path().join("down")).unwrap() == bytes;
    let (sent, aborted) = (moody.sent.lock().unwrap().clone(), *moody.aborted.lock().unwrap());
    Outcome {
        end: end.map(drop),
        is_whole,
        is_absent: found.is_none(),
        sent,
        aborted,
        took: env.boot() - began,
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_is_sent_again_and_the_others_are_not() {
    let outcome = upload(|part, before| match (part, before) {
        (1, 0 | 1) => Mood::Bad,
        (1, 2) => Mood::GoodUnheard,
        (2, 0) => Mood::Silent,
        _ => Mood::Good,
    })
    .await;
    outcome.end.unwrap();
    assert!(outcome.is_whole);
    assert_eq!((outcome.sent, outcome.aborted), (vec![1, 4, 2], 0));
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_for_longer_than_anybody_waits_fails_the_whole_and_leaves_nothing() {
    let outcome = upload(|part, _| if part == 1 { Mood::Bad } else { Mood::Good }).await;
    assert!(matches!(outcome.end, Err(BucketError::Unreachable { .. })));
    assert!(outcome.is_absent);
    assert_eq!((outcome.sent, outcome.aborted), (vec![1, 10], 1));
    // Pauses and nothing else.
    assert!(outcome.took < Duration::from_secs(11), "{:?}", outcome.took);
}

#[tokio::test(start_paused = true)]
async fn patience_is_each_parts_own() {
    // Each part fails for almost as long as is waited for it, so that all of them take longer.
    let outcome = upload(|_, before| if before < 9 { Mood::Bad } else { Mood::Good }).await;
    outcome.end.unwrap();
    assert!(outcome.is_whole);
    assert_eq!(outcome.sent, [10, 10, 10]);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_not_sent_again() {
    let denied = upload(|part, _| if part == 1 { Mood::Denied } else { Mood::Good }).await;
    assert!(matches!(denied.end, Err(BucketError::Denied { .. })));
    let gone = upload(|part, _| if part == 1 { Mood::Gone } else { Mood::Good }).await;
    assert!(matches!(gone.end, Err(BucketError::Unreachable { .. })));
    for outcome in [denied, gone] {
        assert!(outcome.is_absent);
        assert_eq!((outcome.sent, outcome.aborted), (vec![1, 1], 1));
    }
}
