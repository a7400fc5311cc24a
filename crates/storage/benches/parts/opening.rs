//! What whoever asks for a closed subject waits for: one that was handed back, and one whose server has died.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, SamplingMode, Throughput};
use dormouse_protocol::data::{GetRequest, SetItem, SetRequest};
use dormouse_protocol::{Seq, Subject};
use dormouse_runtime::Env;
use dormouse_storage::api::{Reply, Request};
use dormouse_storage::manifest::MAX_DELTAS;

use crate::entries::VALUE_BYTES;
use crate::server::{Server, scratch};

/// Subjects that sleep in the bucket; each is woken once per start of the server.
const SLEEPING: u64 = 32;

/// Messages of a sleeping subject: they come to a file of about 100 kB.
const SLEEPING_MESSAGES: u64 = 260;

/// The snapshot of the subject that is replayed has so many messages of so many bytes.
const SNAPSHOT_MESSAGES: u64 = 512;
const SNAPSHOT_VALUE_BYTES: usize = 16 * 1_024;

/// Entries in each of its deltas, and in the log behind them.
const ENTRIES: u64 = 500;

/// How often a delta is added until there are as many as there may be.
const ATTEMPTS: usize = 50;

fn subject(number: u64) -> Subject {
    Subject::new(&format!("app.user.{number:06}")).expect("a subject")
}

fn messages(count: u64, value_bytes: usize) -> impl Iterator<Item = SetItem> {
    let value = Bytes::from(vec![b'v'; value_bytes]);
    (0..count).map(move |_| SetItem { value: Some(value.clone()), ..SetItem::default() })
}

fn set(sets: Vec<SetItem>) -> Request {
    Request::Set(SetRequest { sets, ..SetRequest::default() })
}

fn execute(server: &Server, subject: &Subject, request: Request) -> Reply {
    server.runtime.block_on(server.engine.execute(subject, request)).expect("an answer")
}

/// Ends a server after everything was handed back.
fn shutdown(server: Server) {
    let report = server.runtime.block_on(server.engine.shutdown(Duration::from_secs(60)));
    assert!(report.unreleased.is_empty(), "not handed back: {:?}", report.unreleased);
    server.kill();
}

fn first_get(server: &Server, subject: &Subject, seq: u64) -> Duration {
    let env = Env::system();
    let begun = env.boot();
    let reply = execute(server, subject, Request::Get(GetRequest::seq(Seq::new(seq))));
    let spent = env.boot() - begun;
    assert!(
        matches!(reply, Reply::Get(found) if !found.messages.is_empty()),
        "{seq} of {subject} is missing"
    );
    spent
}

/// The objects of a subject that are called so, with their sizes.
fn objects(bucket: &Path, subject: &Subject, extension: &str) -> Vec<u64> {
    let folder = bucket.join("subjects").join(subject.escaped());
    let entries = fs::read_dir(folder).expect("the subject's folder").map(|entry| entry.expect("an object"));
    entries
        .filter(|entry| entry.path().extension().is_some_and(|found| found == extension))
        .map(|entry| entry.metadata().expect("an object").len())
        .collect()
}

/// From a bucket in a local directory: claim, copy of the snapshot, first answer. Every subject was handed back before.
pub fn wake_up(c: &mut Criterion) {
    let folder = scratch();
    let (bucket, data) = (folder.path().join("bucket"), folder.path().join("data"));
    let server = Server::start(&bucket, &data, |_| {});
    for number in 0..SLEEPING {
        execute(&server, &subject(number), set(messages(SLEEPING_MESSAGES, VALUE_BYTES).collect()));
    }
    shutdown(server);
    let sizes = objects(&bucket, &subject(0), "sqlite3");
    assert!(sizes.iter().all(|size| (80_000..120_000).contains(size)), "snapshots of {sizes:?} bytes");

    let mut group = c.benchmark_group("wake-up");
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function("first get of a file of 100 kB", |b| {
        b.iter_custom(|wakes| {
            let mut spent = Duration::ZERO;
            let mut left = wakes;
            while left > 0 {
                fs::remove_dir_all(&data).expect("the local files");
                let server = Server::start(&bucket, &data, |_| {});
                let woken = left.min(SLEEPING);
                spent += (0..woken).map(|number| first_get(&server, &subject(number), 1)).sum::<Duration>();
                shutdown(server);
                left -= woken;
            }
            spent
        });
    });
    group.finish();
}

/// After the death of a server together with its disk: its log is sealed, the snapshot copied, and what is above it applied, from
/// deltas and from the log; then the same is put into the bucket for the next one, and only then is the subject served.
pub fn replay(c: &mut Criterion) {
    let folder = scratch();
    let left = folder.path().join("left");
    let last = leave(&left, &folder.path().join("data"));
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

/// Leaves a subject behind as a server does that dies. Returns its last seq.
fn leave(bucket: &Path, data: &Path) -> u64 {
    let server = Server::start(bucket, data, |_| {});
    let subject = subject(0);
    let large: Vec<_> = messages(SNAPSHOT_MESSAGES, SNAPSHOT_VALUE_BYTES).collect();
    for sets in large.chunks(64) {
        execute(&server, &subject, set(sets.to_vec()));
    }
    // The first may join a compaction that began before the last of it was written.
    execute(&server, &subject, Request::Compact);
    execute(&server, &subject, Request::Compact);
    let mut last = SNAPSHOT_MESSAGES;
    // The server compacts of its own accord as well: then a delta holds less than the others, or a snapshot took their place.
    for _ in 0..ATTEMPTS {
        write_entries(&server, &subject);
        last += ENTRIES;
        execute(&server, &subject, Request::Compact);
        let deltas = objects(bucket, &subject, "delta");
        if deltas.len() == MAX_DELTAS && deltas.iter().all(|bytes| *bytes == deltas[0]) {
            write_entries(&server, &subject);
            execute(&server, &subject, Request::Flush);
            server.kill();
            return last + ENTRIES;
        }
    }
    panic!("no {MAX_DELTAS} equal deltas in {ATTEMPTS} attempts: {:?}", objects(bucket, &subject, "delta"));
}

/// One request for each, so that each is an entry.
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
