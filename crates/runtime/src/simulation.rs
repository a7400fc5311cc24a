//! The inputs of a simulated environment: a virtual clock and seeded randomness.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::env::{Clock, Entropy, Env};
use crate::lock::Lock;
use crate::process::{Process, Simulation};

impl Env {
    /// An environment with the given sources, in which blocking work runs inline.
    #[must_use]
    pub fn simulated(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self {
            clock,
            entropy,
            boot_id: Some("simulated".into()),
            simulation: Some(Simulation::default()),
            runtime: None,
        }
    }

    /// The same environment after a start of the machine; see [`Env::boot_id`].
    #[must_use]
    pub fn booted(self, boot_id: &str) -> Self {
        Self { boot_id: Some(boot_id.into()), ..self }
    }

    /// The same environment for one process: its [tasks](Self::tasks) are paused and killed together, and its blocking
    /// work runs inline.
    #[must_use]
    pub fn of_process(self, process: Process) -> Self {
        Self { simulation: Some(Simulation::of_process(process)), ..self }
    }
}

/// A clock for tests and simulation: follows tokio's clock, which a test can pause, from a chosen start.
#[derive(Debug, Clone, Copy)]
pub struct VirtualClock {
    origin: tokio::time::Instant,
    wall_at_origin: Duration,
}

impl VirtualClock {
    /// A clock whose wall time is `wall` (since the Unix epoch) at the moment of the call. Needs a tokio runtime.
    #[must_use]
    #[expect(clippy::disallowed_methods)] // Tokio's clock, which the test controls.
    pub fn starting_at(wall: Duration) -> Self {
        Self { origin: tokio::time::Instant::now(), wall_at_origin: wall }
    }
}

impl Clock for VirtualClock {
    fn wall(&self) -> Duration {
        self.wall_at_origin + self.boot()
    }

    fn boot(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// A seeded RNG: the same seed gives the same numbers.
#[derive(Debug)]
pub struct SeededEntropy(Lock<StdRng>);

impl SeededEntropy {
    /// An RNG with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Lock::new(StdRng::seed_from_u64(seed)))
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        self.0.lock().next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two random number generators with the same seed give the same numbers.
    #[test]
    fn rng_with_same_seed_gives_same_numbers() {
        let (one, other) = (SeededEntropy::new(7), SeededEntropy::new(7));
        assert!((0..10).all(|_| one.next_u64() == other.next_u64()));
        assert_ne!(SeededEntropy::new(8).next_u64(), SeededEntropy::new(7).next_u64());
    }

    /// A simulated environment follows the paused clock.
    #[tokio::test(start_paused = true)]
    async fn env_simulated_follows_paused_clock() {
        let clock = Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000)));
        let env = Env::simulated(clock, Arc::new(SeededEntropy::new(1)));
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!(env.boot(), Duration::from_secs(3_600));
        assert_eq!(env.wall_micros(), 4_600_000_000);
        assert_eq!(env.blocking(|| 7).await, 7);
    }
}
