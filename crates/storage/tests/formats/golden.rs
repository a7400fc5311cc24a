//! The golden files in `tests/golden`: bytes as earlier versions wrote them.

use std::path::PathBuf;

/// If this variable is set, missing and different golden files are written, after an intended change of a format.
pub const WRITE: &str = "DORMOUSE_WRITE_GOLDEN";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The bytes of a golden file.
pub fn golden_file(name: &str) -> Vec<u8> {
    let path = path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error} ({WRITE}=1 writes it)", path.display()))
}

/// The bytes of a golden file. If [`WRITE`] is set, `now` is first written to the file.
pub fn golden(name: &str, now: &[u8]) -> Vec<u8> {
    let path = path(name);
    if std::env::var_os(WRITE).is_some() && std::fs::read(&path).ok().as_deref() != Some(now) {
        std::fs::write(&path, now).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    golden_file(name)
}
