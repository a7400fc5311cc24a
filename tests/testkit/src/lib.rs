//! The fakes of all tests: each port of Dormouse has at most one here.
//!
//! | module | feature | content |
//! |---|---|---|
//! | [`bucket`] | `bucket` | an unreliable bucket: lost requests and answers, late effects, outages, stale listings |
//! | [`disk`] | `disk` | an unreliable disk: full, short writes, failing syncs, power loss |
//! | [`recorder`] | `recorder` | a bus that records requests, replies and events as a history for the checker |
//!
//! Each fake gets its randomness from a seed, so the same seed gives the same faults. [`cases`] sets the number of cases
//! of a property test. `dormouse-harness` has the real processes that tests start.

#[cfg(feature = "bucket")]
pub mod bucket;
mod cases;
#[cfg(feature = "disk")]
pub mod disk;
#[cfg(feature = "recorder")]
pub mod recorder;

pub use cases::cases;
