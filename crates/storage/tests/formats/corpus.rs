//! Everything that fuzzing ever kept, and every golden file, goes through the same checks as in the fuzz targets.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fuzzing::CHECKS;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_corpus_holds() {
    for (target, check) in CHECKS {
        let folder = root().join("fuzz/corpus").join(target);
        let mut seeds: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        seeds.sort();
        assert!(!seeds.is_empty(), "{target} has no corpus");
        for seed in seeds {
            // Shown when it fails.
            println!("{}", seed.display());
            check(&fs::read(&seed).unwrap());
        }
    }
}

#[test]
fn every_decoder_has_a_target_and_holds_on_golden_files() {
    for (target, check) in CHECKS {
        let program = root().join("fuzz/fuzz_targets").join(format!("{target}.rs"));
        let text =
            fs::read_to_string(&program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        assert!(text.contains(&format!("fuzzing::{target}")), "{target} checks something else");
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not in fuzz/Cargo.toml");
        for file in fs::read_dir(root().join("crates/storage/tests/golden")).unwrap() {
            check(&fs::read(file.unwrap().path()).unwrap());
        }
    }
}
