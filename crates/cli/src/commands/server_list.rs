//! The coordinator's list of servers, for all commands that name a server.

use dormouse_protocol::ServerName;
use dormouse_protocol::fleet::{ServerEntry, ServerState};

use crate::error::{Failure, FailureKind};
use crate::session::Session;

/// The server of this name, as the coordinator sees it.
pub(super) async fn find_server(session: &Session, name: &ServerName) -> Result<ServerEntry, Failure> {
    let servers = session.client().servers().await?.servers;
    let names = servers.iter().map(|server| server.name.to_string()).collect::<Vec<_>>().join(", ");
    servers.into_iter().find(|server| server.name == *name).ok_or_else(|| {
        let others = if names.is_empty() { "no server at all".to_owned() } else { format!("only {names}") };
        Failure::of(FailureKind::NotFound, format!("the coordinator knows no server {name}, {others}"))
    })
}

/// The name of a state.
pub(super) const fn state_name(state: ServerState) -> &'static str {
    match state {
        ServerState::Alive => "alive",
        ServerState::Draining => "draining",
        ServerState::Drained => "drained",
        ServerState::Dead => "dead",
    }
}
