//! Throughput of applying entries to the subject's file, by the number of entries per transaction.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use dormouse_protocol::Subject;
use dormouse_runtime::Env;
use dormouse_subject_state::database::{Database, InitialState};

use crate::entries::entry;
use crate::server::scratch;

pub fn transactions(c: &mut Criterion) {
    let mut group = c.benchmark_group("subject's file");
    for entries in [1, 100, 1_000] {
        group.throughput(Throughput::Elements(entries));
        let id = BenchmarkId::new("apply", format!("transactions of {entries} entries"));
        group.bench_function(id, |b| b.iter_custom(|transactions| apply(transactions, entries)));
    }
    group.finish();
}

/// Each sample starts with an empty file, which is never checkpointed; a server checkpoints after some megabytes.
fn apply(transactions: u64, entries: u64) -> Duration {
    let env = Env::system();
    let folder = scratch();
    let subject = Subject::new("app.user.000001").expect("a subject");
    let path = folder.path().join("file.sqlite3");
    let mut database =
        Database::create(&path, &subject, &InitialState::default()).expect("the folder is new");
    let mut spent = Duration::ZERO;
    for number in 0..transactions {
        let group: Vec<_> = (0..entries).map(|index| entry(number * entries + index)).collect();
        let started = env.boot();
        database.begin().expect("the disk has space");
        for entry in &group {
            database.apply(entry).expect("the entry follows the last");
        }
        database.commit().expect("the disk has space");
        spent += env.boot() - started;
    }
    spent
}
