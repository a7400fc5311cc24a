//! What becomes of a log when one of its tasks panics.

use std::sync::Arc;

use super::LogEnd;
use super::handle::Shared;

/// A task of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Disk,
    Ship,
    Look,
    Trim,
}

/// Runs a task of the log. If it panics, whoever waits for the log learns that it is at its end: without the task they
/// would wait for ever.
pub(super) async fn watched(shared: Arc<Shared>, task: Task, work: impl Future<Output = ()>) {
    let _watch = Watch { shared, task };
    work.await;
}

struct Watch {
    shared: Arc<Shared>,
    task: Task,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Self { shared, task } = self;
        tracing::error!(
            log = %shared.id, ?task,
            "a task of the log panicked: nothing is acknowledged from here on, restart this server"
        );
        shared.lock().poison(&shared.wakers);
        // The others leave the end to the disk's task; it can leave it to nobody.
        if *task == Task::Disk {
            let end = shared.lock().give_up_last_words();
            shared.ended.say(end.unwrap_or(LogEnd::Poisoned));
        }
    }
}
