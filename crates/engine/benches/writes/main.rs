//! Durable writes per second over few and many subjects, compared with plain SQLite of the same durability:
//! `synchronous=FULL`, one file per subject, one row per transaction. The sides take turns, so that other load on the
//! machine affects all of them.
//!
//! Plain SQLite runs in its own process, because both sides keep every file open and the number of file descriptors is
//! limited.

mod plain;
#[path = "../parts/server.rs"]
mod server;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormouse_engine::Engine;
use dormouse_engine::api::SubjectRequest;
use dormouse_protocol::data::{SetItem, SetRequest};
use dormouse_protocol::{ErrorCode, Level, Subject};
use dormouse_runtime::{Env, Tasks};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use server::{Server, scratch};

/// Turns of each side over the same files.
const ROUNDS: usize = 5;

/// The duration of a turn.
const TURN: Duration = Duration::from_secs(2);

/// Requests pending at the engine at any moment.
const WRITERS: usize = 256;

/// Bytes of a value.
const VALUE_BYTES: usize = 128;

/// File descriptors of an open subject, on either side: the file and its `-wal` sidecar.
const DESCRIPTORS: usize = 2;

/// The maximum of other file descriptors.
const OTHER_DESCRIPTORS: usize = 200;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, folder, files] = arguments.as_slice()
        && mode == plain::MODE
    {
        return plain::serve(Path::new(folder), files.parse().expect("a number of files"));
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("this program measures only under cargo bench");
        return;
    }
    let most = (descriptors() - OTHER_DESCRIPTORS) / DESCRIPTORS;
    let cases: Vec<Value> = [1, 100, 10_000].map(|subjects| case(subjects.min(most))).into();
    let report = json!({
        "turn_seconds": TURN.as_secs(), "writers": WRITERS, "threads": plain::THREADS,
        "value_bytes": VALUE_BYTES, "cases": cases,
    });
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("writes.json");
    std::fs::write(&path, report.to_string()).expect("the build folder is writable");
}

/// The limit of open files of this process.
fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    limit.and_then(|limit| limit.split_whitespace().next()?.parse().ok()).unwrap_or(1_024)
}

/// All rounds over this number of subjects.
fn case(subjects: usize) -> Value {
    let folder = scratch();
    let mut plain = plain::Plain::start(&folder.path().join("plain"), subjects);
    let server = Server::start(&folder.path().join("bucket"), &folder.path().join("data"), |settings| {
        settings.level = Level::Disk;
        settings.max_open_subjects = subjects + WRITERS;
        settings.idle_close = Duration::from_secs(3_600);
    });
    let names =
        (0..subjects).map(|number| Subject::new(&format!("app.user.{number:06}")).expect("a subject"));
    let writers = Writers { engine: server.engine.clone(), subjects: names.collect(), tasks: Tasks::new() };
    server.runtime.block_on(writers.open());

    let [mut plains, mut disks, mut buckets] = [const { Vec::new() }; 3];
    for round in 1..=ROUNDS {
        plains.push(plain.turn(TURN));
        disks.push(server.runtime.block_on(writers.turn(Level::Disk)));
        buckets.push(server.runtime.block_on(writers.turn(Level::Bucket)));
        println!(
            "{subjects:>6} subjects, round {round}: plain SQLite {:>8.0}/s, disk {:>8.0}/s, bucket {:>8.0}/s",
            plains[round - 1],
            disks[round - 1],
            buckets[round - 1]
        );
    }
    server.kill();
    json!({ "subjects": subjects, "plain": plains, "disk": disks, "bucket": buckets })
}

/// Writers that each have one pending request.
struct Writers {
    engine: Engine,
    subjects: Arc<[Subject]>,
    tasks: Tasks,
}

impl Writers {
    /// Writes once to every subject, so that all are open.
    async fn open(&self) {
        let next = Arc::new(AtomicU64::new(0));
        let subjects = self.subjects.len() as u64;
        self.all(Level::Disk, move || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < subjects))
            .await;
    }

    /// Writes for one turn. Returns the writes per second.
    async fn turn(&self, level: Level) -> f64 {
        let env = Env::system();
        let started = env.boot();
        let clock = env.clone();
        let next = AtomicU64::new(0);
        let written = self
            .all(level, move || (clock.boot() - started < TURN).then(|| next.fetch_add(1, Ordering::Relaxed)))
            .await;
        written as f64 / (env.boot() - started).as_secs_f64()
    }

    /// Runs every writer on the subjects that `choose` returns, until it returns none. Returns the number of writes.
    async fn all(&self, level: Level, choose: impl Fn() -> Option<u64> + Send + Sync + 'static) -> u64 {
        let choose = Arc::new(choose);
        let (sender, mut done) = mpsc::channel(WRITERS);
        for _ in 0..WRITERS {
            let (engine, subjects) = (self.engine.clone(), Arc::clone(&self.subjects));
            let (choose, sender) = (Arc::clone(&choose), sender.clone());
            self.tasks.spawn("writer", async move {
                let mut written = 0;
                while let Some(number) = choose() {
                    let index = usize::try_from(number).expect("fits") % subjects.len();
                    write(&engine, &subjects[index], level).await;
                    written += 1;
                }
                sender.send(written).await.expect("the receiver is open");
            });
        }
        drop(sender);
        let mut written: u64 = 0;
        while let Some(more) = done.recv().await {
            written += more;
        }
        written
    }
}

/// Writes once, and retries after the returned delay if the reply is `overloaded`, as a client does.
async fn write(engine: &Engine, subject: &Subject, level: Level) {
    let value = Some(Bytes::from_static(&[b'v'; VALUE_BYTES]));
    let item = SetItem { value, ..SetItem::default() };
    let request =
        SubjectRequest::Set(SetRequest { sets: vec![item], level: Some(level), ..SetRequest::default() });
    loop {
        match engine.execute(subject, request.clone()).await {
            Ok(_) => return,
            Err(reply) if reply.code == ErrorCode::Overloaded => {
                let pause = Duration::from_millis(reply.retry_after_ms.unwrap_or(10));
                tokio::time::sleep(pause).await;
            }
            Err(reply) => panic!("{subject}: {reply}"),
        }
    }
}
