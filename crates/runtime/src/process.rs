//! A process under simulation: some tasks among others in one runtime, which can be stopped, woken and killed together,
//! between any two steps that they take.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker};

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a process does when its next step comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Running,
    Paused,
    Dead,
}

/// Called in place of a step of the process.
type Strike = Box<dyn FnOnce() + Send>;

struct State {
    standing: Standing,
    /// Steps that are left until the strike; `None`: there is none.
    strike: Option<(u64, Strike)>,
    steps: u64,
    next_task: u64,
    tasks: BTreeMap<u64, Arc<Task>>,
}

/// A task of the process.
struct Task {
    /// Not there while it is being polled, and when it has ended.
    work: Mutex<Option<Work>>,
    waker: Mutex<Option<Waker>>,
}

/// A process under simulation: the tasks that [`Env::tasks`](crate::Env::tasks) of its [`Env`](crate::Env) spawned.
/// Cloning shares it.
#[derive(Clone)]
pub struct Process(Arc<Mutex<State>>);

impl Default for Process {
    fn default() -> Self {
        Self::new()
    }
}

impl Process {
    /// A running process without tasks.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            standing: Standing::Running,
            strike: None,
            steps: 0,
            next_task: 0,
            tasks: BTreeMap::new(),
        })))
    }

    /// Stands still: no task takes a step until [`resume`](Self::resume), whatever comes meanwhile. A dead one stays dead.
    pub fn pause(&self) {
        let mut state = self.state();
        if state.standing == Standing::Running {
            state.standing = Standing::Paused;
        }
    }

    /// Goes on after a [`pause`](Self::pause).
    pub fn resume(&self) {
        let wakers = {
            let mut state = self.state();
            if state.standing != Standing::Paused {
                return;
            }
            state.standing = Standing::Running;
            state.wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether it stands still.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.state().standing == Standing::Paused
    }

    /// Whether it was killed.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().standing == Standing::Dead
    }

    /// How many steps its tasks have taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// In place of the step after the next `steps`, calls `strike`, which may kill or pause the process. Takes the place of
    /// an earlier one.
    pub fn strike_after(&self, steps: u64, strike: impl FnOnce() + Send + 'static) {
        self.state().strike = Some((steps, Box::new(strike)));
    }

    /// Whether a strike is still to come.
    #[must_use]
    pub fn is_to_be_struck(&self) -> bool {
        self.state().strike.is_some()
    }

    /// Ends it here and now: whatever its tasks own is dropped at once, in the order in which they were spawned, and none
    /// takes another step. What must not see that (its connections, its disk, its way to the bucket) is cut off before,
    /// by the caller.
    ///
    /// # Panics
    /// In a step of the process itself, other than a [strike](Self::strike_after).
    pub fn kill(&self) {
        let tasks = {
            let mut state = self.state();
            state.standing = Standing::Dead;
            state.strike = None;
            std::mem::take(&mut state.tasks)
        };
        for task in tasks.into_values() {
            let work = match task.work.try_lock() {
                Ok(mut work) => work.take(),
                Err(TryLockError::Poisoned(held)) => held.into_inner().take(),
                Err(TryLockError::WouldBlock) => panic!("a process is not killed by a step of its own"),
            };
            // Outside of every lock: what is dropped may do anything.
            drop(work);
            task.wake();
        }
    }

    /// Makes `work` a task of this process: what comes back is to be spawned.
    pub(crate) fn govern(&self, work: impl Future<Output = ()> + Send + 'static) -> Governed {
        let mut state = self.state();
        let number = state.next_task;
        state.next_task += 1;
        let alive = state.standing != Standing::Dead;
        let work: Option<Work> = if alive { Some(Box::pin(work)) } else { None };
        let task = Arc::new(Task { work: Mutex::new(work), waker: Mutex::default() });
        if alive {
            state.tasks.insert(number, Arc::clone(&task));
        }
        Governed { process: self.clone(), number, task }
    }

    /// Asks for leave to take a step.
    fn may_step(&self) -> Standing {
        let strike = {
            let mut state = self.state();
            if state.standing != Standing::Running {
                return state.standing;
            }
            state.steps += 1;
            match &mut state.strike {
                Some((0, _)) => state.strike.take(),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some((_, strike)) = strike {
            strike();
        }
        self.state().standing
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything of others is called.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wakers(&self) -> Vec<Waker> {
        self.tasks.values().filter_map(|task| task.waker().clone()).collect()
    }
}

impl Task {
    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let waker = self.waker().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Process")
            .field("standing", &state.standing)
            .field("tasks", &state.tasks.len())
            .finish_non_exhaustive()
    }
}

/// A task of a [`Process`].
pub(crate) struct Governed {
    process: Process,
    number: u64,
    task: Arc<Task>,
}

impl Future for Governed {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        {
            let mut waker = self.task.waker();
            if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
        }
        match self.process.may_step() {
            Standing::Dead => return Poll::Ready(()),
            Standing::Paused => return Poll::Pending,
            Standing::Running => {}
        }
        // Held while it is polled: a kill in between is a defect of the simulation, and says so.
        let mut work = self.task.work.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(running) = work.as_mut() else { return Poll::Ready(()) };
        if running.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        *work = None;
        Poll::Ready(())
    }
}

impl Drop for Governed {
    fn drop(&mut self) {
        self.process.state().tasks.remove(&self.number);
        let work = self.task.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(work);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::{Env, SeededEntropy, VirtualClock};

    /// Counts seconds, and notes its own end.
    struct Counting(Arc<AtomicU64>);

    impl Drop for Counting {
        fn drop(&mut self) {
            self.0.fetch_add(1_000, Ordering::Relaxed);
        }
    }

    fn counting() -> (Env, Process, Arc<AtomicU64>) {
        let process = Process::new();
        let clock = Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000)));
        let env = Env::simulated(clock, Arc::new(SeededEntropy::new(1))).of_process(process.clone());
        let count = Arc::new(AtomicU64::new(0));
        let counting = Counting(Arc::clone(&count));
        env.tasks().spawn("counting", async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                counting.0.fetch_add(1, Ordering::Relaxed);
            }
        });
        (env, process, count)
    }

    async fn seconds(number: u64) {
        tokio::time::sleep(Duration::from_millis(number * 1_000 + 500)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_process_takes_no_step_and_goes_on() {
        let (_env, process, count) = counting();
        seconds(3).await;
        process.pause();
        seconds(10).await;
        assert_eq!(count.load(Ordering::Relaxed), 3);
        process.resume();
        seconds(2).await;
        // The second that was over during the pause, and two more.
        assert_eq!(count.load(Ordering::Relaxed), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_process_drops_everything_at_once_and_starts_nothing() {
        let (env, process, count) = counting();
        seconds(3).await;
        process.kill();
        assert_eq!(count.load(Ordering::Relaxed), 1_003);
        let late = Counting(Arc::clone(&count));
        let tasks = env.tasks();
        tasks.spawn("late", async move { drop(late) });
        assert_eq!(count.load(Ordering::Relaxed), 2_003, "what is spawned by the dead is dropped");
        assert_eq!(tasks.finish(Duration::from_secs(1)).await, Ok(()));
        process.resume();
        seconds(2).await;
        assert_eq!(count.load(Ordering::Relaxed), 2_003);
    }

    #[tokio::test(start_paused = true)]
    async fn a_strike_comes_in_place_of_a_step() {
        let (_env, process, count) = counting();
        let struck = process.clone();
        // The first step is the one in which it falls asleep.
        process.strike_after(3, move || struck.kill());
        seconds(10).await;
        assert_eq!(count.load(Ordering::Relaxed), 1_002);
        assert_eq!(process.steps(), 4);
    }
}
