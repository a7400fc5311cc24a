//! Hostile bytes, made from valid bytes, and a count of the memory that decoding them takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::SeededRng;

/// MessagePack headers that declare much more than follows: a map, an array, a text, bytes, an extension.
const HUGE: [&[u8]; 5] = [
    &[0xdf, 0xff, 0xff, 0xff, 0xff],
    &[0xdd, 0xff, 0xff, 0xff, 0xff],
    &[0xdb, 0xff, 0xff, 0xff, 0xff],
    &[0xc6, 0xff, 0xff, 0xff, 0xff],
    &[0xc9, 0xff, 0xff, 0xff, 0xff, 0x01],
];

/// Edge values of a field: numbers of each width, a float, nil, an empty map and list.
const EDGES: [&[u8]; 10] = [
    &[0x00],
    &[0xff],
    &[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0],
    &[0xcf, 0x00, 0x20, 0, 0, 0, 0, 0, 0],
    &[0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0],
    &[0xc0],
    &[0x80],
    &[0x90],
    &[0xa0],
];

/// One step of nesting: a list of one, and a map whose single value is the next step.
const NESTS: [&[u8]; 2] = [&[0x91], &[0x81, 0xa1, b'a']];

/// Changes `good` in one to three ways: flips bits, replaces bytes, truncates, repeats, removes or inserts a piece,
/// inserts a length of gigabytes or thousands of levels of nesting, or takes its end from `other`.
#[must_use]
pub fn mutate(rng: &mut SeededRng, good: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..rng.within(1..4) {
        bytes = step(rng, bytes, other);
    }
    bytes
}

fn step(rng: &mut SeededRng, mut bytes: Vec<u8>, other: &[u8]) -> Vec<u8> {
    let at = random_index(rng, bytes.len());
    match rng.within(0..9) {
        0 if !bytes.is_empty() => {
            let at = at.min(bytes.len() - 1);
            bytes[at] ^= 1 << rng.within(0..8);
        }
        1 if !bytes.is_empty() => {
            let at = at.min(bytes.len() - 1);
            bytes[at] = rng.next().to_le_bytes()[0];
        }
        2 => bytes.truncate(at),
        3 => {
            let end = (at + random_index(rng, 64)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            for _ in 0..rng.within(1..50) {
                bytes.splice(at..at, piece.iter().copied());
            }
        }
        4 => drop(bytes.drain(at..(at + random_index(rng, 16)).min(bytes.len()))),
        5 => put(&mut bytes, at, rng.pick::<&[u8]>(&HUGE)),
        6 => put(&mut bytes, at, rng.pick::<&[u8]>(&EDGES)),
        7 => {
            let levels = usize::try_from(rng.within(1..20_000)).unwrap_or(1);
            bytes.splice(at..at, rng.pick::<&[u8]>(&NESTS).repeat(levels));
        }
        _ => {
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random_index(rng, other.len())..]);
        }
    }
    bytes
}

/// Overwrites bytes, and extends beyond the end.
fn put(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let end = (at + piece.len()).min(bytes.len());
    bytes.splice(at..end, piece.iter().copied());
}

fn random_index(rng: &mut SeededRng, length: usize) -> usize {
    usize::try_from(rng.within(0..length as u64 + 1)).unwrap_or(0)
}

thread_local! {
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// The system's allocator, which counts per thread the bytes that it holds. A test that needs the count makes it its
/// global allocator.
#[derive(Debug)]
pub struct CountingAllocator;

impl CountingAllocator {
    /// Returns the peak of the bytes that this thread holds during `work`, above its start value.
    pub fn peak_of(work: impl FnOnce()) -> usize {
        let before = HELD.with(|held| {
            let (now, _) = held.get();
            held.set((now, now));
            now
        });
        work();
        let (_, most) = HELD.with(Cell::get);
        usize::try_from(most - before).unwrap_or(0)
    }
}

fn count(change: isize) {
    // While a thread ends, nothing can be counted, and nothing reads the count.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        held.set((now + change, most.max(now + change)));
    });
}

fn bytes_of(layout: Layout) -> isize {
    isize::try_from(layout.size()).unwrap_or(isize::MAX)
}

// SAFETY: every call is passed to the system's allocator unchanged; the counter is a cell of this thread, which needs
// no memory.
#[allow(unsafe_code, reason = "an allocator cannot be written without")]
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(bytes_of(layout));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-bytes_of(layout));
        unsafe { System.dealloc(memory, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    /// The counting allocator reports the peak, including memory that is freed before the end.
    #[test]
    fn allocator_peak_includes_freed_memory() {
        let peak = CountingAllocator::peak_of(|| {
            drop(vec![1_u8; 100_000]);
            drop(vec![1_u8; 50_000]);
        });
        assert!((100_000..101_000).contains(&peak), "{peak}");
    }

    /// Mutation gives equal bytes for an equal seed, changes most inputs, produces every kind and stays bounded.
    #[test]
    fn mutation_is_seeded_varied_and_bounded() {
        let good = b"\x82\xa1v\x01\xa4keys\x93\xa1a\xa1b\xa1c";
        let made = |seed| mutate(&mut SeededRng::new(seed), good, b"another");
        assert!((0..1_000).all(|seed| made(seed) == made(seed)));
        let changed = (0..1_000).filter(|seed| made(*seed) != good).count();
        assert!(changed > 900, "{changed}");
        assert!(made(0).len() < 1_000_000);
        // Every kind of mutation occurs.
        assert!((0..1_000).any(|seed| made(seed).len() > 10_000));
        assert!((0..1_000).any(|seed| made(seed).windows(4).any(|bytes| bytes == [0xff; 4])));
        assert!((0..1_000).any(|seed| made(seed).ends_with(b"other")));
    }
}
