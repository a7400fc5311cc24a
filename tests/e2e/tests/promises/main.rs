//! What Dormouse promises, each promise tried on real processes, a real nats-server and real files.

mod cli;
mod demo;
mod dev;
mod expiry;
mod failover;
mod load;
mod moving;
mod operations;
mod operator;
mod outages;
mod start_up;
mod support;
mod watching;
mod wire;
