//! The commands on a fleet, each with text and JSON output.

mod drain;
mod export;
mod gc;
mod list;
mod placement;
mod read;
mod server;
mod server_list;
mod staged;
mod subject;
mod tenant;
mod watch;
mod write;

use crate::args::Command;
use crate::error::Failure;
use crate::session::Session;

pub use gc::gc;

/// Runs a command.
///
/// If the call is cancelled, a change may have happened or not.
///
/// # Errors
/// [`Failure`] with the exit code that the help lists.
pub async fn run(session: &Session, command: Command) -> Result<(), Failure> {
    let changes = command.changes();
    let outcome = run_command(session, command).await;
    outcome.map_err(|failure| if changes { failure } else { failure.without_change() })
}

async fn run_command(session: &Session, command: Command) -> Result<(), Failure> {
    match command {
        Command::Set(arguments) => write::set(session, arguments).await,
        Command::Rm(arguments) => write::rm(session, arguments).await,
        Command::Get(arguments) => read::get(session, arguments).await,
        Command::Ls(arguments) => read::ls(session, arguments).await,
        Command::Keys(arguments) => read::keys(session, arguments).await,
        Command::Info(arguments) => subject::info(session, &arguments.subject).await,
        Command::Watch(arguments) => watch::watch(session, arguments).await,
        Command::Server(command) => server::run(session, command).await,
        Command::Subject(command) => subject::run(session, command).await,
        Command::Tenant(command) => tenant::run(session, command).await,
        Command::Rebalance(arguments) => placement::rebalance(session, arguments).await,
        Command::Dev(_) | Command::Gc(_) | Command::RunChild(_) => {
            Err(Failure::usage("this command needs no fleet"))
        }
    }
}

#[cfg(test)]
mod tests;
