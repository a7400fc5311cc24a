//! What it costs to have a group of appends on the disk: one write, one sync, however many they are.

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput};
use dormouse_protocol::{Rev, Slot, Subject};
use dormouse_runtime::Env;
use dormouse_storage::format::frame;
use dormouse_storage::wal::{FileSystem, Lsn, Wal, WalAppend};

use crate::entries::{entry, log};
use crate::server::scratch;

pub fn group_commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("write-ahead log");
    for appends in [1, 16, 256] {
        group.throughput(Throughput::Elements(appends));
        let id = BenchmarkId::new("write and fdatasync", format!("groups of {appends}"));
        group.bench_function(id, |b| b.iter_custom(|groups| commit(groups, appends)));
    }
    group.finish();
}

/// Each sample has a log of its own, so that the disk does not fill up.
fn commit(groups: u64, appends: u64) -> std::time::Duration {
    let env = Env::system();
    let folder = scratch();
    let mut wal = Wal::create(folder.path(), &log(), Arc::new(FileSystem)).expect("a fresh folder");
    let frames = frame::encode(&entry(0)).expect("a small entry");
    let append = |lsn: u64| WalAppend {
        lsn: Lsn::new(lsn),
        subject: Subject::new(&format!("app.user.{:06}", lsn % 10_000)).expect("a subject"),
        first_after: Rev::new(lsn),
        last_rev: Rev::new(lsn + 1),
        entries: 1,
        frames: frames.clone(),
    };
    let mut spent = std::time::Duration::ZERO;
    for number in 0..groups {
        let group: Vec<_> = (1..=appends).map(|place| append(number * appends + place)).collect();
        let begun = env.boot();
        wal.write(&group).expect("room on the disk");
        wal.sync().expect("a sound disk");
        spent += env.boot() - begun;
    }
    wal.shipped(Lsn::new(groups * appends), Slot::new(1)).expect("room on the disk");
    spent
}
