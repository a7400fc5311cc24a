//! `dormouse dev`: a whole local fleet in one command, for developers.
//!
//! | module | holds |
//! |---|---|
//! | [`plan`] | the validated settings of the fleet |
//! | [`fleet`] | the pure machine that starts and stops processes in order |
//! | [`supervisor`] | carries out the effects of the machine |
//! | [`child`] | one child process, which never outlives this process |
//! | [`programs`] | lookup of the programs |
//! | [`files`] | the data directory, its lock, the fleet file |
//! | [`banner`] | the message when the fleet is ready |

mod banner;
pub mod child;
pub mod files;
mod fleet;
mod plan;
mod programs;
mod supervisor;

use dormouse_protocol::Prefix;

use self::plan::DevPlan;
use crate::args::Dev;
use crate::error::Failure;
use crate::output::Output;

/// Runs a local fleet until the user stops it.
///
/// If the call is cancelled, every process of the fleet is killed.
///
/// # Errors
/// [`Failure`] if the fleet cannot be started or does not become ready, or if a process had to be killed at the end.
pub async fn run(arguments: Dev, prefix: Prefix, output: Output) -> Result<(), Failure> {
    supervisor::run(DevPlan::new(&arguments, prefix)?, output).await
}
