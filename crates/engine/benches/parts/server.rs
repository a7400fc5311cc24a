//! A server without a bus: an engine on a bucket in a local directory, with an authority that permits every claim.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_bucket::open_bucket;
use dormouse_engine::api::{Authority, EventSink, LeaseGeneration};
use dormouse_engine::{Engine, EngineSettings};
use dormouse_protocol::{ErrorReply, Event, LogId, Subject};
use dormouse_runtime::{Env, Tasks};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// A folder on the disk of the build, because the folder for temporary files may be in memory.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder is writable")
}

/// Permits every claim.
struct PermissiveAuthority;

#[async_trait]
impl Authority for PermissiveAuthority {
    fn lease(&self) -> Option<LeaseGeneration> {
        Some(LeaseGeneration(1))
    }

    async fn may_claim(&self, _subject: &Subject, _owner: Option<&LogId>) -> Result<(), ErrorReply> {
        Ok(())
    }

    async fn released(&self, _subject: &Subject) {}
}

/// Drops every event.
struct NoEvents;

impl EventSink for NoEvents {
    fn publish(&self, _subject: &Subject, _event: Event) {}
}

/// A running engine in a runtime of its own.
pub struct Server {
    pub engine: Engine,
    pub runtime: Runtime,
}

impl Server {
    /// Serves the bucket in the directory `bucket`, with its local files in `data`.
    pub fn start(bucket: &Path, data: &Path, change: impl FnOnce(&mut EngineSettings)) -> Self {
        std::fs::create_dir_all(bucket).expect("a folder for the bucket");
        let runtime = Builder::new_multi_thread().enable_all().build().expect("threads");
        let mut settings = EngineSettings::new(data, "bench".parse().expect("a server's name"));
        change(&mut settings);
        let engine = runtime.block_on(async {
            let url = format!("file://{}", bucket.display());
            let bucket = Arc::new(open_bucket(&url, [], Env::system()).await.expect("a bucket"));
            let prepared = Engine::prepare(settings, bucket, Env::system()).await.expect("a data directory");
            prepared
                .start(Arc::new(PermissiveAuthority), Arc::new(NoEvents), Tasks::new())
                .await
                .expect("the engine starts")
        });
        Self { engine, runtime }
    }

    /// Stops the server at once, without a shutdown.
    pub fn kill(self) {
        let Self { engine, runtime } = self;
        drop(engine);
        runtime.shutdown_timeout(Duration::from_secs(10));
    }
}
