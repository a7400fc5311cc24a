//! Clocks and random number generators.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::{StdRng, SysRng};
use rand::{Rng, SeedableRng, TryRng};
use ulid::Ulid;

use crate::process::Process;
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

/// The random number generator of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn next_u64(&self) -> u64 {
        // Without random numbers nonces collide, and colliding nonces lose data: the safe reaction is to stop.
        SysRng.try_next_u64().expect("the operating system's random number generator must work")
    }
}

/// A seeded RNG: the same seed gives the same numbers.
#[derive(Debug)]
pub struct SeededEntropy(Mutex<StdRng>);

impl SeededEntropy {
    /// An RNG with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        // The RNG has no invariant that a panic elsewhere could break.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }
}

/// Where blocking work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blocking {
    /// On tokio's pool for blocking work.
    Pool,
    /// At once, on the caller's thread: a paused clock would advance during work on another thread.
    Inline,
}

/// All external inputs of a component. Cloning is cheap and shares the sources.
#[derive(Clone)]
pub struct Env {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    blocking: Blocking,
    boot_id: Option<Arc<str>>,
    /// Under simulation, the process that owns the tasks.
    process: Option<Process>,
}

impl Env {
    /// The clocks, the random numbers and the tasks of the operating system.
    #[must_use]
    pub fn system() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            blocking: Blocking::Pool,
            boot_id: system_boot_id(),
            process: None,
        }
    }

    /// An environment with the given sources, in which blocking work runs inline.
    #[must_use]
    pub fn simulated(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self { clock, entropy, blocking: Blocking::Inline, boot_id: Some("simulated".into()), process: None }
    }

    /// The same environment after a start of the machine; see [`Env::boot_id`].
    #[must_use]
    pub fn booted(self, boot_id: &str) -> Self {
        Self { boot_id: Some(boot_id.into()), ..self }
    }

    /// The same environment for one process: its [tasks](Self::tasks) are paused and killed together.
    #[must_use]
    pub fn of_process(self, process: Process) -> Self {
        Self { process: Some(process), ..self }
    }

    /// An owner of tasks, without tasks yet. In a simulated [process](Self::of_process) the tasks belong to that process.
    #[must_use]
    pub fn tasks(&self) -> Tasks {
        match &self.process {
            Some(process) => Tasks::of_process(process.clone()),
            None => Tasks::new(),
        }
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
        match self.blocking {
            Blocking::Inline => work(),
            Blocking::Pool => match tokio::task::spawn_blocking(work).await {
                Ok(done) => done,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => panic!("the runtime shut down before blocking work could start"),
            },
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
        f.debug_struct("Env").field("blocking", &self.blocking).finish_non_exhaustive()
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
