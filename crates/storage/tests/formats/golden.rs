//! Files of bytes that any version ever wrote, in `tests/golden`.

use std::path::PathBuf;

/// Set to write what is missing or different, after a format has been changed on purpose.
pub const WRITE: &str = "DORMOUSE_WRITE_GOLDEN";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The bytes of a golden file.
pub fn golden_file(name: &str) -> Vec<u8> {
    let path = path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error} ({WRITE}=1 writes it)", path.display()))
}

/// The same. With [`WRITE`] set the file is first made to hold `now`.
pub fn golden(name: &str, now: &[u8]) -> Vec<u8> {
    let path = path(name);
    if std::env::var_os(WRITE).is_some() && std::fs::read(&path).ok().as_deref() != Some(now) {
        std::fs::write(&path, now).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    golden_file(name)
}
