//! The assignments that one batch of requests needs, kept up to date within the batch.

use std::collections::HashMap;

use dormouse_protocol::{ServerName, Subject};

use super::counts::AssignmentCounts;
use super::state::StoreChange;

/// The assignments, as the machine reads them.
pub trait AssignmentView {
    /// The server that `subject` is assigned to.
    fn assignment(&self, subject: &Subject) -> Option<ServerName>;

    /// How many subjects are assigned to `server`.
    fn assigned_subjects(&self, server: &ServerName) -> u64;
}

/// Assignments read ahead for a batch, updated with the changes of the batch before they are written; and the counts, which
/// are kept across batches.
#[derive(Debug, Clone, Default)]
pub struct AssignmentWindow {
    assignments: HashMap<Subject, Option<ServerName>>,
    counts: AssignmentCounts,
}

impl AssignmentWindow {
    /// A window without assignments, on a store with these counts.
    #[must_use]
    pub fn new(counts: AssignmentCounts) -> Self {
        Self { assignments: HashMap::new(), counts }
    }

    /// Replaces the assignments. A subject that is not among them counts as not assigned.
    pub fn set_assignments(&mut self, assignments: HashMap<Subject, Option<ServerName>>) {
        self.assignments = assignments;
    }

    /// Number of assigned subjects.
    #[must_use]
    pub fn assigned(&self) -> u64 {
        self.counts.total()
    }

    /// Applies one change.
    pub fn note(&mut self, change: &StoreChange) {
        self.counts.note(change);
        match change {
            StoreChange::Assign { subject, server, .. } => {
                self.assignments.insert(subject.clone(), Some(server.clone()));
            }
            StoreChange::Unassign { subject, .. } => {
                self.assignments.insert(subject.clone(), None);
            }
            StoreChange::Member(_) | StoreChange::TenantLimits { .. } | StoreChange::StartupGrace(_) => {}
        }
    }
}

impl AssignmentView for AssignmentWindow {
    fn assignment(&self, subject: &Subject) -> Option<ServerName> {
        self.assignments.get(subject).cloned().flatten()
    }

    fn assigned_subjects(&self, server: &ServerName) -> u64 {
        self.counts.of(server)
    }
}
