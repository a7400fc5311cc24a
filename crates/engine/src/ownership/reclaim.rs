//! Reclamation of an orphaned log, so that such logs do not remain.
//!
//! The order makes the deletes safe: the log is seen sealed first, and only then are the manifests of its subjects
//! read. From then on no manifest can come to need more of it.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use dormouse_protocol::{ErrorReply, LogId, Slot, Subject};

use super::claim::ReclaimOutcome;
use super::garbage;

/// A subject with entries in the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SubjectInLog {
    /// The subject.
    pub subject: Subject,
    /// The slots that hold entries of it.
    pub slots: Vec<Slot>,
}

/// Input of a [`LogReclaim`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ReclaimInput {
    /// The log's highest slot is a seal, or, in answer to [`ReclaimEffect::CheckSeal`], it is not.
    Sealed(bool),
    /// The answer to [`ReclaimEffect::Next`]; `None`: there are no more.
    Next(Option<SubjectInLog>),
    /// The answer to [`ReclaimEffect::Rebase`].
    Rebased(ReclaimOutcome),
    /// The answer to [`ReclaimEffect::Rebase`] when its claim gave up: the subject's entries stay, and the others
    /// continue.
    Skipped,
    /// The answer to [`ReclaimEffect::List`].
    Listed(Vec<Slot>),
    /// The answer to [`ReclaimEffect::Delete`]; objects that were not deleted stay for the next reclamation.
    Deleted,
    /// The last effect failed.
    Failed(ErrorReply),
}

/// The next effect of a [`LogReclaim`], or its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ReclaimEffect {
    /// Seal the log, which may be sealed already.
    Seal,
    /// Check whether the log is sealed, without changes.
    CheckSeal,
    /// Find the first subject after this one, by name, with entries in the sealed log.
    Next {
        /// The last subject found.
        after: Option<Subject>,
    },
    /// Drive [`Claim::reclaim`](super::claim::Claim::reclaim) for this subject to its end.
    Rebase(Subject),
    /// List the log's slots.
    List,
    /// Delete these objects.
    Delete(Deletions),
    /// The end of the reclamation.
    Done(ReclaimReport),
    /// The end: it cannot continue. Completed work remains, and the next reclamation continues from there.
    GiveUp(ErrorReply),
}

/// The objects of a log that may be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Deletions {
    /// These slots.
    pub slots: Vec<Slot>,
    /// The index too: no entry is needed any more.
    pub index: bool,
}

/// Result of a [`LogReclaim`], or in a dry run its expected result.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ReclaimReport {
    /// The log is sealed. Otherwise, nothing is known of it.
    pub sealed: bool,
    /// Subjects that needed entries of the log.
    pub needed: u64,
    /// Subjects that could not be rebased this time.
    pub skipped: u64,
    /// The deleted objects.
    pub deletions: Deletions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ReclaimState {
    Sealing,
    NextSubject,
    Rebasing,
    Listing,
    Deleting,
    Done,
}

/// Reclaims a log: see the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogReclaim {
    dry_run: bool,
    state: ReclaimState,
    /// The current subject.
    current: Option<SubjectInLog>,
    /// Slots with entries of subjects that could not be rebased.
    kept: BTreeSet<Slot>,
    report: ReclaimReport,
}

impl LogReclaim {
    /// Starts to reclaim `log`, which must not be this process's own log: a process never seals its own log. Returns
    /// the first effect too. With `dry_run`, nothing is changed or sealed.
    #[must_use]
    pub fn new(log: &LogId, my_log: &LogId, dry_run: bool) -> (Self, ReclaimEffect) {
        let mut reclaim = Self {
            dry_run,
            state: ReclaimState::Sealing,
            current: None,
            kept: BTreeSet::new(),
            report: ReclaimReport::default(),
        };
        let effect = match (log == my_log, dry_run) {
            (true, _) => reclaim
                .end(ReclaimEffect::GiveUp(ErrorReply::internal("a process cannot reclaim its own log"))),
            (false, true) => ReclaimEffect::CheckSeal,
            (false, false) => ReclaimEffect::Seal,
        };
        (reclaim, effect)
    }

    /// Applies the answer to the outstanding effect and returns the next effect.
    pub fn apply(&mut self, input: ReclaimInput) -> ReclaimEffect {
        match (self.state, input) {
            (_, ReclaimInput::Failed(reply)) => self.end(ReclaimEffect::GiveUp(reply)),
            (ReclaimState::Sealing, ReclaimInput::Sealed(true)) => {
                self.report.sealed = true;
                self.next()
            }
            (ReclaimState::Sealing, ReclaimInput::Sealed(false)) => self.done(),
            (ReclaimState::NextSubject, ReclaimInput::Next(Some(subject_in_log))) => {
                let subject = subject_in_log.subject.clone();
                self.current = Some(subject_in_log);
                self.state = ReclaimState::Rebasing;
                ReclaimEffect::Rebase(subject)
            }
            (ReclaimState::NextSubject, ReclaimInput::Next(None)) => {
                self.state = ReclaimState::Listing;
                ReclaimEffect::List
            }
            (ReclaimState::Rebasing, ReclaimInput::Rebased(outcome)) => {
                self.report.needed += u64::from(outcome != ReclaimOutcome::NotNeeded);
                // `Needed` is returned only in a dry run. Otherwise the subject is rebased by now.
                self.next()
            }
            (ReclaimState::Rebasing, ReclaimInput::Skipped) => {
                self.report.skipped += 1;
                self.kept.extend(
                    self.current.iter().flat_map(|subject_in_log| subject_in_log.slots.iter().copied()),
                );
                self.next()
            }
            (ReclaimState::Listing, ReclaimInput::Listed(listed)) => self.listed(&listed),
            (ReclaimState::Deleting, ReclaimInput::Deleted) => self.done(),
            (state, input) => {
                debug_assert!(false, "unexpected input {input:?} in state {state:?}");
                self.end(ReclaimEffect::GiveUp(ErrorReply::internal(
                    "unexpected input to the reclaim machine",
                )))
            }
        }
    }

    fn next(&mut self) -> ReclaimEffect {
        self.state = ReclaimState::NextSubject;
        ReclaimEffect::Next {
            after: self.current.as_ref().map(|subject_in_log| subject_in_log.subject.clone()),
        }
    }

    fn listed(&mut self, listed: &[Slot]) -> ReclaimEffect {
        let slots = garbage::slots(listed, |slot| self.kept.contains(&slot));
        self.report.deletions = Deletions { slots, index: self.report.skipped == 0 };
        if self.dry_run {
            return self.done();
        }
        self.state = ReclaimState::Deleting;
        ReclaimEffect::Delete(self.report.deletions.clone())
    }

    fn done(&mut self) -> ReclaimEffect {
        let report = std::mem::take(&mut self.report);
        self.end(ReclaimEffect::Done(report))
    }

    fn end(&mut self, effect: ReclaimEffect) -> ReclaimEffect {
        self.state = ReclaimState::Done;
        effect
    }
}
