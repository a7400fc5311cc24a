//! The state behind a [`MemoryBroker`](super::MemoryBroker): who is connected, who listens where, who waits for what.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::{Route, RoutePattern};
use dormouse_runtime::Watched;
use tokio::sync::{broadcast, oneshot};

use super::network::{Network, Passage};
use super::{MemoryOptions, Permission};
use crate::mailbox::{Mailbox, Slot, mailbox};
use crate::{
    BusEvent, Delivery, Outgoing, PublishError, Reply, RequestError, SubscribeError, SubscribeOptions,
};

/// How many events wait for a receiver before the oldest are overwritten.
const EVENTS: usize = 1_024;

/// The largest payload of a nats-server, unless configured otherwise.
const MAX_PAYLOAD_BYTES: usize = 1_024 * 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ConnectionId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SubscriptionId(u64);

/// State of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    Down,
    Closed,
}

pub(super) struct Connection {
    options: MemoryOptions,
    link: Arc<Watched<Link>>,
    events: broadcast::Sender<BusEvent>,
}

impl Connection {
    pub(super) fn name(&self) -> &str {
        &self.options.name
    }

    fn is_up(&self) -> bool {
        self.link.get() == Link::Up
    }

    fn tell(&self, event: BusEvent) {
        // An error means that nobody listens.
        let _ = self.events.send(event);
    }
}

struct Listener {
    connection: ConnectionId,
    pattern: RoutePattern,
    queue: Option<String>,
    deliveries: Slot,
    /// The last message was dropped.
    slow: bool,
}

struct Asker {
    connection: ConnectionId,
    answer: oneshot::Sender<Reply>,
}

/// A copy of a message that arrives later.
pub(super) enum Parcel {
    Message(SubscriptionId, Delivery),
    Answer(Route, Reply),
}

pub(super) struct Broker {
    pub(super) max_payload_bytes: usize,
    /// What lies between the connections; `None`: nothing, everything arrives at once.
    pub(super) network: Option<Arc<dyn Network>>,
    /// Copies that were sent and arrive after so long; whoever had something sent takes them out.
    pub(super) posted: Vec<(Duration, Parcel)>,
    // Ordered maps: whoever came first is served first, in every run.
    connections: BTreeMap<ConnectionId, Connection>,
    listeners: BTreeMap<SubscriptionId, Listener>,
    askers: BTreeMap<Route, Asker>,
    // Members of a queue group take turns. A group is known by its name alone, as in NATS: who listens to `a.*` and who
    // listens to `a.b` in groups of one name share what goes to `a.b`.
    turns: HashMap<String, usize>,
    last_id: u64,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            max_payload_bytes: MAX_PAYLOAD_BYTES,
            network: None,
            posted: Vec::new(),
            connections: BTreeMap::new(),
            listeners: BTreeMap::new(),
            askers: BTreeMap::new(),
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
    ) -> (ConnectionId, Arc<Watched<Link>>, broadcast::Sender<BusEvent>) {
        let id = ConnectionId(self.next_id());
        let link = Arc::new(Watched::new(Link::Up));
        let events = broadcast::Sender::new(EVENTS);
        self.connections.insert(id, Connection { options, link: Arc::clone(&link), events: events.clone() });
        (id, link, events)
    }

    /// Takes the connections that `wanted` picks up or down.
    pub(super) fn set_link(&mut self, wanted: impl Fn(&Connection) -> bool, link: Link) {
        for connection in self.connections.values().filter(|connection| wanted(connection)) {
            let changed = connection.link.change(|now| std::mem::replace(now, link) != link);
            if changed {
                connection.tell(if link == Link::Up { BusEvent::Connected } else { BusEvent::Disconnected });
            }
        }
    }

    /// Closes the connections that `wanted` picks.
    pub(super) fn close_all(&mut self, wanted: impl Fn(&Connection) -> bool) {
        let picked = self.connections.iter().filter(|(_, connection)| wanted(connection));
        let ids: Vec<ConnectionId> = picked.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.close(id));
    }

    pub(super) fn close(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.listeners.retain(|_, listener| listener.connection != id);
        self.askers.retain(|_, asker| asker.connection != id);
        self.forget_empty_groups();
        connection.link.set(Link::Closed);
        connection.tell(BusEvent::Closed);
    }

    pub(super) fn publish(&mut self, from: ConnectionId, message: Outgoing) -> Result<(), PublishError> {
        let connection = self.connections.get(&from).ok_or(PublishError::Closed)?;
        if !connection.is_up() {
            return Ok(());
        }
        if may_publish(&connection.options.publish, message.route.as_str()) {
            self.deliver(from, message, None);
        } else {
            connection.tell(BusEvent::PublishDenied(message.route));
        }
        Ok(())
    }

    /// Sends a request and returns the address at which its answer is expected.
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
        self.askers.insert(inbox.clone(), Asker { connection: from, answer });
        if self.deliver(from, message, Some(&inbox)) == 0 {
            self.askers.remove(&inbox);
            return Err(RequestError::NoResponders(route));
        }
        Ok(inbox)
    }

    pub(super) fn forget(&mut self, inbox: &Route) {
        self.askers.remove(inbox);
    }

    pub(super) fn subscribe(
        &mut self,
        from: ConnectionId,
        pattern: &RoutePattern,
        options: SubscribeOptions,
    ) -> Result<(SubscriptionId, Mailbox), SubscribeError> {
        let id = SubscriptionId(self.next_id());
        let connection = self.connections.get(&from).ok_or(SubscribeError::Closed)?;
        if !may_subscribe(&connection.options.subscribe, pattern) {
            connection.tell(BusEvent::SubscribeDenied(pattern.clone()));
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
        if self.listeners.remove(&id).is_some_and(|gone| gone.queue.is_some()) {
            self.forget_empty_groups();
        }
    }

    fn forget_empty_groups(&mut self) {
        let listeners = &self.listeners;
        self.turns
            .retain(|group, _| listeners.values().any(|listener| listener.queue.as_ref() == Some(group)));
    }

    /// Hands a message to everybody who listens there. Returns how many do, also where it had to be dropped.
    fn deliver(&mut self, from: ConnectionId, message: Outgoing, reply_to: Option<&Route>) -> usize {
        let mut receivers = self.answer(from, &message);
        let mut chosen: Vec<SubscriptionId> = Vec::new();
        let mut groups: BTreeMap<&str, Vec<SubscriptionId>> = BTreeMap::new();
        for (id, listener) in &self.listeners {
            if !listener.pattern.matches(message.route.as_str()) || !self.hears(listener, &message.route) {
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

    /// Brings a message to a listener, as often and as late as the network has it.
    fn send(&mut self, from: ConnectionId, id: SubscriptionId, delivery: &Delivery) {
        let Some(listener) = self.listeners.get(&id) else { return };
        let (route, payload) = (&delivery.route, &delivery.payload);
        for delay in self.fates(from, listener.connection, route, false, payload) {
            if delay.is_zero() {
                self.hand_over(id, delivery.clone());
            } else {
                self.posted.push((delay, Parcel::Message(id, delivery.clone())));
            }
        }
    }

    fn fates(
        &self,
        from: ConnectionId,
        to: ConnectionId,
        route: &Route,
        is_answer: bool,
        payload: &Bytes,
    ) -> Vec<Duration> {
        let Some(network) = &self.network else { return vec![Duration::ZERO] };
        let name = |id| self.connections.get(&id).map_or("", Connection::name);
        network.fates(Passage { from: name(from), to: name(to), route, is_answer, payload })
    }

    /// A copy has come to its end of the network.
    pub(super) fn arrive(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Message(id, delivery) => {
                let hears = self.listeners.get(&id).is_some_and(|to| self.hears(to, &delivery.route));
                if hears {
                    self.hand_over(id, delivery);
                }
            }
            Parcel::Answer(inbox, reply) => self.take_answer(&inbox, reply),
        }
    }

    /// Whether the message was the answer that somebody waits for.
    fn answer(&mut self, from: ConnectionId, message: &Outgoing) -> usize {
        let Some(asker) = self.askers.get(&message.route) else { return 0 };
        for delay in self.fates(from, asker.connection, &message.route, true, &message.payload) {
            let reply = Reply { headers: message.headers.clone(), payload: message.payload.clone() };
            if delay.is_zero() {
                self.take_answer(&message.route, reply);
            } else {
                self.posted.push((delay, Parcel::Answer(message.route.clone(), reply)));
            }
        }
        1
    }

    /// An answer has come to where it was expected.
    fn take_answer(&mut self, inbox: &Route, reply: Reply) {
        let Some(asker) = self.askers.get(inbox) else { return };
        // While the asker is cut off its answers are lost, and it waits on until its deadline.
        if !self.connections.get(&asker.connection).is_some_and(Connection::is_up) {
            return;
        }
        if let Some(asker) = self.askers.remove(inbox) {
            // An error means that the asker stopped waiting.
            let _ = asker.answer.send(reply);
        }
    }

    /// Whether messages reach a listener: it is connected, and what it may not subscribe to is kept from it even when
    /// its pattern is wider.
    fn hears(&self, listener: &Listener, route: &Route) -> bool {
        self.connections.get(&listener.connection).is_some_and(|connection| {
            let denied = &connection.options.subscribe.deny;
            connection.is_up() && !denied.iter().any(|pattern| pattern.matches(route.as_str()))
        })
    }

    fn hand_over(&mut self, id: SubscriptionId, delivery: Delivery) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        let dropped = !listener.deliveries.put(delivery);
        // Once for a run of losses: who cannot take messages cannot take as many events.
        if dropped
            && !listener.slow
            && let Some(connection) = self.connections.get(&listener.connection)
        {
            connection.tell(BusEvent::SlowConsumer(Some(listener.pattern.clone())));
        }
        listener.slow = dropped;
    }
}

fn may_publish(permission: &Permission, route: &str) -> bool {
    let among = |patterns: &[RoutePattern]| patterns.iter().any(|pattern| pattern.matches(route));
    (permission.allow.is_empty() || among(&permission.allow)) && !among(&permission.deny)
}

fn may_subscribe(permission: &Permission, wanted: &RoutePattern) -> bool {
    let among = |patterns: &[RoutePattern]| patterns.iter().any(|pattern| covers(pattern, wanted));
    (permission.allow.is_empty() || among(&permission.allow)) && !among(&permission.deny)
}

/// Whether every route that `narrow` stands for is one of `wide`'s.
fn covers(wide: &RoutePattern, narrow: &RoutePattern) -> bool {
    let mut narrow = narrow.as_str().split('.');
    let mut wide = wide.as_str().split('.').peekable();
    while let Some(allowed) = wide.next() {
        let Some(token) = narrow.next() else { return false };
        if allowed == ">" && wide.peek().is_none() {
            return true;
        }
        // An open end stands for more than one token can.
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

    #[test]
    fn a_group_without_members_is_forgotten() {
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

    #[test]
    fn a_pattern_covers_only_what_lies_within_it() {
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
