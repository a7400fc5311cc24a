//! What the end-to-end tests stand on: a whole fleet of real processes around one test, and a NATS client that can
//! say what a well-behaved one cannot.

mod fleet;
pub mod ledger;
mod raw_nats;
mod recorder;
mod security;
mod wait;
mod wiring;

pub use dormouse_harness::Dice;
pub use fleet::{Builder, Fleet};
pub use raw_nats::{RawMessage, RawNats};
pub use recorder::{RecordedBus, Recorder};
pub use security::Security;
pub use wait::{PATIENCE, until};
pub use wiring::{CLIENTS, NATS_SERVERS, Wiring};
