//! The fakes that tests share, one of each kind.
//!
//! | module | feature | fakes |
//! |---|---|---|
//! | [`bucket`] | `bucket` | an unreliable bucket: lost requests and answers, late effects, outages, stale listings |
//! | [`disk`] | `disk` | an unreliable disk: full, short writes, failing syncs, power loss |
//!
//! Each fake gets its randomness from a seed, so the same seed gives the same faults. [`cases`] sets the number of cases
//! of a property test.

#[cfg(feature = "bucket")]
pub mod bucket;
mod cases;
#[cfg(feature = "disk")]
pub mod disk;

pub use cases::cases;
