//! The injected bugs of servers and clients in one type.

use dormouse_client::mutations as client;
use dormouse_storage::mutations as server;

use crate::run_config::Profile;

/// An injected bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// In every server.
    Server(server::InjectedBug),
    /// In every client.
    Client(client::InjectedBug),
}

impl Bug {
    /// Returns every bug.
    pub fn all() -> impl Iterator<Item = Self> {
        let servers = server::InjectedBug::ALL.into_iter().map(Self::Server);
        servers.chain(client::InjectedBug::ALL.into_iter().map(Self::Client))
    }

    /// Returns the name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server(mutation) => mutation.as_str(),
            Self::Client(mutation) => mutation.as_str(),
        }
    }

    /// Returns the profile that shows the bug, if only one does.
    #[must_use]
    pub const fn profile(self) -> Option<Profile> {
        match self {
            Self::Server(server::InjectedBug::DedupLostOnDestroy) => Some(Profile::Destroys),
            Self::Server(server::InjectedBug::NoListAfterSeal) => Some(Profile::Overtaken),
            Self::Server(_) | Self::Client(_) => None,
        }
    }

    /// Activates this bug and no other on this thread; `None`: no bug.
    pub fn inject_on_this_thread(bug: Option<Self>) {
        let (in_servers, in_clients) = match bug {
            None => (None, None),
            Some(Self::Server(mutation)) => (Some(mutation), None),
            Some(Self::Client(mutation)) => (None, Some(mutation)),
        };
        server::inject_on_this_thread(in_servers);
        client::inject_on_this_thread(in_clients);
    }
}
