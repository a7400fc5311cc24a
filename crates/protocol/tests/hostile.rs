//! Bytes that nobody means well with: the corpus of the fuzz targets, and every frozen vector changed in thousands of ways. No
//! decoder panics, and none takes memory out of proportion.

mod fuzzing;

use std::path::{Path, PathBuf};

use dormouse_harness::{CountingAllocator, Dice, mutate};
use dormouse_protocol::{Op, data::SetItem};

use fuzzing::{CHECKS, Check};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// How often each vector is changed.
const CHANGES: u64 = 100;

/// What reading may hold at once besides what the bytes themselves call for: a list that promises billions gets room for a few
/// at first, in each of several types, and its refusal has words.
const SLACK_BYTES: usize = 4 * 1024 * 1024;

/// The most that one byte may cost: an empty map in a list is a set with every field at its default.
const PER_BYTE: usize = 2 * size_of::<SetItem>();

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = root().join("fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// The decoders for which the messages in a file of vectors are meant; for a file that is new here, all.
fn meant_for(file: &str) -> Vec<Check> {
    let targets: &[&str] = match file {
        "set" | "read" | "remove" | "subject" | "transfer" => &["requests", "replies"],
        "events" => &["events", "replies"],
        "coordinator" => &["fleet", "events"],
        "fleet" => &["fleet"],
        "admin" => &["admin", "fleet"],
        "errors" => &["errors"],
        _ => return CHECKS.iter().map(|(_, check)| *check).collect(),
    };
    let named = |target: &&str| CHECKS.iter().find(|(name, _)| name == target).expect("a check").1;
    targets.iter().map(named).collect()
}

/// A right message, and who reads it.
struct Seed {
    bytes: Vec<u8>,
    checks: Vec<Check>,
}

/// The bytes of every frozen vector, and what else the corpus has that is no vector.
fn seeds() -> Vec<Seed> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join("crates/protocol/vectors"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut seeds = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let checks = meant_for(&file.file_stem().unwrap().to_string_lossy());
        for vector in serde_json::from_str::<Vec<serde_json::Value>>(&text).unwrap() {
            let bytes = hex::decode(vector["hex"].as_str().unwrap()).unwrap();
            seeds.push(Seed { bytes, checks: checks.clone() });
        }
    }
    for (target, check) in CHECKS.iter().filter(|(target, _)| ["routes", "health"].contains(target)) {
        seeds.extend(corpus(target).into_iter().map(|bytes| Seed { bytes, checks: vec![*check] }));
    }
    assert!(seeds.len() > 60, "the vectors were not found");
    seeds
}

/// A decoder reads these bytes, and the memory it takes stays in proportion to them.
fn holds(check: Check, bytes: &[u8]) {
    let peak = CountingAllocator::peak_of(|| check(bytes));
    let most = SLACK_BYTES + PER_BYTE * bytes.len();
    assert!(peak <= most, "{peak} bytes were held for {}", bytes.len());
}

#[test]
fn the_corpus_holds_and_every_kind_of_message_has_a_target() {
    let manifest = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    for (target, check) in CHECKS {
        let program = root().join("fuzz/fuzz_targets").join(format!("{target}.rs"));
        let text = std::fs::read_to_string(&program).unwrap_or_else(|error| panic!("{target}: {error}"));
        assert!(text.contains(&format!("fuzzing::{target}(")), "{target} checks something else");
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not in fuzz/Cargo.toml");
        let seeds = corpus(target);
        assert!(!seeds.is_empty(), "{target} has no corpus");
        seeds.iter().for_each(|seed| check(seed));
    }
    let checks = include_str!("fuzzing/mod.rs");
    for op in Op::ALL {
        let name =
            op.as_str().split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect::<String>();
        let (request, reply) = match op {
            // The set of a value that was brought before.
            Op::UploadCommit => ("Set", "Set"),
            Op::UploadBegin | Op::UploadChunk | Op::UploadFinish | Op::UploadCancel => (&*name, "Upload"),
            _ => (&*name, &*name),
        };
        for kind in [format!("{request}Request"), format!("{reply}Reply")] {
            assert!(checks.contains(&kind), "{op}: {kind}");
        }
    }
}

#[test]
fn no_change_of_a_vector_makes_a_decoder_panic_or_take_memory_out_of_proportion() {
    let seeds = seeds();
    for (number, seed) in seeds.iter().enumerate() {
        let mut dice = Dice::new(number as u64);
        for change in 0..CHANGES {
            let other = dice.pick(&seeds);
            let bytes = mutate(&mut dice, &seed.bytes, &other.bytes);
            // Those for whom it is meant, and somebody who should not have got it at all.
            let (_, stranger) = dice.pick(CHECKS);
            for check in seed.checks.iter().chain([stranger]) {
                let reading = std::panic::AssertUnwindSafe(|| holds(*check, &bytes));
                if let Err(panic) = std::panic::catch_unwind(reading) {
                    let shown = hex::encode(&bytes[..bytes.len().min(4_096)]);
                    eprintln!("message {number}, change {change}: {shown}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

/// Declared lengths in each place where a list, map, text or bytes can stand.
#[test]
fn lengths_that_promise_gigabytes_cost_nothing_wherever_they_stand() {
    for seed in seeds() {
        for at in 0..seed.bytes.len() {
            // Lists and maps everywhere; of text, bytes and extensions one here and one there.
            for head in [0xdd, 0xdf, [0xc6, 0xdb, 0xc9][at % 3]] {
                let mut bytes = seed.bytes[..at].to_vec();
                bytes.extend([head, 0xff, 0xff, 0xff, 0xf0]);
                bytes.extend_from_slice(&seed.bytes[at..]);
                seed.checks.iter().for_each(|check| holds(*check, &bytes));
            }
        }
    }
}
