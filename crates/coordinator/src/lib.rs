//! The coordinator of a Dormouse fleet: it knows which server serves which subject.
//!
//! It may be wrong about anything and no data is lost, for the bucket decides who owns what. So it is one process that
//! remembers its decisions, and nothing more.
//!
//! | module | holds | never knows |
//! |---|---|---|
//! | [`machine`] | every decision: membership, leases, assignment; inputs and a time in, effects out | I/O, clocks, the number of subjects |
//! | [`placement`], [`rebalance`], [`lease`] | the arithmetic behind them | who asks |
//! | [`store`] | what is remembered, behind a port: sled files, or memory for simulation | why |
//! | [`shell`] | the task that asks the machine, commits, then answers; one coordinator at a time; lists | policy |
//! | [`data_dir`], [`args`], [`settings`] | what the program is told | the rest |

pub mod args;
pub mod data_dir;
pub mod lease;
pub mod machine;
pub mod placement;
pub mod rebalance;
pub mod settings;
pub mod shell;
pub mod store;

pub use shell::{Coordinator, CoordinatorOptions, RunError, StartError};
