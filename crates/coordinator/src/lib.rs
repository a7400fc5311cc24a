//! The coordinator of a Dormouse fleet.

pub mod lease;
pub mod machine;
pub mod placement;
pub mod store;
