//! The bus itself: the port's operations, and the proof that the connection carries messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, PublishErrorKind, Subscriber};
use async_trait::async_trait;
use dormouse_protocol::RoutePattern;
use dormouse_runtime::{Stop, Tasks};
use futures::{FutureExt, StreamExt};
use tokio::sync::broadcast;
use tokio::time::timeout;

use super::convert;
use super::link::{Lookout, Shared};
use crate::mailbox::{Slot, mailbox};
use crate::{
    Bus, BusEvent, Delivery, Outgoing, PublishError, Reply, RequestError, SubscribeError, SubscribeOptions,
    Subscription, validate,
};

/// How long a message from us to ourselves may take before it is sent once more.
const ROUND_TRIP_DEADLINE: Duration = Duration::from_secs(2);

/// A subscription that nothing has come to for so long has nothing under way.
const QUIET: Duration = Duration::from_millis(100);

/// How long a subscription that is to end waits for that at most.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// How long closing waits for what is queued, and again for the end of the connection.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// How often the library is asked what it may have failed to tell.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// A connection to NATS that comes back by itself. Closed when dropped; then what is queued may be lost.
pub struct NatsBus {
    shared: Arc<Shared>,
    client: Client,
    tasks: Tasks,
}

async fn take_answers(shared: Arc<Shared>, mut answers: Subscriber) {
    loop {
        tokio::select! {
            biased;
            () = shared.closed.given() => return,
            answer = answers.next() => match answer {
                Some(answer) => shared.outstanding.complete(answer),
                None => return,
            },
        }
        while let Some(Some(answer)) = answers.next().now_or_never() {
            shared.outstanding.complete(answer);
        }
    }
}

/// Declares the connection up, each time it has come about and has carried a message to the server and back: the
/// subscriptions were renewed before that message.
async fn watch_link(shared: Arc<Shared>, client: Client) {
    let mut socket = shared.socket.subscribe();
    loop {
        let now = *socket.borrow_and_update();
        let proven = async {
            if now.connected && !now.inbox_denied && !shared.is_up() {
                round_trip(&shared, &client).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = shared.closed.given() => return,
            changed = socket.changed() => if changed.is_err() { return },
            () = proven => if shared.set_up(now.generation) {
                tracing::info!("connected to NATS");
            },
        }
    }
}

/// Asks the library now and then what its events may have failed to tell.
async fn look_after_link(shared: Arc<Shared>, client: Client) {
    let mut lookout = Lookout::default();
    let statistics = client.statistics();
    loop {
        tokio::select! {
            biased;
            () = shared.closed.given() => return,
            () = tokio::time::sleep(BETWEEN_LOOKS) => {}
        }
        let connected = client.connection_state() == State::Connected;
        shared.look(&mut lookout, statistics.connects.load(Ordering::Relaxed), connected);
    }
}

/// Sends a message from us to ourselves until one has come back, or has been refused, which proves as much.
async fn round_trip(shared: &Shared, client: &Client) {
    loop {
        let ticket = shared.outstanding.enter(None);
        let there_and_back = async {
            // An error means that the bus is being closed; the caller waits for that, too.
            let _ = client.publish(ticket.reply_to.clone(), bytes::Bytes::new()).await;
            ticket.answer().await
        };
        match timeout(ROUND_TRIP_DEADLINE, there_and_back).await {
            Ok(Err(RequestError::Closed { .. })) => std::future::pending().await,
            Ok(_) => return,
            Err(_) => {}
        }
    }
}

impl NatsBus {
    /// Begins to listen for answers and to watch the connection, on a fresh one. `None` when it broke already.
    pub(super) async fn start(shared: Arc<Shared>, client: Client, tasks: &Tasks) -> Option<Self> {
        let bus = Self { shared: Arc::clone(&shared), client: client.clone(), tasks: tasks.clone() };
        let answers = client.subscribe(shared.inbox().to_owned()).await.ok()?;
        tasks.spawn("nats answers", take_answers(Arc::clone(&shared), answers));
        tasks.spawn("nats lookout", look_after_link(Arc::clone(&shared), client.clone()));
        tasks.spawn("nats link", watch_link(shared, client));
        Some(bus)
    }

    async fn exchange(&self, message: Outgoing, sent: &mut bool) -> Result<Reply, RequestError> {
        if !self.shared.up().await {
            return Err(RequestError::Closed { sent: false });
        }
        let ticket = self.shared.outstanding.enter(Some(&message.route));
        *sent = true;
        self.send(message, Some(ticket.reply_to.clone())).await.map_err(|fault| match fault {
            PublishError::TooLarge { size_bytes, limit_bytes } => {
                RequestError::TooLarge { size_bytes, limit_bytes }
            }
            PublishError::Invalid { route, reason } => RequestError::Invalid { route, reason },
            PublishError::Closed => RequestError::Closed { sent: false },
        })?;
        ticket.answer().await
    }

    async fn send(&self, message: Outgoing, reply_to: Option<String>) -> Result<(), PublishError> {
        let Outgoing { route, headers, payload } = message;
        let size_bytes = validate::size_bytes(&headers, &payload);
        let subject = route.as_str().to_owned();
        let sent = match (convert::headers_out(&headers), reply_to) {
            (None, None) => self.client.publish(subject, payload).await,
            (None, Some(reply)) => self.client.publish_with_reply(subject, reply, payload).await,
            (Some(headers), None) => self.client.publish_with_headers(subject, headers, payload).await,
            (Some(headers), Some(reply)) => {
                self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            }
        };
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => {
                PublishError::TooLarge { size_bytes, limit_bytes: self.max_payload() }
            }
            PublishErrorKind::InvalidSubject => PublishError::Invalid { route, reason: "not a route" },
            PublishErrorKind::Send => PublishError::Closed,
        })
    }

    /// What becomes of a message while there is no connection: nothing, unless there never will be one.
    fn unsent(&self) -> Result<(), PublishError> {
        if self.shared.is_closed() { Err(PublishError::Closed) } else { Ok(()) }
    }
}

#[async_trait]
impl Bus for NatsBus {
    async fn request(&self, message: Outgoing, deadline: Duration) -> Result<Reply, RequestError> {
        validate::message(&message, self.max_payload())
            .map_err(|fault| fault.into_request_error(&message.route))?;
        let route = message.route.clone();
        let mut sent = false;
        match timeout(deadline, self.exchange(message, &mut sent)).await {
            Ok(outcome) => outcome,
            Err(_) if sent => Err(RequestError::Deadline { route, deadline }),
            Err(_) => Err(RequestError::Disconnected),
        }
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        validate::message(&message, self.max_payload())
            .map_err(|fault| fault.into_publish_error(&message.route))?;
        // Asked of the library: it hands over messages from others, and we answer them, before the connection is
        // proven to us.
        if self.client.connection_state() != State::Connected || self.shared.is_closed() {
            return self.unsent();
        }
        // The library's queue fills up while there is no connection: then the message goes nowhere, as promised.
        tokio::select! {
            biased;
            sent = self.send(message, None) => sent,
            () = self.shared.disconnected() => self.unsent(),
        }
    }

    async fn subscribe(
        &self,
        pattern: RoutePattern,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError> {
        let queue = options.queue.as_ref();
        if !validate::is_pattern(&pattern) || queue.is_some_and(|name| !validate::is_queue(name)) {
            return Err(SubscribeError::Invalid(pattern));
        }
        if !self.shared.up().await {
            return Err(SubscribeError::Closed);
        }
        let (id, end) = self.shared.enter_listener(&pattern, queue);
        let entry = Entry { shared: Arc::clone(&self.shared), id };
        let subject = pattern.as_str().to_owned();
        let subscriber = match queue {
            None => self.client.subscribe(subject).await,
            Some(queue) => self.client.queue_subscribe(subject, queue.clone()).await,
        };
        let subscriber = subscriber.map_err(|_| SubscribeError::Closed)?;
        // Once to know that the server has seen the subscription. A refusal of it came before the answer, but through
        // another task of the library; a second time, and that task has had its turn. Should it be later still, the
        // subscription ends then.
        for _ in 0..2 {
            tokio::select! {
                biased;
                () = self.shared.closed.given() => return Err(SubscribeError::Closed),
                () = round_trip(&self.shared, &self.client) => {}
            }
        }
        if self.shared.is_denied(id) {
            return Err(SubscribeError::PermissionDenied(pattern));
        }
        let (deliveries, receiver) = mailbox(options.capacity);
        let forward = Forward { shared: Arc::clone(&self.shared), pattern, deliveries, slow: false };
        self.tasks.spawn("nats subscription", forward.run(subscriber, end));
        Ok(Subscription::new(receiver, Box::new(entry)))
    }

    fn events(&self) -> broadcast::Receiver<BusEvent> {
        self.shared.events.subscribe()
    }

    fn is_connected(&self) -> bool {
        self.shared.is_up()
    }

    fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    async fn close(&self) {
        let was_up = self.shared.is_up();
        if !self.shared.set_closed() {
            return;
        }
        // The server has everything once a message that was sent after it has come back. That it was written to the
        // socket would not do: what the server has not read by the end of the connection can be lost.
        let sent = round_trip(&self.shared, &self.client);
        if was_up && timeout(CLOSE_DEADLINE, sent).await.is_err() {
            tracing::warn!("the connection to NATS was closed before everything was sent");
        }
        self.shared.end();
        if was_up {
            let end = async {
                if self.client.drain().await.is_ok() {
                    self.shared.ended.given().await;
                }
            };
            // Whether the connection ended in good order changes nothing any more.
            let _ = timeout(CLOSE_DEADLINE, end).await;
        }
        self.shared.tell(BusEvent::Closed);
    }
}

impl Drop for NatsBus {
    fn drop(&mut self) {
        self.shared.set_closed();
        self.shared.end();
    }
}

impl Shared {
    /// Ends everything that waits or runs.
    fn end(&self) {
        self.closed.give();
        self.outstanding.close();
        self.end_listeners();
    }
}

/// A subscription's place in the books; left when dropped, also by a cancelled call.
struct Entry {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.leave_listener(self.id);
    }
}

/// Carries messages from the library's queue, whose length is the same for all, to the subscriber's own.
struct Forward {
    shared: Arc<Shared>,
    pattern: RoutePattern,
    deliveries: Slot,
    slow: bool,
}

impl Forward {
    async fn run(mut self, mut messages: Subscriber, end: Stop) {
        loop {
            tokio::select! {
                biased;
                // What has come by then is handed over there.
                () = end.given() => return self.drain(messages).await,
                message = messages.next() => match message {
                    Some(message) => self.hand_over(convert::delivery(message)),
                    None => return,
                },
            }
            while let Some(Some(message)) = messages.next().now_or_never() {
                self.hand_over(convert::delivery(message));
            }
        }
    }

    /// Listening ends once nothing has come for a while: whoever asked before waits for an answer, and what the server has
    /// sent by then may still be under way. The library's own way to drain does not wait for the server's word.
    async fn drain(mut self, mut messages: Subscriber) {
        let shared = Arc::clone(&self.shared);
        let mut latest = std::pin::pin!(tokio::time::sleep(DRAIN_DEADLINE));
        loop {
            tokio::select! {
                biased;
                // Before the messages, which may come without a pause.
                () = &mut latest => return,
                message = messages.next() => match message {
                    Some(message) => self.hand_over(convert::delivery(message)),
                    None => return,
                },
                // Nothing comes any more.
                () = shared.ended.given() => return,
                () = tokio::time::sleep(QUIET) => return,
            }
        }
    }

    fn hand_over(&mut self, delivery: Delivery) {
        let dropped = !self.deliveries.put(delivery);
        // Once for a run of losses: who cannot take messages cannot take as many events.
        if dropped && !self.slow {
            self.shared.tell(BusEvent::SlowConsumer(Some(self.pattern.clone())));
        }
        self.slow = dropped;
    }
}

impl std::fmt::Debug for NatsBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsBus").field("link", &*self.shared.link.borrow()).finish_non_exhaustive()
    }
}
