//! The basis of the end-to-end tests: a whole fleet of real processes for one test, and a raw NATS client that can send
//! invalid messages.

mod copy_folder;
mod fleet;
pub mod greedy;
pub mod ledger;
mod proxies;
mod raw_nats;
mod security;
mod wait;

pub use copy_folder::copy_folder;
pub use dormouse_harness::SeededRng;
pub use fleet::{Builder, Fleet};
pub use proxies::{CLIENTS, FleetProxies, NATS_SERVERS};
pub use raw_nats::{RawMessage, RawNats};
pub use security::Security;
pub use wait::{TIMEOUT, until};
