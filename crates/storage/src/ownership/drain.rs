//! Emptying the log of a process that is gone, so that dead logs do not stay.
//!
//! The order is what makes the deletions safe: the log is seen sealed first, and only then does anybody look at the
//! manifests of the subjects that it holds. From then on no manifest can come to need more of it.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use dormouse_protocol::{ErrorReply, LogId, Slot, Subject};

use super::claim::Drained;
use super::garbage;

/// A subject with entries in the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holding {
    /// The subject.
    pub subject: Subject,
    /// The slots that hold entries of it.
    pub slots: Vec<Slot>,
}

/// What a [`Drain`] is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DrainInput {
    /// The log's highest slot is a seal, or, as an answer to [`DrainEffect::LookForSeal`], it is not.
    Sealed(bool),
    /// The answer to [`DrainEffect::Next`]; `None`: there are no more.
    Next(Option<Holding>),
    /// The answer to [`DrainEffect::Settle`].
    Settled(Drained),
    /// The answer to [`DrainEffect::Settle`] when its claim gave up: the subject's entries stay, the others go on.
    Left,
    /// The answer to [`DrainEffect::List`].
    Listed(Vec<Slot>),
    /// The answer to [`DrainEffect::Delete`]; what could not be deleted stays for the next time.
    Deleted,
    /// What was asked failed.
    Failed(ErrorReply),
}

/// What a [`Drain`] wants next, or how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DrainEffect {
    /// Seal the log, which may be sealed already.
    Seal,
    /// See whether the log is sealed, and change nothing.
    LookForSeal,
    /// Name the first subject after this one, by name, that the sealed log holds entries of.
    Next {
        /// The last one named.
        after: Option<Subject>,
    },
    /// Drive [`Claim::drain`](super::claim::Claim::drain) for this subject to its end.
    Settle(Subject),
    /// List the log's slots.
    List,
    /// Delete this.
    Delete(Deletions),
    /// The end.
    Done(DrainReport),
    /// The end: it could not go on. What is done stays done; the next time goes on from there.
    GiveUp(ErrorReply),
}

/// What of a log may be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Deletions {
    /// These slots.
    pub slots: Vec<Slot>,
    /// The index too: nobody needs an entry any more.
    pub index: bool,
}

/// What a [`Drain`] came to, or, when nothing was to be changed, would have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct DrainReport {
    /// The log is sealed. Without that, nothing is known of it.
    pub sealed: bool,
    /// Subjects that needed entries of the log.
    pub needed: u64,
    /// Subjects that could not be settled this time.
    pub left: u64,
    /// What was deleted.
    pub deletions: Deletions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Sealing,
    Naming,
    Settling,
    Listing,
    Deleting,
    Done,
}

/// Drains a log: see the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Drain {
    dry_run: bool,
    state: State,
    /// The subject that was named last.
    current: Option<Holding>,
    /// Slots that hold entries of subjects that could not be settled.
    kept: BTreeSet<Slot>,
    report: DrainReport,
}

impl Drain {
    /// Begins to drain `log`, which must not be the log of the process that does it: that one is never sealed by its
    /// owner. The first effect comes with it. With `dry_run`, nothing is changed, not even sealed.
    #[must_use]
    pub fn new(log: &LogId, my_log: &LogId, dry_run: bool) -> (Self, DrainEffect) {
        let mut drain = Self {
            dry_run,
            state: State::Sealing,
            current: None,
            kept: BTreeSet::new(),
            report: DrainReport::default(),
        };
        let effect = match (log == my_log, dry_run) {
            (true, _) => {
                drain.end(DrainEffect::GiveUp(ErrorReply::internal("a process drained its own log")))
            }
            (false, true) => DrainEffect::LookForSeal,
            (false, false) => DrainEffect::Seal,
        };
        (drain, effect)
    }

    /// Takes the answer to the outstanding effect and says what to do next.
    pub fn apply(&mut self, input: DrainInput) -> DrainEffect {
        match (self.state, input) {
            (_, DrainInput::Failed(reply)) => self.end(DrainEffect::GiveUp(reply)),
            (State::Sealing, DrainInput::Sealed(true)) => {
                self.report.sealed = true;
                self.next()
            }
            (State::Sealing, DrainInput::Sealed(false)) => self.done(),
            (State::Naming, DrainInput::Next(Some(holding))) => {
                let subject = holding.subject.clone();
                self.current = Some(holding);
                self.state = State::Settling;
                DrainEffect::Settle(subject)
            }
            (State::Naming, DrainInput::Next(None)) => {
                self.state = State::Listing;
                DrainEffect::List
            }
            (State::Settling, DrainInput::Settled(drained)) => {
                self.report.needed += u64::from(drained != Drained::NotNeeded);
                // Needed and still so: said only when nothing may be changed. Otherwise it would be free by now.
                self.next()
            }
            (State::Settling, DrainInput::Left) => {
                self.report.left += 1;
                self.kept.extend(self.current.iter().flat_map(|holding| holding.slots.iter().copied()));
                self.next()
            }
            (State::Listing, DrainInput::Listed(listed)) => self.listed(&listed),
            (State::Deleting, DrainInput::Deleted) => self.done(),
            (state, input) => {
                debug_assert!(false, "{input:?} is no answer in {state:?}");
                self.end(DrainEffect::GiveUp(ErrorReply::internal("a drain was driven out of step")))
            }
        }
    }

    fn next(&mut self) -> DrainEffect {
        self.state = State::Naming;
        DrainEffect::Next { after: self.current.as_ref().map(|holding| holding.subject.clone()) }
    }

    fn listed(&mut self, listed: &[Slot]) -> DrainEffect {
        let slots = garbage::slots(listed, |slot| self.kept.contains(&slot));
        self.report.deletions = Deletions { slots, index: self.report.left == 0 };
        if self.dry_run {
            return self.done();
        }
        self.state = State::Deleting;
        DrainEffect::Delete(self.report.deletions.clone())
    }

    fn done(&mut self) -> DrainEffect {
        let report = std::mem::take(&mut self.report);
        self.end(DrainEffect::Done(report))
    }

    fn end(&mut self, effect: DrainEffect) -> DrainEffect {
        self.state = State::Done;
        effect
    }
}
