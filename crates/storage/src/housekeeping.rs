//! What an engine does by itself: compacts what keeps the log long, empties the logs of dead processes, and keeps the
//! local disk from filling up.

mod compact;
mod discarded;
mod drain;
mod evict;
mod surplus;

use std::future::Future;
use std::sync::Arc;

use crate::engine::Shared;

/// Starts it.
pub(crate) fn start(shared: &Arc<Shared>) {
    spawn(shared, "compactor", compact::run(Arc::clone(shared)));
    spawn(shared, "drain", drain::run(Arc::clone(shared)));
    spawn(shared, "surplus", surplus::run(Arc::clone(shared)));
    spawn(shared, "discarded files", discarded::remove(Arc::clone(shared)));
    spawn(shared, "eviction", evict::run(Arc::clone(shared)));
    let spool = Arc::clone(&shared.spool);
    spawn(shared, "abandoned uploads", async move { spool.sweep().await });
}

/// Runs `work` until the engine stops: all of it can be done by somebody else, later.
fn spawn(shared: &Arc<Shared>, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    let stopping = Arc::clone(shared);
    shared.tasks.spawn(name, async move {
        tokio::select! {
            biased;
            () = stopping.stopping() => {}
            () = work => {}
        }
    });
}
