//! How an engine ends: for good, or to go on with a fresh log.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{LogId, Subject};

use super::{Engine, Prepared};

/// What a shutdown achieved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Subjects that were handed back: everything of them is in the bucket.
    pub released: u64,
    /// Subjects that were not, and why. What they have accepted is in the log, or in the local write-ahead log: whoever
    /// comes next takes it over.
    pub unreleased: Vec<(Subject, String)>,
}

impl Engine {
    /// Ends an engine whose log has ended, and prepares one with a fresh log in its place. Nothing of this one is
    /// running any more when it returns.
    ///
    /// Cancelling the call leaves an engine that serves nothing.
    pub async fn succeed(self) -> Prepared {
        let shared = &self.shared;
        crate::fail_points::reach(crate::fail_points::Step::TakenOver);
        shared.directory.shut();
        shared.ended.give();
        shared.directory.empty().await;
        shared.log.stop().await;
        self.next()
    }

    /// Ends an engine in good order, as [`Engine::shutdown`] does, and prepares one with a fresh log in its place: one to
    /// which nothing belongs. What sleeps here belongs to the log that ends, so that anybody may claim it from there. Waits
    /// as long as the bucket does not answer. Nothing of this engine is running any more when it returns.
    ///
    /// Cancelling the call leaves an engine that serves nothing.
    pub async fn begin_anew(self) -> Prepared {
        let shared = &self.shared;
        shared.directory.shut();
        shared.stop.give();
        shared.directory.empty().await;
        shared.log.stop().await;
        self.next()
    }

    /// An engine in the place of this one, which has ended.
    fn next(&self) -> Prepared {
        let shared = &self.shared;
        let log = LogId::new(shared.settings.server.clone(), shared.env.ulid());
        Prepared {
            settings: shared.settings.clone(),
            data: Arc::clone(&shared.data),
            log,
            predecessor: Some(shared.log.id().clone()),
            bucket: Arc::clone(&shared.bucket),
            disk: Arc::clone(&shared.disk),
            spool: Arc::clone(&shared.spool),
            env: shared.env.clone(),
        }
    }

    /// Takes no more requests, brings every open subject to the bucket and hands it back. Afterwards the engine
    /// serves nothing.
    ///
    /// Cancelling the call, like `deadline` passing, lets the subjects go on releasing by themselves.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let directory = &self.shared.directory;
        directory.shut();
        self.shared.stop.give();
        // Who held it up is named below.
        let _ = tokio::time::timeout(deadline, async {
            directory.empty().await;
            self.shared.log.stop().await;
        })
        .await;
        let (released, unreleased) = directory.releases();
        ShutdownReport { released, unreleased }
    }
}
