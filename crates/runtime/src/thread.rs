//! A thread with an async runtime of its own.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::env::Env;

/// A thread that runs an async runtime of its own: no task of another thread can delay its tasks.
///
/// [`Env::on_thread`] gives the environment for its tasks. A drop ends the thread; tasks that still run are dropped.
#[derive(Debug)]
pub struct RuntimeThread {
    runtime: Handle,
    // The thread ends when this is dropped.
    _alive: oneshot::Sender<()>,
}

impl RuntimeThread {
    /// Starts a thread called `name`; Linux shows the first 15 bytes.
    ///
    /// # Errors
    /// The error of the operating system.
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (alive, ended) = oneshot::channel::<()>();
        let handle = runtime.handle().clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // The sender sends nothing: the wait ends when it is dropped.
            let _ = runtime.block_on(ended);
            // Blocking work that still runs must not delay the end of the process.
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, _alive: alive })
    }
}

impl Env {
    /// The same environment, with its tasks and its blocking work on `thread`.
    #[must_use]
    pub fn on_thread(&self, thread: &RuntimeThread) -> Self {
        Self { runtime: Some(thread.runtime.clone()), ..self.clone() }
    }

    /// Runs `work` on the thread of this environment, and returns its output. In an environment without a thread of its
    /// own, the caller runs it.
    ///
    /// If the call is cancelled, `work` is dropped.
    ///
    /// # Panics
    /// If `work` panics, or if the thread ends before `work`.
    pub async fn run<T, F>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let Some(runtime) = &self.runtime else { return work.await };
        let (sender, outcome) = oneshot::channel();
        let _abort = AbortOnDrop(runtime.spawn(async move {
            // An error means that the caller was cancelled.
            let _ = sender.send(work.await);
        }));
        outcome.await.expect("the work of another thread must not panic, nor its thread end before it")
    }
}

/// Drops a task when its owner no longer waits for it.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    fn current_thread_name() -> Option<String> {
        std::thread::current().name().map(str::to_owned)
    }

    /// Tasks, blocking work and awaited work of a thread run apart from the caller's thread.
    #[tokio::test]
    async fn runtime_thread_runs_its_tasks() {
        let thread = RuntimeThread::start("apart").unwrap();
        let env = Env::system().on_thread(&thread);
        assert_eq!(env.run(async { current_thread_name() }).await.as_deref(), Some("apart"));
        let (sender, name) = oneshot::channel();
        env.tasks().spawn("test", async move { drop(sender.send(current_thread_name())) });
        assert_eq!(name.await.unwrap().as_deref(), Some("apart"));
        assert_ne!(env.blocking(current_thread_name).await, current_thread_name());
    }

    /// A cancelled call drops the work, and the end of the thread drops its tasks.
    #[tokio::test]
    async fn runtime_thread_end_drops_tasks() {
        let thread = RuntimeThread::start("apart").unwrap();
        let env = Env::system().on_thread(&thread);
        let dropped = Arc::new(Notify::new());
        let notifier = |notify: &Arc<Notify>| {
            let notify = Arc::clone(notify);
            scopeguard(move || notify.notify_one())
        };
        {
            let guard = notifier(&dropped);
            let work = env.run(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
            let mut work = std::pin::pin!(work);
            assert!(futures_poll_once(work.as_mut()).await);
        }
        dropped.notified().await;
        let guard = notifier(&dropped);
        env.tasks().spawn("test", async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        drop(thread);
        dropped.notified().await;
    }

    /// Whether the future is pending after one poll.
    async fn futures_poll_once<F: Future>(mut work: std::pin::Pin<&mut F>) -> bool {
        std::future::poll_fn(move |cx| std::task::Poll::Ready(work.as_mut().poll(cx).is_pending())).await
    }

    /// Runs `end` on drop.
    fn scopeguard(end: impl FnOnce() + Send + 'static) -> impl Send {
        struct Guard<F: FnOnce()>(Option<F>);
        impl<F: FnOnce()> Drop for Guard<F> {
            fn drop(&mut self) {
                self.0.take().into_iter().for_each(|end| end());
            }
        }
        Guard(Some(end))
    }
}
