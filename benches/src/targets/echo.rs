//! Core NATS, request and reply, with a responder that stores nothing: the limit of any service on NATS.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use dormouse_harness::{NatsServer, NatsServerOptions, Process, ProcessSpec};
use futures::StreamExt;
use futures::stream::LocalBoxStream;

use super::nats_member;
use crate::target::{Capability, Role, Target, TargetProcess};

/// The route of writes: the reply is as large as the smallest acknowledgement.
const SET: &str = "echo.set";
/// The route of reads: the reply is a message.
const GET: &str = "echo.get";
/// An acknowledgement, and the request of a read. Those of Dormouse are larger.
static SMALL: [u8; 32] = [b'a'; 32];
/// The message that reads return.
static MESSAGE: [u8; 128] = [b'x'; 128];
/// The time limit for the start of the responder.
const READY: Duration = Duration::from_secs(20);

/// A nats-server, and a responder in a process of its own: this program, started as [`respond`].
pub struct Echo {
    nats: NatsServer,
    client: async_nats::Client,
    responder: Process,
}

impl Echo {
    /// Starts it.
    ///
    /// # Errors
    /// If there is no nats-server.
    pub async fn start() -> Result<Self> {
        let nats = NatsServer::start(NatsServerOptions::default()).await?;
        let responder = ProcessSpec::new("responder", std::env::current_exe()?, nats.folder())
            .args(["respond", &nats.url()])
            .start()?;
        let client = async_nats::connect(nats.url()).await?;
        // The responder is ready once it answers.
        let answered = async {
            while client.request(SET, Bytes::new()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(READY, answered).await.context("the responder does not answer")?;
        Ok(Self { nats, client, responder })
    }
}

/// Answers every request until the connection ends.
///
/// # Errors
/// If there is no NATS at `url`.
pub async fn respond(url: &str) -> Result<()> {
    let client = async_nats::connect(url).await?;
    let mut requests = client.subscribe("echo.*").await?;
    while let Some(request) = requests.next().await {
        let answer: &'static [u8] = if request.subject.as_str() == SET { &SMALL } else { &MESSAGE };
        if let Some(reply) = request.reply {
            client.publish(reply, Bytes::from_static(answer)).await?;
        }
    }
    bail!("the connection ended")
}

#[async_trait(?Send)]
impl Target for Echo {
    fn promise(&self) -> &'static str {
        "not stored: the limit of any service on NATS"
    }

    fn can(&self, capability: Capability) -> bool {
        matches!(capability, Capability::Set | Capability::Get | Capability::Watch)
    }

    fn members(&self) -> Vec<TargetProcess> {
        let responder = self.responder.pid().map(|pid| TargetProcess { role: Role::Server, pid });
        nats_member(&self.nats, Role::Broker).into_iter().chain(responder).collect()
    }

    fn folder(&self) -> Option<PathBuf> {
        None
    }

    async fn create(&self, _: usize) -> Result<()> {
        Ok(())
    }

    async fn set(&self, _: usize, value: Bytes) -> Result<()> {
        self.client.request(SET, value).await?;
        Ok(())
    }

    async fn fill(&self, _: usize, _: usize, _: Bytes) -> Result<()> {
        Ok(())
    }

    async fn get(&self, _: usize) -> Result<Bytes> {
        let answer = self.client.request(GET, Bytes::from_static(&SMALL)).await?.payload;
        ensure!(answer.len() == MESSAGE.len(), "a reply of {} bytes", answer.len());
        Ok(answer)
    }

    /// A plain subscription to the written messages.
    async fn watch(&self, _: usize) -> Result<LocalBoxStream<'static, Result<Bytes>>> {
        let client = async_nats::connect(self.nats.url()).await?;
        let received = client.subscribe(SET).await?;
        // The server has processed all earlier commands of this connection once it answers on it.
        client.request(SET, Bytes::new()).await?;
        // That request is received as well.
        let written = received.filter(|message| std::future::ready(!message.payload.is_empty()));
        Ok(written
            .map(move |message| {
                let _open = &client;
                Ok(message.payload)
            })
            .boxed_local())
    }
}
