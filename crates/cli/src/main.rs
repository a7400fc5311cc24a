//! `dormouse`: the operator's and developer's tool.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | the command line and its help |
//! | [`context`] | contexts of the `nats` command line tool |
//! | [`session`] | the connection to a fleet |
//! | [`commands`] | what is done on a fleet |
//! | [`dev`] | a whole local fleet in one command |
//! | [`view`], [`output`], [`progress`] | results: tables for people, JSON for programs; a bar for those who wait |
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
use dormouse_runtime::logging::LogFormat;

use crate::args::{Cli, Command};
use crate::error::{ErrorKind, Failure};
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
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    output::report(&failure, json);
    ExitCode::from(failure.kind().exit_code())
}

fn run(cli: Cli) -> Result<(), Failure> {
    if let Command::RunChild(arguments) = &cli.command {
        return Err(dev::child::run_child(arguments));
    }
    // A warning of a library is for the user; more is asked for by the usual variable.
    let filter = std::env::var("DORMOUSE_LOG").unwrap_or_else(|_| "warn".to_owned());
    // Who asks for JSON reads standard error with a program too.
    let format = if cli.global.json { LogFormat::Json } else { LogFormat::Text };
    dormouse_runtime::logging::init(format, &filter)
        .map_err(|error| Failure::usage(format!("DORMOUSE_LOG: {error}")))?;
    // One thread: it is the faster way for a client, and `dev` relies on it (see `dev::child`).
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start: {error}")))?;
    let output = Output::standard(cli.global.json);
    let outcome = runtime.block_on(carry_out(cli, output.clone()));
    // A read from a terminal cannot be interrupted; the process's end does not wait for it.
    runtime.shutdown_background();
    outcome.and(output.flush())
}

async fn carry_out(cli: Cli, output: Output) -> Result<(), Failure> {
    match cli.command {
        Command::Dev(arguments) => dev::run(arguments, cli.global.prefix, output).await,
        Command::Gc(arguments) => commands::gc(&output, &arguments).await,
        command => {
            let session = Session::connect(cli.global, output).await?;
            commands::run(&session, command).await
        }
    }
}

/// Whether errors are to be JSON, asked when the command line could not be understood.
fn wants_json(line: &[OsString]) -> bool {
    line.iter().any(|word| word == "--json")
        || std::env::var_os("DORMOUSE_JSON").is_some_and(|value| means_yes(&value))
}

/// What a variable says that stands for a flag, as clap reads it.
fn means_yes(value: &OsStr) -> bool {
    FalseyValueParser::new().parse_ref(&clap::Command::new("dormouse"), None, value).unwrap_or(true)
}

fn refuse(error: &clap::Error, json: bool) -> ExitCode {
    let asked_for = matches!(error.kind(), ClapErrorKind::DisplayHelp | ClapErrorKind::DisplayVersion);
    if json && !asked_for {
        output::report(&Failure::usage(usage_text(error)), true);
    } else {
        // Nobody reads it: nothing to be done.
        let _ = error.print();
    }
    if asked_for { ExitCode::SUCCESS } else { ExitCode::from(ErrorKind::Usage.exit_code()) }
}

/// What is wrong, in one line: what clap says before it explains the usage.
fn usage_text(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_command_line_fits_a_line() {
        let error = Cli::read(["dormouse", "subject", "destroy", "app.s"]).unwrap_err();
        assert_eq!(usage_text(&error), "the following required arguments were not provided: --yes");
        let error = Cli::read(["dormouse", "get", "app.*", "--key", "k"]).unwrap_err();
        assert!(usage_text(&error).contains("must not contain '*'"), "{}", usage_text(&error));
    }

    #[test]
    fn errors_are_json_when_the_line_asks_for_it_anywhere() {
        let line = |words: &str| words.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(wants_json(&line("dormouse get --json")));
        assert!(!wants_json(&line("dormouse get")));
        for (value, json) in
            [("1", true), ("on", true), ("", false), ("0", false), ("off", false), ("no", false)]
        {
            assert_eq!(means_yes(OsStr::new(value)), json, "{value}");
        }
    }
}
