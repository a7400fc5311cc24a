//! Redis with its append-only file, over a Unix socket and without NATS, as a familiar reference. A subject is a Redis
//! stream.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use dormouse_harness::{Process, ProcessSpec};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

use super::program;
use crate::target::{Capability, Role, Target, TargetProcess};

/// The number of messages per read or write, if there are many.
const PAGE: usize = 1_000;
/// The time limit for the start.
const READY: Duration = Duration::from_secs(20);

/// The result of `XRANGE`: ids, each with the name and value of the one field.
type Entries = Vec<(String, (String, Vec<u8>))>;

/// A Redis server.
pub struct Redis {
    always: bool,
    connection: MultiplexedConnection,
    process: Process,
    folder: TempDir,
}

impl Redis {
    /// Starts a server that syncs its file as `fsync` says.
    ///
    /// # Errors
    /// If there is no Redis.
    pub async fn start(fsync: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("redis.sock").display().to_string();
        let data = folder.path().display().to_string();
        let process = ProcessSpec::new("redis", program("redis-server")?, folder.path())
            .args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", fsync])
            .args(["--dir", &data, "--unixsocket", &socket])
            .start()?;
        let client = redis::Client::open(format!("redis+unix://{socket}"))?;
        // As for the other targets, there is no time limit for replies.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let connected = async {
            loop {
                match client.get_multiplexed_async_connection_with_config(&config).await {
                    Ok(connection) => return connection,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let connection = tokio::time::timeout(READY, connected).await.context("Redis does not listen")?;
        Ok(Self { always: fsync == "always", connection, process, folder })
    }

    async fn range(&self, number: usize, from: &str, count: usize) -> Result<Entries> {
        let mut command = redis::cmd("XRANGE");
        command.arg(stream(number)).arg(from).arg("+").arg("COUNT").arg(count);
        Ok(command.query_async(&mut self.connection.clone()).await?)
    }
}

fn stream(number: usize) -> String {
    format!("bench:{number}")
}

#[async_trait(?Send)]
impl Target for Redis {
    fn promise(&self) -> &'static str {
        if self.always {
            "synced to the server's disk, one sync for concurrent writes"
        } else {
            "in the server's page cache, synced each second"
        }
    }

    fn can(&self, capability: Capability) -> bool {
        matches!(capability, Capability::Set | Capability::Create | Capability::Get | Capability::GetAll)
    }

    fn members(&self) -> Vec<TargetProcess> {
        self.process.pid().map(|pid| TargetProcess { role: Role::Server, pid }).into_iter().collect()
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(self.folder.path().to_path_buf())
    }

    async fn create(&self, number: usize) -> Result<()> {
        self.set(number, Bytes::from_static(&[b'x'; 128])).await
    }

    async fn set(&self, number: usize, value: Bytes) -> Result<()> {
        let mut command = redis::cmd("XADD");
        command.arg(stream(number)).arg("*").arg("v").arg(&value[..]);
        let id: String = command.query_async(&mut self.connection.clone()).await?;
        ensure!(!id.is_empty(), "no id");
        Ok(())
    }

    async fn fill(&self, number: usize, messages: usize, value: Bytes) -> Result<()> {
        for first in (0..messages).step_by(PAGE) {
            let mut page = redis::pipe();
            for _ in first..messages.min(first + PAGE) {
                page.cmd("XADD").arg(stream(number)).arg("*").arg("v").arg(&value[..]).ignore();
            }
            let () = page.query_async(&mut self.connection.clone()).await?;
        }
        Ok(())
    }

    async fn get(&self, number: usize) -> Result<Bytes> {
        let (_, (_, value)) = self.range(number, "-", 1).await?.pop().context("the stream is empty")?;
        Ok(value.into())
    }

    async fn get_all(&self, number: usize) -> Result<usize> {
        let (mut after, mut seen) = ("-".to_owned(), 0);
        loop {
            let page = self.range(number, &after, PAGE).await?;
            seen += page.len();
            match page.last() {
                Some((last, _)) if page.len() == PAGE => after = format!("({last}"),
                _ => return Ok(seen),
            }
        }
    }
}
