//! What the parts of the engine cost, each by itself: the log's formats, its disk, the subject's file; and what they come to
//! together when a subject is opened. `make bench-storage` runs them all and puts the figures into docs/performance.md.

mod apply;
mod entries;
mod opening;
mod segment;
mod server;
mod wal;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

/// Few and short: on a small machine all of them together take two or three minutes.
fn config() -> Criterion {
    Criterion::default()
        .sample_size(12)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
}

criterion_group! {
    name = benches;
    config = config();
    targets = segment::frames, segment::segments, wal::group_commit, apply::transactions, opening::wake_up,
        opening::replay
}
criterion_main!(benches);
