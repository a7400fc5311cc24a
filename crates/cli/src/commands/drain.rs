//! `server drain` and `server undrain`.

use dormouse_protocol::ServerName;
use dormouse_protocol::fleet::{ServerEntry, ServerState};

use super::placement::ASK_AGAIN;
use super::server::{known, state_name};
use crate::args::Drain;
use crate::error::{ErrorKind, Failure};
use crate::progress::Progress;
use crate::session::Session;

/// `server drain`.
pub(super) async fn drain(session: &Session, arguments: Drain) -> Result<(), Failure> {
    let name = arguments.name;
    known(session, &name).await?;
    let ordered = session.client().drain(&name).await?.server;
    if arguments.no_wait || is_over(&ordered) {
        return show(session, &ordered);
    }
    session.output.note(&format!("{name} is being emptied; Ctrl-C ends this waiting, not the drain"));
    let ended = tokio::select! {
        biased;
        ended = until_over(session, &ordered) => ended?,
        _ = tokio::signal::ctrl_c() => {
            session.output.note(&format!(
                "{name} is still being emptied: `server ls` shows how far it has come, `server undrain {name}` takes it back"
            ));
            return Ok(());
        }
    };
    show(session, &ended)?;
    match ended.state {
        ServerState::Draining | ServerState::Drained => Ok(()),
        ServerState::Alive => {
            Err(Failure::of(ErrorKind::Conflict, format!("somebody has taken the drain of {name} back")))
        }
        ServerState::Dead => Err(Failure::new(format!(
            "{name} died before it was empty: others take over what it had, and its next process is emptied"
        ))),
    }
}

/// `server undrain`.
pub(super) async fn undrain(session: &Session, name: &ServerName) -> Result<(), Failure> {
    known(session, name).await?;
    let server = session.client().undrain(name).await?.server;
    show(session, &server)
}

/// Waits until the server is not being emptied any more, one way or another.
async fn until_over(session: &Session, ordered: &ServerEntry) -> Result<ServerEntry, Failure> {
    let mut total = left(ordered);
    let progress = Progress::new(&session.output, total);
    let mut alone = false;
    loop {
        let servers = session.client().servers().await?.servers;
        let others = servers.iter().any(|server| server.state == ServerState::Alive);
        if !others && !alone {
            session.output.note("no other server takes subjects: it keeps what it has until one does");
        }
        alone = !others;
        let Some(server) = servers.into_iter().find(|server| server.name == ordered.name) else {
            return Err(Failure::new(format!("the coordinator knows {} no more", ordered.name)));
        };
        if is_over(&server) {
            return Ok(server);
        }
        total = total.max(left(&server));
        let what =
            format!("handed over; {} assigned, {} open", server.assigned_subjects, server.load.open_subjects);
        progress.show(total - left(&server), total, what);
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn is_over(server: &ServerEntry) -> bool {
    server.state != ServerState::Draining
}

/// How many subjects it still has to hand over. What is assigned and asleep needs no word of it, and what is open may not
/// be recorded.
fn left(server: &ServerEntry) -> u64 {
    server.assigned_subjects.max(server.load.open_subjects)
}

fn show(session: &Session, server: &ServerEntry) -> Result<(), Failure> {
    if session.output.is_json() {
        return session.output.json(server);
    }
    let state = state_name(server.state);
    match left(server) {
        // What is recorded of an emptied server counts for nothing.
        left if left == 0 || server.state == ServerState::Drained => {
            session.output.line(format_args!("{} is {state}", server.name))
        }
        left => session.output.line(format_args!("{} is {state}, with {left} subjects", server.name)),
    }
}
