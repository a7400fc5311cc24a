//! How fast entries become rows of the subject's file, by how many of them share a transaction.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use dormouse_protocol::Subject;
use dormouse_runtime::Env;
use dormouse_storage::internals::{Database, Origin};

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

/// Each sample begins with an empty file. It is never checkpointed, as a server's is after some megabytes.
fn apply(transactions: u64, entries: u64) -> Duration {
    let env = Env::system();
    let folder = scratch();
    let subject = Subject::new("app.user.000001").expect("a subject");
    let path = folder.path().join("file.sqlite3");
    let mut database = Database::create(&path, &subject, &Origin::default()).expect("a fresh folder");
    let mut spent = Duration::ZERO;
    for number in 0..transactions {
        let group: Vec<_> = (0..entries).map(|place| entry(number * entries + place)).collect();
        let begun = env.boot();
        database.begin().expect("room on the disk");
        for entry in &group {
            database.apply(entry).expect("the entry after the last");
        }
        database.commit().expect("room on the disk");
        spent += env.boot() - begun;
    }
    spent
}
