//! Which changes of an event are new, and whether something before them is missing: a pure machine.
//!
//! Revs are contiguous within a term. A term inherits everything up to its base from the term before it. So what we
//! have seen and an event fit together when the event's first change is the one after our rev, in the same term or,
//! if our rev is one that the next term inherited, in that one. Everything else is a gap.

use dormouse_protocol::{Change, Event, Position, Rev};

/// What was missed: everything between two positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hole {
    /// The last position that was seen in full; `None` when that is not known.
    pub(crate) seen: Option<Position>,
    /// Where the subject is now, if that is known.
    pub(crate) now: Option<Position>,
}

/// What an event brings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Spliced {
    /// Something is missing before the changes.
    pub(crate) hole: Option<Hole>,
    /// The changes that are new, in order of rev.
    pub(crate) changes: Vec<Change>,
}

/// Holds how far a watcher has come.
#[derive(Debug)]
pub(crate) struct Splicer {
    seen: Option<Position>,
}

impl Splicer {
    /// What came up to `seen` is not ours to miss, everything after it is. Without it, an event that comes first is
    /// taken for a hole unless nothing at all can be before it.
    pub(crate) const fn starting_after(seen: Option<Position>) -> Self {
        Self { seen }
    }

    pub(crate) const fn seen(&self) -> Option<Position> {
        self.seen
    }

    /// Takes the next event in the order of arrival.
    pub(crate) fn apply(&mut self, mut event: Event) -> Spliced {
        let now = event.position();
        let Some(seen) = self.seen else {
            self.seen = Some(now);
            let complete = rev_before(&event) == Rev::new(0);
            let hole = (!complete).then_some(Hole { seen: None, now: Some(now) });
            return Spliced { hole, changes: event.changes };
        };
        if event.term < seen.term {
            return Spliced::default();
        }
        // Everything that a later term changed is new, whatever its rev.
        let have = if event.term == seen.term { Some(seen.rev) } else { None };
        let is_new = |rev: Rev| have.is_none_or(|have| rev > have);
        if !is_new(event.rev) {
            return Spliced::default();
        }
        event.changes.retain(|change| is_new(change.rev()));
        let before = rev_before(&event);
        let inherited = event.term == seen.term
            // Of a term in between nothing is known, not even what it changed below the new base.
            || (event.term == seen.term.next() && seen.rev <= event.term_base);
        let complete = inherited && seen.rev >= before;
        self.seen = Some(now);
        Spliced {
            hole: (!complete).then_some(Hole { seen: Some(seen), now: Some(now) }),
            changes: event.changes,
        }
    }
}

/// The rev up to which all that is not in this event must have been seen already.
fn rev_before(event: &Event) -> Rev {
    match event.changes.first() {
        Some(first) => Rev::new(first.rev().get().saturating_sub(1)),
        None => event.rev,
    }
}

#[cfg(test)]
#[path = "splice_tests.rs"]
mod tests;
