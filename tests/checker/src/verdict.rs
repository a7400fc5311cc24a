//! What is found: violations, each with the calls that show it, and how much was looked at.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use dormouse_protocol::Subject;

use crate::history::SubjectHistory;
use crate::print;

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Property {
    /// Whatever was answered before something else was asked comes before it in the subject's history.
    RealTime,
    /// Every answer is what the state at the position it names says.
    ReadsTheState,
    /// A refusal that names what is there is right about it at some moment of the call.
    RefusedRightly,
    /// What was acknowledged or shown at the level `bucket` is there for ever.
    BucketIsKept,
    /// What was acknowledged at a weaker level is lost only as an end of a term, and only for a reason in the table.
    WeakerLevelsWithinTheTable,
    /// Nothing is carried out twice, and a repeat is answered as the first was.
    OnceAtMost,
    /// What is not known to have happened happened once or never, and not before it was asked for.
    NothingFromNothing,
    /// What a refusal said did not happen did not happen.
    RefusedIsNotDone,
    /// Changes lead from the state they start at to the state they name.
    ChangesLeadThere,
    /// One place in the history holds one change, and one term has one server.
    OneOwner,
    /// Revs follow each other, seqs are handed out once, (term, seq) names one message.
    OneName,
    /// Whoever applies what a feed tells has the state each time it says so, and nothing is told twice.
    FeedsAreExact,
    /// Sets that one caller asked for without waiting stand in the order of the calls.
    CallersOrder,
    /// What was recorded cannot be judged.
    Unreadable,
}

/// Something that should not be so.
#[derive(Debug, Clone)]
pub struct Violation {
    /// What was promised.
    pub property: Property,
    /// Of which subject.
    pub subject: Subject,
    /// What is wrong, in a sentence.
    pub sentence: String,
    /// The shortest history that shows it: the calls and events concerned, in order of time, one to a line.
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

/// How much a verdict rests on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// How often each thing was seen.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub(crate) fn add(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Adds what another verdict rests on.
    pub fn join(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }
}

/// What is to be said of a history.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// What should not be so, the first of each subject first.
    pub violations: Vec<Violation>,
    /// What was looked at.
    pub coverage: Coverage,
}

impl Verdict {
    /// Whether nothing is wrong.
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
        write!(f, "{} violations; looked at {:?}", self.violations.len(), self.coverage.counts)
    }
}

/// Where in the recorded history something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    Call(usize),
    Event(usize),
    Feed(usize),
    Burst(usize),
}

/// More of one subject say the same again.
const MOST: usize = 20;

/// Collects what is found of one subject.
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

    pub(crate) fn wrong(
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
                Source::Call(place) => print::call(&self.history.calls[place]),
                Source::Event(place) => print::event(&self.history.events[place]),
                Source::Feed(place) => print::feed(&self.history.feeds[place]),
                Source::Burst(place) => print::burst(&self.history.bursts[place]),
            })
            .collect();
        let (subject, sentence) = (self.subject.clone(), sentence.into());
        self.violations.push(Violation { property, subject, sentence, history });
    }

    fn began(&self, source: Source) -> Duration {
        match source {
            Source::Call(place) => self.history.calls[place].invoked_at,
            Source::Event(place) => self.history.events[place].at,
            Source::Feed(place) => self.history.feeds[place].at,
            Source::Burst(place) => self.history.bursts[place].at,
        }
    }
}
