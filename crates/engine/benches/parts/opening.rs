//! Latency of the first request to a dormant subject: one that was released, and one whose server was killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, SamplingMode, Throughput};
use dormouse_engine::api::{SubjectReply, SubjectRequest};
use dormouse_format::manifest::MAX_DELTAS;
use dormouse_protocol::data::{GetRequest, SetItem, SetRequest};
use dormouse_protocol::{Seq, Subject};
use dormouse_runtime::Env;

use crate::entries::VALUE_BYTES;
use crate::server::{Server, scratch};

/// Dormant subjects in the bucket; each opens once per start of the server.
const DORMANT: u64 = 32;

/// Messages of a dormant subject, in a file of about 100 kB.
const DORMANT_MESSAGES: u64 = 260;

/// Number and size of the messages in the snapshot of the replayed subject.
const SNAPSHOT_MESSAGES: u64 = 512;
const SNAPSHOT_VALUE_BYTES: usize = 16 * 1_024;

/// Entries in each of its deltas, and in its tail.
const ENTRIES: u64 = 500;

/// Attempts to add deltas until their number is at its limit.
const ATTEMPTS: usize = 50;

fn subject(number: u64) -> Subject {
    Subject::new(&format!("app.user.{number:06}")).expect("a subject")
}

fn messages(count: u64, value_bytes: usize) -> impl Iterator<Item = SetItem> {
    let value = Bytes::from(vec![b'v'; value_bytes]);
    (0..count).map(move |_| SetItem { value: Some(value.clone()), ..SetItem::default() })
}

fn set(sets: Vec<SetItem>) -> SubjectRequest {
    SubjectRequest::Set(SetRequest { sets, ..SetRequest::default() })
}

fn execute(server: &Server, subject: &Subject, request: SubjectRequest) -> SubjectReply {
    server.runtime.block_on(server.engine.execute(subject, request)).expect("the request succeeds")
}

/// Stops a server after it has released every subject.
fn shutdown(server: Server) {
    let report = server.runtime.block_on(server.engine.shutdown(Duration::from_secs(60)));
    assert!(report.unreleased.is_empty(), "not released: {:?}", report.unreleased);
    server.kill();
}

fn first_get(server: &Server, subject: &Subject, seq: u64) -> Duration {
    let env = Env::system();
    let started = env.boot();
    let reply = execute(server, subject, SubjectRequest::Get(GetRequest::seq(Seq::new(seq))));
    let spent = env.boot() - started;
    assert!(
        matches!(reply, SubjectReply::Get(found) if !found.messages.is_empty()),
        "{seq} of {subject} is missing"
    );
    spent
}

/// The sizes of the objects of a subject with this file name extension.
fn objects(bucket: &Path, subject: &Subject, extension: &str) -> Vec<u64> {
    let folder = bucket.join("subjects").join(subject.escaped());
    let entries = fs::read_dir(folder).expect("the subject's folder").map(|entry| entry.expect("an object"));
    entries
        .filter(|entry| entry.path().extension().is_some_and(|found| found == extension))
        .map(|entry| entry.metadata().expect("an object").len())
        .collect()
}

/// From a bucket in a local directory: claim, copy of the snapshot, first reply. Every subject was released before.
pub fn open_dormant(c: &mut Criterion) {
    let folder = scratch();
    let (bucket, data) = (folder.path().join("bucket"), folder.path().join("data"));
    let server = Server::start(&bucket, &data, |_| {});
    for number in 0..DORMANT {
        execute(&server, &subject(number), set(messages(DORMANT_MESSAGES, VALUE_BYTES).collect()));
    }
    shutdown(server);
    let sizes = objects(&bucket, &subject(0), "sqlite3");
    assert!(sizes.iter().all(|size| (80_000..120_000).contains(size)), "snapshots of {sizes:?} bytes");

    let mut group = c.benchmark_group("opening");
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function("first get of a file of 100 kB", |b| {
        b.iter_custom(|opens| {
            let mut spent = Duration::ZERO;
            let mut left = opens;
            while left > 0 {
                fs::remove_dir_all(&data).expect("the local files");
                let server = Server::start(&bucket, &data, |_| {});
                let count = left.min(DORMANT);
                spent += (0..count).map(|number| first_get(&server, &subject(number), 1)).sum::<Duration>();
                shutdown(server);
                left -= count;
            }
            spent
        });
    });
    group.finish();
}

/// After the loss of a server with its disk. The next server seals the log, copies the snapshot, and applies deltas and
/// tail. It then publishes the result as a base in the bucket, and only then serves the subject.
pub fn replay(c: &mut Criterion) {
    let folder = scratch();
    let left = folder.path().join("left");
    let last = prepare_orphaned_subject(&left, &folder.path().join("data"));
    let mut group = c.benchmark_group("replay");
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements((MAX_DELTAS as u64 + 1) * ENTRIES));
    group.bench_function("snapshot of 8 MiB, 8 deltas and a tail, 500 entries in each", |b| {
        b.iter_custom(|times| {
            let mut spent = Duration::ZERO;
            for _ in 0..times {
                let folder = scratch();
                let bucket = folder.path().join("bucket");
                copy_folder(&left, &bucket);
                let server = Server::start(&bucket, &folder.path().join("data"), |_| {});
                spent += first_get(&server, &subject(0), last);
                server.kill();
            }
            spent
        });
    });
    group.finish();
}

/// Writes a subject and kills its server. Returns the last seq of the subject.
fn prepare_orphaned_subject(bucket: &Path, data: &Path) -> u64 {
    let server = Server::start(bucket, data, |_| {});
    let subject = subject(0);
    let large: Vec<_> = messages(SNAPSHOT_MESSAGES, SNAPSHOT_VALUE_BYTES).collect();
    for sets in large.chunks(64) {
        execute(&server, &subject, set(sets.to_vec()));
    }
    // The first request may join a compaction that started before the last write.
    execute(&server, &subject, SubjectRequest::Compact);
    execute(&server, &subject, SubjectRequest::Compact);
    let mut last = SNAPSHOT_MESSAGES;
    // The server also compacts without a request. Then one delta is smaller than the others, or a snapshot replaces
    // the deltas.
    for _ in 0..ATTEMPTS {
        write_entries(&server, &subject);
        last += ENTRIES;
        execute(&server, &subject, SubjectRequest::Compact);
        let deltas = objects(bucket, &subject, "delta");
        if deltas.len() == MAX_DELTAS && deltas.iter().all(|bytes| *bytes == deltas[0]) {
            write_entries(&server, &subject);
            execute(&server, &subject, SubjectRequest::Flush);
            server.kill();
            return last + ENTRIES;
        }
    }
    panic!("no {MAX_DELTAS} equal deltas in {ATTEMPTS} attempts: {:?}", objects(bucket, &subject, "delta"));
}

/// Sends one request per message, so that each becomes its own entry.
fn write_entries(server: &Server, subject: &Subject) {
    let one = |item| server.engine.execute(subject, set(vec![item]));
    let answers = server.runtime.block_on(futures::future::join_all(messages(ENTRIES, VALUE_BYTES).map(one)));
    assert!(answers.iter().all(Result::is_ok), "not all were written");
}

fn copy_folder(from: &Path, to: &PathBuf) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a file").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}
