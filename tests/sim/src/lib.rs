//! The whole fleet in one process, on a clock that stands still while anybody works: one or two coordinators, three
//! servers and four clients of production's own code, over a network, a bucket and disks that lie as a seed says.
//!
//! | module | holds |
//! |---|---|
//! | [`run`](mod@run) | one run from beginning to end, and what is to be said of it |
//! | [`setting`] | what is drawn for a whole run |
//! | [`world`] | everything put together |
//! | [`machine`], [`office`] | a server's machine, a coordinator's: process, clocks, disk |
//! | [`workload`], [`readers`], [`recorder`] | what clients do; the history that is written of it |
//! | [`nemesis`] | what is done to them |
//! | [`network`], [`bucket`], [`disk`], [`clock`] | what lies between them and below |
//! | [`outage`] | when a server does not reach the bucket for long |
//! | [`trace`], [`dice`] | what happened, line by line; chance |
//! | [`soak`] | many runs at once |

pub mod bucket;
pub mod bug;
pub mod clock;
pub mod dice;
pub mod disk;
pub mod machine;
pub mod nemesis;
pub mod network;
pub mod office;
pub mod outage;
pub mod readers;
pub mod recorder;
pub mod run;
pub mod setting;
pub mod soak;
pub mod trace;
pub mod workload;
pub mod world;

pub use bug::Bug;
pub use run::{Report, run};
pub use setting::Profile;
