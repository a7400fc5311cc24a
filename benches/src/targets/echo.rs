//! Core NATS, request and reply, with a responder that keeps nothing: what any service on NATS can at best be.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use dormouse_harness::{NatsServer, NatsServerOptions, Process, ProcessSpec};
use futures::StreamExt;
use futures::stream::LocalBoxStream;

use super::nats_member;
use crate::target::{Ability, Member, Role, Target};

/// Where writes go: answered with as much as an acknowledgement has.
const SET: &str = "echo.set";
/// Where reads go: answered with a message.
const GET: &str = "echo.get";
/// The size of an acknowledgement, and of the request of a read. Ours are larger.
static SMALL: [u8; 32] = [b'a'; 32];
/// What is read.
static MESSAGE: [u8; 128] = [b'x'; 128];
/// How long the responder may take to be there.
const READY: Duration = Duration::from_secs(20);

/// A nats-server, and a responder in a process of its own: this program once more, as [`respond`].
pub struct Echo {
    nats: NatsServer,
    client: async_nats::Client,
    responder: Process,
}

impl Echo {
    /// Starts it.
    ///
    /// # Errors
    /// When there is no nats-server.
    pub async fn start() -> Result<Self> {
        let nats = NatsServer::start(NatsServerOptions::default()).await?;
        let responder = ProcessSpec::new("responder", std::env::current_exe()?, nats.folder())
            .args(["respond", &nats.url()])
            .start()?;
        let client = async_nats::connect(nats.url()).await?;
        // The responder is there once it answers.
        let answered = async {
            while client.request(SET, Bytes::new()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(READY, answered).await.context("the responder does not answer")?;
        Ok(Self { nats, client, responder })
    }
}

/// Answers every request, for ever.
///
/// # Errors
/// When there is no NATS at `url`.
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
        "kept nowhere: the limit of any service on NATS"
    }

    fn can(&self, ability: Ability) -> bool {
        matches!(ability, Ability::Set | Ability::Get | Ability::Watch)
    }

    fn members(&self) -> Vec<Member> {
        let responder = self.responder.pid().map(|pid| Member { role: Role::Server, pid });
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
        ensure!(answer.len() == MESSAGE.len(), "an answer of {} bytes", answer.len());
        Ok(answer)
    }

    /// A plain subscription to what is written.
    async fn watch(&self, _: usize) -> Result<LocalBoxStream<'static, Result<Bytes>>> {
        let client = async_nats::connect(self.nats.url()).await?;
        let heard = client.subscribe(SET).await?;
        // The server has carried out what came before on this connection once it answers on it.
        client.request(SET, Bytes::new()).await?;
        // That request is heard as well.
        let written = heard.filter(|message| std::future::ready(!message.payload.is_empty()));
        Ok(written
            .map(move |message| {
                let _open = &client;
                Ok(message.payload)
            })
            .boxed_local())
    }
}
