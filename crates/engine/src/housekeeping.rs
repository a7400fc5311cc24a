//! Background tasks of an engine: compaction of subjects that retain log slots, reclamation of orphaned logs, removal
//! of stranded writes and abandoned uploads, and eviction of local files.

mod compact;
mod discarded;
mod evict;
mod reclaim;
mod stranded;

use std::future::Future;
use std::sync::Arc;

use crate::engine::EngineShared;

/// Starts the background tasks.
pub(crate) fn start(shared: &Arc<EngineShared>) {
    spawn(shared, "compactor", compact::run(Arc::clone(shared)));
    spawn(shared, "reclaim", reclaim::run(Arc::clone(shared)));
    spawn(shared, "stranded writes", stranded::run(Arc::clone(shared)));
    spawn(shared, "discarded files", discarded::remove(Arc::clone(shared)));
    spawn(shared, "eviction", evict::run(Arc::clone(shared)));
    let spool = Arc::clone(&shared.spool);
    spawn(shared, "abandoned uploads", async move { spool.sweep().await });
}

/// Runs `work` until the engine stops. Another process can do the remaining work later.
fn spawn(shared: &Arc<EngineShared>, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    let stopping = Arc::clone(shared);
    shared.tasks.spawn(name, async move {
        tokio::select! {
            biased;
            () = stopping.stopping() => {}
            () = work => {}
        }
    });
}
