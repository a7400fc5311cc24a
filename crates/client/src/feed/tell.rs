//! From what is learned of a subject to what the reader is told: only what it asked for, nothing twice, and never less
//! than what it needs to let go of what is gone.

use dormouse_protocol::message::{DeleteAllChange, DeleteChange, SubjectConfig};
use dormouse_protocol::{Change, Message, Position, Rev, Seq};

use super::memory::Memory;
use super::{FeedKeys, Update};

/// Something on its way to the reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// What it is told; nothing where only the position has moved.
    pub(crate) update: Option<Update>,
    /// Where a later feed may go on, once the reader has this.
    pub(crate) position: Option<Position>,
}

/// Gathers what the reader is to be told.
#[derive(Debug)]
pub(crate) struct Teller {
    keys: FeedKeys,
    /// What the reader holds; `None` where that is not known, because it did not begin with what was there.
    memory: Option<Memory>,
    told: Vec<Told>,
}

impl Teller {
    pub(crate) const fn new(keys: FeedKeys, memory: Option<Memory>) -> Self {
        Self { keys, memory, told: Vec::new() }
    }

    pub(crate) const fn keys(&self) -> &FeedKeys {
        &self.keys
    }

    /// What was gathered.
    pub(crate) fn take(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    /// Whether anything was gathered.
    pub(crate) const fn has_told(&self) -> bool {
        !self.told.is_empty()
    }

    fn tell(&mut self, update: Update) {
        self.told.push(Told { update: Some(update), position: None });
    }

    /// A later feed may go on from here, once the reader has all that was gathered.
    pub(crate) fn reached(&mut self, position: Position) {
        match self.told.last_mut() {
            Some(last) => last.position = Some(position),
            None => self.told.push(Told { update: None, position: Some(position) }),
        }
    }

    pub(crate) fn caught_up(&mut self, position: Position) {
        self.tell(Update::CaughtUp(position));
        self.reached(position);
    }

    /// Everything that is there is told from here on. What the reader holds is kept track of until [`Self::forget`], unless
    /// it was known before.
    pub(crate) fn begin_anew(&mut self) {
        if self.memory.is_none() {
            self.memory = Some(Memory::default());
            self.tell(Update::Reset);
        }
    }

    /// What the reader holds is not kept track of any more.
    pub(crate) fn forget(&mut self) {
        self.memory = None;
    }

    /// Tells the changes of an event, which lead from where the reader is.
    pub(crate) fn event(&mut self, changes: Vec<Change>, position: Position) {
        let mut changes = changes.into_iter().peekable();
        while let Some(change) = changes.next() {
            let rev = change.rev();
            self.change(change);
            // Those of a batch share a rev: only after the last of them is it seen whole.
            if self.has_told() && changes.peek().is_none_or(|next| next.rev() != rev) {
                self.reached(Position { rev, ..position });
            }
        }
        self.reached(position);
    }

    pub(crate) fn change(&mut self, change: Change) {
        match change {
            Change::Set(set) => self.set(set.message, set.replaces),
            Change::Delete(delete) => self.delete(delete),
            Change::DeleteAll(cleared) => self.clear(&cleared),
            Change::Configure(configured) => self.configured(configured.config),
        }
    }

    pub(crate) fn configured(&mut self, config: SubjectConfig) {
        if self.keys == FeedKeys::All {
            self.tell(Update::Configured(config));
        }
    }

    /// A message is there.
    pub(crate) fn set(&mut self, message: Message, replaces: Option<Seq>) {
        if !self.keys.wants(message.key.as_deref()) {
            return;
        }
        let Some(memory) = &mut self.memory else {
            return self.tell(Update::Set { message, replaces });
        };
        if memory.knows(&message) {
            return;
        }
        let mut replaces = message.key.as_deref().and_then(|key| memory.under(key));
        match memory.key_at(message.seq) {
            // After a fork a seq may have another key than it had.
            Some(other) if other != message.key.as_deref() => {
                let key = other.map(str::to_owned);
                self.told
                    .push(Told { update: Some(Update::Removed { seq: message.seq, key }), position: None });
            }
            Some(_) => replaces = Some(message.seq),
            None => {}
        }
        memory.put(&message);
        self.tell(Update::Set { message, replaces });
    }

    fn delete(&mut self, delete: DeleteChange) {
        for removed in delete.removed {
            let Some(memory) = &self.memory else {
                if self.keys.wants(removed.key.as_deref()) {
                    self.tell(Update::Removed { seq: removed.seq, key: removed.key });
                }
                continue;
            };
            // What the reader holds under the key may be an older message, where several changes became one.
            let under = removed.key.as_deref().and_then(|key| memory.under(key));
            for seq in [Some(removed.seq), under].into_iter().flatten() {
                self.gone(seq, delete.rev);
            }
        }
    }

    fn clear(&mut self, cleared: &DeleteAllChange) {
        let Some(memory) = &mut self.memory else {
            return self.tell(Update::Cleared { end_seq: cleared.end_seq });
        };
        let held: Vec<Seq> = memory.seqs(Seq::new(0)..=cleared.end_seq).collect();
        if held.iter().all(|seq| memory.is_gone_by(*seq, cleared.rev)) {
            for seq in &held {
                memory.remove(*seq);
            }
            if !held.is_empty() {
                self.tell(Update::Cleared { end_seq: cleared.end_seq });
            }
            return;
        }
        for seq in held {
            self.gone(seq, cleared.rev);
        }
    }

    /// What the reader holds at `seq` was removed by `rev`.
    fn gone(&mut self, seq: Seq, rev: Rev) {
        if self.memory.as_ref().is_some_and(|memory| memory.is_gone_by(seq, rev)) {
            self.remove(seq);
        }
    }

    /// What the reader holds at `seq`, if anything, is there no more.
    pub(crate) fn remove(&mut self, seq: Seq) {
        if let Some(key) = self.memory.as_mut().and_then(|memory| memory.remove(seq)) {
            self.tell(Update::Removed { seq, key });
        }
    }

    /// The seqs from `start` to `end` of what the reader holds.
    pub(crate) fn held(&self, start: Seq, end: Seq) -> Vec<Seq> {
        let Some(memory) = self.memory.as_ref().filter(|_| start <= end) else { return Vec::new() };
        memory.seqs(start..=end).collect()
    }
}
