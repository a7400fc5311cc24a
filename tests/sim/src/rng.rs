//! Random numbers, all from one seed.

use std::ops::Range;
use std::sync::MutexGuard;
use std::time::Duration;

use dormouse_runtime::Lock;

/// A generator with the same numbers for the same seed (SplitMix64).
#[derive(Debug)]
pub struct SeededRng(Lock<u64>);

impl SeededRng {
    /// Creates a generator with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Lock::new(seed))
    }

    /// Creates a generator for one part of the run, so that the numbers of the parts do not depend on each other.
    #[must_use]
    pub fn of(seed: u64, part: &str) -> Self {
        let mixed = part.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let rng = Self::new(mixed);
        rng.draw();
        rng
    }

    /// Returns a uniform random number.
    pub fn draw(&self) -> u64 {
        let mut state = self.state();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`; 0 if `limit` is 0.
    pub fn below(&self, limit: u64) -> u64 {
        self.draw() % limit.max(1)
    }

    /// Returns a number from a range that is not empty.
    pub fn within(&self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// Returns a duration from a range of milliseconds, to the microsecond.
    pub fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.within(range.start * 1_000..range.end * 1_000))
    }

    /// Returns true with a probability of `per_mille` out of a thousand.
    pub fn chance(&self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    /// Returns one of several values.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<'t, T>(&self, among: &'t [T]) -> &'t T {
        &among[usize::try_from(self.below(among.len() as u64)).unwrap_or(0)]
    }

    /// Returns one of several values, with probabilities by weight.
    ///
    /// # Panics
    /// If all weights are 0.
    pub fn weighted<T: Copy>(&self, among: &[(u64, T)]) -> T {
        let mut drawn = self.below(among.iter().map(|(weight, _)| weight).sum());
        for (weight, one) in among {
            match drawn.checked_sub(*weight) {
                None => return *one,
                Some(rest) => drawn = rest,
            }
        }
        panic!("all weights are 0")
    }

    fn state(&self) -> MutexGuard<'_, u64> {
        self.0.lock()
    }
}
