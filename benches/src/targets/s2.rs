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
use crate::target::{Ability, Member, Role, Target};

/// The one basin.
const BASIN: &str = "bench-basin";
/// How many messages are written at once where many are.
const PAGE: usize = 1_000;
/// How many messages one request returns at most, if they are as small as ours.
const READ_AT_ONCE: usize = 1_000;
/// How long it may take to answer.
const READY: Duration = Duration::from_secs(30);
/// What a producer may have under way: 4,096 writes of 16 KiB have room in it.
const UNDER_WAY_BYTES: u32 = 128 * 1_024 * 1_024;

/// An S2-lite server.
pub struct S2Lite {
    basin: S2Basin,
    /// Of subject 0, while many writes are under way to it alone.
    producer: RefCell<Option<std::rc::Rc<Producer>>>,
    process: Process,
    folder: TempDir,
}

impl S2Lite {
    /// Starts a server.
    ///
    /// # Errors
    /// When there is no S2-lite.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("root");
        std::fs::create_dir(&root)?;
        // It has no way to tell a port of its own choosing; this one was free a moment ago.
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

    fn can(&self, ability: Ability) -> bool {
        matches!(ability, Ability::Set | Ability::Create | Ability::Get | Ability::GetAll | Ability::Watch)
    }

    fn members(&self) -> Vec<Member> {
        self.process.pid().map(|pid| Member { role: Role::Server, pid }).into_iter().collect()
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(self.folder.path().to_path_buf())
    }

    async fn create(&self, number: usize) -> Result<()> {
        self.basin.create_stream(CreateStreamInput::new(stream_name(number)?)).await?;
        self.stream(number)?.append(batch([Bytes::from_static(&[b'x'; 128])])?).await?;
        Ok(())
    }

    /// Many to one stream go through a producer, which sends together what comes together; it is told not to wait for
    /// company. One at a time, and to many streams, each is a request of its own.
    async fn expect_sets(&self, in_flight: usize, subjects: usize) -> Result<()> {
        let config = ProducerConfig::new()
            .with_batching(BatchingConfig::new().with_linger(Duration::ZERO))
            .with_max_unacked_bytes(UNDER_WAY_BYTES)?;
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
        Ok(batch.records.into_iter().next().context("nothing is there")?.body)
    }

    /// What one request returns, and where that is not all, a session that ends where the stream ends.
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
