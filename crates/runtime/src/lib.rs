//! External inputs of Dormouse: time, randomness, tasks, the [local disk](disk) and, with the feature `logging`, the
//! logging of the binaries.
//!
//! Each input that would make two runs differ goes through [`Env`]. Each concurrent task goes through [`Tasks`]. A
//! [`RuntimeThread`] runs tasks apart from all others. A task that waits for a value waits on an [`Observable`]. A
//! [`Lock`] guards state that tasks share. A [`FairQueue`](fair_queue::FairQueue) serves its users in turn, and so does
//! the [`Pool`](pool::Pool) of threads for work on files. `clippy.toml` and `scripts/check-determinism` ban direct
//! access. So the same code runs in production and under simulation, in one process, with a simulated clock and a seeded
//! RNG.
//!
//! Only tests and the simulation have the feature `simulation`: a virtual clock, a seeded RNG, and processes. A process
//! groups the tasks of one server, one client or one coordinator. A test can pause and kill a process between any two
//! steps of its tasks.
//!
//! [`fail_points`] are named steps at which a test kills the real process. [`injected_bugs`] are bugs that a simulation
//! must find. Both compile to nothing without their features.

pub mod disk;
mod env;
pub mod fail_points;
pub mod fair_permits;
pub mod fair_queue;
pub mod injected_bugs;
mod lock;
#[cfg(feature = "logging")]
pub mod logging;
mod observable;
pub mod pool;
#[cfg(feature = "simulation")]
mod process;
#[cfg(not(feature = "simulation"))]
#[path = "no_process.rs"]
mod process;
#[cfg(feature = "simulation")]
mod simulation;
mod tasks;
mod thread;

pub use env::{Clock, Entropy, Env, SystemClock, SystemEntropy};
pub use lock::Lock;
pub use observable::Observable;
#[cfg(feature = "simulation")]
pub use process::Process;
#[cfg(feature = "simulation")]
pub use simulation::{SeededEntropy, VirtualClock};
pub use tasks::{Stop, Tasks, Unfinished};
pub use thread::RuntimeThread;
