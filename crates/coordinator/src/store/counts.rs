//! The number of assigned subjects per server, kept up to date with each change.

use std::collections::BTreeMap;

use dormouse_protocol::ServerName;

use super::state::StoreChange;

/// Number of assigned subjects by server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AssignmentCounts(BTreeMap<ServerName, u64>);

impl AssignmentCounts {
    /// Number of subjects assigned to `server`.
    #[must_use]
    pub fn of(&self, server: &ServerName) -> u64 {
        self.0.get(server).copied().unwrap_or(0)
    }

    /// Number of assigned subjects.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Sets the stored number of a server.
    pub fn set(&mut self, server: ServerName, subjects: u64) {
        self.0.insert(server, subjects);
    }

    /// Applies one change.
    pub fn note(&mut self, change: &StoreChange) {
        match change {
            StoreChange::Assign { previous, server, .. } => {
                if let Some(previous) = previous {
                    self.decrement(previous);
                }
                *self.0.entry(server.clone()).or_default() += 1;
            }
            StoreChange::Unassign { previous, .. } => self.decrement(previous),
            StoreChange::Member(_) | StoreChange::TenantLimits { .. } | StoreChange::StartupGrace(_) => {}
        }
    }

    // Saturating: counts are informational, and they may be wrong in a store that lost its last writes.
    fn decrement(&mut self, server: &ServerName) {
        let count = self.0.entry(server.clone()).or_default();
        *count = count.saturating_sub(1);
    }
}
