//! The golden files in `tests/golden`: bytes as earlier versions wrote them. The tests of every crate that defines a
//! stored format include this file.

use std::path::PathBuf;

/// If this variable is set, missing and different golden files are written, after an intended change of a format.
pub const WRITE: &str = "DORMOUSE_WRITE_GOLDEN";

/// The path of a golden file of this crate.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The bytes of a golden file.
pub fn golden_file(name: &str) -> Vec<u8> {
    let path = path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error} ({WRITE}=1 writes it)", path.display()))
}

/// The golden files of all stored formats.
pub fn all_golden_files() -> Vec<Vec<u8>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders =
        ["crates/format/tests/golden", "crates/commit-log/tests/golden", "crates/subject-state/tests/golden"];
    let mut files: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}
