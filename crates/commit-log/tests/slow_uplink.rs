//! The log on a real S3 server over a slow uplink.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bucket::open_bucket;
use dormouse_commit_log::log::{Append, Log, LogInstruments, LogSettings};
use dormouse_commit_log::wal::Wal;
use dormouse_harness::{LinkProfile, S3Operation, S3Proxy, S3Server};
use dormouse_protocol::{Level, LogId, Rev, Subject};
use dormouse_runtime::disk::LocalDisk;
use dormouse_runtime::{Env, Tasks};
use tokio::sync::Notify;

/// Bandwidth of the uplink, in bytes per second.
const LINK: u64 = 200 << 10;
const WRITES: u64 = 300;
const WRITE_BYTES: u64 = 32 << 10;

/// At 0.2 MiB/s all writes are acknowledged within 1.3 times the duration of their bytes, and no segment is sent twice.
#[tokio::test]
#[ignore = "takes a minute: make soak-all"]
async fn slow_uplink_acks_within_bandwidth() {
    let server = S3Server::start().await.unwrap();
    server.create_bucket("slow").await.unwrap();
    let proxy = S3Proxy::start(server.port()).await.unwrap();
    let env = Env::system();
    let bucket = open_bucket("s3://slow/path", proxy.variables(), env.clone()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let id: LogId = "a-01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap();
    let wal = Wal::create(folder.path(), &id, Arc::new(LocalDisk)).unwrap();
    let tasks = Tasks::new();
    let (settings, instruments) = (LogSettings::default(), LogInstruments::default());
    let log =
        Log::start(id, settings, Arc::new(bucket), wal, env.clone(), &tasks, instruments).await.unwrap();
    proxy.set_link(LinkProfile {
        latency: Duration::from_millis(20),
        upload_bytes_per_second: Some(LINK),
        ..LinkProfile::default()
    });
    drop(proxy.take_requests());

    let began = env.boot();
    let subject = Subject::new("app.a").unwrap();
    for after in 0..WRITES {
        let append = Append {
            subject: subject.clone(),
            frames: Bytes::from(vec![7; WRITE_BYTES as usize]),
            first_after: Rev::new(after),
            last_rev: Rev::new(after + 1),
            entries: 1,
            level: Level::Bucket,
            waker: Arc::new(Notify::new()),
        };
        log.append(append).unwrap();
    }
    log.wait_resolved(&subject).await;
    let took = env.boot() - began;

    let mut segments = BTreeMap::<String, Vec<u64>>::new();
    for request in proxy.take_requests() {
        if request.operation == S3Operation::Put {
            segments.entry(request.path).or_default().push(request.body_bytes);
        }
    }
    println!("{took:?} for {} bytes in {} segments: {segments:?}", WRITES * WRITE_BYTES, segments.len());
    assert!(segments.values().all(|sends| sends.len() == 1), "a segment was sent again: {segments:?}");
    assert!(took < Duration::from_secs(WRITES * WRITE_BYTES / LINK) * 13 / 10, "{took:?}");
    log.stop().await;
    tasks.finish(Duration::from_secs(5)).await.unwrap();
}
