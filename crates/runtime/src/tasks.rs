//! Tasks with an owner, a stop signal and a proof that they have ended.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::lock::Lock;
use crate::process::Process;

/// The stop signal of an owner to its tasks. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Stop(CancellationToken);

impl Stop {
    /// A signal that is not given yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal. It cannot be withdrawn.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// Whether the signal is given.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the signal is given. Cancelling the wait has no effect.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }
}

/// The tasks of one owner. Cloning shares them.
///
/// A panic ends only its own task. It is logged as an error with the name of the task; the other tasks continue.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: Stop,
    running: Arc<Lock<BTreeMap<&'static str, usize>>>,
    /// Under simulation, the process that owns the tasks.
    process: Option<Process>,
    /// The runtime of the tasks. `None`: that of the caller of [`Tasks::spawn`].
    runtime: Option<Handle>,
}

/// Tasks that had not ended at the deadline: name and number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished(pub Vec<(&'static str, usize)>);

impl std::fmt::Display for Unfinished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, (name, number)) in self.0.iter().enumerate() {
            write!(f, "{}{number} × {name}", if position == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Unfinished {}

impl Tasks {
    /// An owner without tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Tasks::new`], for tasks on `runtime`; under simulation, for tasks of `process`.
    pub(crate) fn of_env(process: Option<Process>, runtime: Option<Handle>) -> Self {
        Self { process, runtime, ..Self::default() }
    }

    /// The stop signal of these tasks.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Runs `task` concurrently with the caller. The task must end soon after the stop signal.
    #[expect(clippy::disallowed_methods)] // The one function that the ban refers to.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = TaskEntry::enter(name, &self.running);
        let task = async move {
            let _running = running;
            task.await;
        };
        match (&self.process, &self.runtime) {
            (None, None) => drop(tokio::spawn(self.tracker.track_future(task))),
            (None, Some(runtime)) => drop(runtime.spawn(self.tracker.track_future(task))),
            (Some(process), _) => drop(tokio::spawn(self.tracker.track_future(process.wrap_task(task)))),
        }
    }

    /// Gives the stop signal and waits until all tasks have ended.
    ///
    /// If the call is cancelled, the signal stays given.
    ///
    /// # Errors
    /// [`Unfinished`] names the tasks that still run after `deadline`; they continue to run.
    pub async fn finish(&self, deadline: Duration) -> Result<(), Unfinished> {
        self.stop.request();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.map_err(|_| {
            let running = self.running.lock();
            Unfinished(running.iter().map(|(name, number)| (*name, *number)).collect())
        })
    }
}

/// The entry of one running task in its owner's table. Dropping removes it, also after a panic.
struct TaskEntry {
    name: &'static str,
    table: Arc<Lock<BTreeMap<&'static str, usize>>>,
}

impl TaskEntry {
    fn enter(name: &'static str, table: &Arc<Lock<BTreeMap<&'static str, usize>>>) -> Self {
        *table.lock().entry(name).or_default() += 1;
        Self { name, table: Arc::clone(table) }
    }
}

impl Drop for TaskEntry {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.name, "task panicked");
        }
        let mut table = self.table.lock();
        if let Some(number) = table.get_mut(self.name) {
            *number -= 1;
            if *number == 0 {
                table.remove(self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The call `finish` waits for the tasks until the deadline and names those that hang.
    #[tokio::test(start_paused = true)]
    async fn tasks_finish_waits_and_names_hung_tasks() {
        let tasks = Tasks::new();
        let stop = tasks.stop().clone();
        tasks.spawn("cooperative", async move { stop.requested().await });
        tasks.spawn("hung", std::future::pending());
        let unfinished = tasks.finish(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(unfinished, Unfinished(vec![("hung", 1)]));
        assert_eq!(unfinished.to_string(), "1 × hung");
    }

    /// A panic ends only the task in which it occurs.
    #[tokio::test(start_paused = true)]
    async fn task_panic_ends_only_one_task() {
        let tasks = Tasks::new();
        tasks.spawn("panics", async { panic!("on purpose") });
        assert_eq!(tasks.finish(Duration::from_secs(5)).await, Ok(()));
    }
}
