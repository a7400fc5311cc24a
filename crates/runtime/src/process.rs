//! A process under simulation: a group of tasks in one runtime. A test can pause, resume and kill the group between any
//! two steps of its tasks.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};

use crate::lock::Lock;

/// How an [`Env`](crate::Env) runs tasks and blocking work under simulation. Blocking work runs at once, on the caller's
/// thread: a paused clock would advance during work on another thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Simulation {
    process: Option<Process>,
}

impl Simulation {
    /// The tasks belong to `process`.
    pub(crate) fn of_process(process: Process) -> Self {
        Self { process: Some(process) }
    }

    /// The process that owns the tasks.
    pub(crate) fn process(&self) -> Option<Process> {
        self.process.clone()
    }
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The state of a process, checked before each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunState {
    Running,
    Paused,
    Dead,
}

/// Called before a step of the process.
type StepHook = Box<dyn FnOnce() + Send>;

struct ProcessState {
    run_state: RunState,
    /// The number of steps left before the hook, and the hook. `None`: no hook is set.
    hook: Option<(u64, StepHook)>,
    steps: u64,
    next_task: u64,
    tasks: BTreeMap<u64, Arc<Task>>,
}

/// A task of the process.
struct Task {
    /// `None` when the task has ended; locked while it is being polled.
    work: Lock<Option<Work>>,
    waker: Lock<Option<Waker>>,
}

/// A process under simulation: the tasks that [`Env::tasks`](crate::Env::tasks) of its [`Env`](crate::Env) spawned.
/// Cloning shares it.
#[derive(Clone)]
pub struct Process(Arc<Lock<ProcessState>>);

impl Default for Process {
    fn default() -> Self {
        Self::new()
    }
}

impl Process {
    /// A running process without tasks.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Lock::new(ProcessState {
            run_state: RunState::Running,
            hook: None,
            steps: 0,
            next_task: 0,
            tasks: BTreeMap::new(),
        })))
    }

    /// Pauses the process: no task takes a step until [`resume`](Self::resume), regardless of events. A dead process
    /// stays dead.
    pub fn pause(&self) {
        let mut state = self.state();
        if state.run_state == RunState::Running {
            state.run_state = RunState::Paused;
        }
    }

    /// Resumes the process after a [`pause`](Self::pause).
    pub fn resume(&self) {
        let wakers = {
            let mut state = self.state();
            if state.run_state != RunState::Paused {
                return;
            }
            state.run_state = RunState::Running;
            state.wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the process is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.state().run_state == RunState::Paused
    }

    /// Whether the process was killed.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().run_state == RunState::Dead
    }

    /// The number of steps that its tasks have taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// After the next `steps` steps, calls `hook` before the following step. The hook may kill or pause the process, which
    /// prevents that step. Replaces an earlier hook.
    pub fn hook_after(&self, steps: u64, hook: impl FnOnce() + Send + 'static) {
        self.state().hook = Some((steps, Box::new(hook)));
    }

    /// Whether a hook is set that was not called yet.
    #[must_use]
    pub fn has_hook(&self) -> bool {
        self.state().hook.is_some()
    }

    /// Kills the process at once. The tasks are dropped with everything that they own, in the order in which they were
    /// spawned, and none takes another step. The caller first disconnects everything that must not see the drops: the
    /// connections, the disk and the bucket access of the process.
    ///
    /// # Panics
    /// If called in a step of the process itself, except from its [hook](Self::hook_after).
    pub fn kill(&self) {
        let tasks = {
            let mut state = self.state();
            state.run_state = RunState::Dead;
            state.hook = None;
            std::mem::take(&mut state.tasks)
        };
        for task in tasks.into_values() {
            let work = match task.work.try_lock() {
                Some(mut work) => work.take(),
                None => panic!("a step must not kill its own process"),
            };
            // Outside of every lock: a drop may run arbitrary code.
            drop(work);
            task.wake();
        }
    }

    /// Makes `work` a task of this process. The caller spawns the returned future.
    pub(crate) fn wrap_task(&self, work: impl Future<Output = ()> + Send + 'static) -> ProcessTask {
        let mut state = self.state();
        let number = state.next_task;
        state.next_task += 1;
        let alive = state.run_state != RunState::Dead;
        let work: Option<Work> = if alive { Some(Box::pin(work)) } else { None };
        let task = Arc::new(Task { work: Lock::new(work), waker: Lock::default() });
        if alive {
            state.tasks.insert(number, Arc::clone(&task));
        }
        ProcessTask { process: self.clone(), number, task }
    }

    /// Counts a step and returns whether the task may take it.
    fn may_step(&self) -> RunState {
        let hook = {
            let mut state = self.state();
            if state.run_state != RunState::Running {
                return state.run_state;
            }
            state.steps += 1;
            match &mut state.hook {
                Some((0, _)) => state.hook.take(),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some((_, hook)) = hook {
            hook();
        }
        self.state().run_state
    }

    fn state(&self) -> MutexGuard<'_, ProcessState> {
        // Each change is complete before any foreign code is called.
        self.0.lock()
    }
}

impl ProcessState {
    fn wakers(&self) -> Vec<Waker> {
        self.tasks.values().filter_map(|task| task.waker().clone()).collect()
    }
}

impl Task {
    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock()
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
            .field("run_state", &state.run_state)
            .field("tasks", &state.tasks.len())
            .finish_non_exhaustive()
    }
}

/// A task of a [`Process`].
pub(crate) struct ProcessTask {
    process: Process,
    number: u64,
    task: Arc<Task>,
}

impl Future for ProcessTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        {
            let mut waker = self.task.waker();
            if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
        }
        match self.process.may_step() {
            RunState::Dead => return Poll::Ready(()),
            RunState::Paused => return Poll::Pending,
            RunState::Running => {}
        }
        // Locked during the poll: a kill in between is a defect of the simulation, and panics.
        let mut work = self.task.work.lock();
        let Some(running) = work.as_mut() else { return Poll::Ready(()) };
        if running.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        *work = None;
        Poll::Ready(())
    }
}

impl Drop for ProcessTask {
    fn drop(&mut self) {
        self.process.state().tasks.remove(&self.number);
        let work = self.task.work.lock().take();
        drop(work);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::{Env, SeededEntropy, VirtualClock};

    /// Counts seconds, and adds 1,000 when it is dropped.
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

    /// A paused process takes no step and continues when it is resumed.
    #[tokio::test(start_paused = true)]
    async fn process_paused_takes_no_step_until_resumed() {
        let (_env, process, count) = counting();
        seconds(3).await;
        process.pause();
        seconds(10).await;
        assert_eq!(count.load(Ordering::Relaxed), 3);
        process.resume();
        seconds(2).await;
        // The second that ended during the pause, and two more.
        assert_eq!(count.load(Ordering::Relaxed), 6);
    }

    /// A killed process drops all tasks at once and starts no new ones.
    #[tokio::test(start_paused = true)]
    async fn process_killed_drops_all_tasks_and_starts_none() {
        let (env, process, count) = counting();
        seconds(3).await;
        process.kill();
        assert_eq!(count.load(Ordering::Relaxed), 1_003);
        let late = Counting(Arc::clone(&count));
        let tasks = env.tasks();
        tasks.spawn("late", async move { drop(late) });
        assert_eq!(count.load(Ordering::Relaxed), 2_003, "a task spawned by a dead process is dropped");
        assert_eq!(tasks.finish(Duration::from_secs(1)).await, Ok(()));
        process.resume();
        seconds(2).await;
        assert_eq!(count.load(Ordering::Relaxed), 2_003);
    }

    /// A step hook runs in place of the step that it is set for.
    #[tokio::test(start_paused = true)]
    async fn process_step_hook_runs_in_place_of_step() {
        let (_env, process, count) = counting();
        let target = process.clone();
        // In the first step the task only starts its first sleep.
        process.hook_after(3, move || target.kill());
        seconds(10).await;
        assert_eq!(count.load(Ordering::Relaxed), 1_002);
        assert_eq!(process.steps(), 4);
    }
}
