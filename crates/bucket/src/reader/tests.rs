use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_format::checksum::Crc64;
use dormouse_format::keys::BucketKey;
use dormouse_runtime::{Env, SeededEntropy, VirtualClock};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use super::*;
use crate::multipart::pattern;
use crate::{Bucket, BucketError};

const MIB: u64 = 1_024 * 1_024;

/// How the answer to one read ends early.
#[derive(Debug, Clone, Copy)]
enum ReadFault {
    None,
    /// The connection breaks after this many bytes.
    Break(u64),
    /// Nothing comes after this many bytes.
    Stall(u64),
    /// No answer comes at all.
    NoAnswer,
    Refused,
    Denied,
    /// The object is another one.
    Replaced,
}

/// A store in memory whose reads end early.
#[derive(Debug)]
struct FlakyStore {
    store: Arc<InMemory>,
    /// For each read. Later reads are whole.
    faults: Mutex<Vec<ReadFault>>,
    /// The range of each read.
    ranges: Mutex<Vec<Option<GetRange>>>,
}

impl fmt::Display for FlakyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("flaky")
    }
}

fn broken() -> StoreError {
    StoreError::Generic { store: "flaky", source: "connection reset".into() }
}

#[async_trait]
impl ObjectStore for FlakyStore {
    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> StoreResult<GetResult> {
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            if faults.is_empty() { ReadFault::None } else { faults.remove(0) }
        };
        self.ranges.lock().unwrap().push(options.range.clone());
        let mut found = self.store.get_opts(path, options).await?;
        let (count, end) = match fault {
            ReadFault::None => return Ok(found),
            ReadFault::NoAnswer => std::future::pending().await,
            ReadFault::Refused => return Err(broken()),
            ReadFault::Denied => {
                return Err(StoreError::PermissionDenied { path: path.to_string(), source: "no".into() });
            }
            ReadFault::Replaced => {
                found.meta.e_tag = Some("another".to_owned());
                return Ok(found);
            }
            ReadFault::Break(count) => (count, stream::once(async { Err(broken()) }).boxed()),
            ReadFault::Stall(count) => (count, stream::pending().boxed()),
        };
        let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
        let bytes = found.bytes().await?;
        let pieces = stream::iter([Ok(bytes.slice(..usize::try_from(count).unwrap()))]);
        let payload = GetResultPayload::Stream(pieces.chain(end).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions: Default::default() })
    }

    async fn put_opts(
        &self,
        path: &ObjectPath,
        bytes: PutPayload,
        options: PutOptions,
    ) -> StoreResult<PutResult> {
        self.store.put_opts(path, bytes, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, StoreResult<ObjectPath>>,
    ) -> BoxStream<'static, StoreResult<ObjectPath>> {
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> StoreResult<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> StoreResult<()> {
        self.store.copy_opts(from, to, options).await
    }
}

/// Result of a download of 20 MiB.
struct Outcome {
    end: Result<bool, BucketError>,
    /// Start and end of each read, in MiB.
    ranges: Vec<(u64, u64)>,
    took: Duration,
    leaves_file: bool,
}

async fn download(faults: &[ReadFault]) -> Outcome {
    let env = Env::simulated(
        Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000))),
        Arc::new(SeededEntropy::new(1)),
    );
    let bytes = pattern(20 * MIB as usize);
    let memory = Arc::new(InMemory::new());
    memory.put(&ObjectPath::from("large"), bytes.clone().into()).await.unwrap();
    let (faults, ranges) = (Mutex::new(faults.to_vec()), Mutex::default());
    let store = Arc::new(FlakyStore { store: memory, faults, ranges });
    let bucket = ObjectStoreBucket::new(
        Arc::clone(&store) as _,
        ObjectPath::ROOT,
        "memory:///".to_owned(),
        env.clone(),
    );
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("down");
    let began = env.boot();
    let end = bucket.get_file(&BucketKey::new("large").unwrap(), &target).await;
    let took = env.boot() - began;
    let leaves_file = target.exists();
    let is_whole = |found: Option<crate::FileSummary>| {
        found.is_some_and(|found| found.crc64 == Crc64::of(&bytes))
            && std::fs::read(&target).unwrap() == bytes
    };
    let ranges = std::mem::take(&mut *store.ranges.lock().unwrap());
    let ranges = ranges.into_iter().map(|range| match range {
        Some(GetRange::Bounded(range)) => (range.start / MIB, range.end / MIB),
        other => panic!("{other:?}"),
    });
    Outcome { end: end.map(is_whole), ranges: ranges.collect(), took, leaves_file }
}

/// A download that breaks or stalls asks only for the bytes that are missing, and has no limit on its whole.
#[tokio::test(start_paused = true)]
async fn download_resumes_where_it_stopped() {
    use ReadFault::{Break, None, Refused, Stall};
    let whole = download(&[]).await;
    assert!(whole.end.unwrap());
    assert_eq!(whole.ranges, [(0, 8), (8, 16), (16, 20)]);

    let flaky = [Break(3 * MIB), Refused, None, Stall(MIB), Stall(2 * MIB), Refused, None, None];
    let outcome = download(&flaky).await;
    assert!(outcome.end.unwrap());
    assert_eq!(outcome.ranges, [(0, 8), (3, 11), (3, 11), (11, 19), (12, 20), (14, 20), (14, 20)]);
    assert!((60..62).contains(&outcome.took.as_secs()), "two stalls: {:?}", outcome.took);

    // Each piece is progress: many failures in a row, far longer than the time limit without progress.
    let outcome = download(&[Stall(MIB / 2); 30]).await;
    assert!(outcome.end.unwrap());
    assert!(outcome.took > Duration::from_secs(15 * 60), "{:?}", outcome.took);
}

/// A download without progress fails after a bounded time, and a permanent error or a replaced object at once. It
/// leaves no file.
#[tokio::test(start_paused = true)]
async fn download_without_progress_fails() {
    use ReadFault::{Break, Denied, NoAnswer, Refused, Replaced, Stall};
    let silent = download(&[Stall(MIB), NoAnswer, NoAnswer, NoAnswer]).await;
    assert!(matches!(silent.end, Err(BucketError::Timeout { .. })));
    assert!((60..70).contains(&silent.took.as_secs()), "{:?}", silent.took);
    let mut faults = vec![Refused; 100];
    faults[0] = Break(MIB);
    let refused = download(&faults).await;
    assert!(matches!(refused.end, Err(BucketError::Unreachable { .. })));
    assert!((9..12).contains(&refused.took.as_secs()), "{:?}", refused.took);
    let denied = download(&[Break(MIB), Denied]).await;
    assert!(matches!(denied.end, Err(BucketError::Denied { .. })));
    let replaced = download(&[Break(MIB), Replaced]).await;
    assert!(matches!(replaced.end, Err(BucketError::Corrupt { .. })));
    // The first request is not repeated: its caller decides.
    let absent = download(&[NoAnswer]).await;
    assert!(matches!(absent.end, Err(BucketError::Timeout { .. })));
    assert_eq!(absent.took, CALL_TIMEOUT);
    for outcome in [silent.leaves_file, refused.leaves_file, denied.leaves_file, replaced.leaves_file] {
        assert!(!outcome);
    }
}
