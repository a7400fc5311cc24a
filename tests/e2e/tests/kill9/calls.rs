//! Direct calls to servers: the tests must know which server replied, and what is sent again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use dormouse_bus::{AskError, Bus, ask};
use dormouse_client::Client;
use dormouse_e2e::{Fleet, until};
use dormouse_protocol::data::{FlushReply, FlushRequest, GetAllReply, GetAllRequest, GetReply, GetRequest};
use dormouse_protocol::{Executed, Message, Op, Position, ServerName, Subject};
use dormouse_runtime::Env;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The deadline of a call while servers are killed.
const DEADLINE: Duration = Duration::from_millis(800);

/// With all servers running, a call that takes longer than this is printed.
const SLOW: Duration = Duration::from_secs(1);

/// Calls one server, and caches the server of each subject.
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

    /// Returns the server of a subject, if it is known.
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

    /// Calls the subject's server until a reply comes.
    pub async fn call_until_answered<Req, Rep>(
        &self,
        op: Op,
        subject: &Subject,
        request: &Req,
    ) -> anyhow::Result<Rep>
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

    /// Returns all messages of a subject.
    pub async fn read_all(&self, subject: &Subject) -> anyhow::Result<Vec<Message>> {
        let mut messages = Vec::new();
        let mut request = GetAllRequest::default();
        loop {
            let page: GetAllReply = self.call_until_answered(Op::GetAll, subject, &request).await?;
            for message in page.messages {
                messages.push(if message.value_omitted {
                    self.with_value(subject, message).await?
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

    /// Returns a message whose value is too large for a page.
    async fn with_value(&self, subject: &Subject, message: Message) -> anyhow::Result<Message> {
        let reply: GetReply =
            self.call_until_answered(Op::Get, subject, &GetRequest::seq(message.seq)).await?;
        let found = reply.messages.into_iter().next().filter(|found| found.id() == message.id());
        found.with_context(|| format!("{} of {subject} was listed, but a get does not find it", message.id()))
    }

    pub async fn flush(&self, subject: &Subject) -> anyhow::Result<Position> {
        let reply: FlushReply =
            self.call_until_answered(Op::Flush, subject, &FlushRequest::default()).await?;
        Ok(reply.position)
    }
}

/// Returns whether a request with this error may have been executed.
pub fn may_have_executed(error: &AskError) -> bool {
    error.executed() != Executed::No
}
