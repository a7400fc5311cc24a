//! A bucket behind a link with little bandwidth.

use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_bucket::{BucketError, Created, FileSummary, HeaderPatch};
use dormouse_format::keys::{BucketEntry, BucketKey, BucketPrefix};

use super::*;

/// Time that each create takes beside the time for its bytes.
const LATENCY: Duration = Duration::from_millis(50);

/// A bucket whose creates take the time that the link needs for their bytes.
struct SlowBucket {
    inner: Arc<dyn Bucket>,
    bytes_per_second: u64,
}

#[async_trait]
impl Bucket for SlowBucket {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        let upload = Duration::from_micros(bytes.len() as u64 * 1_000_000 / self.bytes_per_second);
        tokio::time::sleep(LATENCY + upload).await;
        self.inner.create(key, bytes).await
    }

    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &BucketKey, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        self.inner.get_range(key, range).await
    }

    async fn get_tail(&self, key: &BucketKey, count: u64) -> Result<Option<Bytes>, BucketError> {
        self.inner.get_tail(key, count).await
    }

    async fn put_file(
        &self,
        key: &BucketKey,
        path: &Path,
        patch: HeaderPatch,
    ) -> Result<FileSummary, BucketError> {
        self.inner.put_file(key, path, patch).await
    }

    async fn get_file(&self, key: &BucketKey, path: &Path) -> Result<Option<FileSummary>, BucketError> {
        self.inner.get_file(key, path).await
    }

    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        self.inner.list(prefix).await
    }

    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.inner.delete(key).await
    }
}

/// Over a slow link, segments stay at about four seconds of its rate, each is sent once, and all writes are acknowledged
/// in hardly more time than the bytes need.
#[tokio::test(start_paused = true)]
async fn slow_link_gets_each_segment_once_in_four_seconds() {
    const LINK: u64 = 200 << 10;
    const WRITES: u64 = 300;
    const WRITE_BYTES: u64 = 32 << 10;
    let slow = |inner| Arc::new(SlowBucket { inner, bytes_per_second: LINK }) as Arc<dyn Bucket>;
    let rig = Rig::over(1, FaultPlan::none(), LogSettings::default(), slow).await;
    rig.bucket.take_calls();
    let began = rig.env.boot();
    let write = |after| {
        let frames = Bytes::from(vec![7; WRITE_BYTES as usize]);
        rig.log.append(Append { frames, ..append("app.a", after, Level::Bucket) }).unwrap()
    };
    let writes: Vec<_> = (0..WRITES).map(write).collect();
    for progress in &writes {
        assert_eq!(rig.outcome(progress, Level::Bucket).await, Ok(()));
    }
    let needed = Duration::from_secs(WRITES * WRITE_BYTES / LINK);
    let took = rig.env.boot() - began;
    assert!(took < needed * 13 / 10, "{took:?} instead of {needed:?}");
    let mut sent: Vec<_> =
        rig.bucket.take_calls().into_iter().filter(|call| call.0 == Call::Create).collect();
    let creates = sent.len();
    sent.dedup();
    assert_eq!(sent.len(), creates, "a segment was sent again");
    let segments = rig.bucket.inner().list(LogKeys::new(rig.log.id()).folder()).await.unwrap();
    let largest = segments.iter().map(|segment| segment.size_bytes).max().unwrap();
    assert!(largest <= LINK * 5, "{largest} bytes in a segment");
    assert!(segments.len() <= 20, "{} segments", segments.len());
}

/// A create without an answer ends within a few times its expected duration, and a read of the slot then completes it:
/// the body is not sent again.
#[tokio::test(start_paused = true)]
async fn segment_without_answer_is_found_in_its_slot() {
    let rig = Rig::new().await;
    rig.bucket.take_calls();
    let held = rig.bucket.hold_answers(Call::Create, "");
    let began = rig.env.boot();
    let progress = rig.append("app.a", 0, Level::Bucket);
    assert_eq!(rig.outcome(&progress, Level::Bucket).await, Ok(()));
    let took = rig.env.boot() - began;
    assert!(took < Duration::from_secs(12), "{took:?}");
    assert_eq!(rig.bucket.calls(Call::Create), 1);
    drop(held);
}
