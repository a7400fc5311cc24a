//! The pub/sub port of Dormouse: exactly the messaging functions that the fleet needs.
//!
//! The port is [`Bus`]: request with a deadline, publish, subscribe, and a round trip that proves the connection.
//! [`nats`] is the adapter for core NATS, and `memory`, with the feature of that name, is the adapter for tests and
//! simulation; one contract suite runs on both.
//! No other crate depends on an adapter, so another pub/sub system can replace NATS.
//!
//! On top of the port: [`ask`](ask()) sends a typed request, [`serve`](serve()) answers requests, [`services`]
//! implements the NATS services API, [`health`] answers requests for health and metrics. With the feature `args`, the module of that
//! name has the command-line arguments of the programs that connect.

#[cfg(feature = "args")]
pub mod args;
mod ask;
mod callers;
mod errors;
mod fixed_replies;
pub mod health;
mod inbox;
mod mailbox;
#[cfg(feature = "memory")]
pub mod memory;
mod messages;
pub mod nats;
mod port;
mod serve;
pub mod services;
mod subscription;
mod validate;

pub use ask::{AskError, ask, service_error};
pub use callers::{Caller, Callers};
pub use errors::{PublishError, RequestError, RoundTripError, SubscribeError};
pub use inbox::{InboxPrefix, InboxPrefixes, InvalidInboxPrefix};
pub use messages::{Delivery, Outgoing, Reply};
pub use port::{Bus, BusDrops, BusEvent};
pub use serve::{
    ANSWER_TIMES, EndpointBytes, EndpointSnapshot, EndpointStats, Incoming, Requests, Responder,
    ServeOptions, serve,
};
pub use subscription::{SubscribeOptions, Subscription};
