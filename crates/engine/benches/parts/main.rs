//! Costs of the parts of the engine: formats of the log, WAL and subject's file, each alone, and all together when a
//! subject opens. `make bench-storage` runs every benchmark and writes the results into docs/benchmarks/storage.md.

mod apply;
mod entries;
mod opening;
mod segment;
mod server;
mod wal;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

/// Few and short samples: on a small machine all benchmarks together take two or three minutes.
fn config() -> Criterion {
    Criterion::default()
        .sample_size(12)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
}

criterion_group! {
    name = benches;
    config = config();
    targets = segment::frames, segment::segments, wal::group_commit, apply::transactions, opening::open_dormant,
        opening::replay
}
criterion_main!(benches);
