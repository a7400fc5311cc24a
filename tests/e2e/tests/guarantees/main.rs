//! The guarantees of Dormouse, tested on real processes, a real nats-server and real files.

mod cli;
mod demo;
mod dev;
mod examples;
mod expiry;
mod failover;
mod hostile;
mod interop;
mod load;
mod metrics;
mod moving;
mod operations;
mod operator;
mod outages;
mod permissions;
mod stalls;
mod start_up;
mod support;
mod tenants;
mod values;
mod watching;
mod wire;
