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
//!
//! The library queues 128 of its events and drops what comes while the queue is full. A burst of more refusals than
//! that loses some of them: the requests in question wait out their deadline, and no [`BusEvent`](crate::BusEvent)
//! tells. A lost connection that was not told of is found within about two seconds, by asking the library.

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
