//! Overlays of pending entries: for each item, its value after the last entry that changes it, and the number
//! of that entry.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::ops::RangeBounds;

use dormouse_protocol::Seq;

use super::view::StoredMessage;

/// Above this capacity, a map that becomes empty releases its memory.
pub(super) const KEPT_PLACES: usize = 1_024;

/// Items by key.
#[derive(Debug)]
pub(super) struct KeyOverlay<K, V>(pub(super) HashMap<K, (u64, V)>);

impl<K, V> Default for KeyOverlay<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V> KeyOverlay<K, V> {
    pub(super) fn touch(&mut self, entry: u64, key: K, value: V) {
        self.0.insert(key, (entry, value));
    }

    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map(|(_, value)| value)
    }

    /// Removes the item if this entry was the last to change it: the entry is applied.
    pub(super) fn remove_applied<Q: Eq + Hash + ?Sized>(&mut self, entry: u64, key: &Q)
    where
        K: Borrow<Q>,
    {
        if self.0.get(key).is_some_and(|&(by, _)| by == entry) {
            self.0.remove(key);
        }
    }

    /// The same for all items that this entry was the last to change.
    pub(super) fn remove_all_applied(&mut self, entry: u64) {
        self.0.retain(|_, (by, _)| *by != entry);
    }

    /// Replaces every value that matches with `value`.
    pub(super) fn replace(&mut self, entry: u64, value: V, matches: impl Fn(&V) -> bool)
    where
        V: Copy,
    {
        // The order does not matter: each item is independent.
        let matching = self.0.values_mut().filter(|(_, held)| matches(held));
        matching.for_each(|touched| *touched = (entry, value));
    }

    pub(super) fn clear(&mut self) {
        clear(&mut self.0);
    }
}

/// Empties a map.
pub(super) fn clear<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    map.clear();
    if map.capacity() > KEPT_PLACES {
        map.shrink_to(0);
    }
}

/// Messages by seq, in order; `None` for a removed message.
#[derive(Debug, Default)]
pub(super) struct SeqOverlay(pub(super) BTreeMap<Seq, (u64, Option<StoredMessage>)>);

impl SeqOverlay {
    pub(super) fn touch(&mut self, entry: u64, seq: Seq, held: Option<StoredMessage>) {
        self.0.insert(seq, (entry, held));
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Option<StoredMessage>> {
        self.0.get(&seq).map(|(_, held)| held)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The existing messages, in order of seq.
    pub(super) fn held(&self, seqs: impl RangeBounds<Seq>) -> impl Iterator<Item = &StoredMessage> {
        self.0.range(seqs).filter_map(|(_, (_, held))| held.as_ref())
    }

    /// As [`KeyOverlay::remove_applied`].
    pub(super) fn remove_applied(&mut self, entry: u64, seq: Seq) {
        if self.0.get(&seq).is_some_and(|&(by, _)| by == entry) {
            self.0.remove(&seq);
        }
    }

    /// As [`KeyOverlay::remove_all_applied`].
    pub(super) fn remove_all_applied(&mut self, entry: u64) {
        self.0.retain(|_, (by, _)| *by != entry);
    }

    /// Marks everything up to a seq as removed.
    pub(super) fn remove_up_to(&mut self, entry: u64, end_seq: Seq) {
        for (_, touched) in self.0.range_mut(..=end_seq) {
            *touched = (entry, None);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
