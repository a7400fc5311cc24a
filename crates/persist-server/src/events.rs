//! Events on their way out: encoded by the subject's task, published in order by one task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Outgoing};
use dormouse_protocol::limits::EVENT_INLINE_LIMIT_BYTES;
use dormouse_protocol::message::{Change, Event};
use dormouse_protocol::{Prefix, Route, Subject, encode};
use dormouse_runtime::{Env, Stop, Tasks};
use dormouse_storage::api::EventSink;
use tokio::sync::mpsc;

/// How many events wait for the bus.
const QUEUE_EVENTS: usize = 16_384;
/// How many bytes of events wait for the bus.
const QUEUE_BYTES: usize = 64 * 1_024 * 1_024;
/// How many events the publishing task takes at a time.
const BURST: usize = 256;

/// Takes the events of every subject and publishes them in the order taken.
///
/// A subject never waits for it: when the bus does not keep up, events are dropped and counted. Whoever misses them
/// sees a hole in the revs, at the next event or at the next beacon.
pub struct Events {
    prefix: Prefix,
    bus: Arc<dyn Bus>,
    env: Env,
    queue: mpsc::Sender<Queued>,
    books: Arc<Books>,
}

struct Queued {
    route: Route,
    payload: Bytes,
}

#[derive(Debug, Default)]
struct Books {
    queued_bytes: AtomicUsize,
    published: AtomicU64,
    dropped: AtomicU64,
    /// When an event was dropped last, in milliseconds of [`Env::boot`], plus one; 0: never.
    dropped_at_ms: AtomicU64,
}

impl Books {
    fn note_dropped(&self, env: &Env) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.dropped_at_ms.store(millis(env.boot()) + 1, Ordering::Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1)
}

impl Events {
    /// Starts the publishing task. It ends when `tasks` are stopped, after publishing what is queued by then.
    #[must_use]
    pub fn start(prefix: Prefix, bus: &Arc<dyn Bus>, env: &Env, tasks: &Tasks) -> Arc<Self> {
        let (queue, queued) = mpsc::channel(QUEUE_EVENTS);
        let books = Arc::new(Books::default());
        let publisher = Publisher {
            bus: Arc::clone(bus),
            env: env.clone(),
            queued,
            books: Arc::clone(&books),
            stop: tasks.stop().clone(),
        };
        tasks.spawn("event publisher", publisher.run());
        Arc::new(Self { prefix, bus: Arc::clone(bus), env: env.clone(), queue, books })
    }

    /// How many events have been handed to the bus.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.books.published.load(Ordering::Relaxed)
    }

    /// How many events were dropped because the bus did not keep up or would not take them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.books.dropped.load(Ordering::Relaxed)
    }

    /// Whether an event was dropped at or after `since`, on the clock of [`Env::boot`].
    #[must_use]
    pub fn dropped_since(&self, since: Duration) -> bool {
        self.books.dropped_at_ms.load(Ordering::Relaxed) > millis(since)
    }

    fn enqueue(&self, route: &Route, payload: Bytes) {
        let size = payload.len();
        let waiting = self.books.queued_bytes.fetch_add(size, Ordering::Relaxed);
        let fits = waiting + size <= QUEUE_BYTES;
        if !fits || self.queue.try_send(Queued { route: route.clone(), payload }).is_err() {
            self.books.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            self.books.note_dropped(&self.env);
        }
    }
}

impl EventSink for Events {
    fn publish(&self, subject: &Subject, event: Event) {
        let route = self.prefix.events(subject);
        for payload in payloads(event, self.bus.max_payload()) {
            self.enqueue(&route, payload);
        }
    }
}

/// The event as one or several payloads of at most `limit_bytes`: large values left out, changes spread over several
/// events where one would not hold them. A change that fits nowhere leaves a hole in the revs, which is how
/// subscribers are told to fetch.
fn payloads(mut event: Event, limit_bytes: usize) -> Vec<Bytes> {
    for change in &mut event.changes {
        omit_value_above(change, EVENT_INLINE_LIMIT_BYTES);
    }
    let mut done = Vec::with_capacity(1);
    split(event, limit_bytes, &mut done);
    done
}

fn split(mut event: Event, limit_bytes: usize, done: &mut Vec<Bytes>) {
    // Every type of the protocol can be encoded; nothing sensible could be done about one that cannot.
    let Ok(payload) = encode(&event) else { return };
    if payload.len() <= limit_bytes || event.changes.is_empty() {
        return done.push(payload);
    }
    if let [change] = event.changes.as_mut_slice() {
        if !omit_value_above(change, 0) {
            event.changes.clear();
        }
        return split(event, limit_bytes, done);
    }
    let second = event.changes.split_off(event.changes.len() / 2);
    let first_rev = event.changes.last().map_or(event.rev, Change::rev);
    let first = Event { rev: first_rev, changes: event.changes, ..event };
    let second = Event { changes: second, ..first_of(&first, event.rev) };
    split(first, limit_bytes, done);
    split(second, limit_bytes, done);
}

/// An event without changes like `event`, but at `rev`.
fn first_of(event: &Event, rev: dormouse_protocol::Rev) -> Event {
    Event { v: event.v, term: event.term, term_base: event.term_base, rev, changes: Vec::new() }
}

/// Leaves the value of `change` out if it has one of more than `limit_bytes`. Whether it did.
fn omit_value_above(change: &mut Change, limit_bytes: usize) -> bool {
    let Change::Set(change) = change else { return false };
    let message = &mut change.message;
    if message.value.as_ref().is_some_and(|value| value.len() > limit_bytes) {
        message.value = None;
        message.value_omitted = true;
        return true;
    }
    false
}

struct Publisher {
    bus: Arc<dyn Bus>,
    env: Env,
    queued: mpsc::Receiver<Queued>,
    books: Arc<Books>,
    stop: Stop,
}

impl Publisher {
    async fn run(mut self) {
        let mut burst = Vec::with_capacity(BURST);
        let mut reported = 0;
        loop {
            tokio::select! {
                biased;
                taken = self.queued.recv_many(&mut burst, BURST) => {
                    if taken == 0 {
                        return;
                    }
                }
                // Only once nothing is queued: what has been acknowledged has been announced.
                () = self.stop.given() => return,
            }
            for Queued { route, payload } in burst.drain(..) {
                self.books.queued_bytes.fetch_sub(payload.len(), Ordering::Relaxed);
                match self.bus.publish(Outgoing::new(route, payload)).await {
                    Ok(()) => {
                        self.books.published.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "an event was not published");
                        self.books.note_dropped(&self.env);
                    }
                }
            }
            let dropped = self.books.dropped.load(Ordering::Relaxed);
            if dropped > reported {
                tracing::warn!(
                    events = dropped - reported,
                    "events were dropped because the bus did not take them; subscribers will notice and fetch"
                );
                reported = dropped;
            }
        }
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
