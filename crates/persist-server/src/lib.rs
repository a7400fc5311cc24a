//! A persistence server: serves subjects over a bus from the engine.
//!
//! | module | holds |
//! |---|---|
//! | [`server`] | the server as a whole: ordered start and ordered end |
//! | `shutdown` | the ends of a server: shutdown, takeover, drain |
//! | [`lease`] | the pure machine of the server's lease: when it is valid, and for how long |
//! | [`liveness`] | the pure machine that decides whether the data side advances, and when the process ends |
//! | [`progress`] | the signs of life of the data side, and the copy of its figures |
//! | [`pulse`] | the task that makes the data side show signs of life |
//! | [`membership`] | the task of the lease machine: joins, sends heartbeats, drains, leaves |
//! | [`handover`] | the pure machine of handovers: by order, by drain, at shutdown |
//! | `handover_task` | the task of the handover machine |
//! | [`authority`] | the engine's checks before it serves or claims |
//! | [`admission`] | which requests are served, by the shares of their tenants |
//! | [`requests`] | the path of a request from the bus to the engine, and of its reply back |
//! | [`events`] | the path of an event to the bus |
//! | `health` | health replies |
//! | `tenant_limits` | the limits of tenants that an operator has set |
//! | [`metrics`] | metrics: instruments, and the figures of each scrape |
//! | [`args`], [`settings`] | the operator's settings, raw and checked |
//!
//! A server has two sides, each with a thread and a connection. The *data side* carries requests, replies and events.
//! The *control side* keeps the membership and answers health and discovery. No request delays it. It reads only
//! [`progress`] of the data side.
//!
//! The server decides nothing about data: the engine and the bucket do. Of the coordinator it knows only the messages
//! on `<prefix>.fleet.>`.

pub mod admission;
pub mod args;
pub mod authority;
pub mod events;
pub mod handover;
mod handover_task;
mod health;
pub mod lease;
pub mod liveness;
pub mod membership;
pub mod metrics;
pub mod progress;
pub mod pulse;
pub mod requests;
pub mod server;
pub mod settings;
mod shutdown;
mod tenant_limits;
