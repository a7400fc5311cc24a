//! Hostile input: the corpus of the fuzz targets, and mutations of every frozen vector. No decoder panics, and memory use is
//! in proportion to the input.

mod fuzzing;

use std::path::{Path, PathBuf};

use dormouse_harness::{CountingAllocator, SeededRng, mutate};
use dormouse_protocol::{Op, data::SetItem};

use fuzzing::{CHECKS, Check};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The number of mutations per vector.
const MUTATIONS: u64 = 100;

/// Memory that a decoder may hold besides the memory in proportion to the input: a list with a huge declared length gets
/// space for a few items at first, in each of several types, and the error has a text.
const SLACK_BYTES: usize = 4 * 1024 * 1024;

/// The maximum memory per byte of input: an empty map in a list is a set with every field at its default.
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

/// The decoders of the messages in a file of vectors; all decoders if the file is not listed here.
fn checks_for_file(file: &str) -> Vec<Check> {
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

/// A valid message, and the checks of its decoders.
struct Seed {
    bytes: Vec<u8>,
    checks: Vec<Check>,
}

/// The bytes of every frozen vector, and the corpus of the targets without vectors.
fn seeds() -> Vec<Seed> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join("crates/protocol/vectors"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut seeds = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let checks = checks_for_file(&file.file_stem().unwrap().to_string_lossy());
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

/// Asserts that the memory use of a decoder is in proportion to its input.
fn assert_memory_bounded(check: Check, bytes: &[u8]) {
    let peak = CountingAllocator::peak_of(|| check(bytes));
    let most = SLACK_BYTES + PER_BYTE * bytes.len();
    assert!(peak <= most, "{peak} bytes were held for {}", bytes.len());
}

/// The fuzz corpus passes its checks, and each kind of message has a fuzz target.
#[test]
fn fuzz_corpus_passes_and_targets_cover_all_messages() {
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
            // A set of an uploaded value.
            Op::UploadCommit => ("Set", "Set"),
            Op::UploadBegin | Op::UploadChunk | Op::UploadFinish | Op::UploadCancel => (&*name, "Upload"),
            _ => (&*name, &*name),
        };
        for kind in [format!("{request}Request"), format!("{reply}Reply")] {
            assert!(checks.contains(&kind), "{op}: {kind}");
        }
    }
}

/// No decoder panics or exceeds its memory bound on mutated vectors.
#[test]
fn decoders_survive_mutated_vectors_in_bounded_memory() {
    let seeds = seeds();
    for (number, seed) in seeds.iter().enumerate() {
        let mut rng = SeededRng::new(number as u64);
        for mutation in 0..MUTATIONS {
            let other = rng.pick(&seeds);
            let bytes = mutate(&mut rng, &seed.bytes, &other.bytes);
            // The checks of its decoders, and one check of another kind of message.
            let (_, unrelated) = rng.pick(CHECKS);
            for check in seed.checks.iter().chain([unrelated]) {
                let decode = std::panic::AssertUnwindSafe(|| assert_memory_bounded(*check, &bytes));
                if let Err(panic) = std::panic::catch_unwind(decode) {
                    let shown = hex::encode(&bytes[..bytes.len().min(4_096)]);
                    eprintln!("message {number}, mutation {mutation}: {shown}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

/// Declared lengths in each place where a list, map, text or bytes can stand.
#[test]
fn decoders_bound_memory_for_huge_declared_lengths() {
    for seed in seeds() {
        for at in 0..seed.bytes.len() {
            // Lists and maps at each position; text, bytes and extensions in turn.
            for head in [0xdd, 0xdf, [0xc6, 0xdb, 0xc9][at % 3]] {
                let mut bytes = seed.bytes[..at].to_vec();
                bytes.extend([head, 0xff, 0xff, 0xff, 0xf0]);
                bytes.extend_from_slice(&seed.bytes[at..]);
                seed.checks.iter().for_each(|check| assert_memory_bounded(*check, &bytes));
            }
        }
    }
}
