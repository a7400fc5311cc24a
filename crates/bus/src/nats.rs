//! The adapter for core NATS.
//!
//! ```text
//! request ──> table of outstanding requests ──> publish, with reply address <inbox>.<id>.<token>
//!                         ^                                     │
//!                         └── one task <── ONE subscription <───┘        late answers find no entry and are dropped
//! ```
//!
//! NATS reports what it forbids in messages of its own that name the route: they fail the outstanding requests to that
//! route at once. A subscription is known to be in force when a message from us to ourselves, sent after it, has come
//! back: the server works through a connection in order.

mod bus;
mod connect;
mod convert;
mod credentials;
mod link;
mod options;
mod outstanding;

pub use self::bus::NatsBus;
pub use self::options::{
    Authentication, ClientCertificate, ConnectError, InvalidNatsUrl, NatsOptions, NatsUrl, Secret, Tls,
    install_tls_provider,
};
