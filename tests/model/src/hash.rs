//! Hashes of 128 bits, cached for the unchanged parts of a world.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::rc::Rc;

/// The hash that identifies a world. Two worlds with one hash count as the same world, so the hash must be wide: at 100
/// million worlds, the probability of any collision is about 10⁻²³ for a perfect hash of this width.
#[derive(Debug, Clone)]
pub struct Hash128 {
    a: u64,
    b: u64,
}

impl Default for Hash128 {
    fn default() -> Self {
        Self { a: 0x243f_6a88_85a3_08d3, b: 0x1319_8a2e_0370_7344 }
    }
}

impl Hash128 {
    fn word(&mut self, word: u64) {
        // Both lanes are bijections of their state for every word, so long inputs lose no entropy.
        self.a = (self.a ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.a ^= self.a >> 29;
        self.b = (self.b.rotate_left(23) ^ word).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        self.b ^= self.b >> 32;
    }

    /// Returns the hash of all written data.
    #[must_use]
    pub fn wide(&self) -> u128 {
        let finish = |mut lane: u64| {
            lane ^= lane >> 30;
            lane = lane.wrapping_mul(0xbf58_476d_1ce4_e5b9);
            lane ^= lane >> 27;
            lane = lane.wrapping_mul(0x94d0_49bb_1331_11eb);
            lane ^ (lane >> 31)
        };
        u128::from(finish(self.a)) << 64 | u128::from(finish(self.b))
    }

    /// Returns the hash of one value.
    pub fn of<T: Hash + ?Sized>(value: &T) -> u128 {
        let mut hasher = Self::default();
        value.hash(&mut hasher);
        hasher.wide()
    }
}

impl Hasher for Hash128 {
    fn finish(&self) -> u64 {
        self.a ^ self.b
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.word(chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            self.word(rest.iter().rev().fold(rest.len() as u64, |word, byte| word << 8 | u64::from(*byte)));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.word(word.into());
    }

    fn write_u16(&mut self, word: u16) {
        self.word(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.word(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.word(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.word(word as u64);
    }
}

/// A hasher whose input is a hash already.
#[derive(Debug, Default, Clone, Copy)]
pub struct Ready(u64);

impl Hasher for Ready {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().take(8).enumerate() {
            self.0 |= u64::from(*byte) << (8 * at);
        }
    }

    fn write_u128(&mut self, word: u128) {
        // The low half is enough here, because the high half is compared anyway.
        self.0 = word as u64;
    }
}

/// Builds [`Ready`].
pub type BuildReady = std::hash::BuildHasherDefault<Ready>;

/// A part of a world: shared between worlds until it changes, and hashed once.
#[derive(Debug)]
pub struct Part<T>(Rc<Hashed<T>>);

#[derive(Debug)]
struct Hashed<T> {
    value: T,
    hash: Cell<Option<u128>>,
}

impl<T: Clone> Clone for Hashed<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), hash: Cell::new(None) }
    }
}

impl<T> Clone for Part<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T: Clone + Hash> Part<T> {
    /// Wraps a part.
    pub fn new(value: T) -> Self {
        Self(Rc::new(Hashed { value, hash: Cell::new(None) }))
    }

    /// Returns the part for a change in this world only.
    pub fn change(&mut self) -> &mut T {
        let hashed = Rc::make_mut(&mut self.0);
        hashed.hash.set(None);
        &mut hashed.value
    }

    /// Returns its hash.
    pub fn hash(&self) -> u128 {
        if let Some(hash) = self.0.hash.get() {
            return hash;
        }
        let hash = Hash128::of(&self.0.value);
        self.0.hash.set(Some(hash));
        hash
    }
}

impl<T> Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}
