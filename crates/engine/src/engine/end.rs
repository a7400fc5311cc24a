//! The end of an engine: shutdown, or restart with a new log.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{LogId, Subject};

use super::{Engine, PreparedEngine};

/// Result of a shutdown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Subjects that were released: all of their writes are in the bucket.
    pub released: u64,
    /// Subjects that were not released, and why. Their accepted writes are in the log or in the local WAL, and the next
    /// owner recovers them.
    pub unreleased: Vec<(Subject, String)>,
}

impl Engine {
    /// Ends an engine whose log has ended, and prepares one with a new log in its place. When the call returns, no task
    /// of this engine runs.
    ///
    /// Cancelling the call leaves an engine that does not serve.
    pub async fn restart_after_takeover(self) -> PreparedEngine {
        let shared = &self.shared;
        dormouse_runtime::fail_point!(TakenOver);
        shared.subject_table.stop_accepting();
        shared.ended.request();
        shared.subject_table.wait_until_empty().await;
        shared.log.stop().await;
        self.next()
    }

    /// Releases every open subject as [`Engine::shutdown`] does, and prepares an engine with a new log in its place. No
    /// subject belongs to the new log. Dormant subjects still belong to the ended log, so any server may claim them
    /// from it. Waits for as long as the bucket does not answer. When the call returns, no task of this engine runs.
    ///
    /// Cancelling the call leaves an engine that does not serve.
    pub async fn restart_after_drain(self) -> PreparedEngine {
        let shared = &self.shared;
        shared.subject_table.stop_accepting();
        shared.stop.request();
        shared.subject_table.wait_until_empty().await;
        shared.log.stop().await;
        self.next()
    }

    /// Prepares the engine that replaces this one, which has ended.
    fn next(&self) -> PreparedEngine {
        let shared = &self.shared;
        let log = LogId::new(shared.settings.server.clone(), shared.env.ulid());
        PreparedEngine {
            settings: shared.settings.clone(),
            data: Arc::clone(&shared.data),
            log,
            predecessor: Some(shared.log.id().clone()),
            bucket: Arc::clone(&shared.bucket),
            disk: Arc::clone(&shared.disk),
            spool: Arc::clone(&shared.spool),
            env: shared.env.clone(),
            instruments: shared.instruments.clone(),
        }
    }

    /// Refuses new requests, flushes every open subject and releases it. Afterwards the engine does not serve.
    ///
    /// If the call is cancelled or `deadline` passes, the subjects continue to release by themselves.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let directory = &self.shared.subject_table;
        directory.stop_accepting();
        self.shared.stop.request();
        // The report names the subjects that were not released in time.
        let _ = tokio::time::timeout(deadline, async {
            directory.wait_until_empty().await;
            self.shared.log.stop().await;
        })
        .await;
        let (released, unreleased) = directory.releases();
        ShutdownReport { released, unreleased }
    }
}
