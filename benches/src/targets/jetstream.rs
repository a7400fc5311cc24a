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
use crate::target::{Ability, Member, Role, Target};

/// What a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A stream of its own: with limits, a position and consumers of its own, as a subject of ours has.
    Streams,
    /// One of the NATS subjects that one stream keeps: cheaper, and without any of that.
    OneStream,
    /// A key-value bucket with one key and no history.
    Kv,
}

/// How many messages a filling client has under way.
const UNDER_WAY: usize = 1_024;
/// How long an acknowledgement may take; on a slow disk 4,096 of them, each with a sync, take longer than the five seconds that it
/// is given unless set.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// The stream of [`Shape::OneStream`].
const ONE: &str = "bench";
/// The object store of the large value, and its name there.
const LARGE: &str = "large";
/// How much of a large value is read at a time.
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
    /// Starts a server that syncs its files every two minutes, as it does unless told otherwise, or always.
    ///
    /// # Errors
    /// When there is no nats-server.
    pub async fn start(shape: Shape, always: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = folder.path().display();
        let sync = if always { ", sync_interval: always" } else { "" };
        let config = format!("jetstream: {{ store_dir: \"{store}\"{sync} }}");
        let nats = NatsServer::start(NatsServerOptions::with_config(config)).await?;
        let mut context = jetstream::new(async_nats::connect(nats.url()).await?);
        context.set_timeout(ANSWERED_WITHIN);
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

    /// The fastest way that JetStream has to read in order: a consumer to which the server pushes.
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
            (true, _) => "synced to the server's disk, each by itself",
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

    fn can(&self, ability: Ability) -> bool {
        match ability {
            // Who watches a key is not told of a value that has been replaced by then.
            Ability::Watch => self.shape != Shape::Kv,
            // All streams are open while the server runs.
            Ability::Sleep => false,
            // Its object store is the same beside each shape.
            Ability::Large => self.shape == Shape::Streams && !self.always,
            _ => true,
        }
    }

    fn members(&self) -> Vec<Member> {
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
            .buffered(UNDER_WAY);
        while let Some(ack) = published.next().await {
            ack?;
        }
        Ok(())
    }

    async fn get(&self, number: usize) -> Result<Bytes> {
        if self.shape == Shape::Kv {
            return self.bucket(number)?.get("key").await?.context("nothing is there");
        }
        let stream = self.context.get_stream_no_info(self.stream_name(number)).await?;
        Ok(match self.shape {
            Shape::OneStream => stream.direct_get_first_for_subject(route(number)).await?.payload,
            _ => stream.direct_get(1).await?.payload,
        })
    }

    async fn get_all(&self, number: usize) -> Result<usize> {
        // A consumer that is left behind goes after thirty seconds only, and one stream takes only so many.
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
                        // One that stays after all goes by itself.
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
