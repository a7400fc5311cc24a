//! JetStream on one nats-server, with one replica and file storage.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::jetstream::{self, consumer, kv, object_store, stream};
use async_trait::async_trait;
use bytes::Bytes;
use dormouse_harness::{NatsServer, NatsServerOptions};
use futures::StreamExt;
use futures::stream::LocalBoxStream;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::nats_member;
use crate::target::{Capability, Role, Target, TargetProcess};

/// The form of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A stream of its own: with its own limits, position and consumers, like a subject of Dormouse.
    Streams,
    /// One of the NATS subjects in one stream: cheaper, and without any of these.
    OneStream,
    /// A key-value bucket with one key and no history.
    Kv,
}

/// The number of messages that a filling client has in flight.
const IN_FLIGHT: usize = 1_024;
/// The time limit of an acknowledgement. On a slow disk, 4,096 of them with a sync each take longer than the default of
/// five seconds.
const ACK_WITHIN: Duration = Duration::from_secs(60);
/// The stream of [`Shape::OneStream`].
const ONE: &str = "bench";
/// The object store of the large value, and its name there.
const LARGE: &str = "large";
/// The size of a read of a large value.
const PIECE: usize = 1_024 * 1_024;

/// A nats-server with JetStream.
pub struct JetStream {
    shape: Shape,
    always: bool,
    nats: NatsServer,
    context: jetstream::Context,
    folder: TempDir,
    buckets: RefCell<HashMap<usize, kv::Store>>,
    /// How often everything has been read.
    read: Cell<u64>,
}

impl JetStream {
    /// Starts a server that syncs its files every two minutes, which is the default, or always.
    ///
    /// # Errors
    /// If there is no nats-server.
    pub async fn start(shape: Shape, always: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = folder.path().display();
        let sync = if always { ", sync_interval: always" } else { "" };
        let config = format!("jetstream: {{ store_dir: \"{store}\"{sync} }}");
        let nats = NatsServer::start(NatsServerOptions::with_config(config)).await?;
        let mut context = jetstream::new(async_nats::connect(nats.url()).await?);
        context.set_timeout(ACK_WITHIN);
        if shape == Shape::OneStream {
            let config = stream::Config {
                name: ONE.to_owned(),
                subjects: vec!["bench.*".to_owned()],
                allow_direct: true,
                ..Default::default()
            };
            context.create_stream(config).await?;
        }
        Ok(Self { shape, always, nats, context, folder, buckets: RefCell::default(), read: Cell::default() })
    }

    fn stream_name(&self, number: usize) -> String {
        match self.shape {
            Shape::Streams => format!("bench-{number}"),
            Shape::OneStream => ONE.to_owned(),
            Shape::Kv => format!("KV_bench-{number}"),
        }
    }

    fn bucket(&self, number: usize) -> Result<kv::Store> {
        self.buckets.borrow().get(&number).cloned().context("no such bucket")
    }

    /// The fastest way to read in order: a consumer to which the server pushes.
    async fn ordered(
        &self,
        context: &jetstream::Context,
        number: usize,
        name: Option<String>,
        from: consumer::DeliverPolicy,
    ) -> Result<consumer::push::Ordered> {
        let stream = context.get_stream_no_info(self.stream_name(number)).await?;
        let filter_subject = if self.shape == Shape::OneStream { route(number) } else { String::new() };
        let config = consumer::push::OrderedConfig {
            name,
            deliver_policy: from,
            deliver_subject: context.client().new_inbox(),
            filter_subject,
            ..Default::default()
        };
        Ok(stream.create_consumer(config).await?.messages().await?)
    }
}

fn route(number: usize) -> String {
    format!("bench.{number}")
}

#[async_trait(?Send)]
impl Target for JetStream {
    fn promise(&self) -> &'static str {
        match (self.always, self.shape) {
            (true, _) => "synced to the server's disk, one sync per write",
            (_, Shape::Streams) => {
                "in the server's page cache, synced every two minutes; a stream for each subject"
            }
            (_, Shape::OneStream) => {
                "in the server's page cache, synced every two minutes; one stream for all subjects"
            }
            (_, Shape::Kv) => {
                "in the server's page cache, synced every two minutes; a key-value bucket for each subject"
            }
        }
    }

    fn can(&self, capability: Capability) -> bool {
        match capability {
            // A watcher of a key does not receive a value that has been replaced by then.
            Capability::Watch => self.shape != Shape::Kv,
            // All streams are open while the server runs.
            Capability::Reopen => false,
            // Its object store is the same for each form.
            Capability::Large => self.shape == Shape::Streams && !self.always,
            _ => true,
        }
    }

    fn members(&self) -> Vec<TargetProcess> {
        nats_member(&self.nats, Role::Server).into_iter().collect()
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(self.folder.path().to_path_buf())
    }

    async fn create(&self, number: usize) -> Result<()> {
        match self.shape {
            Shape::Streams => {
                let config = stream::Config {
                    name: self.stream_name(number),
                    subjects: vec![route(number)],
                    allow_direct: true,
                    ..Default::default()
                };
                self.context.create_stream(config).await?;
            }
            Shape::OneStream => {}
            Shape::Kv => {
                let config = kv::Config { bucket: format!("bench-{number}"), ..Default::default() };
                let bucket = self.context.create_key_value(config).await?;
                self.buckets.borrow_mut().insert(number, bucket);
            }
        }
        self.set(number, Bytes::from_static(&[b'x'; 128])).await
    }

    async fn set(&self, number: usize, value: Bytes) -> Result<()> {
        if self.shape == Shape::Kv {
            self.bucket(number)?.put("key", value).await?;
        } else {
            self.context.publish(route(number), value).await?.await?;
        }
        Ok(())
    }

    async fn fill(&self, number: usize, messages: usize, value: Bytes) -> Result<()> {
        let mut published = futures::stream::iter(0..messages)
            .map(|message| {
                let value = value.clone();
                async move {
                    if self.shape == Shape::Kv {
                        self.bucket(number)?.put(format!("key-{message}"), value).await?;
                        return anyhow::Ok(());
                    }
                    self.set(number, value).await
                }
            })
            .buffered(IN_FLIGHT);
        while let Some(ack) = published.next().await {
            ack?;
        }
        Ok(())
    }

    async fn get(&self, number: usize) -> Result<Bytes> {
        if self.shape == Shape::Kv {
            return self.bucket(number)?.get("key").await?.context("the key is missing");
        }
        let stream = self.context.get_stream_no_info(self.stream_name(number)).await?;
        Ok(match self.shape {
            Shape::OneStream => stream.direct_get_first_for_subject(route(number)).await?.payload,
            _ => stream.direct_get(1).await?.payload,
        })
    }

    async fn get_all(&self, number: usize) -> Result<usize> {
        // An unused consumer is removed only after thirty seconds, and one stream allows only a limited number.
        let name = (self.shape == Shape::OneStream).then(|| format!("read-{}", self.read.get()));
        self.read.set(self.read.get() + 1);
        let mut messages =
            self.ordered(&self.context, number, name.clone(), consumer::DeliverPolicy::All).await?;
        let mut seen = 0;
        while let Some(message) = messages.next().await {
            seen += 1;
            if message?.info().map_err(|error| anyhow::anyhow!("{error}"))?.pending == 0 {
                if let Some(name) = name {
                    let (context, stream) = (self.context.clone(), self.stream_name(number));
                    tokio::task::spawn_local(async move {
                        // If the deletion fails, the server removes the consumer later.
                        let _ = context.delete_consumer_from_stream(name, stream).await;
                    });
                }
                return Ok(seen);
            }
        }
        bail!("the consumer ended after {seen} messages")
    }

    async fn watch(&self, number: usize) -> Result<LocalBoxStream<'static, Result<Bytes>>> {
        let context = jetstream::new(async_nats::connect(self.nats.url()).await?);
        let messages = self.ordered(&context, number, None, consumer::DeliverPolicy::New).await?;
        Ok(messages
            .map(move |message| {
                let _open = &context;
                Ok(message?.message.payload)
            })
            .boxed_local())
    }

    async fn put_large(&self, bytes: u64) -> Result<()> {
        let config = object_store::Config { bucket: LARGE.to_owned(), ..Default::default() };
        let store = self.context.create_object_store(config).await?;
        let mut source = tokio::io::repeat(b'x').take(bytes);
        store.put(LARGE, &mut source).await?;
        Ok(())
    }

    async fn get_large(&self) -> Result<u64> {
        let mut object = self.context.get_object_store(LARGE).await?.get(LARGE).await?;
        let (mut piece, mut size) = (vec![0; PIECE], 0);
        loop {
            match object.read(&mut piece).await? {
                0 => return Ok(size),
                read => size += read as u64,
            }
        }
    }
}
