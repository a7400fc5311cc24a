//! The task behind a feed: listens, asks, and does what the machine says.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{BusEvent, SubscribeOptions, Subscription};
use dormouse_protocol::data::{ChangesRequest, GetAllReply, GetAllRequest, GetReply, GetRequest};
use dormouse_protocol::{Event, Message, Op, ProtocolVersion, RoutePattern, Seq, decode};
use tokio::sync::{broadcast, mpsc};

use super::backlog::{Backlog, Heard};
use super::machine::{Input, Machine, Next, Question, Step, is_final, pause};
use super::tell::Told;
use super::{Feed, FeedFrom, FeedKeys, Update};
use crate::error::Error;
use crate::location::Server;
use crate::subject::Handle;

/// How many events wait to be looked at before new ones are dropped and asked for later.
const EVENT_BUFFER: usize = 4_096;

/// How many bytes of events wait to be looked at before new ones are dropped and asked for later.
const EVENT_BUFFER_BYTES: usize = 64 * 1_024 * 1_024;

/// How many updates wait for the application. Few, since each may hold a value as large as a payload.
const UPDATE_BUFFER: usize = 16;

impl Feed {
    pub(crate) async fn start(handle: Handle, keys: FeedKeys, from: FeedFrom) -> Result<Self, Error> {
        let pattern: RoutePattern = handle.inner.prefix.events(&handle.subject).into();
        // Before the subscription: what happens to it from its first moment on must be heard.
        let connection = handle.inner.bus.events();
        let events = subscribe(&handle, &pattern).await?;
        // After the subscription: what comes later than an answer will be heard.
        let (mut machine, mut step) = Machine::begin(keys.clone(), from);
        if from == FeedFrom::Now {
            let info = Input::Info(Box::new(handle.info().await?));
            step = machine.apply(info, handle.inner.env.boot(), handle.inner.env.random_u64());
        }
        let (sender, told) = mpsc::channel(UPDATE_BUFFER);
        let tasks = handle.inner.tasks.clone();
        let teller = Shell { handle, keys, machine, told: sender.clone(), server: None };
        let stop = tasks.stop().clone();
        tasks.spawn("feed", async move {
            let backlog = Backlog::new(EVENT_BUFFER, EVENT_BUFFER_BYTES);
            tokio::select! {
                biased;
                () = stop.given() => {}
                () = sender.closed() => {}
                // Hearing goes on whatever the teller waits for.
                () = hear(&backlog, &pattern, events, connection) => {}
                () = teller.run(&backlog, step) => {}
            }
        });
        Ok(Self::new(told))
    }
}

async fn subscribe(handle: &Handle, pattern: &RoutePattern) -> Result<Subscription, Error> {
    let options = SubscribeOptions { queue: None, capacity: EVENT_BUFFER };
    handle.inner.bus.subscribe(pattern.clone(), options).await.map_err(Error::from_subscribe)
}

/// Takes what the messaging system has for the feed as fast as it comes. Goes on for ever: that there will be no more is in
/// the backlog.
async fn hear(
    backlog: &Backlog,
    pattern: &RoutePattern,
    mut events: Subscription,
    mut connection: broadcast::Receiver<BusEvent>,
) {
    loop {
        tokio::select! {
            // What waits was sent before the connection changed, so it belongs before the loss.
            biased;
            delivery = events.next() => match delivery {
                Some(delivery) => backlog.event(delivery.payload),
                None => break,
            },
            change = connection.recv() => match change {
                Ok(change) if !is_loss(&change, pattern) => {}
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => backlog.loss(),
                Err(broadcast::error::RecvError::Closed) => break,
            },
        }
    }
    backlog.end();
    std::future::pending::<()>().await;
}

fn is_loss(change: &BusEvent, pattern: &RoutePattern) -> bool {
    match change {
        BusEvent::Connected => true,
        BusEvent::SlowConsumer(slow) => slow.as_ref().is_none_or(|slow| slow == pattern),
        _ => false,
    }
}

/// Why nothing more is told.
enum Over {
    /// The application has dropped the feed.
    Dropped,
    /// What asking again does not cure.
    Failed(Error),
}

struct Shell {
    handle: Handle,
    keys: FeedKeys,
    machine: Machine,
    told: mpsc::Sender<Result<Told, Error>>,
    /// Who answered last, until the news that it is gone.
    server: Option<Arc<Server>>,
}

impl Shell {
    async fn run(mut self, backlog: &Backlog, mut step: Step) {
        loop {
            for told in step.tell {
                match self.tell(told).await {
                    Ok(()) => {}
                    Err(Over::Dropped) => return,
                    Err(Over::Failed(error)) => return self.end(error).await,
                }
            }
            let input = match step.next {
                Next::Ask(question, pause) => {
                    tokio::time::sleep(pause).await;
                    self.answer(question).await
                }
                Next::Listen(until) => match self.listen(backlog, until).await {
                    Some(input) => input,
                    None => return self.end(self.silenced().await).await,
                },
                Next::End(error) => return self.end(error).await,
            };
            let env = &self.handle.inner.env;
            step = self.machine.apply(input, env.boot(), env.random_u64());
        }
    }

    async fn end(&self, error: Error) {
        tracing::debug!(subject = %self.handle.subject, %error, "a feed ends");
        // Nobody is there to be told when the feed was dropped.
        let _ = self.told.send(Err(error)).await;
    }

    /// Why nothing more will be heard.
    async fn silenced(&self) -> Error {
        let pattern: RoutePattern = self.handle.inner.prefix.events(&self.handle.subject).into();
        match subscribe(&self.handle, &pattern).await {
            Err(error) => error,
            // The word of a refusal may come late.
            Ok(_) => Error::PermissionDenied { what: format!("subscribing to {}", pattern.as_str()) },
        }
    }

    async fn tell(&self, mut told: Told) -> Result<(), Over> {
        if told.update.is_none() {
            // It only says how far the feed has come: what comes later says it, too.
            let _ = self.told.try_send(Ok(told));
            return Ok(());
        }
        if let Some(Update::Set { message, .. }) = &mut told.update
            && message.value_omitted
        {
            self.fetch_value(message).await.map_err(Over::Failed)?;
        }
        self.told.send(Ok(told)).await.map_err(|_| Over::Dropped)
    }

    /// Puts the value into a message that came without it, if it is still there and an answer carries it: a larger one is
    /// for the application to get, piece by piece, when it wants it.
    async fn fetch_value(&self, message: &mut Message) -> Result<(), Error> {
        let env = &self.handle.inner.env;
        let mut failures = 0;
        loop {
            match self.handle.fetch(&GetRequest::seq(message.seq)).await {
                Ok(Some(fetched)) if (fetched.term, fetched.rev) == (message.term, message.rev) => {
                    *message = fetched;
                    return Ok(());
                }
                // What replaced or removed it is still to come.
                Ok(_) => return Ok(()),
                Err(Error::TooLarge { .. }) => return Ok(()),
                Err(error) if is_final(&error) => return Err(error),
                Err(_) => {
                    failures += 1;
                    tokio::time::sleep(pause(failures, env.random_u64())).await;
                }
            }
        }
    }

    /// What comes next of all that a feed listens to; `None` when nothing more will be heard.
    async fn listen(&mut self, backlog: &Backlog, until: Duration) -> Option<Input> {
        let left = until.saturating_sub(self.handle.inner.env.boot());
        let gone = async {
            match &self.server {
                Some(server) => server.gone.given().await,
                None => std::future::pending().await,
            }
        };
        let heard = tokio::select! {
            biased;
            () = gone => {
                self.server = None;
                return Some(Input::ServerGone);
            }
            () = tokio::time::sleep(left) => return Some(Input::Due),
            heard = backlog.next() => heard,
        };
        Some(match heard? {
            Heard::Event(payload) => self.understand(&payload),
            Heard::Loss => Input::Lost,
        })
    }

    fn understand(&self, payload: &[u8]) -> Input {
        let subject = &self.handle.subject;
        match decode::<Event>(payload) {
            Ok(event) if event.v <= ProtocolVersion::CURRENT => Input::Event(event),
            Ok(event) => {
                tracing::warn!(%subject, version = event.v.get(), "an event is written in a newer protocol version");
                Input::Lost
            }
            Err(error) => {
                tracing::warn!(%subject, %error, "an event cannot be understood");
                Input::Lost
            }
        }
    }

    async fn answer(&mut self, question: Question) -> Input {
        let answer = self.ask(question).await;
        self.server = self.handle.inner.locations.known(&self.handle.subject);
        answer.unwrap_or_else(|error| {
            tracing::debug!(subject = %self.handle.subject, %error, "a feed was not answered");
            Input::Failed(error)
        })
    }

    async fn ask(&self, question: Question) -> Result<Input, Error> {
        Ok(match question {
            Question::Info => Input::Info(Box::new(self.handle.info().await?)),
            Question::Changes(after) => {
                let request = ChangesRequest { after, ..ChangesRequest::default() };
                Input::Changes(self.handle.call(Op::Changes, &request).await?)
            }
            Question::Page(start) => Input::Page(self.page(start).await?),
        })
    }

    /// A page of the messages that the feed is about.
    async fn page(&self, start: Seq) -> Result<GetAllReply, Error> {
        let key_prefix = match &self.keys {
            FeedKeys::All => None,
            FeedKeys::Prefix(prefix) => Some(prefix.clone()),
            // No more than one: that is a page.
            FeedKeys::One(key) => {
                let reply: GetReply = self.handle.call(Op::Get, &GetRequest::key(key.clone())).await?;
                return Ok(GetAllReply { position: reply.position, messages: reply.messages, cursor: None });
            }
        };
        let request = GetAllRequest { start_seq: Some(start), key_prefix, ..GetAllRequest::default() };
        self.handle.call(Op::GetAll, &request).await
    }
}
