//! Mutates every seed of the fuzz targets hundreds of times, also with golden files: no decoder panics or exceeds its
//! memory bound.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use dormouse_harness::{CountingAllocator, SeededRng, mutate};

use crate::fuzzing::CHECKS;
use crate::golden::all_golden_files;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The number of mutations of each seed.
const CHANGES: u64 = 120;

/// Memory that a check may use in addition to [`PER_BYTE`]: it decodes the bytes twice and encodes the result.
const SLACK_BYTES: usize = 4 * 1024 * 1024;

/// Memory that a check may use per byte of input: checks hold several copies of the decoded content.
const PER_BYTE: usize = 256;

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// No mutated seed makes a decoder panic or use more memory than its bound.
#[test]
fn decoder_on_mutated_files_never_panics_or_overallocates() {
    let golden = all_golden_files();
    for (target, check) in CHECKS {
        for (number, seed) in files(&format!("fuzz/corpus/{target}")).iter().enumerate() {
            let good = fs::read(seed).unwrap();
            let mut rng = SeededRng::new(number as u64);
            for change in 0..CHANGES {
                let other = rng.pick(&golden).clone();
                let bytes = mutate(&mut rng, &good, &other);
                let most = SLACK_BYTES + PER_BYTE * bytes.len();
                let reading = AssertUnwindSafe(|| {
                    let peak = CountingAllocator::peak_of(|| check(&bytes));
                    assert!(peak <= most, "{peak} bytes allocated for {} bytes of input", bytes.len());
                });
                if let Err(panic) = catch_unwind(reading) {
                    eprintln!("{target}: {}, change {change}", seed.display());
                    resume_unwind(panic);
                }
            }
        }
    }
}
