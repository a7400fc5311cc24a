//! Events on their way out: encoded by the subject's task, published in order by one task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Outgoing};
use dormouse_protocol::message::Event;
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
/// Least time between two lines about dropped events.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Takes the events of every subject and publishes them in the order taken.
///
/// A subject never waits for it: when the bus does not keep up or is not connected, events are dropped and counted.
/// Whoever misses them sees a hole in the revs, at the next event or at the next beacon.
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

    /// How many events were dropped because the bus did not keep up, was not connected or would not take them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.books.dropped.load(Ordering::Relaxed)
    }

    /// Whether an event was dropped at or after `since`, on the clock of [`Env::boot`].
    #[must_use]
    pub fn dropped_since(&self, since: Duration) -> bool {
        self.books.dropped_at_ms.load(Ordering::Relaxed) > millis(since)
    }

    fn enqueue(&self, route: Route, payload: Bytes) {
        let size = payload.len();
        let waiting = self.books.queued_bytes.fetch_add(size, Ordering::Relaxed);
        let fits = waiting + size <= QUEUE_BYTES;
        if !fits || self.queue.try_send(Queued { route, payload }).is_err() {
            self.books.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            self.books.note_dropped(&self.env);
        }
    }
}

impl EventSink for Events {
    fn publish(&self, subject: &Subject, event: Event) {
        // The engine has cut it to size. What is too large all the same, since one change is or since the bus carries
        // less than a moment ago, leaves a hole in the revs, which is how subscribers are told to fetch.
        match encode(&event) {
            Ok(payload) if payload.len() <= self.bus.max_payload() => {
                self.enqueue(self.prefix.events(subject), payload);
            }
            Ok(_) | Err(_) => self.books.note_dropped(&self.env),
        }
    }
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
        let mut complaints = Complaints::default();
        loop {
            let wait = complaints.due(&self.books).map(|due| due.saturating_sub(self.env.boot()));
            tokio::select! {
                biased;
                taken = self.queued.recv_many(&mut burst, BURST) => {
                    if taken == 0 {
                        break;
                    }
                }
                // Only once nothing is queued: what has been acknowledged has been announced.
                () = self.stop.given() => break,
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
            for queued in burst.drain(..) {
                self.publish(queued).await;
            }
            let now = self.env.boot();
            if complaints.due(&self.books).is_some_and(|due| due <= now) {
                complaints.complain(&self.books, now);
            }
        }
        if complaints.due(&self.books).is_some() {
            complaints.complain(&self.books, self.env.boot());
        }
    }

    async fn publish(&self, Queued { route, payload }: Queued) {
        self.books.queued_bytes.fetch_sub(payload.len(), Ordering::Relaxed);
        // A bus without a connection takes a message all the same, and sends it nowhere.
        let was_connected = self.bus.is_connected();
        match self.bus.publish(Outgoing::new(route, payload)).await {
            Ok(()) if was_connected && self.bus.is_connected() => {
                self.books.published.fetch_add(1, Ordering::Relaxed);
            }
            Ok(()) => self.books.note_dropped(&self.env),
            Err(error) => {
                tracing::debug!(%error, "an event was not published");
                self.books.note_dropped(&self.env);
            }
        }
    }
}

/// What the log has been told of dropped events.
#[derive(Debug, Default)]
struct Complaints {
    reported: u64,
    quiet_until: Duration,
}

impl Complaints {
    /// When the log is to be told something, if there is anything to tell.
    fn due(&self, books: &Books) -> Option<Duration> {
        (books.dropped.load(Ordering::Relaxed) > self.reported).then_some(self.quiet_until)
    }

    fn complain(&mut self, books: &Books, now: Duration) {
        let dropped = books.dropped.load(Ordering::Relaxed);
        tracing::warn!(
            events = dropped - self.reported,
            "events were dropped because the bus did not take them; subscribers will notice and fetch"
        );
        *self = Self { reported: dropped, quiet_until: now + BETWEEN_LINES };
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
