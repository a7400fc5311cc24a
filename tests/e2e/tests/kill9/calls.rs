//! Asking servers directly: the tests want to know who said what, and what is sent again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use dormouse_bus::{AskError, Bus, ask};
use dormouse_client::Client;
use dormouse_e2e::{Fleet, until};
use dormouse_protocol::data::{FlushReply, FlushRequest, GetAllReply, GetAllRequest, GetReply, GetRequest};
use dormouse_protocol::{Happened, Message, Op, Position, ServerName, Subject};
use dormouse_runtime::Env;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long an answer is waited for while servers die.
const DEADLINE: Duration = Duration::from_millis(800);

/// Who waits longer for an answer with everybody alive says so.
const SLOW: Duration = Duration::from_secs(1);

/// Asks one server, and remembers which one serves what.
pub struct Caller {
    client: Client,
    bus: Arc<dyn Bus>,
    known: RefCell<HashMap<Subject, ServerName>>,
    env: Env,
}

impl Caller {
    pub async fn new(fleet: &Fleet) -> anyhow::Result<Self> {
        let options = dormouse_client::NatsOptions::new(vec![fleet.url().parse()?]);
        let client = Client::builder().deadline(DEADLINE).connect(options).await?;
        let bus = Arc::clone(client.bus());
        Ok(Self { client, bus, known: RefCell::default(), env: Env::system() })
    }

    pub fn now(&self) -> Duration {
        self.env.boot()
    }

    pub fn env(&self) -> &Env {
        &self.env
    }

    /// Who serves a subject, as far as anybody says.
    pub async fn server_of(&self, subject: &Subject) -> Option<ServerName> {
        if let Some(server) = self.known.borrow().get(subject) {
            return Some(server.clone());
        }
        let server = self.client.locate(subject).await.ok()?;
        self.known.borrow_mut().insert(subject.clone(), server.clone());
        Some(server)
    }

    pub fn forget(&self, subject: &Subject) {
        self.known.borrow_mut().remove(subject);
    }

    pub async fn ask<Req, Rep>(
        &self,
        server: &ServerName,
        op: Op,
        subject: &Subject,
        request: &Req,
    ) -> Result<Rep, AskError>
    where
        Req: Serialize + Sync,
        Rep: DeserializeOwned,
    {
        ask(&*self.bus, self.client.prefix().server(server, op, subject), request, DEADLINE).await
    }

    /// Asks whoever serves the subject until there is an answer.
    pub async fn insist<Req, Rep>(&self, op: Op, subject: &Subject, request: &Req) -> anyhow::Result<Rep>
    where
        Req: Serialize + Sync,
        Rep: DeserializeOwned,
    {
        let began = self.now();
        let mut last = None;
        let what = format!("{op} of {subject} is answered");
        let answered = until(&what, async || {
            let Some(server) = self.server_of(subject).await else { return Ok(None) };
            match self.ask(&server, op, subject, request).await {
                Ok(reply) => Ok(Some(reply)),
                Err(error) => {
                    self.forget(subject);
                    last = Some((server, error));
                    Ok(None)
                }
            }
        });
        let answer = answered.await.with_context(|| format!("last: {last:?}"));
        let waited = self.now() - began;
        if waited > SLOW {
            println!("{what} after {} ms; before that: {last:?}", waited.as_millis());
        }
        answer
    }

    /// Everything that is in a subject.
    pub async fn read_all(&self, subject: &Subject) -> anyhow::Result<Vec<Message>> {
        let mut messages = Vec::new();
        let mut request = GetAllRequest::default();
        loop {
            let page: GetAllReply = self.insist(Op::GetAll, subject, &request).await?;
            for message in page.messages {
                messages.push(if message.value_omitted {
                    self.whole(subject, message).await?
                } else {
                    message
                });
            }
            match page.cursor {
                Some(cursor) => request.start_seq = Some(cursor),
                None => return Ok(messages),
            }
        }
    }

    /// A message whose value is too large to come with others.
    async fn whole(&self, subject: &Subject, message: Message) -> anyhow::Result<Message> {
        let reply: GetReply = self.insist(Op::Get, subject, &GetRequest::seq(message.seq)).await?;
        let found = reply.messages.into_iter().next().filter(|found| found.id() == message.id());
        found.with_context(|| format!("{} of {subject} was listed and is not there", message.id()))
    }

    pub async fn flush(&self, subject: &Subject) -> anyhow::Result<Position> {
        let reply: FlushReply = self.insist(Op::Flush, subject, &FlushRequest::default()).await?;
        Ok(reply.position)
    }
}

/// Whether a request may have been carried out that was answered so.
pub fn may_have_happened(error: &AskError) -> bool {
    error.happened() != Happened::No
}
