//! Clocks and random number generators.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;
use ulid::Ulid;

use crate::process::Simulation;
use crate::tasks::Tasks;

/// Two clocks: the wall clock, and a clock that never goes back.
pub trait Clock: Send + Sync {
    /// Time since the Unix epoch. May jump in either direction, so no decision that must be correct may depend on it.
    fn wall(&self) -> Duration;

    /// Time since a fixed instant. It also runs while the machine is suspended, and never goes back. Leases are measured
    /// on it.
    fn boot(&self) -> Duration;
}

/// A source of unpredictable numbers.
pub trait Entropy: Send + Sync {
    /// A uniformly distributed number.
    fn next_u64(&self) -> u64;
}

/// The clocks of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    // The one place where the wall clock is read.
    #[expect(clippy::disallowed_methods)]
    fn wall(&self) -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }

    fn boot(&self) -> Duration {
        // The monotonic clock of Linux stops during suspend; a lease must not.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
    }
}

/// The random number generator of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn next_u64(&self) -> u64 {
        // Without random numbers nonces collide, and colliding nonces lose data: the safe reaction is to stop.
        SysRng.try_next_u64().expect("the operating system's random number generator must work")
    }
}

/// All external inputs of a component. Cloning is cheap and shares the sources.
#[derive(Clone)]
pub struct Env {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) boot_id: Option<Arc<str>>,
    /// `None`: tasks and blocking work run on tokio's threads.
    pub(crate) simulation: Option<Simulation>,
    /// The runtime of tasks and blocking work. `None`: that of the caller.
    pub(crate) runtime: Option<tokio::runtime::Handle>,
}

impl Env {
    /// The clocks, the random numbers and the tasks of the operating system.
    #[must_use]
    pub fn system() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            boot_id: system_boot_id(),
            simulation: None,
            runtime: None,
        }
    }

    /// An owner of tasks, without tasks yet. In a simulated process the tasks belong to that process.
    #[must_use]
    pub fn tasks(&self) -> Tasks {
        Tasks::of_env(self.simulation.as_ref().and_then(Simulation::process), self.runtime.clone())
    }

    /// Microseconds since the Unix epoch; see [`Clock::wall`].
    #[must_use]
    pub fn wall_micros(&self) -> u64 {
        u64::try_from(self.clock.wall().as_micros()).unwrap_or(u64::MAX)
    }

    /// See [`Clock::boot`].
    #[must_use]
    pub fn boot(&self) -> Duration {
        self.clock.boot()
    }

    /// The id of the current boot of the machine. As long as it stays the same, the machine has lost no file data that
    /// was written but not synced. `None`: unknown on this system.
    #[must_use]
    pub fn boot_id(&self) -> Option<&str> {
        self.boot_id.as_deref()
    }

    /// See [`Entropy::next_u64`].
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        self.entropy.next_u64()
    }

    /// A fresh ULID: the wall clock's milliseconds and 80 random bits.
    #[must_use]
    pub fn ulid(&self) -> Ulid {
        let random = u128::from(self.random_u64()) << 64 | u128::from(self.random_u64());
        Ulid::from_parts(self.wall_micros() / 1_000, random)
    }

    /// Runs work that blocks its thread (file access, a long SQLite statement) on a thread where blocking is allowed.
    ///
    /// Cancelling the call does not stop work that has started; its result is dropped.
    ///
    /// # Panics
    /// If `work` panics, or if the tokio runtime shuts down before the work starts.
    #[expect(clippy::disallowed_methods)] // The one function that the ban refers to.
    pub async fn blocking<T, F>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        if self.simulation.is_some() {
            return work();
        }
        let running = match &self.runtime {
            None => tokio::task::spawn_blocking(work),
            Some(runtime) => runtime.spawn_blocking(work),
        };
        match running.await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => panic!("the runtime shut down before blocking work could start"),
        }
    }
}

/// The kernel generates a boot id at each start: see random(4).
fn system_boot_id() -> Option<Arc<str>> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(boot_id.trim_end().into()).filter(|boot_id: &Arc<str>| !boot_id.is_empty())
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").field("simulation", &self.simulation).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The system environment gives the current wall time, a monotonic clock and unique ids.
    #[test]
    fn env_system_clocks_run() {
        let env = Env::system();
        assert!(env.wall_micros() > 1_700_000_000_000_000);
        let first = env.boot();
        assert!(env.boot() >= first);
        assert_ne!(env.ulid(), env.ulid());
    }
}
