//! What a feed has told its reader and what is there still: of each message where it stands and which change wrote it.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use dormouse_protocol::{Message, Rev, Seq, Term};

/// A message that the reader holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    term: Term,
    rev: Rev,
    key: Option<Arc<str>>,
}

/// The messages that the reader holds, without their values: about a hundred bytes and the key for each.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    messages: BTreeMap<Seq, Known>,
    keys: HashMap<Arc<str>, Seq>,
}

impl Memory {
    /// Whether the reader holds this very message, as this very change wrote it.
    pub(crate) fn knows(&self, message: &Message) -> bool {
        self.messages
            .get(&message.seq)
            .is_some_and(|known| (known.term, known.rev) == (message.term, message.rev))
    }

    /// The seq of what the reader holds under a key.
    pub(crate) fn under(&self, key: &str) -> Option<Seq> {
        self.keys.get(key).copied()
    }

    /// The key of what the reader holds at a seq; the outer `None`: it holds nothing there.
    pub(crate) fn key_at(&self, seq: Seq) -> Option<Option<&str>> {
        self.messages.get(&seq).map(|known| known.key.as_deref())
    }

    /// Whether what the reader holds at a seq is there no longer once `rev` has removed it: whoever reads page by page
    /// may hold what was written after that.
    pub(crate) fn is_gone_by(&self, seq: Seq, rev: Rev) -> bool {
        self.messages.get(&seq).is_some_and(|known| known.rev <= rev)
    }

    /// The seqs of what the reader holds in a range.
    pub(crate) fn seqs(&self, range: RangeInclusive<Seq>) -> impl Iterator<Item = Seq> {
        self.messages.range(range).map(|(seq, _)| *seq)
    }

    /// The reader holds `message` from now on, in place of what was at its seq and under its key.
    pub(crate) fn put(&mut self, message: &Message) {
        let key: Option<Arc<str>> = message.key.as_deref().map(Arc::from);
        if let Some(before) = key.as_deref().and_then(|key| self.under(key)) {
            self.remove(before);
        }
        self.remove(message.seq);
        if let Some(key) = &key {
            self.keys.insert(Arc::clone(key), message.seq);
        }
        self.messages.insert(message.seq, Known { term: message.term, rev: message.rev, key });
    }

    /// The reader holds nothing at this seq any more. The key of what it held; the outer `None`: it held nothing.
    pub(crate) fn remove(&mut self, seq: Seq) -> Option<Option<String>> {
        let known = self.messages.remove(&seq)?;
        if let Some(key) = &known.key {
            self.keys.remove(key);
        }
        Some(known.key.map(|key| key.as_ref().to_owned()))
    }
}
