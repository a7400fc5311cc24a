//! Files of bytes that any version ever wrote, in `tests/golden`.

use std::path::PathBuf;

/// Set to write what is missing or different, after a format has been changed on purpose.
const WRITE: &str = "DORMOUSE_WRITE_GOLDEN";

/// The bytes of a golden file. With [`WRITE`] set it is first made to hold `now`.
///
/// # Panics
/// When there is no such file.
pub fn golden(name: &str, now: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os(WRITE).is_some() && std::fs::read(&path).ok().as_deref() != Some(now) {
        std::fs::write(&path, now).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error} ({WRITE}=1 writes it)", path.display()))
}
