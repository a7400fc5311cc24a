//! What the end-to-end tests stand on: a whole fleet of real processes around one test, and a NATS client that can
//! say what a well-behaved one cannot.

mod fleet;
mod raw_nats;
mod wait;

pub use fleet::{Builder, Fleet};
pub use raw_nats::{RawMessage, RawNats};
pub use wait::{PATIENCE, until};
