//! What pending entries touch: each thing as the last of them leaves it, and the number of that one.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::ops::RangeBounds;

use dormouse_protocol::Seq;

use super::view::Held;

/// Above so many places, a map that has become empty gives its memory back.
pub(super) const KEPT_PLACES: usize = 1_024;

/// Things by name.
#[derive(Debug)]
pub(super) struct Touched<K, V>(pub(super) HashMap<K, (u64, V)>);

impl<K, V> Default for Touched<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V> Touched<K, V> {
    pub(super) fn touch(&mut self, entry: u64, key: K, value: V) {
        self.0.insert(key, (entry, value));
    }

    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map(|(_, value)| value)
    }

    /// What this entry left is applied; what a later one left stays.
    pub(super) fn settle<Q: Eq + Hash + ?Sized>(&mut self, entry: u64, key: &Q)
    where
        K: Borrow<Q>,
    {
        if self.0.get(key).is_some_and(|&(by, _)| by == entry) {
            self.0.remove(key);
        }
    }

    /// The same for everything that this entry left.
    pub(super) fn settle_all(&mut self, entry: u64) {
        self.0.retain(|_, (by, _)| *by != entry);
    }

    /// Leaves `value` in the place of whatever `is_meant`.
    pub(super) fn replace(&mut self, entry: u64, value: V, is_meant: impl Fn(&V) -> bool)
    where
        V: Copy,
    {
        // In whatever order: each on its own.
        let meant = self.0.values_mut().filter(|(_, held)| is_meant(held));
        meant.for_each(|touched| *touched = (entry, value));
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

/// Messages by seq, in order; `None`: it is gone.
#[derive(Debug, Default)]
pub(super) struct TouchedSeqs(pub(super) BTreeMap<Seq, (u64, Option<Held>)>);

impl TouchedSeqs {
    pub(super) fn touch(&mut self, entry: u64, seq: Seq, held: Option<Held>) {
        self.0.insert(seq, (entry, held));
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Option<Held>> {
        self.0.get(&seq).map(|(_, held)| held)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The messages that are there, in order of seq.
    pub(super) fn held(&self, seqs: impl RangeBounds<Seq>) -> impl Iterator<Item = &Held> {
        self.0.range(seqs).filter_map(|(_, (_, held))| held.as_ref())
    }

    /// As [`Touched::settle`].
    pub(super) fn settle(&mut self, entry: u64, seq: Seq) {
        if self.0.get(&seq).is_some_and(|&(by, _)| by == entry) {
            self.0.remove(&seq);
        }
    }

    /// As [`Touched::settle_all`].
    pub(super) fn settle_all(&mut self, entry: u64) {
        self.0.retain(|_, (by, _)| *by != entry);
    }

    /// Everything up to a seq is gone.
    pub(super) fn remove_up_to(&mut self, entry: u64, end_seq: Seq) {
        for (_, touched) in self.0.range_mut(..=end_seq) {
            *touched = (entry, None);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
