//! Handles the events of the library: the state of the link, and permission denials.

use std::collections::BTreeMap;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::{Event, ServerError};
use dormouse_protocol::{Route, RoutePattern};
use dormouse_runtime::{Lock, Stop};
use tokio::sync::{broadcast, watch};

use super::outstanding::RequestTable;
use crate::{BusDrops, BusEvent};

/// Maximum number of queued events per receiver; above it, the oldest are overwritten.
const EVENTS: usize = 1_024;

/// State of the connection for callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NatsLink {
    /// No connection, or no round trip on it yet.
    Down,
    Up,
    Closed,
}

/// State of the connection according to the library's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SocketState {
    /// Number of connections so far.
    pub(super) generation: u64,
    pub(super) connected: bool,
    /// The server denied the subscription to the reply addresses of this connection.
    pub(super) inbox_denied: bool,
}

/// The polled state of the library, and the state from its events at that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LinkSample {
    connects: u64,
    connected: bool,
    reported: SocketState,
}

/// Detects lost events: the library drops events while its queue is full.
#[derive(Debug, Default)]
pub(super) struct LostEventDetector {
    last: Option<LinkSample>,
}

/// A subscription that is active or may become active.
struct SubscriptionState {
    pattern: RoutePattern,
    queue: Option<String>,
    end: Stop,
    denied: bool,
}

/// State shared by the callbacks of the library, the bus and its tasks.
pub(super) struct LinkShared {
    pub(super) outstanding: RequestTable,
    pub(super) events: broadcast::Sender<BusEvent>,
    /// State of the link. Its event is sent under its lock, before the change is visible. So a new receiver gets no
    /// event for the current state, and events have the order of the changes of all threads.
    pub(super) link: watch::Sender<NatsLink>,
    pub(super) socket: watch::Sender<SocketState>,
    /// The library has ended the connection permanently.
    pub(super) ended: Stop,
    /// The bus is closed.
    pub(super) closed: Stop,
    /// The name of the connection, for log lines: a process may have several connections.
    pub(super) name: String,
    inbox: String,
    listeners: Lock<BTreeMap<u64, SubscriptionState>>,
    last_listener: AtomicU64,
    /// Messages dropped by the library, which reports each with an event, unless its queue of events is full.
    dropped_by_library: AtomicU64,
    /// Messages dropped by the queues of the subscriptions.
    dropped_by_subscriptions: AtomicU64,
}

impl LinkShared {
    /// `name` is the name of the connection, and `inbox` the prefix of all reply addresses, without the last dot.
    pub(super) fn new(name: &str, inbox: &str) -> Self {
        Self {
            outstanding: RequestTable::new(format!("{inbox}.")),
            events: broadcast::Sender::new(EVENTS),
            link: watch::Sender::new(NatsLink::Down),
            socket: watch::Sender::new(SocketState::default()),
            ended: Stop::new(),
            closed: Stop::new(),
            name: name.to_owned(),
            inbox: format!("{inbox}.*"),
            listeners: Lock::new(BTreeMap::new()),
            last_listener: AtomicU64::new(0),
            dropped_by_library: AtomicU64::new(0),
            dropped_by_subscriptions: AtomicU64::new(0),
        }
    }

    /// The pattern of all reply addresses.
    pub(super) fn inbox(&self) -> &str {
        &self.inbox
    }

    pub(super) fn is_up(&self) -> bool {
        *self.link.borrow() == NatsLink::Up
    }

    /// Waits until the connection is up. Returns false if it is closed.
    pub(super) async fn up(&self) -> bool {
        if self.is_up() {
            return true;
        }
        let mut link = self.link.subscribe();
        link.wait_for(|link| *link != NatsLink::Down).await.is_ok_and(|link| *link == NatsLink::Up)
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.link.borrow() == NatsLink::Closed
    }

    /// Waits until the library has no connection.
    pub(super) async fn disconnected(&self) {
        // An error cannot happen: this struct owns the sender.
        let _ = self.socket.subscribe().wait_for(|socket| !socket.connected).await;
    }

    /// Counts a message that the queue of a subscription has dropped.
    pub(super) fn count_dropped(&self) {
        self.dropped_by_subscriptions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn drops(&self) -> BusDrops {
        BusDrops {
            library: self.dropped_by_library.load(Ordering::Relaxed),
            subscriptions: self.dropped_by_subscriptions.load(Ordering::Relaxed),
        }
    }

    pub(super) fn emit(&self, event: BusEvent) {
        // An error means that there is no receiver.
        let _ = self.events.send(event);
    }

    /// Sets the link up if the tested connection, number `generation`, is still the current one, and sends the event.
    /// Returns whether the link changed.
    pub(super) fn set_up(&self, generation: u64) -> bool {
        self.link.send_if_modified(|link| {
            // The socket is read under the lock of the link, and also changed under it: this call sees a loss, or the
            // loss takes the link down afterwards.
            let socket = *self.socket.borrow();
            let changes = *link == NatsLink::Down && socket.connected && socket.generation == generation;
            if changes {
                *link = NatsLink::Up;
                self.emit(BusEvent::Connected);
            }
            changes
        })
    }

    /// Closes the link permanently. Returns whether it changed.
    pub(super) fn set_closed(&self) -> bool {
        self.link.send_if_modified(|link| std::mem::replace(link, NatsLink::Closed) != NatsLink::Closed)
    }

    /// Compares the polled state of the library with its events: `connects` connections so far, and whether there is
    /// one now. The same difference in two polls is a lost event, and no event in flight.
    pub(super) fn detect_lost_event(&self, detector: &mut LostEventDetector, connects: u64, connected: bool) {
        let sample = LinkSample { connects, connected, reported: *self.socket.borrow() };
        let differs =
            sample.connected != sample.reported.connected || sample.connects > sample.reported.generation;
        if detector.last.replace(sample) != Some(sample) || !differs {
            return;
        }
        tracing::debug!(?sample, "lost event of the NATS library detected");
        if connected {
            self.new_connection(connects);
        } else {
            self.lost_connection();
        }
    }

    /// Handles a new connection. An earlier link was of another connection, even without an event for its loss.
    fn new_connection(&self, at_least: u64) {
        self.change_socket(|socket| {
            let generation = at_least.max(socket.generation + 1);
            *socket = SocketState { generation, connected: true, inbox_denied: false };
        });
    }

    fn lost_connection(&self) {
        self.change_socket(|socket| socket.connected = false);
    }

    /// Changes the socket, takes the link down in the same step, and sends the event. A task that sees the new socket
    /// may test it at once. If the link went down after that test, it would stay down, because the socket would not
    /// change again.
    fn change_socket(&self, change: impl FnOnce(&mut SocketState)) {
        let was_up = self.link.send_if_modified(|link| {
            self.socket.send_modify(change);
            let was_up = *link == NatsLink::Up;
            if was_up {
                *link = NatsLink::Down;
                self.emit(BusEvent::Disconnected);
            }
            was_up
        });
        if was_up {
            tracing::warn!(connection = self.name, "NATS connection lost");
        }
    }

    /// Handles an event of the library. Never waits, because the library sends the next event only after this.
    pub(super) fn observe(&self, event: Event) {
        match event {
            Event::Connected => self.new_connection(0),
            Event::Disconnected => self.lost_connection(),
            Event::LameDuckMode => {
                tracing::info!("nats-server in lame duck mode");
                self.emit(BusEvent::LameDuck);
            }
            // The buffer between the library and the forwarding task was full. The number does not identify the
            // subscription.
            Event::SlowConsumer(_) => {
                self.dropped_by_library.fetch_add(1, Ordering::Relaxed);
                self.emit(BusEvent::SlowConsumer(None));
            }
            Event::Closed => self.ended.request(),
            Event::Draining => {}
            Event::ServerError(ServerError::Other(text)) => self.on_server_error(text),
            Event::ServerError(other) => self.emit(BusEvent::ServerError(other.to_string())),
            // A failed attempt to reconnect; the next one follows.
            Event::ClientError(error) => tracing::debug!(%error, "NATS reconnect attempt failed"),
        }
    }

    fn on_server_error(&self, text: String) {
        match PermissionViolation::parse(&text) {
            Some(PermissionViolation::Publish(route)) => {
                let route = Route::new(route);
                self.outstanding.deny(&route);
                // A denied round-trip message needs no event: the denial also proves the connection.
                if !self.outstanding.owns(route.as_str()) {
                    tracing::debug!(%route, "publish denied by NATS");
                    self.emit(BusEvent::PublishDenied(route));
                }
            }
            Some(PermissionViolation::Subscribe { pattern, .. }) if pattern == self.inbox => {
                self.socket.send_modify(|socket| socket.inbox_denied = true);
            }
            Some(PermissionViolation::Subscribe { pattern, queue }) => {
                let pattern = RoutePattern::new(pattern);
                for listener in self.listeners().values_mut().filter(|listener| listener.pattern == pattern) {
                    if queue.is_none() || listener.queue == queue {
                        listener.denied = true;
                        listener.end.request();
                    }
                }
                self.emit(BusEvent::SubscribeDenied(pattern));
            }
            None => self.emit(BusEvent::ServerError(text)),
        }
    }

    /// Registers a subscription, so a denial can be matched to it.
    pub(super) fn add_listener(&self, pattern: &RoutePattern, queue: Option<&String>) -> (u64, Stop) {
        let (id, end) = (self.last_listener.fetch_add(1, Ordering::Relaxed), Stop::new());
        let (pattern, queue) = (pattern.clone(), queue.cloned());
        self.listeners().insert(id, SubscriptionState { pattern, queue, end: end.clone(), denied: false });
        (id, end)
    }

    pub(super) fn is_denied(&self, listener: u64) -> bool {
        self.listeners().get(&listener).is_some_and(|listener| listener.denied)
    }

    pub(super) fn remove_listener(&self, listener: u64) {
        if let Some(listener) = self.listeners().remove(&listener) {
            listener.end.request();
        }
    }

    pub(super) fn end_listeners(&self) {
        for listener in self.listeners().values() {
            listener.end.request();
        }
    }

    fn listeners(&self) -> MutexGuard<'_, BTreeMap<u64, SubscriptionState>> {
        // Entries are independent, so a panic cannot leave a partial change.
        self.listeners.lock()
    }
}

/// A permission violation that the server reports.
#[derive(Debug, PartialEq, Eq)]
enum PermissionViolation {
    Publish(String),
    Subscribe { pattern: String, queue: Option<String> },
}

impl PermissionViolation {
    /// Reads `Permissions Violation for Publish to "a.b"` and
    /// `Permissions Violation for Subscription to "a.b" using queue "q"`.
    fn parse(text: &str) -> Option<Self> {
        let rest = text.trim().strip_prefix("Permissions Violation for ")?;
        if let Some(rest) = rest.strip_prefix("Publish to ") {
            return Some(Self::Publish(quoted(rest)?.0));
        }
        let (pattern, rest) = quoted(rest.strip_prefix("Subscription to ")?)?;
        let queue = rest.trim().strip_prefix("using queue ").and_then(quoted).map(|(queue, _)| queue);
        Some(Self::Subscribe { pattern, queue })
    }
}

/// The quoted text at the start of `text`, and the rest.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut held = String::new();
    let mut chars = text.strip_prefix('"')?.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((held, &text[at + 2..])),
            '\\' => match chars.next()?.1 {
                // An unprintable character, such as a zero-width joiner, is written as its number.
                kind @ ('u' | 'U') => {
                    let digits: String = chars
                        .by_ref()
                        .take(if kind == 'u' { 4 } else { 8 })
                        .map(|(_, digit)| digit)
                        .collect();
                    held.push(char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?);
                }
                c => held.push(c),
            },
            c => held.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests;
