//! The part of the assignments that one batch of requests touches, as it is after each of them.

use std::collections::HashMap;

use dormouse_protocol::{ServerName, Subject};

use super::{Change, Counts};
use crate::machine::AssignmentView;

/// Assignments read ahead for a batch, followed by the changes of the batch before they are written.
#[derive(Debug, Clone, Default)]
pub struct Window {
    assignments: HashMap<Subject, Option<ServerName>>,
    counts: Counts,
}

impl Window {
    /// A window over these assignments. A subject that is not among them counts as not assigned.
    #[must_use]
    pub fn new(assignments: HashMap<Subject, Option<ServerName>>, counts: Counts) -> Self {
        Self { assignments, counts }
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
