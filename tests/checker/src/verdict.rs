//! The result of a check: violations, each with the calls that show it, and the amount of judged data.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use dormouse_protocol::Subject;

use crate::history::SubjectHistory;
use crate::print;

/// The properties that a history must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Property {
    /// A change that was reported before another request was sent precedes that request in the subject's history.
    RealTime,
    /// Every reply equals the state at the position that it names.
    ReadsTheState,
    /// An error that names the current state is correct at some moment of the call.
    RefusedRightly,
    /// A change that was acknowledged or shown at the level `bucket` is never lost.
    BucketIsKept,
    /// A weaker level loses only the last changes of a term, and only for a reason in the table.
    WeakerLevelsWithinTheTable,
    /// No request executes twice, and a repeat gets the result of the first.
    OnceAtMost,
    /// An operation with an unknown outcome executes once or never, and not before it was requested.
    NothingFromNothing,
    /// A request that was reported as not executed left no effect.
    RefusedIsNotDone,
    /// Changes lead from their start state to the state that they name.
    ChangesLeadThere,
    /// One position in the history holds one change, and one term has one server.
    OneOwner,
    /// Revs follow each other, seqs are assigned once, and (term, seq) names one message.
    OneName,
    /// A reader that applies a feed has the state whenever the feed names a position, and the feed repeats nothing.
    FeedsAreExact,
    /// Sets that one caller sent without waiting are in the order of the calls.
    CallersOrder,
    /// The record cannot be judged.
    Unreadable,
}

/// A violation of a property.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The property.
    pub property: Property,
    /// The subject.
    pub subject: Subject,
    /// The fault, in a sentence.
    pub sentence: String,
    /// The shortest history that shows it: the calls and events in order of time, one per line.
    pub history: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}): {}", self.subject, self.property, self.sentence)?;
        for line in &self.history {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

/// The amount of judged data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// How often each kind of item was judged.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub(crate) fn add(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// Adds the amounts of another verdict.
    pub fn join(&mut self, other: &Self) {
        for (name, count) in &other.counts {
            *self.counts.entry(name).or_default() += count;
        }
    }
}

/// The verdict on a history.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// The violations, the first of each subject first.
    pub violations: Vec<Violation>,
    /// The judged items.
    pub coverage: Coverage,
}

impl Verdict {
    /// Returns whether there is no violation.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for violation in &self.violations {
            writeln!(f, "{violation}")?;
        }
        write!(f, "{} violations; judged {:?}", self.violations.len(), self.coverage.counts)
    }
}

/// The place of an item in the recorded history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    Call(usize),
    Event(usize),
    Feed(usize),
    Burst(usize),
}

/// Further violations of one subject add no information.
const MOST: usize = 20;

/// Collects the violations of one subject.
pub(crate) struct Findings<'h> {
    subject: &'h Subject,
    history: &'h SubjectHistory,
    pub(crate) violations: Vec<Violation>,
    pub(crate) coverage: Coverage,
}

impl<'h> Findings<'h> {
    pub(crate) const fn new(subject: &'h Subject, history: &'h SubjectHistory) -> Self {
        let coverage = Coverage { counts: BTreeMap::new() };
        Self { subject, history, violations: Vec::new(), coverage }
    }

    pub(crate) fn report(
        &mut self,
        property: Property,
        sentence: impl Into<String>,
        sources: impl IntoIterator<Item = Source>,
    ) {
        if self.violations.len() >= MOST {
            return;
        }
        let mut sources: Vec<Source> = sources.into_iter().collect();
        sources.sort_unstable();
        sources.dedup();
        sources.sort_by_key(|source| self.began(*source));
        let history = sources
            .iter()
            .map(|source| match *source {
                Source::Call(index) => print::call(&self.history.calls[index]),
                Source::Event(index) => print::event(&self.history.events[index]),
                Source::Feed(index) => print::feed(&self.history.feeds[index]),
                Source::Burst(index) => print::burst(&self.history.bursts[index]),
            })
            .collect();
        let (subject, sentence) = (self.subject.clone(), sentence.into());
        self.violations.push(Violation { property, subject, sentence, history });
    }

    fn began(&self, source: Source) -> Duration {
        match source {
            Source::Call(index) => self.history.calls[index].invoked_at,
            Source::Event(index) => self.history.events[index].at,
            Source::Feed(index) => self.history.feeds[index].at,
            Source::Burst(index) => self.history.bursts[index].at,
        }
    }
}
