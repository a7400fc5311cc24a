//! Throughput of encoding a segment, and of decoding it to entries. Each case has the same entries, of one subject or
//! of many: the difference is the cost of a subject in a segment.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use dormouse_format::frame;
use dormouse_format::keys::Nonce;
use dormouse_format::segment::{self, Block, NO_PREVIOUS, SlotHeader, SlotKind};
use dormouse_protocol::{Rev, Slot, Subject};

use crate::entries::{entry, log};

/// Entries in a segment, over all subjects.
const ENTRIES: usize = 10_000;

fn header() -> SlotHeader {
    let nonce = Nonce::from_bytes([7; 16]);
    SlotHeader { kind: SlotKind::Data, log: log(), slot: Slot::new(1), nonce, previous: NO_PREVIOUS }
}

/// One block per append, as in the log.
fn blocks(subjects: usize) -> Vec<Block> {
    let append = |number: usize| {
        let after = (number / subjects) as u64;
        Block {
            subject: Subject::new(&format!("app.user.{:06}", number % subjects)).expect("a subject"),
            first_after: Rev::new(after),
            last_rev: Rev::new(after + 1),
            entries: 1,
            frames: frame::encode(&entry(after)).expect("the entry is small"),
        }
    };
    (0..ENTRIES).map(append).collect()
}

pub fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    let entry = entry(41);
    let bytes = frame::encode(&entry).expect("the entry is small");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode", |b| b.iter(|| frame::encode(black_box(&entry))));
    group.bench_function("decode", |b| b.iter(|| frame::decode_all(black_box(&bytes))));
    group.finish();
}

pub fn segments(c: &mut Criterion) {
    let mut group = c.benchmark_group("segment");
    for subjects in [1, 100, 10_000] {
        let blocks = blocks(subjects);
        let encoded = segment::encode(&header(), blocks.clone());
        group.throughput(Throughput::Bytes(encoded.bytes.len() as u64));
        let case = |name| BenchmarkId::new(name, format!("{ENTRIES} entries of {subjects} subjects"));
        group.bench_with_input(case("encode"), &blocks, |b, blocks| {
            b.iter_batched(
                || blocks.clone(),
                |blocks| segment::encode(&header(), blocks),
                BatchSize::LargeInput,
            );
        });
        group.bench_with_input(case("decode"), &encoded.bytes, |b, bytes| {
            b.iter(|| segment::decode(&log(), Slot::new(1), bytes.clone()));
        });
        group.bench_with_input(case("decode, and every entry"), &encoded.bytes, |b, bytes| {
            b.iter(|| {
                let object =
                    segment::decode(&log(), Slot::new(1), bytes.clone()).expect("the segment is valid");
                let of = |line: &segment::IndexLine| {
                    object.entries_of(&line.subject).expect("the segment is valid").len()
                };
                object.lines.iter().map(of).sum::<usize>()
            });
        });
    }
    group.finish();
}
