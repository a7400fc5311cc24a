//! What the parts of Dormouse take from outside: time, chance, tasks and, with the feature `logging`, the logging
//! of the binaries.
//!
//! Everything that would make two runs differ goes through [`Env`], and everything that runs beside its caller
//! through [`Tasks`]; who waits for a value waits on a [`Watched`] one. `clippy.toml` and `scripts/check-chance` ban the
//! direct ways. So the same code runs in production and, with a simulated clock and a seeded generator, in one process
//! under simulation. There, a [`Process`] is what the tasks of one server, one client or one coordinator have in common:
//! it can be stopped and killed between any two of their steps.

mod env;
#[cfg(feature = "logging")]
pub mod logging;
mod process;
mod tasks;
mod watched;

pub use env::{Clock, Entropy, Env, SeededEntropy, SystemClock, SystemEntropy, VirtualClock};
pub use process::Process;
pub use tasks::{Stop, Tasks, Unfinished};
pub use watched::Watched;
