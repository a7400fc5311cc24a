//! Number of cases of a property test.

use proptest::test_runner::Config;

/// `usual` cases, or the number in the environment variable `PROPTEST_CASES`, which an explicit number would override.
#[must_use]
pub fn cases(usual: u32) -> Config {
    if std::env::var_os("PROPTEST_CASES").is_some() { Config::default() } else { Config::with_cases(usual) }
}
