//! The clocks of one machine: they follow the world's time at a rate of their own, and people set them wrong.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_runtime::{Clock, Env};

/// The clocks of one machine.
#[derive(Debug)]
pub struct MachineClock {
    world: Env,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How far the clock goes in a thousand of the world's units.
    rate: u64,
    /// The world's time at the last change of the rate, and what the clock showed then.
    world_then: Duration,
    boot_then: Duration,
    /// By how many microseconds the wall clock is ahead.
    ahead: i64,
}

impl MachineClock {
    /// Clocks that have run for `boot`, at `rate` thousandths of the world's time.
    #[must_use]
    pub fn new(world: Env, boot: Duration, rate: u64) -> Self {
        let state = State { rate, world_then: world.boot(), boot_then: boot, ahead: 0 };
        Self { world, state: Mutex::new(state) }
    }

    /// From now on the wall clock is so many microseconds ahead, or behind.
    pub fn set_wrong(&self, micros: i64) {
        self.state().ahead = micros;
    }

    /// From now on it runs at `rate` thousandths.
    pub fn set_rate(&self, rate: u64) {
        let now = self.world.boot();
        let mut state = self.state();
        state.boot_then = state.boot(now);
        state.world_then = now;
        state.rate = rate;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn boot(&self, now: Duration) -> Duration {
        let gone = now.saturating_sub(self.world_then).as_nanos() * u128::from(self.rate) / 1_000;
        self.boot_then + Duration::from_nanos(u64::try_from(gone).unwrap_or(u64::MAX))
    }
}

impl Clock for MachineClock {
    fn wall(&self) -> Duration {
        let micros = self.world.wall_micros().saturating_add_signed(self.state().ahead);
        Duration::from_micros(micros)
    }

    fn boot(&self) -> Duration {
        self.state().boot(self.world.boot())
    }
}
