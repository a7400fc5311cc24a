//! A persistence server: serves subjects over a bus from the storage engine.
//!
//! | module | holds |
//! |---|---|
//! | [`server`] | the whole, put together: up in order, down in order |
//! | [`lease`] | the pure machine of the server's lease: when to trust it, for how long |
//! | `departure` | its ends: shut down, taken over, emptied |
//! | [`moving`] | the pure machine of handing subjects over: by order, all of them, at the end |
//! | `mover` | the machine's shell |
//! | [`membership`] | the machine's shell: joins, sends heartbeats, drains, leaves |
//! | [`authority`] | what the engine asks before it serves or claims |
//! | [`requests`] | the way of a request from the bus to the engine, and of its answer back |
//! | [`events`] | the way of an event to the bus |
//! | [`args`], [`settings`] | what the operator said, raw and checked |
//!
//! It decides nothing about data: the engine does, and the bucket behind it. It knows nothing of the coordinator's
//! insides, only what is said on `<prefix>.fleet.>`.

pub mod args;
pub mod authority;
mod departure;
pub mod events;
mod health;
pub mod lease;
pub mod membership;
mod mover;
pub mod moving;
pub mod requests;
pub mod server;
pub mod settings;
