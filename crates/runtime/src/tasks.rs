//! Tasks with an owner, a stop signal and a proof that they ended.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::process::Process;

/// The stop signal that an owner gives to its tasks. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Stop(CancellationToken);

impl Stop {
    /// A signal nobody has given yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal; once given it stays.
    pub fn give(&self) {
        self.0.cancel();
    }

    /// Whether it has been given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until it is given. Cancelling the wait leaves nothing behind.
    pub async fn given(&self) {
        self.0.cancelled().await;
    }
}

/// The tasks of one owner. Cloning shares them.
///
/// A task that panics ends alone: the panic is logged as an error by name and the others go on.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: Stop,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    /// Under simulation, the process that they belong to.
    process: Option<Process>,
}

/// Tasks that had not ended when the deadline came: name and number.
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

    /// As [`Tasks::new`], for tasks of a simulated process.
    pub(crate) fn of_process(process: Process) -> Self {
        Self { process: Some(process), ..Self::default() }
    }

    /// The stop signal of these tasks.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Runs `task` beside the caller. It is expected to end soon after the stop signal.
    #[expect(clippy::disallowed_methods)] // The place that the ban points to.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = Running::enter(name, &self.running);
        let task = async move {
            let _running = running;
            task.await;
        };
        match &self.process {
            None => drop(tokio::spawn(self.tracker.track_future(task))),
            Some(process) => drop(tokio::spawn(self.tracker.track_future(process.govern(task)))),
        }
    }

    /// Gives the stop signal and waits until every task has ended.
    ///
    /// Cancelling the call leaves the signal given.
    ///
    /// # Errors
    /// [`Unfinished`] names the tasks that are still running when `deadline` has passed; they go on running.
    pub async fn finish(&self, deadline: Duration) -> Result<(), Unfinished> {
        self.stop.give();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.map_err(|_| {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            Unfinished(running.iter().map(|(name, number)| (*name, *number)).collect())
        })
    }
}

/// One running task in its owner's books; leaves them when dropped, also by a panic.
struct Running {
    name: &'static str,
    books: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Running {
    fn enter(name: &'static str, books: &Arc<Mutex<BTreeMap<&'static str, usize>>>) -> Self {
        *books.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Self { name, books: Arc::clone(books) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.name, "a task panicked");
        }
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = books.get_mut(self.name) {
            *number -= 1;
            if *number == 0 {
                books.remove(self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn finish_waits_for_tasks_and_names_those_that_hang() {
        let tasks = Tasks::new();
        let stop = tasks.stop().clone();
        tasks.spawn("polite", async move { stop.given().await });
        tasks.spawn("deaf", std::future::pending());
        let unfinished = tasks.finish(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(unfinished, Unfinished(vec![("deaf", 1)]));
        assert_eq!(unfinished.to_string(), "1 × deaf");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_ends_one_task_alone() {
        let tasks = Tasks::new();
        tasks.spawn("panics", async { panic!("on purpose") });
        assert_eq!(tasks.finish(Duration::from_secs(5)).await, Ok(()));
    }
}
