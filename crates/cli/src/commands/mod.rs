//! The commands that talk to a fleet, each in two forms: for people and as JSON.

mod drain;
mod export;
mod gc;
mod list;
mod placement;
mod read;
mod server;
mod staged;
mod subject;
mod watch;
mod write;

use crate::args::Command;
use crate::error::Failure;
use crate::session::Session;

pub use gc::gc;

/// Carries out a command.
///
/// Cancelling the call leaves a change made or not.
///
/// # Errors
/// [`Failure`] with the exit code that the help promises.
pub async fn run(session: &Session, command: Command) -> Result<(), Failure> {
    let changes = command.changes();
    let outcome = carry_out(session, command).await;
    outcome.map_err(|failure| if changes { failure } else { failure.of_a_read() })
}

async fn carry_out(session: &Session, command: Command) -> Result<(), Failure> {
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
        Command::Rebalance(arguments) => placement::rebalance(session, arguments).await,
        Command::Dev(_) | Command::Gc(_) | Command::RunChild(_) => {
            Err(Failure::usage("this command needs no fleet"))
        }
    }
}

#[cfg(test)]
mod tests;
