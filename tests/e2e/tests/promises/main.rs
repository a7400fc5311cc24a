//! What Dormouse promises, each promise tried on real processes, a real nats-server and real files.

mod cli;
mod demo;
mod dev;
mod failover;
mod moving;
mod operations;
mod operator;
mod start_up;
mod support;
mod watching;
mod wire;
