//! How many subjects each server has, kept by adding and subtracting.

use std::collections::BTreeMap;

use dormouse_protocol::ServerName;

use super::Change;

/// Number of assigned subjects by server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts(BTreeMap<ServerName, u64>);

impl Counts {
    /// Number of subjects assigned to `server`.
    #[must_use]
    pub fn of(&self, server: &ServerName) -> u64 {
        self.0.get(server).copied().unwrap_or(0)
    }

    /// Number of subjects assigned to anybody.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Takes a number as it was stored.
    pub fn set(&mut self, server: ServerName, subjects: u64) {
        self.0.insert(server, subjects);
    }

    /// Follows one change.
    pub fn note(&mut self, change: &Change) {
        match change {
            Change::Assign { previous, server, .. } => {
                if let Some(previous) = previous {
                    self.one_less(previous);
                }
                *self.0.entry(server.clone()).or_default() += 1;
            }
            Change::Unassign { previous, .. } => self.one_less(previous),
            Change::Member(_) | Change::Waits(_) => {}
        }
    }

    // Saturating: a count is for people to look at, and a store that lost its last moments may be off.
    fn one_less(&mut self, server: &ServerName) {
        let count = self.0.entry(server.clone()).or_default();
        *count = count.saturating_sub(1);
    }
}
