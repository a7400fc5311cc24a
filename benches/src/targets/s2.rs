//! S2-lite on a local directory: streams on object storage.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use dormouse_harness::{Process, ProcessSpec};
use futures::StreamExt;
use futures::stream::LocalBoxStream;
use s2_sdk::batching::BatchingConfig;
use s2_sdk::producer::{Producer, ProducerConfig};
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, BasinName, CreateBasinInput, CreateStreamInput, ReadFrom,
    ReadInput, ReadLimits, ReadSessionConfig, ReadStart, ReadStop, S2Config, S2Endpoints, StreamName,
};
use s2_sdk::{S2, S2Basin, S2Stream};
use tempfile::TempDir;

use super::program;
use crate::target::{Capability, Role, Target, TargetProcess};

/// The only basin.
const BASIN: &str = "bench-basin";
/// The number of messages per write, if there are many.
const PAGE: usize = 1_000;
/// The largest number of messages that one request returns, if they are as small as these.
const READ_AT_ONCE: usize = 1_000;
/// The time limit for the start.
const READY: Duration = Duration::from_secs(30);
/// The limit of a producer for data in flight: room for 4,096 writes of 16 KiB.
const IN_FLIGHT_BYTES: u32 = 128 * 1_024 * 1_024;

/// An S2-lite server.
pub struct S2Lite {
    basin: S2Basin,
    /// The producer of subject 0, while many writes are in flight to it alone.
    producer: RefCell<Option<std::rc::Rc<Producer>>>,
    process: Process,
    folder: TempDir,
}

impl S2Lite {
    /// Starts a server.
    ///
    /// # Errors
    /// If there is no S2-lite.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("root");
        std::fs::create_dir(&root)?;
        // S2-lite cannot choose a port by itself; this one was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = ProcessSpec::new("s2-lite", program("s2-lite")?, folder.path())
            .args(["--local-root", &root.display().to_string(), "--port", &port.to_string()])
            .start()?;
        let endpoints = S2Endpoints::for_endpoint(&format!("http://127.0.0.1:{port}"))?;
        let s2 = S2::new(S2Config::new("ignored").with_endpoints(endpoints))?;
        let name: BasinName = BASIN.parse()?;
        let made = async {
            while s2.create_basin(CreateBasinInput::new(name.clone())).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(READY, made).await.with_context(|| {
            format!(
                "S2-lite does not answer; it logged:\n{}",
                dormouse_harness::tail(&process.spec().log, 20)
            )
        })?;
        Ok(Self { basin: s2.basin(name), producer: RefCell::default(), process, folder })
    }

    fn stream(&self, number: usize) -> Result<S2Stream> {
        Ok(self.basin.stream(stream_name(number)?))
    }
}

fn stream_name(number: usize) -> Result<StreamName> {
    Ok(format!("bench/{number}").parse()?)
}

fn batch(values: impl IntoIterator<Item = Bytes>) -> Result<AppendInput> {
    let records = values.into_iter().map(AppendRecord::new).collect::<Result<Vec<_>, _>>()?;
    Ok(AppendInput::new(AppendRecordBatch::try_from_iter(records)?))
}

fn from(seq: u64) -> ReadInput {
    ReadInput::new().with_start(ReadStart::new().with_from(ReadFrom::SeqNum(seq)))
}

#[async_trait(?Send)]
impl Target for S2Lite {
    fn promise(&self) -> &'static str {
        "in the bucket, synced: survives the loss of the machine"
    }

    fn can(&self, capability: Capability) -> bool {
        matches!(
            capability,
            Capability::Set | Capability::Create | Capability::Get | Capability::GetAll | Capability::Watch
        )
    }

    fn members(&self) -> Vec<TargetProcess> {
        self.process.pid().map(|pid| TargetProcess { role: Role::Server, pid }).into_iter().collect()
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(self.folder.path().to_path_buf())
    }

    async fn create(&self, number: usize) -> Result<()> {
        self.basin.create_stream(CreateStreamInput::new(stream_name(number)?)).await?;
        self.stream(number)?.append(batch([Bytes::from_static(&[b'x'; 128])])?).await?;
        Ok(())
    }

    /// Many writes to one stream go through a producer, which batches concurrent writes; its batching delay is
    /// disabled. Single writes, and writes to many streams, are requests of their own.
    async fn expect_sets(&self, in_flight: usize, subjects: usize) -> Result<()> {
        let config = ProducerConfig::new()
            .with_batching(BatchingConfig::new().with_linger(Duration::ZERO))
            .with_max_unacked_bytes(IN_FLIGHT_BYTES)?;
        let many = in_flight > 1 && subjects == 1;
        let producer = if many { Some(self.stream(0)?.producer(config).into()) } else { None };
        *self.producer.borrow_mut() = producer;
        Ok(())
    }

    async fn set(&self, number: usize, value: Bytes) -> Result<()> {
        let producer = self.producer.borrow().clone();
        match producer.filter(|_| number == 0) {
            Some(producer) => {
                producer.submit(AppendRecord::new(value)?).await?.await?;
            }
            None => {
                self.stream(number)?.append(batch([value])?).await?;
            }
        }
        Ok(())
    }

    async fn fill(&self, number: usize, messages: usize, value: Bytes) -> Result<()> {
        let stream = self.stream(number)?;
        for first in (0..messages).step_by(PAGE) {
            let some = messages.min(first + PAGE) - first;
            stream.append(batch(std::iter::repeat_n(value.clone(), some))?).await?;
        }
        Ok(())
    }

    async fn get(&self, number: usize) -> Result<Bytes> {
        let one = from(0).with_stop(ReadStop::new().with_limits(ReadLimits::new().with_count(1)));
        let batch = self.stream(number)?.read(one).await?;
        Ok(batch.records.into_iter().next().context("the stream is empty")?.body)
    }

    /// Reads the result of one request and, if that is not all, a session that ends with the stream.
    async fn get_all(&self, number: usize) -> Result<usize> {
        let stream = self.stream(number)?;
        let first = stream.read(from(0)).await?.records.len();
        if first < READ_AT_ONCE {
            return Ok(first);
        }
        let rest = from(first as u64).with_stop(ReadStop::new().with_wait(0));
        let mut batches = stream.read_session(rest, ReadSessionConfig::new()).await?;
        let mut seen = first;
        while let Some(batch) = batches.next().await {
            seen += batch?.records.len();
        }
        Ok(seen)
    }

    async fn watch(&self, number: usize) -> Result<LocalBoxStream<'static, Result<Bytes>>> {
        let input = ReadInput::new().with_start(ReadStart::new().with_from(ReadFrom::TailOffset(0)));
        let batches = self.stream(number)?.read_session(input, ReadSessionConfig::new()).await?;
        let records = batches.flat_map(|batch| {
            let records = match batch {
                Ok(batch) => batch.records.into_iter().map(|record| Ok(record.body)).collect::<Vec<_>>(),
                Err(error) => vec![Err(error.into())],
            };
            futures::stream::iter(records)
        });
        Ok(records.boxed_local())
    }
}
