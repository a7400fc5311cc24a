//! The bus itself: the operations of the port, and the check that the connection carries messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, PublishErrorKind, Subscriber};
use async_trait::async_trait;
use dormouse_protocol::RoutePattern;
use dormouse_runtime::{Stop, Tasks};
use futures::{FutureExt, StreamExt};
use tokio::sync::broadcast;
use tokio::task::unconstrained;
use tokio::time::timeout;

use super::convert;
use super::link::{LinkShared, LostEventDetector};
use crate::mailbox::{MailboxSender, mailbox};
use crate::{
    Bus, BusDrops, BusEvent, Delivery, Outgoing, PublishError, Reply, RequestError, RoundTripError,
    SubscribeError, SubscribeOptions, Subscription, validate,
};

/// Deadline of a round-trip message to this connection itself; after it, the message is sent again.
const ROUND_TRIP_DEADLINE: Duration = Duration::from_secs(2);

/// Time without a message after which a subscription has no message in flight.
const QUIET: Duration = Duration::from_millis(100);

/// Maximum time that an ending subscription waits for messages in flight.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Maximum time that a close waits for queued messages, and then for the end of the connection.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Interval of the checks for lost library events.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// After so many bytes of published messages, the publisher waits until the connection has written them. The queue of the
/// library is bounded by a number of messages only, and a large message would wait there behind up to two thousand others.
const UNWRITTEN_BYTES: usize = 512 * 1_024;

/// Maximum number of messages that one wake-up moves to a subscriber's queue.
const MESSAGES_PER_WAKE_UP: usize = 2_048;

/// A connection to NATS that reconnects on its own. A drop closes it; queued messages may then be lost.
pub struct NatsBus {
    shared: Arc<LinkShared>,
    client: Client,
    tasks: Tasks,
    /// Bytes that were published since the last wait for the connection.
    unwritten_bytes: AtomicUsize,
}

async fn take_answers(shared: Arc<LinkShared>, mut answers: Subscriber) {
    loop {
        tokio::select! {
            biased;
            () = shared.closed.requested() => return,
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

/// Sets the link up after each connect, when a message has gone to the server and back: the library renews the
/// subscriptions before that message.
async fn watch_link(shared: Arc<LinkShared>, client: Client) {
    let mut socket = shared.socket.subscribe();
    loop {
        let now = *socket.borrow_and_update();
        let is_proven = async {
            if now.connected && !now.inbox_denied && !shared.is_up() {
                round_trip(&shared, &client).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = shared.closed.requested() => return,
            changed = socket.changed() => if changed.is_err() { return },
            () = is_proven => if shared.set_up(now.generation) {
                tracing::info!(connection = shared.name, "NATS connected");
            },
        }
    }
}

/// Polls the state of the library for lost events.
async fn poll_link(shared: Arc<LinkShared>, client: Client) {
    let mut detector = LostEventDetector::default();
    let statistics = client.statistics();
    loop {
        tokio::select! {
            biased;
            () = shared.closed.requested() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let connected = client.connection_state() == State::Connected;
        shared.detect_lost_event(&mut detector, statistics.connects.load(Ordering::Relaxed), connected);
    }
}

/// Sends a message to this connection itself until one arrives. A denial also proves the round trip.
async fn round_trip(shared: &LinkShared, client: &Client) {
    loop {
        let ticket = shared.outstanding.register(None);
        let there_and_back = async {
            // An error means that the bus is being closed. The caller also waits for that.
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
    /// Starts to receive replies and to watch a new connection. `None` if the connection is already lost.
    pub(super) async fn start(shared: Arc<LinkShared>, client: Client, tasks: &Tasks) -> Option<Self> {
        let bus = Self {
            shared: Arc::clone(&shared),
            client: client.clone(),
            tasks: tasks.clone(),
            unwritten_bytes: AtomicUsize::new(0),
        };
        let answers = client.subscribe(shared.inbox().to_owned()).await.ok()?;
        tasks.spawn("nats answers", take_answers(Arc::clone(&shared), answers));
        tasks.spawn("nats lost events", poll_link(Arc::clone(&shared), client.clone()));
        tasks.spawn("nats link", watch_link(shared, client));
        Some(bus)
    }

    async fn exchange(&self, message: Outgoing, sent: &mut bool) -> Result<Reply, RequestError> {
        if !self.shared.up().await {
            return Err(RequestError::Closed { sent: false });
        }
        let ticket = self.shared.outstanding.register(Some(&message.route));
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

    /// Counts a published message, and waits for the connection if too much of what was published may be unwritten.
    async fn limit_unwritten(&self, size_bytes: usize) {
        if self.unwritten_bytes.fetch_add(size_bytes, Ordering::Relaxed) + size_bytes < UNWRITTEN_BYTES {
            return;
        }
        self.unwritten_bytes.store(0, Ordering::Relaxed);
        tokio::select! {
            biased;
            // An error means that the connection is closed: nothing is left to wait for.
            _ = self.client.flush() => {}
            () = self.shared.disconnected() => {}
        }
    }

    /// The result of a publish without a connection: the message is discarded, or the bus is closed.
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
        // This checks the library's state: the library delivers messages before the link is up, and replies to them
        // must be sent.
        if self.client.connection_state() != State::Connected || self.shared.is_closed() {
            return self.unsent();
        }
        let size_bytes = validate::size_bytes(&message.headers, &message.payload);
        // Without a connection the library's queue fills up. Then the message is discarded, as documented.
        tokio::select! {
            biased;
            sent = self.send(message, None) => sent?,
            () = self.shared.disconnected() => return self.unsent(),
        }
        self.limit_unwritten(size_bytes).await;
        Ok(())
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
        let (id, end) = self.shared.add_listener(&pattern, queue);
        let entry = SubscriptionGuard { shared: Arc::clone(&self.shared), id };
        let subject = pattern.as_str().to_owned();
        let subscriber = match queue {
            None => self.client.subscribe(subject).await,
            Some(queue) => self.client.queue_subscribe(subject, queue.clone()).await,
        };
        let subscriber = subscriber.map_err(|_| SubscribeError::Closed)?;
        // The first round trip proves that the server has the subscription. A denial arrives before the reply, but
        // through another task of the library. The second round trip gives that task a turn. If the denial is even
        // later, it ends the subscription then.
        for _ in 0..2 {
            tokio::select! {
                biased;
                () = self.shared.closed.requested() => return Err(SubscribeError::Closed),
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

    async fn round_trip(&self, deadline: Duration) -> Result<(), RoundTripError> {
        let there_and_back = async {
            if self.shared.up().await {
                round_trip(&self.shared, &self.client).await;
                Ok(())
            } else {
                Err(RoundTripError::Closed)
            }
        };
        tokio::select! {
            biased;
            () = self.shared.closed.requested() => Err(RoundTripError::Closed),
            outcome = timeout(deadline, there_and_back) => {
                outcome.unwrap_or(Err(RoundTripError::Deadline(deadline)))
            }
        }
    }

    fn events(&self) -> broadcast::Receiver<BusEvent> {
        self.shared.events.subscribe()
    }

    fn drops(&self) -> BusDrops {
        self.shared.drops()
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
        // When a later round-trip message arrives, the server has all earlier messages. A write to the socket is not
        // enough: data that the server has not read before the end of the connection can be lost.
        let sent = round_trip(&self.shared, &self.client);
        if was_up && timeout(CLOSE_DEADLINE, sent).await.is_err() {
            tracing::warn!("NATS connection closed with unsent messages");
        }
        self.shared.end();
        if was_up {
            let end = async {
                if self.client.drain().await.is_ok() {
                    self.shared.ended.requested().await;
                }
            };
            // The result of the drain no longer matters.
            let _ = timeout(CLOSE_DEADLINE, end).await;
        }
        self.shared.emit(BusEvent::Closed);
    }
}

impl Drop for NatsBus {
    fn drop(&mut self) {
        self.shared.set_closed();
        self.shared.end();
    }
}

impl LinkShared {
    /// Ends everything that waits or runs.
    fn end(&self) {
        self.closed.request();
        self.outstanding.close();
        self.end_listeners();
    }
}

/// A registered subscription. A drop removes it, also for a cancelled call.
struct SubscriptionGuard {
    shared: Arc<LinkShared>,
    id: u64,
}

impl Drop for SubscriptionGuard {
    fn drop(&mut self) {
        self.shared.remove_listener(self.id);
    }
}

/// Moves messages from the library's queue, which has the same length for all subscriptions, to the subscriber's queue.
struct Forward {
    shared: Arc<LinkShared>,
    pattern: RoutePattern,
    deliveries: MailboxSender,
    slow: bool,
}

impl Forward {
    async fn run(mut self, mut messages: Subscriber, end: Stop) {
        loop {
            tokio::select! {
                biased;
                // The drain delivers the messages that have arrived.
                () = end.requested() => return self.drain(messages).await,
                message = messages.next() => match message {
                    Some(message) => self.enqueue(convert::delivery(message)),
                    None => return,
                },
            }
            // The library's queue is in order of arrival for all callers. It must be emptied faster than requests are
            // served, so that admission decides about them. Tokio's budget would end this after 128 messages.
            let mut room = MESSAGES_PER_WAKE_UP;
            while room > 0
                && let Some(Some(message)) = unconstrained(messages.next()).now_or_never()
            {
                self.enqueue(convert::delivery(message));
                room -= 1;
            }
            if room == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Ends the subscription after some time without a message: callers of earlier requests wait for replies, and
    /// messages from the server may still be in flight. The library's own drain does not wait for the server.
    async fn drain(mut self, mut messages: Subscriber) {
        let shared = Arc::clone(&self.shared);
        let mut latest = std::pin::pin!(tokio::time::sleep(DRAIN_DEADLINE));
        loop {
            tokio::select! {
                biased;
                // Before the messages, which may arrive without a pause.
                () = &mut latest => return,
                message = messages.next() => match message {
                    Some(message) => self.enqueue(convert::delivery(message)),
                    None => return,
                },
                // No further message can arrive.
                () = shared.ended.requested() => return,
                () = tokio::time::sleep(QUIET) => return,
            }
        }
    }

    fn enqueue(&mut self, delivery: Delivery) {
        let dropped = !self.deliveries.put(delivery);
        if dropped {
            self.shared.count_dropped();
        }
        // One event per series of drops: a slow subscriber cannot take one event per message.
        if dropped && !self.slow {
            self.shared.emit(BusEvent::SlowConsumer(Some(self.pattern.clone())));
        }
        self.slow = dropped;
    }
}

impl std::fmt::Debug for NatsBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsBus").field("link", &*self.shared.link.borrow()).finish_non_exhaustive()
    }
}
