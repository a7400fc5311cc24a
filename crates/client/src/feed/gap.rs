//! Which changes of an event are new, and whether there is a gap before them.
//!
//! Revs are contiguous within a term. A term inherits everything up to its base from the term before it. So
//! an event follows a seen position in two cases. Its first change has the next rev in the same term; or the
//! seen rev was inherited by the next term, and the first change has the next rev in that term. Everything
//! else is a gap.

use dormouse_protocol::{Change, Event, Position, Rev};

use dormouse_runtime::injected_bug;

/// The relation of an event to the position up to which everything was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EventOrder {
    /// Nothing new: repeated, or from a fenced server.
    Old,
    /// The next changes, in order of rev. Empty in a beacon that reports the start of a new term at the seen
    /// position.
    Next(Vec<Change>),
    /// Something is missing before it, or in it.
    Gap,
}

/// Compares an event with the position `seen`.
pub(crate) fn classify_event(seen: Position, mut event: Event) -> EventOrder {
    if event.term < seen.term {
        return EventOrder::Old;
    }
    let same_term = event.term == seen.term;
    // Every change of a later term is new, whatever its rev.
    let is_new = |rev: Rev| !same_term || rev > seen.rev;
    if !is_new(event.rev) {
        let is_repeat = same_term && !event.changes.is_empty();
        if is_repeat && injected_bug!(RepeatEmitted) {
            return EventOrder::Next(event.changes);
        }
        return EventOrder::Old;
    }
    event.changes.retain(|change| is_new(change.rev()));
    let before = match event.changes.first() {
        Some(first) => Rev::new(first.rev().get().saturating_sub(1)),
        None => event.rev,
    };
    // Of a term in between nothing is known, not even its changes below the new base.
    let is_inherited = same_term || (event.term == seen.term.next() && seen.rev <= event.term_base);
    let is_next = (is_inherited && seen.rev >= before) || injected_bug!(GapIgnored);
    if is_next { EventOrder::Next(event.changes) } else { EventOrder::Gap }
}

#[cfg(test)]
mod tests;
