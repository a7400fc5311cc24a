//! The part of the assignments that one batch of requests touches, as it is after each of them.

use std::collections::HashMap;

use dormouse_protocol::{ServerName, Subject};

use super::{Change, Counts};
use crate::machine::AssignmentView;

/// Assignments read ahead for a batch, followed by the changes of the batch before they are written; and the counts,
/// followed from batch to batch.
#[derive(Debug, Clone, Default)]
pub struct Window {
    assignments: HashMap<Subject, Option<ServerName>>,
    counts: Counts,
}

impl Window {
    /// A window that shows no assignment yet, on a store with these counts.
    #[must_use]
    pub fn new(counts: Counts) -> Self {
        Self { assignments: HashMap::new(), counts }
    }

    /// Shows these assignments instead of those before. A subject that is not among them counts as not assigned.
    pub fn show(&mut self, assignments: HashMap<Subject, Option<ServerName>>) {
        self.assignments = assignments;
    }

    /// Number of subjects assigned to anybody.
    #[must_use]
    pub fn assigned(&self) -> u64 {
        self.counts.total()
    }

    /// Follows one change.
    pub fn note(&mut self, change: &Change) {
        self.counts.note(change);
        match change {
            Change::Assign { subject, server, .. } => {
                self.assignments.insert(subject.clone(), Some(server.clone()));
            }
            Change::Unassign { subject, .. } => {
                self.assignments.insert(subject.clone(), None);
            }
            Change::Member(_) | Change::Waits(_) => {}
        }
    }
}

impl AssignmentView for Window {
    fn assignment(&self, subject: &Subject) -> Option<ServerName> {
        self.assignments.get(subject).cloned().flatten()
    }

    fn assigned_subjects(&self, server: &ServerName) -> u64 {
        self.counts.of(server)
    }
}
