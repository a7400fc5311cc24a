//! The deliberate bugs of servers and clients, under one roof.

use dormouse_client::mutations as client;
use dormouse_storage::mutations as server;

use crate::setting::Profile;

/// A deliberate bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// In every server.
    Server(server::Mutation),
    /// In every client.
    Client(client::Mutation),
}

impl Bug {
    /// Every bug.
    pub fn all() -> impl Iterator<Item = Self> {
        let servers = server::Mutation::ALL.into_iter().map(Self::Server);
        servers.chain(client::Mutation::ALL.into_iter().map(Self::Client))
    }

    /// Its name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server(mutation) => mutation.as_str(),
            Self::Client(mutation) => mutation.as_str(),
        }
    }

    /// The profile in which it shows, where it is not any.
    #[must_use]
    pub const fn profile(self) -> Option<Profile> {
        match self {
            Self::Server(server::Mutation::DestroyForgets) => Some(Profile::Destroys),
            Self::Server(server::Mutation::NoListAfterSeal) => Some(Profile::Overtaken),
            Self::Server(_) | Self::Client(_) => None,
        }
    }

    /// From now on this thread has this bug and no other; `None`: none.
    pub fn break_on_this_thread(bug: Option<Self>) {
        let (in_servers, in_clients) = match bug {
            None => (None, None),
            Some(Self::Server(mutation)) => (Some(mutation), None),
            Some(Self::Client(mutation)) => (None, Some(mutation)),
        };
        server::break_on_this_thread(in_servers);
        client::break_on_this_thread(in_clients);
    }
}
