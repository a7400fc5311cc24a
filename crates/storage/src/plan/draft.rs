//! The sets of one request, while it is being planned.

use std::collections::HashMap;

use dormouse_protocol::{ErrorReply, MessageId, Rev, Seq};

use super::view::{Held, SubjectView};

/// A view with the sets of one request on top that are planned but not yet applied.
pub(super) struct Draft<'a, V> {
    base: &'a V,
    pub(super) rev: Rev,
    pub(super) next_seq: Seq,
    pub(super) last: Option<MessageId>,
    by_seq: HashMap<Seq, Option<Held>>,
    by_key: HashMap<String, MessageId>,
}

impl<'a, V: SubjectView> Draft<'a, V> {
    pub(super) fn new(base: &'a V) -> Self {
        let state = base.state();
        Self {
            base,
            rev: state.rev,
            next_seq: state.next_seq,
            last: state.last,
            by_seq: HashMap::new(),
            by_key: HashMap::new(),
        }
    }

    pub(super) fn at(&self, seq: Seq) -> Result<Option<Held>, ErrorReply> {
        match self.by_seq.get(&seq) {
            Some(pending) => Ok(pending.clone()),
            None => self.base.at(seq),
        }
    }

    pub(super) fn under(&self, key: &str) -> Result<Option<MessageId>, ErrorReply> {
        // A set never takes a key away without giving it to another message, so a pending key is always held.
        match self.by_key.get(key) {
            Some(&id) => Ok(Some(id)),
            None => self.base.under(key),
        }
    }

    /// Counts a set.
    pub(super) fn advance(&mut self, id: MessageId) {
        self.rev = self.rev.next();
        if self.last.is_none_or(|last| id.seq >= last.seq) {
            self.last = Some(id);
        }
        self.next_seq = self.next_seq.max(id.seq.next());
    }

    /// Takes note of a set for those that follow in the same request.
    pub(super) fn remember(&mut self, id: MessageId, key: Option<&str>, replaces: Option<Seq>) {
        if let Some(gone) = replaces {
            self.by_seq.insert(gone, None);
        }
        self.by_seq.insert(id.seq, Some(Held { id, key: key.map(str::to_owned) }));
        if let Some(key) = key {
            self.by_key.insert(key.to_owned(), id);
        }
    }
}
