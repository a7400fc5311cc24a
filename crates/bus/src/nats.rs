//! The adapter for core NATS.
//!
//! ```text
//! request ──> table of outstanding requests ──> publish, with reply address <inbox>.<id>.<token>
//!                         ^                                     │
//!                         └── one task <── ONE subscription <───┘        late replies find no entry and are dropped
//! ```
//!
//! NATS reports a denied operation in a message that names the route. This fails the outstanding requests to that route
//! at once. A subscription is active when a message of this connection to itself, sent after it, has arrived: the
//! server processes a connection in order.
//!
//! The library queues 128 of its events and drops further ones while the queue is full. So a burst of more denials
//! loses some of them: their requests wait until their deadline, without a [`BusEvent`](crate::BusEvent). A task polls
//! the state of the library, and detects a lost connection without an event within about two seconds.

mod bus;
mod connect;
mod convert;
mod credentials;
mod link;
mod options;
mod outstanding;

pub use self::bus::NatsBus;
pub use self::options::{
    Authentication, ClientCertificate, InvalidNatsUrl, NatsConnectError, NatsOptions, NatsUrl, Secret, Tls,
    install_tls_provider,
};
