//! Cost of a group commit: one write and one sync for any number of appends.

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput};
use dormouse_commit_log::wal::{Lsn, Wal, WalAppend};
use dormouse_format::frame;
use dormouse_protocol::{Rev, Slot, Subject};
use dormouse_runtime::Env;
use dormouse_runtime::disk::LocalDisk;

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

/// Each sample has its own log, so that the disk does not fill up.
fn commit(groups: u64, appends: u64) -> std::time::Duration {
    let env = Env::system();
    let folder = scratch();
    let mut wal = Wal::create(folder.path(), &log(), Arc::new(LocalDisk)).expect("the folder is new");
    let frames = frame::encode(&entry(0)).expect("the entry is small");
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
        let group: Vec<_> = (1..=appends).map(|index| append(number * appends + index)).collect();
        let started = env.boot();
        wal.write(&group).expect("the disk has space");
        wal.sync().expect("the sync succeeds");
        spent += env.boot() - started;
    }
    wal.mark_shipped(Lsn::new(groups * appends), Slot::new(1)).expect("the disk has space");
    spent
}
