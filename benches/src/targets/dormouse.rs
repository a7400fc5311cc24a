//! A fleet: a nats-server, a coordinator and one persistence server.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use dormouse_client::{Client, FeedFrom, Level, NatsOptions, Seq, Stream, Update};
use dormouse_harness::{NatsServer, NatsServerOptions, Process, ProcessSpec, S3Server, our_program};
use futures::StreamExt;
use futures::stream::LocalBoxStream;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::nats_member;
use crate::target::{Capability, Role, Target, TargetProcess};

/// The time limit of the fleet to become ready, to end, or to process preparations.
const READY: Duration = Duration::from_secs(120);
/// A local directory has no price per object, so the limit of objects, 50 per second by default, is raised.
const PUTS_PER_SECOND: &str = "2000";
/// The benchmark writes to 10,000 subjects in turn and reads others; the default limit of open subjects is 10,000.
const MAX_OPEN: &str = "16000";
/// A subject waits while the other targets have their turns, which takes longer than the default idle time of a minute.
const IDLE_CLOSE: &str = "1h";
/// 4,096 writes of 16 KiB to one subject may take a quarter of this; the default is 64 MiB.
const QUEUE_BYTES: usize = 512 * 1_024 * 1_024;
/// The bucket's name on the S3 server.
const S3_BUCKET: &str = "bench";
/// The key and the subject of the large value.
const LARGE: (&str, &str) = ("bench.large", "large");

/// The kind of the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// A directory on the local disk.
    Directory,
    /// An S3 test server on this machine.
    S3,
}

/// A fleet whose server acknowledges at one level.
pub struct Dormouse {
    level: Level,
    client: Client,
    server: RefCell<Option<Process>>,
    spec: ProcessSpec,
    coordinator: Process,
    nats: NatsServer,
    s3: Option<S3Server>,
    folder: TempDir,
}

impl Dormouse {
    /// Starts a fleet.
    ///
    /// # Errors
    /// If the programs are not built, or there is no nats-server, or no S3 server for an S3 bucket.
    pub async fn start(level: &str, store: Store) -> Result<Self> {
        let level: Level = level.parse()?;
        let nats = NatsServer::start(NatsServerOptions::default()).await?;
        let folder = tempfile::tempdir()?;
        let (url, at) = (nats.url(), |part: &str| folder.path().join(part).display().to_string());
        let mut spec = ProcessSpec::new("server", our_program("dormouse-persist-server")?, folder.path())
            .args([
                "--nats",
                &url,
                "--name",
                "persist-1",
                "--data-dir",
                &at("data"),
                "--level",
                level.as_str(),
            ])
            .args([
                "--max-puts-per-second",
                PUTS_PER_SECOND,
                "--max-open",
                MAX_OPEN,
                "--idle-close",
                IDLE_CLOSE,
            ]);
        let s3 = match store {
            Store::Directory => {
                std::fs::create_dir(folder.path().join("bucket"))?;
                spec = spec.args(["--bucket", &format!("file://{}", at("bucket"))]);
                None
            }
            Store::S3 => {
                let s3 = S3Server::start().await?;
                s3.create_bucket(S3_BUCKET).await?;
                spec = spec.args(["--bucket", &format!("s3://{S3_BUCKET}")]);
                spec.environment =
                    s3.variables().into_iter().map(|(name, value)| (name.into(), value.into())).collect();
                Some(s3)
            }
        };
        let coordinator =
            ProcessSpec::new("coordinator", our_program("dormouse-coordinator")?, folder.path())
                .args(["--nats", &url, "--data-dir", &at("coordinator")])
                .start()?;
        let server = RefCell::new(Some(spec.start()?));
        let builder = Client::builder().queue_bytes(QUEUE_BYTES);
        let client = builder.connect(NatsOptions::new(vec![url.parse()?])).await?;
        let fleet = Self { level, client, server, spec, coordinator, nats, s3, folder };
        fleet.wait_until_ready().await?;
        Ok(fleet)
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let first = self.client.stream("bench.ready")?.with_deadline(READY);
        first.publish("ready").await.with_context(|| {
            let log = dormouse_harness::tail(&self.spec.log, 20);
            format!("the fleet is not ready; the server logged:\n{log}")
        })?;
        Ok(())
    }

    fn stream(&self, number: usize) -> Result<Stream> {
        Ok(self.client.stream(&subject(number))?)
    }
}

fn subject(number: usize) -> String {
    format!("bench.subject.{number}")
}

#[async_trait(?Send)]
impl Target for Dormouse {
    fn promise(&self) -> &'static str {
        match self.level {
            Level::Memory => "in the server's memory",
            Level::Interval => "in the log on the server's disk, synced each second",
            Level::Disk => "synced to the server's disk",
            Level::Bucket if self.s3.is_some() => {
                "in the bucket, on an S3 server for tests: survives the loss of the machine"
            }
            Level::Bucket => "in the bucket, synced: survives the loss of the machine",
        }
    }

    fn can(&self, capability: Capability) -> bool {
        match capability {
            // Data in the bucket does not depend on the level.
            Capability::Reopen | Capability::Large => self.level == Level::Bucket,
            _ => true,
        }
    }

    fn members(&self) -> Vec<TargetProcess> {
        let server = self.server.borrow().as_ref().and_then(Process::pid);
        let own = [server, self.coordinator.pid()].into_iter().flatten();
        own.map(|pid| TargetProcess { role: Role::Server, pid })
            .chain(nats_member(&self.nats, Role::Broker))
            .collect()
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(self.folder.path().to_path_buf())
    }

    /// Nothing needs to be created: the first message creates the subject.
    async fn create(&self, number: usize) -> Result<()> {
        self.stream(number)?.with_deadline(READY).publish(Bytes::from_static(&[b'x'; 128])).await?;
        Ok(())
    }

    async fn set(&self, number: usize, value: Bytes) -> Result<()> {
        self.stream(number)?.publish(value).await?;
        Ok(())
    }

    async fn fill(&self, number: usize, messages: usize, value: Bytes) -> Result<()> {
        let stream = self.stream(number)?.with_deadline(READY);
        for result in stream.publish_batch(std::iter::repeat_n(value, messages)).await {
            result?;
        }
        Ok(())
    }

    async fn get(&self, number: usize) -> Result<Bytes> {
        let found = self.stream(number)?.get(Seq::new(1)).await?.context("the subject is empty")?;
        found.value.context("a null value")
    }

    async fn get_all(&self, number: usize) -> Result<usize> {
        let mut pages = self.stream(number)?.get_all(..);
        let mut messages = 0;
        while let Some(message) = pages.next().await {
            message?;
            messages += 1;
        }
        Ok(messages)
    }

    async fn watch(&self, number: usize) -> Result<LocalBoxStream<'static, Result<Bytes>>> {
        let client = Client::connect(&self.nats.url()).await?;
        let feed = client.stream(&subject(number))?.feed(FeedFrom::Now).await?;
        Ok(feed
            .filter_map(move |update| {
                let _open = &client;
                std::future::ready(match update {
                    Ok(Update::Set { message, .. }) => Some(Ok(message.value.unwrap_or_default())),
                    Ok(_) => None,
                    Err(error) => Some(Err(error.into())),
                })
            })
            .boxed_local())
    }

    async fn put_large(&self, bytes: u64) -> Result<()> {
        let (subject, key) = LARGE;
        let source = tokio::io::repeat(b'x').take(bytes);
        self.client.kv(subject)?.put_reader(key, source).await?;
        Ok(())
    }

    async fn get_large(&self) -> Result<u64> {
        let (subject, key) = LARGE;
        let mut reader = self.client.kv(subject)?.get_reader(key).await?.context("the value is missing")?;
        let mut size = 0;
        while let Some(piece) = reader.next().await? {
            size += piece.len() as u64;
        }
        Ok(size)
    }

    /// Acts as if the server were replaced by one with an empty disk.
    async fn restart_empty(&self) -> Result<()> {
        let server = self.server.borrow_mut().take();
        if let Some(mut server) = server {
            server.terminate(READY).await?;
        }
        std::fs::remove_dir_all(self.folder.path().join("data"))?;
        *self.server.borrow_mut() = Some(self.spec.start()?);
        self.wait_until_ready().await
    }
}
