//! What becomes of the library's events: whether the connection is up, who is told what was refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::{Event, ServerError};
use dormouse_protocol::{Route, RoutePattern};
use dormouse_runtime::Stop;
use tokio::sync::{broadcast, watch};

use super::outstanding::Outstanding;
use crate::BusEvent;

/// How many events wait for a receiver before the oldest are overwritten.
const EVENTS: usize = 1_024;

/// State of the connection as the callers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// Not there, or not yet known to carry messages from us to ourselves.
    Down,
    Up,
    Closed,
}

/// State of the connection as the library sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Socket {
    /// How many connections there have been.
    pub(super) generation: u64,
    pub(super) connected: bool,
    /// The server refused our subscription to our own reply addresses.
    pub(super) inbox_denied: bool,
}

/// What the library says when asked, and what its events had told us by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    connects: u64,
    connected: bool,
    told: Socket,
}

/// Finds events that the library lost: it drops them while its own queue is full.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    last: Option<Look>,
}

/// A subscription that is, or may be, in force.
struct Listener {
    pattern: RoutePattern,
    queue: Option<String>,
    end: Stop,
    denied: bool,
}

/// What the callbacks of the library, the bus and its tasks share.
pub(super) struct Shared {
    pub(super) outstanding: Outstanding,
    pub(super) events: broadcast::Sender<BusEvent>,
    /// Whoever sees a change of it has been told of it: the event is sent while it is held. So nobody is told twice of
    /// what was when they began to listen, and events come in the order of the changes, whoever makes them.
    pub(super) link: watch::Sender<Link>,
    pub(super) socket: watch::Sender<Socket>,
    /// The library has ended the connection for good.
    pub(super) ended: Stop,
    /// Nobody needs the bus any more.
    pub(super) closed: Stop,
    inbox: String,
    listeners: Mutex<BTreeMap<u64, Listener>>,
    last_listener: AtomicU64,
}

impl Shared {
    /// `inbox` is what all reply addresses begin with, without the last dot.
    pub(super) fn new(inbox: &str) -> Self {
        Self {
            outstanding: Outstanding::new(format!("{inbox}.")),
            events: broadcast::Sender::new(EVENTS),
            link: watch::Sender::new(Link::Down),
            socket: watch::Sender::new(Socket::default()),
            ended: Stop::new(),
            closed: Stop::new(),
            inbox: format!("{inbox}.*"),
            listeners: Mutex::new(BTreeMap::new()),
            last_listener: AtomicU64::new(0),
        }
    }

    /// The pattern of all reply addresses.
    pub(super) fn inbox(&self) -> &str {
        &self.inbox
    }

    pub(super) fn is_up(&self) -> bool {
        *self.link.borrow() == Link::Up
    }

    /// Waits until the connection is up. False when it is closed.
    pub(super) async fn up(&self) -> bool {
        if self.is_up() {
            return true;
        }
        let mut link = self.link.subscribe();
        link.wait_for(|link| *link != Link::Down).await.is_ok_and(|link| *link == Link::Up)
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.link.borrow() == Link::Closed
    }

    /// Waits until the library has no connection.
    pub(super) async fn disconnected(&self) {
        // An error would mean that the sender is gone, and it is in here.
        let _ = self.socket.subscribe().wait_for(|socket| !socket.connected).await;
    }

    pub(super) fn tell(&self, event: BusEvent) {
        // An error means that nobody listens.
        let _ = self.events.send(event);
    }

    /// Declares the connection up if it is still the one that was proven, number `generation`, and tells it. Says
    /// whether that was a change.
    pub(super) fn set_up(&self, generation: u64) -> bool {
        self.link.send_if_modified(|link| {
            // The socket is read while the link is held, as it is changed: a loss is seen here or takes the link down
            // after.
            let socket = *self.socket.borrow();
            let changes = *link == Link::Down && socket.connected && socket.generation == generation;
            if changes {
                *link = Link::Up;
                self.tell(BusEvent::Connected);
            }
            changes
        })
    }

    /// Closes it for good. Says whether that was a change.
    pub(super) fn set_closed(&self) -> bool {
        self.link.send_if_modified(|link| std::mem::replace(link, Link::Closed) != Link::Closed)
    }

    /// Compares what the library says, asked now and then, with what its events told: `connects` connections so far,
    /// and whether there is one now. Twice the same difference is no event that is on its way, but a lost one.
    pub(super) fn look(&self, lookout: &mut Lookout, connects: u64, connected: bool) {
        let look = Look { connects, connected, told: *self.socket.borrow() };
        let differs = look.connected != look.told.connected || look.connects > look.told.generation;
        if lookout.last.replace(look) != Some(look) || !differs {
            return;
        }
        tracing::debug!(?look, "the NATS library lost an event");
        if connected {
            self.new_connection(connects);
        } else {
            self.lost_connection();
        }
    }

    /// Whatever was up before is not this one, also where nobody told of its loss.
    fn new_connection(&self, at_least: u64) {
        self.change_socket(|socket| {
            let generation = at_least.max(socket.generation + 1);
            *socket = Socket { generation, connected: true, inbox_denied: false };
        });
    }

    fn lost_connection(&self) {
        self.change_socket(|socket| socket.connected = false);
    }

    /// Changes the socket and takes the link down with it, as one step, and tells it: whoever sees the new socket may
    /// prove it at once, and a link taken down after that would stay down, since nothing more would happen to the
    /// socket.
    fn change_socket(&self, change: impl FnOnce(&mut Socket)) {
        let was_up = self.link.send_if_modified(|link| {
            self.socket.send_modify(change);
            let was_up = *link == Link::Up;
            if was_up {
                *link = Link::Down;
                self.tell(BusEvent::Disconnected);
            }
            was_up
        });
        if was_up {
            tracing::warn!("the connection to NATS is lost");
        }
    }

    /// Takes an event of the library. Never waits: the library tells the next one only after this.
    pub(super) fn observe(&self, event: Event) {
        match event {
            Event::Connected => self.new_connection(0),
            Event::Disconnected => self.lost_connection(),
            Event::LameDuckMode => {
                tracing::info!("the nats-server is about to go away");
                self.tell(BusEvent::LameDuck);
            }
            // The buffer between the library and our own task was full. Which subscription it is, the number does not
            // say.
            Event::SlowConsumer(_) => self.tell(BusEvent::SlowConsumer(None)),
            Event::Closed => self.ended.give(),
            Event::Draining => {}
            Event::ServerError(ServerError::Other(text)) => self.complaint(text),
            Event::ServerError(other) => self.tell(BusEvent::ServerError(other.to_string())),
            // A failed attempt to reconnect; the next one follows.
            Event::ClientError(error) => tracing::debug!(%error, "still not connected to NATS"),
        }
    }

    fn complaint(&self, text: String) {
        match Violation::parse(&text) {
            Some(Violation::Publish(route)) => {
                let route = Route::new(route);
                self.outstanding.deny(&route);
                // Whether we may publish to ourselves is nobody's concern: the refusal, too, proves the connection.
                if !self.outstanding.owns(route.as_str()) {
                    tracing::debug!(%route, "NATS refused a message");
                    self.tell(BusEvent::PublishDenied(route));
                }
            }
            Some(Violation::Subscribe { pattern, .. }) if pattern == self.inbox => {
                self.socket.send_modify(|socket| socket.inbox_denied = true);
            }
            Some(Violation::Subscribe { pattern, queue }) => {
                let pattern = RoutePattern::new(pattern);
                for listener in self.listeners().values_mut().filter(|listener| listener.pattern == pattern) {
                    if queue.is_none() || listener.queue == queue {
                        listener.denied = true;
                        listener.end.give();
                    }
                }
                self.tell(BusEvent::SubscribeDenied(pattern));
            }
            None => self.tell(BusEvent::ServerError(text)),
        }
    }

    /// Enters a subscription, so that a refusal finds it.
    pub(super) fn enter_listener(&self, pattern: &RoutePattern, queue: Option<&String>) -> (u64, Stop) {
        let (id, end) = (self.last_listener.fetch_add(1, Ordering::Relaxed), Stop::new());
        let (pattern, queue) = (pattern.clone(), queue.cloned());
        self.listeners().insert(id, Listener { pattern, queue, end: end.clone(), denied: false });
        (id, end)
    }

    pub(super) fn is_denied(&self, listener: u64) -> bool {
        self.listeners().get(&listener).is_some_and(|listener| listener.denied)
    }

    pub(super) fn leave_listener(&self, listener: u64) {
        if let Some(listener) = self.listeners().remove(&listener) {
            listener.end.give();
        }
    }

    pub(super) fn end_listeners(&self) {
        for listener in self.listeners().values() {
            listener.end.give();
        }
    }

    fn listeners(&self) -> MutexGuard<'_, BTreeMap<u64, Listener>> {
        // Entries are independent of each other: a panic between two leaves nothing half done.
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the server says when it forbids something.
#[derive(Debug, PartialEq, Eq)]
enum Violation {
    Publish(String),
    Subscribe { pattern: String, queue: Option<String> },
}

impl Violation {
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

/// The text in the quotes that `text` begins with, and what follows them.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut held = String::new();
    let mut chars = text.strip_prefix('"')?.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((held, &text[at + 2..])),
            '\\' => match chars.next()?.1 {
                // What cannot be printed, a zero-width joiner for one, comes as its number.
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
