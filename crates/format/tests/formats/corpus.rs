//! Runs the checks of the fuzz targets on the fuzz corpus and on every golden file.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fuzzing::CHECKS;
use crate::golden::all_golden_files;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every decoder check passes on all seeds of its fuzz corpus.
#[test]
fn decoder_checks_pass_on_fuzz_corpus() {
    for (target, check) in CHECKS {
        let folder = root().join("fuzz/corpus").join(target);
        let mut seeds: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        seeds.sort();
        assert!(!seeds.is_empty(), "{target} has no corpus");
        for seed in seeds {
            // The harness shows it if the check fails.
            println!("{}", seed.display());
            check(&fs::read(&seed).unwrap());
        }
    }
}

/// Every decoder check has a fuzz target and passes on all golden files.
#[test]
fn decoder_checks_have_fuzz_targets_and_pass_on_golden() {
    let golden = all_golden_files();
    for (target, check) in CHECKS {
        let program = root().join("fuzz/fuzz_targets").join(format!("{target}.rs"));
        let text =
            fs::read_to_string(&program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        assert!(
            text.contains(&format!("fuzzing::{target}")),
            "the fuzz target {target} does not run its check"
        );
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not in fuzz/Cargo.toml");
        for bytes in &golden {
            check(bytes);
        }
    }
}
