//! Converts changes of a subject into updates for the reader: only for the keys of the feed, without repeats,
//! and always including the removal of messages that the reader holds.

use dormouse_protocol::message::{DeleteAllChange, DeleteChange, SubjectConfig};
use dormouse_protocol::{Change, Message, Position, Rev, Seq};

use super::known::KnownMessages;
use super::update::{FeedKeys, Update};

/// One item for the reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FeedOutput {
    /// The update; `None` if only the position has changed.
    pub(crate) update: Option<Update>,
    /// The position from which a later feed can continue once the reader has this item.
    pub(crate) position: Option<Position>,
}

/// Collects the updates for the reader.
#[derive(Debug)]
pub(crate) struct OutputBuffer {
    keys: FeedKeys,
    /// The messages that the reader holds; `None` if they are unknown, because the feed did not start at the
    /// beginning.
    known: Option<KnownMessages>,
    items: Vec<FeedOutput>,
}

impl OutputBuffer {
    pub(crate) const fn new(keys: FeedKeys, known: Option<KnownMessages>) -> Self {
        Self { keys, known, items: Vec::new() }
    }

    pub(crate) const fn keys(&self) -> &FeedKeys {
        &self.keys
    }

    /// Takes the collected items.
    pub(crate) fn take(&mut self) -> Vec<FeedOutput> {
        std::mem::take(&mut self.items)
    }

    /// Whether anything was collected.
    pub(crate) const fn has_output(&self) -> bool {
        !self.items.is_empty()
    }

    fn emit(&mut self, update: Update) {
        self.items.push(FeedOutput { update: Some(update), position: None });
    }

    /// A later feed can continue from here once the reader has all collected items.
    pub(crate) fn reached(&mut self, position: Position) {
        match self.items.last_mut() {
            Some(last) => last.position = Some(position),
            None => self.items.push(FeedOutput { update: None, position: Some(position) }),
        }
    }

    pub(crate) fn caught_up(&mut self, position: Position) {
        self.emit(Update::CaughtUp(position));
        self.reached(position);
    }

    /// Starts the output of a full read. The messages that the reader holds are tracked until
    /// [`Self::forget`], unless they were tracked before.
    pub(crate) fn start_full_read(&mut self) {
        if self.known.is_none() {
            self.known = Some(KnownMessages::default());
            self.emit(Update::Reset);
        }
    }

    /// Stops tracking the messages that the reader holds.
    pub(crate) fn forget(&mut self) {
        self.known = None;
    }

    /// Emits the changes of an event that follows the reader's position.
    pub(crate) fn event(&mut self, changes: Vec<Change>, position: Position) {
        let mut changes = changes.into_iter().peekable();
        while let Some(change) = changes.next() {
            let rev = change.rev();
            self.change(change);
            // The changes of a batch share a rev: the position is complete only after the last of them.
            if self.has_output() && changes.peek().is_none_or(|next| next.rev() != rev) {
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
            self.emit(Update::Configured(config));
        }
    }

    /// The subject has this message.
    pub(crate) fn set(&mut self, message: Message, replaces: Option<Seq>) {
        if !self.keys.wants(message.key.as_deref()) {
            return;
        }
        let Some(known) = &mut self.known else {
            return self.emit(Update::Set { message, replaces });
        };
        if known.knows(&message) {
            return;
        }
        let mut replaces = message.key.as_deref().and_then(|key| known.seq_of_key(key));
        match known.key_at(message.seq) {
            // After a fork, a seq may have another key than before.
            Some(other) if other != message.key.as_deref() => {
                let key = other.map(str::to_owned);
                self.items.push(FeedOutput {
                    update: Some(Update::Removed { seq: message.seq, key }),
                    position: None,
                });
            }
            Some(_) => replaces = Some(message.seq),
            None => {}
        }
        known.put(&message);
        self.emit(Update::Set { message, replaces });
    }

    fn delete(&mut self, delete: DeleteChange) {
        for removed in delete.removed {
            let Some(known) = &self.known else {
                if self.keys.wants(removed.key.as_deref()) {
                    self.emit(Update::Removed { seq: removed.seq, key: removed.key });
                }
                continue;
            };
            // If several changes were compacted, the reader may hold an older message under the key.
            let under_key = removed.key.as_deref().and_then(|key| known.seq_of_key(key));
            for seq in [Some(removed.seq), under_key].into_iter().flatten() {
                self.gone(seq, delete.rev);
            }
        }
    }

    fn clear(&mut self, cleared: &DeleteAllChange) {
        let Some(known) = &mut self.known else {
            return self.emit(Update::Cleared { end_seq: cleared.end_seq });
        };
        let known_seqs: Vec<Seq> = known.seqs(Seq::new(0)..=cleared.end_seq).collect();
        if known_seqs.iter().all(|seq| known.is_gone_by(*seq, cleared.rev)) {
            for seq in &known_seqs {
                known.remove(*seq);
            }
            if !known_seqs.is_empty() {
                self.emit(Update::Cleared { end_seq: cleared.end_seq });
            }
            return;
        }
        for seq in known_seqs {
            self.gone(seq, cleared.rev);
        }
    }

    /// The message that the reader holds at `seq` was removed by `rev`.
    fn gone(&mut self, seq: Seq, rev: Rev) {
        if self.known.as_ref().is_some_and(|known| known.is_gone_by(seq, rev)) {
            self.remove(seq);
        }
    }

    /// The message that the reader holds at `seq`, if any, is gone.
    pub(crate) fn remove(&mut self, seq: Seq) {
        if let Some(key) = self.known.as_mut().and_then(|known| known.remove(seq)) {
            self.emit(Update::Removed { seq, key });
        }
    }

    /// The seqs from `start` to `end` that the reader holds.
    pub(crate) fn known_seqs(&self, start: Seq, end: Seq) -> Vec<Seq> {
        let Some(known) = self.known.as_ref().filter(|_| start <= end) else { return Vec::new() };
        known.seqs(start..=end).collect()
    }
}
