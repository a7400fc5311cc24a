//! The end of a log when one of its tasks panics.

use std::sync::Arc;

use super::LogEnd;
use super::handle::LogShared;

/// A task of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogTask {
    Disk,
    Ship,
    Probe,
    Trim,
}

/// Runs a task of the log. If it panics, the log ends and its waiters are notified: without the task they would wait
/// indefinitely.
pub(super) async fn guarded(shared: Arc<LogShared>, task: LogTask, work: impl Future<Output = ()>) {
    let _watch = PanicGuard { shared, task };
    work.await;
}

struct PanicGuard {
    shared: Arc<LogShared>,
    task: LogTask,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Self { shared, task } = self;
        tracing::error!(
            log = %shared.id, ?task, impact = "no more acknowledgements",
            "log task panicked, restart required"
        );
        shared.lock().poison(&shared.wakers);
        // For other tasks, the disk task completes the end; no task does so for the disk task.
        if *task == LogTask::Disk {
            let end = shared.lock().fail_unrecorded_writes();
            shared.ended.set(end.unwrap_or(LogEnd::Poisoned));
        }
    }
}
