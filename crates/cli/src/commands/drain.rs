//! `server drain` and `server undrain`.

use dormouse_protocol::ServerName;
use dormouse_protocol::fleet::{ServerEntry, ServerState};

use super::placement::POLL_PAUSE;
use super::server_list::{find_server, state_name};
use crate::args::Drain;
use crate::error::{Failure, FailureKind};
use crate::progress::Progress;
use crate::session::Session;

/// `server drain`.
pub(super) async fn drain(session: &Session, arguments: Drain) -> Result<(), Failure> {
    let name = arguments.name;
    find_server(session, &name).await?;
    let ordered = session.client().drain(&name).await?.server;
    if arguments.no_wait || has_ended(&ordered) {
        return show(session, &ordered);
    }
    session.output.info_line(&format!("{name} is draining; Ctrl-C ends the wait, not the drain"));
    let ended = tokio::select! {
        biased;
        ended = until_ended(session, &ordered) => ended?,
        _ = tokio::signal::ctrl_c() => {
            session.output.info_line(&format!(
                "{name} is still draining: `server ls` shows the progress, `server undrain {name}` cancels the drain"
            ));
            return Ok(());
        }
    };
    show(session, &ended)?;
    match ended.state {
        ServerState::Draining | ServerState::Drained => Ok(()),
        ServerState::Alive => {
            Err(Failure::of(FailureKind::Conflict, format!("the drain of {name} was cancelled")))
        }
        ServerState::Dead => Err(Failure::new(format!(
            "{name} died during the drain: other servers take over its subjects, and its next process is drained"
        ))),
    }
}

/// `server undrain`.
pub(super) async fn undrain(session: &Session, name: &ServerName) -> Result<(), Failure> {
    find_server(session, name).await?;
    let server = session.client().undrain(name).await?.server;
    show(session, &server)
}

/// Waits until the server is not draining: drained, undrained or dead.
async fn until_ended(session: &Session, ordered: &ServerEntry) -> Result<ServerEntry, Failure> {
    let mut total = left(ordered);
    let progress = Progress::new(&session.output, total);
    let mut no_target = false;
    loop {
        let servers = session.client().servers().await?.servers;
        let others = servers.iter().any(|server| server.state == ServerState::Alive);
        if !others && !no_target {
            session
                .output
                .info_line("no other server takes subjects: the server keeps its subjects until one does");
        }
        no_target = !others;
        let Some(server) = servers.into_iter().find(|server| server.name == ordered.name) else {
            return Err(Failure::new(format!("the coordinator does not know {} any more", ordered.name)));
        };
        if has_ended(&server) {
            return Ok(server);
        }
        total = total.max(left(&server));
        let label =
            format!("handed over; {} assigned, {} open", server.assigned_subjects, server.load.open_subjects);
        progress.show(total - left(&server), total, label);
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

fn has_ended(server: &ServerEntry) -> bool {
    server.state != ServerState::Draining
}

/// Number of subjects still to hand over: dormant subjects only count as assigned, and an open subject may have no
/// recorded assignment.
fn left(server: &ServerEntry) -> u64 {
    server.assigned_subjects.max(server.load.open_subjects)
}

fn show(session: &Session, server: &ServerEntry) -> Result<(), Failure> {
    if session.output.is_json() {
        return session.output.json(server);
    }
    let state = state_name(server.state);
    match left(server) {
        // Recorded assignments of a drained server have no effect.
        left if left == 0 || server.state == ServerState::Drained => {
            session.output.line(format_args!("{} is {state}", server.name))
        }
        left => session.output.line(format_args!("{} is {state}, with {left} subjects", server.name)),
    }
}
