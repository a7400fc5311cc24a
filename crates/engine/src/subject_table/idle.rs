//! The order in which open subjects are asked to close.
//!
//! A request only records when its subject was used. The order learns of it when it comes to this subject, and moves it
//! back then. A recorded use is never later than the last one, so a first subject that was not used since has been idle
//! longest.

use std::collections::BTreeSet;
use std::time::Duration;

use dormouse_protocol::Subject;

/// Subjects by their last use as far as it is known. Ties are in the order of the names, so the order does not depend on
/// a map.
#[derive(Debug, Default)]
pub(super) struct IdleOrder(BTreeSet<(Duration, Subject)>);

impl IdleOrder {
    /// The subject with the earliest recorded use.
    pub(super) fn longest(&self) -> Option<&Subject> {
        self.0.first().map(|(_, subject)| subject)
    }

    pub(super) fn insert(&mut self, since: Duration, subject: &Subject) {
        self.0.insert((since, subject.clone()));
    }

    /// Removes a subject that was inserted with this time.
    pub(super) fn remove(&mut self, since: Option<Duration>, subject: &Subject) {
        if let Some(since) = since {
            self.0.remove(&(since, subject.clone()));
        }
    }
}
