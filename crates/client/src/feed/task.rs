//! The task of a feed: listens, queries, and executes the actions of the machine.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{BusEvent, SubscribeOptions, Subscription};
use dormouse_protocol::data::{ChangesRequest, GetAllReply, GetAllRequest, GetReply, GetRequest};
use dormouse_protocol::{Event, Message, Op, ProtocolVersion, RoutePattern, Seq, decode};
use tokio::sync::{broadcast, mpsc};

use super::Feed;
use super::machine::{FeedAction, FeedInput, FeedMachine, FeedQuery, FeedStep, is_final, pause};
use super::output::FeedOutput;
use super::receive_buffer::{ReceiveBuffer, Received};
use super::update::{FeedFrom, FeedKeys, Update};
use crate::error::Error;
use crate::exchange;
use crate::location::CachedServer;
use crate::subject::Handle;

/// How many events are buffered before new ones are dropped and queried later.
const EVENT_BUFFER: usize = 4_096;

/// How many bytes of events are buffered before new ones are dropped and queried later.
const EVENT_BUFFER_BYTES: usize = 64 * 1_024 * 1_024;

/// How many updates are buffered for the application. Few, since each may hold a value as large as a payload.
const UPDATE_BUFFER: usize = 16;

impl Feed {
    pub(crate) async fn start(handle: Handle, keys: FeedKeys, from: FeedFrom) -> Result<Self, Error> {
        let pattern: RoutePattern = handle.inner.prefix.events(&handle.subject).into();
        // Before the subscription: connection events from its first moment on must be received.
        let connection = handle.inner.bus.events();
        let started = handle.inner.env.boot();
        let events = subscribe(&handle, &pattern).await?;
        // After the subscription: every event later than the reply will be received.
        let (mut machine, mut step) = FeedMachine::begin(keys.clone(), from);
        if from == FeedFrom::Now {
            let spent = handle.inner.env.boot().saturating_sub(started);
            let within = Handle { deadline: handle.deadline.saturating_sub(spent), ..handle.clone() };
            let info = within.info().await.map_err(|error| error.to_caller(handle.deadline))?;
            let info = FeedInput::Info(Box::new(info));
            step = machine.apply(info, handle.inner.env.boot(), handle.inner.env.random_u64());
        }
        let (sender, output) = mpsc::channel(UPDATE_BUFFER);
        let tasks = handle.inner.tasks.clone();
        let task = FeedTask { handle, keys, machine, output: sender.clone(), server: None };
        let stop = tasks.stop().clone();
        tasks.spawn("feed", async move {
            let buffer = ReceiveBuffer::new(EVENT_BUFFER, EVENT_BUFFER_BYTES);
            tokio::select! {
                biased;
                () = stop.requested() => {}
                () = sender.closed() => {}
                // Events are received even while the feed task waits.
                () = receive(&buffer, &pattern, events, connection) => {}
                () = task.run(&buffer, step) => {}
            }
        });
        Ok(Self::new(output))
    }
}

async fn subscribe(handle: &Handle, pattern: &RoutePattern) -> Result<Subscription, Error> {
    let options = SubscribeOptions { queue: None, capacity: EVENT_BUFFER };
    exchange::subscribe(&*handle.inner.bus, pattern.clone(), options, handle.deadline).await
}

/// Moves events and connection changes into the buffer as fast as they arrive. Never returns: the end of the
/// subscription is an entry of the buffer.
async fn receive(
    buffer: &ReceiveBuffer,
    pattern: &RoutePattern,
    mut events: Subscription,
    mut connection: broadcast::Receiver<BusEvent>,
) {
    loop {
        tokio::select! {
            // Pending events were sent before the connection changed, so they come before the loss.
            biased;
            delivery = events.next() => match delivery {
                Some(delivery) => buffer.event(delivery.payload),
                None => break,
            },
            change = connection.recv() => match change {
                Ok(change) if !is_loss(&change, pattern) => {}
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => buffer.loss(),
                Err(broadcast::error::RecvError::Closed) => break,
            },
        }
    }
    buffer.end();
    std::future::pending::<()>().await;
}

fn is_loss(change: &BusEvent, pattern: &RoutePattern) -> bool {
    match change {
        BusEvent::Connected => true,
        BusEvent::SlowConsumer(slow) => slow.as_ref().is_none_or(|slow| slow == pattern),
        _ => false,
    }
}

/// Why no more updates are emitted.
enum FeedEnd {
    /// The application has dropped the feed.
    Dropped,
    /// An error that a repeated query cannot resolve.
    Failed(Error),
}

struct FeedTask {
    handle: Handle,
    keys: FeedKeys,
    machine: FeedMachine,
    output: mpsc::Sender<Result<FeedOutput, Error>>,
    /// The server of the last reply, until it is announced as gone.
    server: Option<Arc<CachedServer>>,
}

impl FeedTask {
    async fn run(mut self, buffer: &ReceiveBuffer, mut step: FeedStep) {
        loop {
            for output in step.outputs {
                match self.send(output).await {
                    Ok(()) => {}
                    Err(FeedEnd::Dropped) => return,
                    Err(FeedEnd::Failed(error)) => return self.end(error).await,
                }
            }
            let input = match step.next {
                FeedAction::Ask(query, pause) => {
                    tokio::time::sleep(pause).await;
                    self.answer(query).await
                }
                FeedAction::Listen(until) => match self.listen(buffer, until).await {
                    Some(input) => input,
                    None => return self.end(self.subscription_error().await).await,
                },
                FeedAction::End(error) => return self.end(error).await,
            };
            let env = &self.handle.inner.env;
            step = self.machine.apply(input, env.boot(), env.random_u64());
        }
    }

    async fn end(&self, error: Error) {
        tracing::debug!(subject = %self.handle.subject, %error, "feed ended");
        // If the feed was dropped, there is no receiver.
        let _ = self.output.send(Err(error)).await;
    }

    /// The reason why the subscription has ended.
    async fn subscription_error(&self) -> Error {
        let pattern: RoutePattern = self.handle.inner.prefix.events(&self.handle.subject).into();
        match subscribe(&self.handle, &pattern).await {
            Err(error) => error,
            // The messaging system may report the denied subscription later.
            Ok(_) => Error::PermissionDenied { what: format!("subscribing to {}", pattern.as_str()) },
        }
    }

    async fn send(&self, mut output: FeedOutput) -> Result<(), FeedEnd> {
        if output.update.is_none() {
            // It only carries the position: the next update carries it, too.
            let _ = self.output.try_send(Ok(output));
            return Ok(());
        }
        if let Some(Update::Set { message, .. }) = &mut output.update
            && message.value_omitted
        {
            self.fetch_value(message).await.map_err(FeedEnd::Failed)?;
        }
        self.output.send(Ok(output)).await.map_err(|_| FeedEnd::Dropped)
    }

    /// Fetches the value of a message that came without it, if the message still exists and a reply can carry
    /// the value. For a larger value, the application uses a reader.
    async fn fetch_value(&self, message: &mut Message) -> Result<(), Error> {
        let env = &self.handle.inner.env;
        let mut failures = 0;
        loop {
            match self.handle.fetch(&GetRequest::seq(message.seq)).await {
                Ok(Some(fetched)) if (fetched.term, fetched.rev) == (message.term, message.rev) => {
                    *message = fetched;
                    return Ok(());
                }
                // The change that replaced or removed it still follows.
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

    /// The next input of the machine; `None` when the subscription has ended.
    async fn listen(&mut self, buffer: &ReceiveBuffer, until: Duration) -> Option<FeedInput> {
        let left = until.saturating_sub(self.handle.inner.env.boot());
        let gone = async {
            match &self.server {
                Some(server) => server.gone.requested().await,
                None => std::future::pending().await,
            }
        };
        let received = tokio::select! {
            biased;
            () = gone => {
                self.server = None;
                return Some(FeedInput::ServerGone);
            }
            () = tokio::time::sleep(left) => return Some(FeedInput::Due),
            received = buffer.next() => received,
        };
        Some(match received? {
            Received::Event(payload) => self.parse_event(&payload),
            Received::Loss => FeedInput::Lost,
        })
    }

    fn parse_event(&self, payload: &[u8]) -> FeedInput {
        let subject = &self.handle.subject;
        match decode::<Event>(payload) {
            Ok(event) if event.v <= ProtocolVersion::CURRENT => FeedInput::Event(event),
            Ok(event) => {
                tracing::warn!(
                    %subject,
                    version = event.v.get(),
                    action = "querying changes",
                    "event has a newer protocol version"
                );
                FeedInput::Lost
            }
            Err(error) => {
                tracing::warn!(%subject, %error, action = "querying changes", "malformed event");
                FeedInput::Lost
            }
        }
    }

    async fn answer(&mut self, query: FeedQuery) -> FeedInput {
        let answer = self.ask(query).await;
        self.server = self.handle.inner.locations.known(&self.handle.subject);
        answer.unwrap_or_else(|error| {
            tracing::debug!(subject = %self.handle.subject, %error, "feed query failed");
            FeedInput::Failed(error)
        })
    }

    async fn ask(&self, query: FeedQuery) -> Result<FeedInput, Error> {
        Ok(match query {
            FeedQuery::Info => FeedInput::Info(Box::new(self.handle.info().await?)),
            FeedQuery::Changes(after) => {
                let request = ChangesRequest { after, ..ChangesRequest::default() };
                FeedInput::Changes(self.handle.call(Op::Changes, &request).await?)
            }
            FeedQuery::Page(start) => FeedInput::Page(self.page(start).await?),
        })
    }

    /// A page of the messages that the feed covers.
    async fn page(&self, start: Seq) -> Result<GetAllReply, Error> {
        let key_prefix = match &self.keys {
            FeedKeys::All => None,
            FeedKeys::Prefix(prefix) => Some(prefix.clone()),
            // At most one message: that is a page.
            FeedKeys::One(key) => {
                let reply: GetReply = self.handle.call(Op::Get, &GetRequest::key(key.clone())).await?;
                return Ok(GetAllReply { position: reply.position, messages: reply.messages, cursor: None });
            }
        };
        let request = GetAllRequest { start_seq: Some(start), key_prefix, ..GetAllRequest::default() };
        self.handle.call(Op::GetAll, &request).await
    }
}
