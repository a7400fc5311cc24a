//! Which change of a subject gets which id, and when: a pure machine.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_protocol::limits::SESSION_RESULTS;

/// No counter is used that is so far above the oldest unresolved one. Half of the remembered results: a
/// subject never forgets a change that its client may still send.
pub(super) const COUNTERS_AHEAD: u64 = SESSION_RESULTS as u64 / 2;

/// Which changes may be in flight together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdUse {
    /// This change with any others.
    Shared,
    /// This change alone: it begins when all earlier ones are resolved, and later ones wait for it.
    Alone,
}

/// The ids of one subject. `T` is the ticket of a waiting change.
#[derive(Debug)]
pub(super) struct IdQueue<T> {
    next_counter: u64,
    unresolved: BTreeSet<u64>,
    /// The unresolved change must stay alone.
    alone: bool,
    waiting: BTreeMap<u64, (IdUse, T)>,
    next_turn: u64,
}

impl<T> IdQueue<T> {
    /// A queue whose first counter is `next_counter`.
    pub(super) const fn new(next_counter: u64) -> Self {
        Self {
            next_counter,
            unresolved: BTreeSet::new(),
            alone: false,
            waiting: BTreeMap::new(),
            next_turn: 0,
        }
    }

    /// Above each counter that was used.
    pub(super) const fn next_counter(&self) -> u64 {
        self.next_counter
    }

    /// Whether no change is unresolved or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.unresolved.is_empty() && self.waiting.is_empty()
    }

    /// The counter of the next change.
    ///
    /// # Errors
    /// The turn of the change, if it must wait.
    pub(super) fn draw(&mut self, kind: IdUse, ticket: T) -> Result<u64, u64> {
        if self.waiting.is_empty()
            && let Some(counter) = self.next(kind)
        {
            return Ok(counter);
        }
        let turn = self.next_turn;
        self.next_turn += 1;
        self.waiting.insert(turn, (kind, ticket));
        Err(turn)
    }

    /// The change is sent no more. Returns the waiting changes that may begin, with their counters; a ticket
    /// that `is_void` has lost its caller.
    pub(super) fn resolve(&mut self, counter: u64, is_void: impl Fn(&T) -> bool) -> Vec<(T, u64)> {
        self.unresolved.remove(&counter);
        if self.unresolved.is_empty() {
            self.alone = false;
        }
        self.grant(is_void)
    }

    /// The change waits no more. As [`resolve`](Self::resolve).
    pub(super) fn leave(&mut self, turn: u64, is_void: impl Fn(&T) -> bool) -> Vec<(T, u64)> {
        self.waiting.remove(&turn);
        self.grant(is_void)
    }

    fn grant(&mut self, is_void: impl Fn(&T) -> bool) -> Vec<(T, u64)> {
        let mut granted = Vec::new();
        while let Some(first) = self.waiting.first_entry() {
            let (kind, ticket) = first.get();
            if is_void(ticket) {
                first.remove();
                continue;
            }
            let kind = *kind;
            let Some(counter) = self.next(kind) else { break };
            granted.extend(self.waiting.pop_first().map(|(_, (_, ticket))| (ticket, counter)));
        }
        granted
    }

    fn next(&mut self, kind: IdUse) -> Option<u64> {
        let counter = self.next_counter;
        let may = match (self.unresolved.first(), kind) {
            (None, _) => true,
            (Some(_), IdUse::Alone) => false,
            (Some(oldest), IdUse::Shared) => !self.alone && counter < oldest.saturating_add(COUNTERS_AHEAD),
        };
        if !may {
            return None;
        }
        self.next_counter += 1;
        self.alone = kind == IdUse::Alone;
        self.unresolved.insert(counter);
        Some(counter)
    }
}
