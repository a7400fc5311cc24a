//! `dormouse`: the command line tool for operators and developers.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | the command line and its help |
//! | [`context`] | contexts of the `nats` command line tool |
//! | [`session`] | the connection to a fleet |
//! | [`commands`] | the commands on a fleet |
//! | [`dev`] | a whole local fleet in one command |
//! | [`view`], [`output`], [`progress`] | results as tables or JSON, and progress bars |
//! | [`error`] | failures and their exit codes |

mod args;
mod commands;
mod context;
mod dev;
mod error;
mod output;
mod progress;
mod session;
mod view;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::builder::{FalseyValueParser, TypedValueParser};
use clap::error::ErrorKind as ClapErrorKind;
use dormouse_runtime::logging::{self, LogFormat};

use crate::args::{Cli, Command};
use crate::error::{Failure, FailureKind};
use crate::output::Output;
use crate::session::Session;

fn main() -> ExitCode {
    dormouse_bus::nats::install_tls_provider();
    let line: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::read(&line) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, wants_json(&line)),
    };
    let json = cli.global.json;
    let failure = match run(cli) {
        Ok(()) => {
            logging::flush();
            return ExitCode::SUCCESS;
        }
        Err(failure) => failure,
    };
    // The error follows the log lines about its cause.
    logging::flush();
    output::report(&failure, json);
    ExitCode::from(failure.kind().exit_code())
}

fn run(cli: Cli) -> Result<(), Failure> {
    if let Command::RunChild(arguments) = &cli.command {
        return Err(dev::child::run_child(arguments));
    }
    // The user sees warnings of libraries. The variable enables more.
    let filter = std::env::var("DORMOUSE_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = filter.as_deref().unwrap_or("warn");
    // With `--json`, standard error is also for programs.
    let format = if cli.global.json { LogFormat::Json } else { LogFormat::Text };
    logging::init(format, filter).map_err(|error| Failure::usage(format!("DORMOUSE_LOG: {error}")))?;
    // One thread: this is faster for a client, and `dev` needs it (see `dev::child`).
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start: {error}")))?;
    let output = Output::standard(cli.global.json);
    let outcome = runtime.block_on(run_command(cli, output.clone()));
    // A read from a terminal cannot be interrupted. The exit does not wait for it.
    runtime.shutdown_background();
    outcome.and(output.flush())
}

async fn run_command(cli: Cli, output: Output) -> Result<(), Failure> {
    match cli.command {
        Command::Dev(arguments) => dev::run(arguments, cli.global.prefix, output).await,
        Command::Gc(arguments) => commands::gc(&output, &arguments).await,
        command => {
            let session = Session::connect(cli.global, output).await?;
            commands::run(&session, command).await
        }
    }
}

/// Whether errors are printed as JSON, if the command line is invalid.
fn wants_json(line: &[OsString]) -> bool {
    line.iter().any(|word| word == "--json")
        || std::env::var_os("DORMOUSE_JSON").is_some_and(|value| is_truthy(&value))
}

/// The boolean value of a variable, as clap reads it.
fn is_truthy(value: &OsStr) -> bool {
    FalseyValueParser::new().parse_ref(&clap::Command::new("dormouse"), None, value).unwrap_or(true)
}

fn refuse(error: &clap::Error, json: bool) -> ExitCode {
    let is_help = matches!(error.kind(), ClapErrorKind::DisplayHelp | ClapErrorKind::DisplayVersion);
    if json && !is_help {
        output::report(&Failure::usage(usage_text(error)), true);
    } else {
        // A closed standard error cannot be reported.
        let _ = error.print();
    }
    if is_help { ExitCode::SUCCESS } else { ExitCode::from(FailureKind::Usage.exit_code()) }
}

/// The error in one line: the text of clap before the usage.
fn usage_text(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A usage error is reported in one line.
    #[test]
    fn usage_error_fits_one_line() {
        let error = Cli::read(["dormouse", "subject", "destroy", "app.s"]).unwrap_err();
        assert_eq!(usage_text(&error), "the following required arguments were not provided: --yes");
        let error = Cli::read(["dormouse", "get", "app.*", "--key", "k"]).unwrap_err();
        assert!(usage_text(&error).contains("must not contain '*'"), "{}", usage_text(&error));
    }

    /// Errors are JSON if `--json` stands anywhere in the command line or the variable means yes.
    #[test]
    fn error_output_is_json_with_flag_in_any_position() {
        let line = |words: &str| words.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(wants_json(&line("dormouse get --json")));
        assert!(!wants_json(&line("dormouse get")));
        for (value, json) in
            [("1", true), ("on", true), ("", false), ("0", false), ("off", false), ("no", false)]
        {
            assert_eq!(is_truthy(OsStr::new(value)), json, "{value}");
        }
    }
}
