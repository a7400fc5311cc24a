//! Which changes of an event are new, and whether something before them is missing.
//!
//! Revs are contiguous within a term. A term inherits everything up to its base from the term before it. So what we
//! have seen and an event fit together when the event's first change is the one after our rev, in the same term or,
//! if our rev is one that the next term inherited, in that one. Everything else is a hole.

use dormouse_protocol::{Change, Event, Position, Rev};

use crate::mutations::{Mutation, is_there};

/// What an event is to one who has seen everything up to a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Splice {
    /// Nothing new: repeated, or of a server that has been overtaken.
    Old,
    /// What comes next, in order of rev. None in a beacon that says that a new term has begun where we are.
    Next(Vec<Change>),
    /// Something before it is missing, or in it.
    Hole,
}

/// Holds an event against what was `seen`.
pub(crate) fn splice(seen: Position, mut event: Event) -> Splice {
    if event.term < seen.term {
        return Splice::Old;
    }
    let same_term = event.term == seen.term;
    // Everything that a later term changed is new, whatever its rev.
    let is_new = |rev: Rev| !same_term || rev > seen.rev;
    if !is_new(event.rev) {
        let is_repeat = same_term && !event.changes.is_empty();
        if is_repeat && is_there(Mutation::RepeatTold) {
            return Splice::Next(event.changes);
        }
        return Splice::Old;
    }
    event.changes.retain(|change| is_new(change.rev()));
    let before = match event.changes.first() {
        Some(first) => Rev::new(first.rev().get().saturating_sub(1)),
        None => event.rev,
    };
    // Of a term in between nothing is known, not even what it changed below the new base.
    let is_inherited = same_term || (event.term == seen.term.next() && seen.rev <= event.term_base);
    let is_next = (is_inherited && seen.rev >= before) || is_there(Mutation::HoleIgnored);
    if is_next { Splice::Next(event.changes) } else { Splice::Hole }
}

#[cfg(test)]
#[path = "splice_tests.rs"]
mod tests;
