//! The whole fleet in one process, on a clock that stands still while a task can run. One or two coordinators, three
//! servers and four clients run production's own code. Their network, bucket and disks inject the faults that a seed
//! before_create.
//!
//! | module | contains |
//! |---|---|
//! | [`run`](mod@run) | one run from start to end, and its report |
//! | [`run_config`] | the random configuration of a run |
//! | [`world`] | the whole fleet with its network, bucket and clients |
//! | [`machine`], [`coordinator_host`] | the machine of a server and of a coordinator: process, clocks, disk |
//! | [`workload`], [`readers`], [`recorder`] | the calls and feeds of the clients; the recorded history |
//! | [`nemesis`] | the fault injection |
//! | [`network`], [`bucket`], [`disk`], [`clock`] | the environment of the machines, with faults |
//! | [`bucket_outage`] | records a server that does not reach the bucket for long |
//! | [`trace`], [`rng`] | the events of a run, line by line; random numbers |
//! | [`soak`] | many runs in parallel |

pub mod bucket;
pub mod bucket_outage;
pub mod clock;
pub mod coordinator_host;
pub mod disk;
pub mod greedy;
pub mod machine;
pub mod nemesis;
pub mod network;
pub mod readers;
pub mod recorder;
pub mod rng;
pub mod run;
pub mod run_config;
pub mod soak;
pub mod trace;
pub mod workload;
pub mod world;

pub use run::{Report, run};
pub use run_config::Profile;
