//! Chance, all of it drawn from a seed.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A generator that draws the same for the same seed (SplitMix64).
#[derive(Debug)]
pub struct Dice(Mutex<u64>);

impl Dice {
    /// Dice with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    /// Dice of their own for a part of the run, so that what one part draws does not change what another does.
    #[must_use]
    pub fn of(seed: u64, part: &str) -> Self {
        let mixed = part.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let dice = Self::new(mixed);
        dice.draw();
        dice
    }

    /// A number drawn evenly from all of them.
    pub fn draw(&self) -> u64 {
        let mut state = self.state();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 where `limit` is.
    pub fn below(&self, limit: u64) -> u64 {
        self.draw() % limit.max(1)
    }

    /// A number from a range that is not empty.
    pub fn within(&self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// A length of time from a range of milliseconds, to the microsecond.
    pub fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.within(range.start * 1_000..range.end * 1_000))
    }

    /// True so many times out of a thousand.
    pub fn chance(&self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    /// One of several.
    ///
    /// # Panics
    /// When there are none.
    pub fn pick<'t, T>(&self, among: &'t [T]) -> &'t T {
        &among[usize::try_from(self.below(among.len() as u64)).unwrap_or(0)]
    }

    /// One of several, each as likely as its weight says.
    ///
    /// # Panics
    /// When the weights are all 0.
    pub fn weighted<T: Copy>(&self, among: &[(u64, T)]) -> T {
        let mut drawn = self.below(among.iter().map(|(weight, _)| weight).sum());
        for (weight, one) in among {
            match drawn.checked_sub(*weight) {
                None => return *one,
                Some(rest) => drawn = rest,
            }
        }
        panic!("nothing to choose from")
    }

    fn state(&self) -> MutexGuard<'_, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
