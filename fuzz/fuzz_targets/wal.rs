//! Decodes parts of write-ahead logs.
#![no_main]

#[path = "../../crates/commit-log/tests/fuzzing/mod.rs"]
#[allow(dead_code, reason = "each target runs one of the checks")]
mod fuzzing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::wal(bytes));
