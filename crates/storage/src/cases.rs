//! How many cases a property test tries.

use proptest::test_runner::Config;

/// `usual` cases, or as many as the environment's `PROPTEST_CASES` says: a number in the source would hide it.
pub(crate) fn cases(usual: u32) -> Config {
    if std::env::var_os("PROPTEST_CASES").is_some() { Config::default() } else { Config::with_cases(usual) }
}
