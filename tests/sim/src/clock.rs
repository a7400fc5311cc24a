//! The clocks of one machine: they run at a rate of their own relative to the world's time, and their wall time can be
//! wrong.

use std::sync::MutexGuard;
use std::time::Duration;

use dormouse_runtime::{Clock, Env, Lock};

/// The clocks of one machine.
#[derive(Debug)]
pub struct MachineClock {
    world: Env,
    state: Lock<State>,
}

#[derive(Debug)]
struct State {
    /// The rate of the clock in thousandths of the world's time.
    rate: u64,
    /// The world's time at the last change of the rate, and the boot time of the clock at that moment.
    world_then: Duration,
    boot_then: Duration,
    /// The offset of the wall clock in microseconds.
    ahead: i64,
}

impl MachineClock {
    /// Creates clocks that have run for `boot`, at `rate` thousandths of the world's time.
    #[must_use]
    pub fn new(world: Env, boot: Duration, rate: u64) -> Self {
        let state = State { rate, world_then: world.boot(), boot_then: boot, ahead: 0 };
        Self { world, state: Lock::new(state) }
    }

    /// Sets the offset of the wall clock: positive is ahead, negative is behind.
    pub fn set_wrong(&self, micros: i64) {
        self.state().ahead = micros;
    }

    /// Sets the rate to `rate` thousandths.
    pub fn set_rate(&self, rate: u64) {
        let now = self.world.boot();
        let mut state = self.state();
        state.boot_then = state.boot(now);
        state.world_then = now;
        state.rate = rate;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn boot(&self, now: Duration) -> Duration {
        let elapsed = now.saturating_sub(self.world_then).as_nanos() * u128::from(self.rate) / 1_000;
        self.boot_then + Duration::from_nanos(u64::try_from(elapsed).unwrap_or(u64::MAX))
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
