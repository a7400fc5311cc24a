//! The messages that a feed has emitted and that still exist: their positions and the changes that wrote
//! them.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use dormouse_protocol::{Message, Rev, Seq, Term};

/// A message that the reader holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KnownMessage {
    term: Term,
    rev: Rev,
    key: Option<Arc<str>>,
}

/// The messages that the reader holds, without their values: about a hundred bytes and the key for each.
#[derive(Debug, Default)]
pub(crate) struct KnownMessages {
    messages: BTreeMap<Seq, KnownMessage>,
    keys: HashMap<Arc<str>, Seq>,
}

impl KnownMessages {
    /// Whether the reader holds this message, as written by the same change.
    pub(crate) fn knows(&self, message: &Message) -> bool {
        self.messages
            .get(&message.seq)
            .is_some_and(|known| (known.term, known.rev) == (message.term, message.rev))
    }

    /// The seq of the message that the reader holds under a key.
    pub(crate) fn seq_of_key(&self, key: &str) -> Option<Seq> {
        self.keys.get(key).copied()
    }

    /// The key of the message that the reader holds at a seq; the outer `None`: it holds none there.
    pub(crate) fn key_at(&self, seq: Seq) -> Option<Option<&str>> {
        self.messages.get(&seq).map(|known| known.key.as_deref())
    }

    /// Whether a removal at `rev` covers the message that the reader holds at a seq. When reading page by
    /// page, the reader may hold a message that was written after the removal.
    pub(crate) fn is_gone_by(&self, seq: Seq, rev: Rev) -> bool {
        self.messages.get(&seq).is_some_and(|known| known.rev <= rev)
    }

    /// The seqs of the messages that the reader holds in a range.
    pub(crate) fn seqs(&self, range: RangeInclusive<Seq>) -> impl Iterator<Item = Seq> {
        self.messages.range(range).map(|(seq, _)| *seq)
    }

    /// The reader holds `message` from now on, in place of the messages at its seq and under its key.
    pub(crate) fn put(&mut self, message: &Message) {
        let key: Option<Arc<str>> = message.key.as_deref().map(Arc::from);
        if let Some(before) = key.as_deref().and_then(|key| self.seq_of_key(key)) {
            self.remove(before);
        }
        self.remove(message.seq);
        if let Some(key) = &key {
            self.keys.insert(Arc::clone(key), message.seq);
        }
        self.messages.insert(message.seq, KnownMessage { term: message.term, rev: message.rev, key });
    }

    /// The reader holds nothing at this seq any more. Returns the key of the message; the outer `None`: it
    /// held none.
    pub(crate) fn remove(&mut self, seq: Seq) -> Option<Option<String>> {
        let known = self.messages.remove(&seq)?;
        if let Some(key) = &known.key {
            self.keys.remove(key);
        }
        Some(known.key.map(|key| key.as_ref().to_owned()))
    }
}
