//! Options of a connection.

use dormouse_protocol::RoutePattern;

/// Permissions of a connection. An empty `allow` allows everything; `deny` overrides `allow`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Permission {
    /// The allowed patterns; empty: all.
    pub allow: Vec<RoutePattern>,
    /// The denied patterns.
    pub deny: Vec<RoutePattern>,
}

/// Options of a connection to a [`MemoryBroker`](super::MemoryBroker).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryOptions {
    /// The name for [`disconnect`](super::MemoryBroker::disconnect) and [`reconnect`](super::MemoryBroker::reconnect).
    pub name: String,
    /// The first token of its reply addresses.
    pub inbox_prefix: String,
    /// Publish permissions.
    pub publish: Permission,
    /// Subscribe permissions.
    pub subscribe: Permission,
}

impl MemoryOptions {
    /// A connection with all permissions.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            inbox_prefix: "_INBOX".to_owned(),
            publish: Permission::default(),
            subscribe: Permission::default(),
        }
    }
}
