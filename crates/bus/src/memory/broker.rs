//! The state of a [`MemoryBroker`](super::MemoryBroker): connections, subscriptions and pending requests.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::{Route, RoutePattern};
use dormouse_runtime::Observable;
use tokio::sync::{broadcast, oneshot};

use super::network::{MessageInfo, Network};
use super::options::{MemoryOptions, Permission};
use crate::mailbox::{MailboxReceiver, MailboxSender, mailbox};
use crate::{
    BusEvent, Delivery, Outgoing, PublishError, Reply, RequestError, SubscribeError, SubscribeOptions,
};

/// Maximum number of queued events per receiver; above it, the oldest are overwritten.
const EVENTS: usize = 1_024;

/// The default maximum payload of a nats-server.
const MAX_PAYLOAD_BYTES: usize = 1_024 * 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ConnectionId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SubscriptionId(u64);

/// State of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryLink {
    Up,
    Down,
    Closed,
}

pub(super) struct Connection {
    options: MemoryOptions,
    link: Arc<Observable<MemoryLink>>,
    events: broadcast::Sender<BusEvent>,
    /// Messages that the queues of its subscriptions dropped.
    dropped: u64,
}

impl Connection {
    pub(super) fn name(&self) -> &str {
        &self.options.name
    }

    fn is_up(&self) -> bool {
        self.link.get() == MemoryLink::Up
    }

    fn emit(&self, event: BusEvent) {
        // An error means that there is no receiver.
        let _ = self.events.send(event);
    }
}

struct Listener {
    connection: ConnectionId,
    pattern: RoutePattern,
    queue: Option<String>,
    deliveries: MailboxSender,
    /// The last message was dropped.
    slow: bool,
}

struct PendingRequest {
    connection: ConnectionId,
    answer: oneshot::Sender<Reply>,
}

/// A copy of a message that arrives later.
pub(super) enum DelayedMessage {
    Message(SubscriptionId, Delivery),
    Answer(Route, Reply),
}

pub(super) struct Broker {
    pub(super) max_payload_bytes: usize,
    /// The network between the connections; `None`: every message arrives at once.
    pub(super) network: Option<Arc<dyn Network>>,
    /// Delayed copies of sent messages, with their delays. The caller that sent them takes them out.
    pub(super) delayed: Vec<(Duration, DelayedMessage)>,
    // Ordered maps: connections and subscriptions are served in order of creation in every run.
    connections: BTreeMap<ConnectionId, Connection>,
    listeners: BTreeMap<SubscriptionId, Listener>,
    pending: BTreeMap<Route, PendingRequest>,
    // Members of a queue group take turns. The name alone identifies a group, as in NATS: subscriptions to `a.*` and to
    // `a.b` in groups of the same name share the messages to `a.b`.
    turns: HashMap<String, usize>,
    last_id: u64,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            max_payload_bytes: MAX_PAYLOAD_BYTES,
            network: None,
            delayed: Vec::new(),
            connections: BTreeMap::new(),
            listeners: BTreeMap::new(),
            pending: BTreeMap::new(),
            turns: HashMap::new(),
            last_id: 0,
        }
    }
}

impl Broker {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn connect(
        &mut self,
        options: MemoryOptions,
    ) -> (ConnectionId, Arc<Observable<MemoryLink>>, broadcast::Sender<BusEvent>) {
        let id = ConnectionId(self.next_id());
        let link = Arc::new(Observable::new(MemoryLink::Up));
        let events = broadcast::Sender::new(EVENTS);
        self.connections
            .insert(id, Connection { options, link: Arc::clone(&link), events: events.clone(), dropped: 0 });
        (id, link, events)
    }

    /// Sets the link of the connections that `selected` returns true for.
    pub(super) fn set_link(&mut self, selected: impl Fn(&Connection) -> bool, link: MemoryLink) {
        for connection in self.connections.values().filter(|connection| selected(connection)) {
            let changed = connection.link.change(|now| std::mem::replace(now, link) != link);
            if changed {
                connection.emit(if link == MemoryLink::Up {
                    BusEvent::Connected
                } else {
                    BusEvent::Disconnected
                });
            }
        }
    }

    /// Closes the connections that `selected` returns true for.
    pub(super) fn close_all(&mut self, selected: impl Fn(&Connection) -> bool) {
        let picked = self.connections.iter().filter(|(_, connection)| selected(connection));
        let ids: Vec<ConnectionId> = picked.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.close(id));
    }

    pub(super) fn close(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.listeners.retain(|_, listener| listener.connection != id);
        self.pending.retain(|_, request| request.connection != id);
        self.forget_empty_groups();
        connection.link.set(MemoryLink::Closed);
        connection.emit(BusEvent::Closed);
    }

    pub(super) fn publish(&mut self, from: ConnectionId, message: Outgoing) -> Result<(), PublishError> {
        let connection = self.connections.get(&from).ok_or(PublishError::Closed)?;
        if !connection.is_up() {
            return Ok(());
        }
        if may_publish(&connection.options.publish, message.route.as_str()) {
            self.deliver(from, message, None);
        } else {
            connection.emit(BusEvent::PublishDenied(message.route));
        }
        Ok(())
    }

    /// Sends a request and returns its reply address.
    pub(super) fn request(
        &mut self,
        from: ConnectionId,
        message: Outgoing,
        answer: oneshot::Sender<Reply>,
    ) -> Result<Route, RequestError> {
        let token = self.next_id();
        let connection = self.connections.get(&from).ok_or(RequestError::Closed { sent: false })?;
        if !connection.is_up() {
            return Err(RequestError::Disconnected);
        }
        if !may_publish(&connection.options.publish, message.route.as_str()) {
            return Err(RequestError::PermissionDenied(message.route));
        }
        let inbox = Route::new(format!("{}.{}.{token}", connection.options.inbox_prefix, from.0));
        let route = message.route.clone();
        self.pending.insert(inbox.clone(), PendingRequest { connection: from, answer });
        if self.deliver(from, message, Some(&inbox)) == 0 {
            self.pending.remove(&inbox);
            return Err(RequestError::NoResponders(route));
        }
        Ok(inbox)
    }

    pub(super) fn forget(&mut self, inbox: &Route) {
        self.pending.remove(inbox);
    }

    pub(super) fn subscribe(
        &mut self,
        from: ConnectionId,
        pattern: &RoutePattern,
        options: SubscribeOptions,
    ) -> Result<(SubscriptionId, MailboxReceiver), SubscribeError> {
        let id = SubscriptionId(self.next_id());
        let connection = self.connections.get(&from).ok_or(SubscribeError::Closed)?;
        if !may_subscribe(&connection.options.subscribe, pattern) {
            connection.emit(BusEvent::SubscribeDenied(pattern.clone()));
            return Err(SubscribeError::PermissionDenied(pattern.clone()));
        }
        let (deliveries, receiver) = mailbox(options.capacity);
        let listener = Listener {
            connection: from,
            pattern: pattern.clone(),
            queue: options.queue,
            deliveries,
            slow: false,
        };
        self.listeners.insert(id, listener);
        Ok((id, receiver))
    }

    pub(super) fn unsubscribe(&mut self, id: SubscriptionId) {
        if self.listeners.remove(&id).is_some_and(|removed| removed.queue.is_some()) {
            self.forget_empty_groups();
        }
    }

    fn forget_empty_groups(&mut self) {
        let listeners = &self.listeners;
        self.turns
            .retain(|group, _| listeners.values().any(|listener| listener.queue.as_ref() == Some(group)));
    }

    /// Delivers a message to all its receivers. Returns their number, also if a full queue dropped the message.
    fn deliver(&mut self, from: ConnectionId, message: Outgoing, reply_to: Option<&Route>) -> usize {
        let mut receivers = self.answer(from, &message);
        let mut chosen: Vec<SubscriptionId> = Vec::new();
        let mut groups: BTreeMap<&str, Vec<SubscriptionId>> = BTreeMap::new();
        for (id, listener) in &self.listeners {
            if !listener.pattern.matches(message.route.as_str())
                || !self.can_receive(listener, &message.route)
            {
                continue;
            }
            match &listener.queue {
                None => chosen.push(*id),
                Some(queue) => groups.entry(queue).or_default().push(*id),
            }
        }
        for (group, members) in groups {
            let turn = self.turns.entry(group.to_owned()).or_default();
            chosen.push(members[*turn % members.len()]);
            *turn = turn.wrapping_add(1);
        }
        receivers += chosen.len();
        let delivery = Delivery {
            route: message.route,
            reply_to: reply_to.cloned(),
            headers: message.headers,
            payload: message.payload,
        };
        for id in chosen {
            self.send(from, id, &delivery);
        }
        receivers
    }

    /// Delivers a message to a subscription, with the copies and delays of the network.
    fn send(&mut self, from: ConnectionId, id: SubscriptionId, delivery: &Delivery) {
        let Some(listener) = self.listeners.get(&id) else { return };
        let (route, payload) = (&delivery.route, &delivery.payload);
        for delay in self.delays(from, listener.connection, route, false, payload) {
            if delay.is_zero() {
                self.enqueue(id, delivery.clone());
            } else {
                self.delayed.push((delay, DelayedMessage::Message(id, delivery.clone())));
            }
        }
    }

    fn delays(
        &self,
        from: ConnectionId,
        to: ConnectionId,
        route: &Route,
        is_answer: bool,
        payload: &Bytes,
    ) -> Vec<Duration> {
        let Some(network) = &self.network else { return vec![Duration::ZERO] };
        let name = |id| self.connections.get(&id).map_or("", Connection::name);
        network.delivery_delays(MessageInfo {
            from: name(from),
            to: name(to),
            route,
            is_reply: is_answer,
            payload,
        })
    }

    /// Delivers a delayed copy.
    pub(super) fn arrive(&mut self, message: DelayedMessage) {
        match message {
            DelayedMessage::Message(id, delivery) => {
                let can_receive =
                    self.listeners.get(&id).is_some_and(|to| self.can_receive(to, &delivery.route));
                if can_receive {
                    self.enqueue(id, delivery);
                }
            }
            DelayedMessage::Answer(inbox, reply) => self.take_answer(&inbox, reply),
        }
    }

    /// Delivers the message as a reply if a request waits at its route. Returns the number of receivers.
    fn answer(&mut self, from: ConnectionId, message: &Outgoing) -> usize {
        let Some(request) = self.pending.get(&message.route) else { return 0 };
        for delay in self.delays(from, request.connection, &message.route, true, &message.payload) {
            let reply = Reply { headers: message.headers.clone(), payload: message.payload.clone() };
            if delay.is_zero() {
                self.take_answer(&message.route, reply);
            } else {
                self.delayed.push((delay, DelayedMessage::Answer(message.route.clone(), reply)));
            }
        }
        1
    }

    /// Completes the request at a reply address.
    fn take_answer(&mut self, inbox: &Route, reply: Reply) {
        let Some(request) = self.pending.get(inbox) else { return };
        // Replies to a disconnected caller are lost. The caller waits until its deadline.
        if !self.connections.get(&request.connection).is_some_and(Connection::is_up) {
            return;
        }
        if let Some(request) = self.pending.remove(inbox) {
            // An error means that the caller stopped waiting.
            let _ = request.answer.send(reply);
        }
    }

    /// Whether a subscription gets messages on a route: its connection is up, and the route is not denied, even if the
    /// pattern is wider.
    fn can_receive(&self, listener: &Listener, route: &Route) -> bool {
        self.connections.get(&listener.connection).is_some_and(|connection| {
            let denied = &connection.options.subscribe.deny;
            connection.is_up() && !denied.iter().any(|pattern| pattern.matches(route.as_str()))
        })
    }

    /// Messages that the queues of a connection's subscriptions dropped.
    pub(super) fn dropped(&self, id: ConnectionId) -> u64 {
        self.connections.get(&id).map_or(0, |connection| connection.dropped)
    }

    fn enqueue(&mut self, id: SubscriptionId, delivery: Delivery) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        let dropped = !listener.deliveries.put(delivery);
        if dropped && let Some(connection) = self.connections.get_mut(&listener.connection) {
            connection.dropped += 1;
            // One event per series of drops: a slow subscriber cannot take one event per message.
            if !listener.slow {
                connection.emit(BusEvent::SlowConsumer(Some(listener.pattern.clone())));
            }
        }
        listener.slow = dropped;
    }
}

fn may_publish(permission: &Permission, route: &str) -> bool {
    let among = |patterns: &[RoutePattern]| patterns.iter().any(|pattern| pattern.matches(route));
    (permission.allow.is_empty() || among(&permission.allow)) && !among(&permission.deny)
}

fn may_subscribe(permission: &Permission, requested: &RoutePattern) -> bool {
    let among = |patterns: &[RoutePattern]| patterns.iter().any(|pattern| covers(pattern, requested));
    (permission.allow.is_empty() || among(&permission.allow)) && !among(&permission.deny)
}

/// Whether `wide` matches every route that `narrow` matches.
fn covers(wide: &RoutePattern, narrow: &RoutePattern) -> bool {
    let mut narrow = narrow.as_str().split('.');
    let mut wide = wide.as_str().split('.').peekable();
    while let Some(allowed) = wide.next() {
        let Some(token) = narrow.next() else { return false };
        if allowed == ">" && wide.peek().is_none() {
            return true;
        }
        // A final `>` matches more routes than one token.
        if token == ">" || (allowed != "*" && allowed != token) {
            return false;
        }
    }
    narrow.next().is_none()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// The memory broker removes a queue group when its last member leaves.
    #[test]
    fn queue_group_without_members_is_removed() {
        let mut broker = Broker::default();
        let (closing, ..) = broker.connect(MemoryOptions::named("closing"));
        let (other, ..) = broker.connect(MemoryOptions::named("other"));
        let join = |broker: &mut Broker, connection| {
            let options = SubscribeOptions { queue: Some("q".to_owned()), ..SubscribeOptions::default() };
            broker.subscribe(connection, &RoutePattern::new("a"), options).unwrap()
        };
        let (_one, (other_id, _two)) = (join(&mut broker, closing), join(&mut broker, other));
        broker.publish(other, Outgoing::new(Route::new("a"), Bytes::new())).unwrap();
        broker.close(closing);
        assert_eq!(broker.turns.len(), 1, "a member is left");
        broker.unsubscribe(other_id);
        assert_eq!(broker.turns.len(), 0);
        let _three = join(&mut broker, other);
        broker.publish(other, Outgoing::new(Route::new("a"), Bytes::new())).unwrap();
        broker.close(other);
        assert_eq!(broker.turns.len(), 0);
    }

    /// A pattern covers another pattern only if it matches all routes of that pattern.
    #[test]
    fn pattern_covers_only_patterns_within() {
        for (wide, narrow, expected) in [
            ("a.>", "a.b", true),
            ("a.>", "a.*", true),
            ("a.>", "a.b.>", true),
            ("a.>", "a", false),
            ("a.*", "a.*", true),
            ("a.*", "a.>", false),
            ("a.b", "a.*", false),
            ("a.b", "a.b.c", false),
            (">", ">", true),
            ("*", ">", false),
        ] {
            assert_eq!(
                covers(&RoutePattern::new(wide), &RoutePattern::new(narrow)),
                expected,
                "{wide} {narrow}"
            );
        }
    }
}
