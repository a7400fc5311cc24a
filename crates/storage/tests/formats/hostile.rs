//! Every golden file and every seed of the fuzz targets, changed in hundreds of ways: no decoder panics, and none takes memory
//! out of proportion.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use dormouse_harness::{CountingAllocator, Dice, mutate};

use crate::fuzzing::CHECKS;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// How often each file is changed for each decoder that could meet it.
const CHANGES: u64 = 120;

/// What a check may hold at once besides what the bytes call for: it reads them twice, and writes what it read.
const SLACK_BYTES: usize = 4 * 1024 * 1024;

/// The most that one byte may cost: checks hold what they read several times over.
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

#[test]
fn no_change_of_a_file_makes_a_decoder_panic_or_take_memory_out_of_proportion() {
    let golden = files("crates/storage/tests/golden");
    let golden: Vec<Vec<u8>> = golden.iter().map(|file| fs::read(file).unwrap()).collect();
    for (target, check) in CHECKS {
        for (number, seed) in files(&format!("fuzz/corpus/{target}")).iter().enumerate() {
            let good = fs::read(seed).unwrap();
            let mut dice = Dice::new(number as u64);
            for change in 0..CHANGES {
                let other = dice.pick(&golden).clone();
                let bytes = mutate(&mut dice, &good, &other);
                let most = SLACK_BYTES + PER_BYTE * bytes.len();
                let reading = AssertUnwindSafe(|| {
                    let peak = CountingAllocator::peak_of(|| check(&bytes));
                    assert!(peak <= most, "{peak} bytes were held for {}", bytes.len());
                });
                if let Err(panic) = catch_unwind(reading) {
                    eprintln!("{target}: {}, change {change}", seed.display());
                    resume_unwind(panic);
                }
            }
        }
    }
}
