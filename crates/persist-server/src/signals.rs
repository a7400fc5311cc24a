//! The signals of the process. The control thread receives them, so that they also reach a process whose data side hangs.

use std::future::Future;

use dormouse_daemon::start::end_process;
use dormouse_daemon::{ExitReason, StopSignals};
use dormouse_runtime::{Env, Stop, Tasks};

/// Whether the process shall stop.
#[derive(Debug, Clone)]
pub(crate) struct StopRequest(Stop);

impl StopRequest {
    /// Listens for SIGTERM and SIGINT in a task of `tasks`, on the thread of `control`. The first signal requests the stop.
    /// The second one ends the process at once.
    ///
    /// If the call is cancelled, a signal ends the process or has no effect.
    ///
    /// # Errors
    /// The error of the operating system.
    pub(crate) async fn listen(control: &Env, tasks: &Tasks) -> std::io::Result<Self> {
        // The receivers belong to the runtime in which they begin.
        let mut signals = control.run(async { StopSignals::listen() }).await?;
        let stop = Stop::new();
        let first = stop.clone();
        tasks.spawn("signals", async move {
            let signal = signals.next().await;
            tracing::info!(signal, "stop signal received");
            first.request();
            let signal = signals.next().await;
            tracing::warn!(signal, "second signal received, aborting");
            // Not by the main thread: it may wait for a data side that hangs.
            end_process(ExitReason::SecondSignal);
        });
        Ok(Self(stop))
    }

    /// The output of `work`; `None` if the stop is requested first. Then `work` is cancelled.
    pub(crate) async fn or<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.0.requested() => None,
            done = work => Some(done),
        }
    }
}
