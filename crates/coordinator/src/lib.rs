//! The coordinator of a Dormouse fleet: it records which server serves which subject.
//!
//! A wrong coordinator loses no data, because the manifests in the bucket decide ownership. So the coordinator is one
//! process that stores its decisions.
//!
//! | module | holds | never knows |
//! |---|---|---|
//! | [`machine`] | every decision: membership, leases, assignment; inputs and a time in, effects out | I/O, clocks, the number of subjects |
//! | [`placement`], [`rebalance`], [`lease`] | the arithmetic behind the decisions | the requester |
//! | [`locate_queue`] | the look-ups that wait, per tenant: room, refusals, turns | the replies |
//! | [`store`] | the stored state, behind a port: sled files, or memory for simulation | the reasons |
//! | [`shell`] | the task that calls the machine, commits, then replies; one coordinator at a time; lists | policy |
//! | [`metrics`] | metrics: instruments, and the figures of each scrape | decisions |
//! | [`data_dir`], [`args`], [`settings`] | the configuration of the program | the rest |

pub mod args;
pub mod data_dir;
pub mod lease;
pub mod locate_queue;
pub mod machine;
pub mod metrics;
pub mod placement;
pub mod rebalance;
pub mod settings;
pub mod shell;
pub mod store;

pub use shell::{Coordinator, CoordinatorOptions, RunError, StartError};
