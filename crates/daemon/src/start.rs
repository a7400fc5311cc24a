//! The start of a daemon, and its exit codes.

use std::fmt;
use std::future::Future;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use dormouse_bus::args::ignore_empty_variables;
use dormouse_runtime::logging::{self, LogFormat};
use tokio::runtime::Builder;

use crate::settings::SettingsErrors;
use crate::umask::restrict_new_files;

/// Why a daemon ends. The values are the exit codes in `--help`; each daemon uses some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// A signal ended it, and the shutdown is complete.
    Clean = 0,
    /// An unexpected failure.
    Failure = 1,
    /// The settings are invalid.
    Settings = 2,
    /// The bucket cannot be used.
    Bucket = 3,
    /// The data directory cannot be used.
    DataDir = 4,
    /// The coordinator refused the process.
    Refused = 5,
    /// A second signal ended it before the shutdown was complete.
    SecondSignal = 130,
}

impl From<ExitReason> for ExitCode {
    fn from(reason: ExitReason) -> Self {
        Self::from(reason as u8)
    }
}

/// The main function of a daemon: runs `program`, and writes the rest of its log.
pub fn run_program(program: impl FnOnce() -> ExitReason) -> ExitCode {
    let exit = program();
    logging::flush();
    exit.into()
}

/// Ends the process at once, but for the rest of its log.
pub fn end_process(reason: ExitReason) -> ! {
    logging::flush();
    std::process::exit(reason as i32)
}

/// The command line of a daemon. A variable without a value counts as unset. `--help`, and a line that is not
/// understood, end the process.
#[must_use]
pub fn read_args<A: CommandFactory + FromArgMatches>() -> A {
    let matches = ignore_empty_variables(A::command()).get_matches();
    A::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut A::command()).exit())
}

/// Tells the user of the command line that the settings of `program` are invalid.
#[must_use]
pub fn reject_settings(program: &str, fault: &dyn fmt::Display) -> ExitReason {
    // Logging may not be set up yet. If standard error cannot be written, the exit code remains.
    let _ = writeln!(io::stderr(), "{program}: {fault}");
    ExitReason::Settings
}

/// Takes the resolved settings of `program` and sets up its log with the format and the filter that `log` gives. From
/// here on, new files are closed to other users.
///
/// # Errors
/// [`ExitReason::Settings`] if a setting or the filter is invalid; the user of the command line is told why.
pub fn configure<S>(
    program: &str,
    settings: Result<S, SettingsErrors>,
    log: impl FnOnce(&S) -> (LogFormat, &str),
) -> Result<S, ExitReason> {
    let settings = settings.map_err(|faults| reject_settings(program, &faults))?;
    restrict_new_files();
    let (format, filter) = log(&settings);
    logging::init(format, filter)
        .map_err(|error| reject_settings(program, &format_args!("--log: {error}")))?;
    Ok(settings)
}

/// Runs `work` to its end. Other work that then still runs has until `abandon_after` to end.
///
/// # Errors
/// The error of the operating system if the async runtime cannot start.
pub fn run_to_end<T>(work: impl Future<Output = T>, abandon_after: Duration) -> io::Result<T> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(abandon_after);
    Ok(outcome)
}
