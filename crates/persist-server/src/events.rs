//! Publication of events: the subject's task encodes them, and one task publishes them in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Outgoing};
use dormouse_engine::api::EventSink;
use dormouse_protocol::message::Event;
use dormouse_protocol::{Prefix, Route, Subject, encode};
use dormouse_runtime::{Env, Stop, Tasks};
use tokio::sync::mpsc;

/// Maximum number of queued events.
const QUEUE_EVENTS: usize = 16_384;
/// Maximum bytes of queued events.
const QUEUE_BYTES: usize = 64 * 1_024 * 1_024;
/// Maximum number of events that the publishing task takes at a time.
const BURST: usize = 256;
/// Minimum time between two log lines about dropped events.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Takes the events of every subject and publishes them in this order.
///
/// A subject never waits for it. If the bus does not keep up or is not connected, events are dropped and counted.
/// Subscribers detect the gap in the revs at the next event or beacon.
pub struct EventPublisher {
    prefix: Prefix,
    bus: Arc<dyn Bus>,
    env: Env,
    queue: mpsc::Sender<Queued>,
    counters: Arc<EventCounters>,
}

struct Queued {
    route: Route,
    payload: Bytes,
}

#[derive(Debug, Default)]
struct EventCounters {
    queued_bytes: AtomicUsize,
    published: AtomicU64,
    dropped: AtomicU64,
    /// Time of the last dropped event, in milliseconds of [`Env::boot`], plus one; 0: never.
    dropped_at_ms: AtomicU64,
}

impl EventCounters {
    fn note_dropped(&self, env: &Env) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.dropped_at_ms.store(millis(env.boot()) + 1, Ordering::Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1)
}

impl EventPublisher {
    /// Starts the publishing task. When `tasks` are stopped, it publishes the queued events and ends.
    #[must_use]
    pub fn start(prefix: Prefix, bus: &Arc<dyn Bus>, env: &Env, tasks: &Tasks) -> Arc<Self> {
        let (queue, queued) = mpsc::channel(QUEUE_EVENTS);
        let counters = Arc::new(EventCounters::default());
        let publisher = Publisher {
            bus: Arc::clone(bus),
            env: env.clone(),
            queued,
            counters: Arc::clone(&counters),
            stop: tasks.stop().clone(),
        };
        tasks.spawn("event publisher", publisher.run());
        Arc::new(Self { prefix, bus: Arc::clone(bus), env: env.clone(), queue, counters })
    }

    /// Number of events passed to the bus.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.counters.published.load(Ordering::Relaxed)
    }

    /// Number of events dropped because the bus did not keep up, was not connected or rejected them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counters.dropped.load(Ordering::Relaxed)
    }

    /// Whether an event was dropped at or after `since`, on the clock of [`Env::boot`].
    #[must_use]
    pub fn dropped_since(&self, since: Duration) -> bool {
        self.counters.dropped_at_ms.load(Ordering::Relaxed) > millis(since)
    }

    fn enqueue(&self, route: Route, payload: Bytes) {
        let size = payload.len();
        let queued = self.counters.queued_bytes.fetch_add(size, Ordering::Relaxed);
        let fits = queued + size <= QUEUE_BYTES;
        if !fits || self.queue.try_send(Queued { route, payload }).is_err() {
            self.counters.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            self.counters.note_dropped(&self.env);
        }
    }
}

impl EventSink for EventPublisher {
    fn publish(&self, subject: &Subject, event: Event) {
        // The engine has limited the size of the event. The event can still be too large: one change is too large, or
        // the payload limit of the bus has shrunk. Then the gap in the revs makes subscribers fetch.
        match encode(&event) {
            Ok(payload) if payload.len() <= self.bus.max_payload() => {
                self.enqueue(self.prefix.events(subject), payload);
            }
            Ok(_) | Err(_) => self.counters.note_dropped(&self.env),
        }
    }
}

struct Publisher {
    bus: Arc<dyn Bus>,
    env: Env,
    queued: mpsc::Receiver<Queued>,
    counters: Arc<EventCounters>,
    stop: Stop,
}

impl Publisher {
    async fn run(mut self) {
        let mut burst = Vec::with_capacity(BURST);
        let mut drops = DropReporter::default();
        loop {
            let wait = drops.due(&self.counters).map(|due| due.saturating_sub(self.env.boot()));
            tokio::select! {
                biased;
                taken = self.queued.recv_many(&mut burst, BURST) => {
                    if taken == 0 {
                        break;
                    }
                }
                // Only when the queue is empty: every acknowledged change has been published.
                () = self.stop.requested() => break,
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
            for queued in burst.drain(..) {
                self.publish(queued).await;
            }
            let now = self.env.boot();
            if drops.due(&self.counters).is_some_and(|due| due <= now) {
                drops.report(&self.counters, now);
            }
        }
        if drops.due(&self.counters).is_some() {
            drops.report(&self.counters, self.env.boot());
        }
    }

    async fn publish(&self, Queued { route, payload }: Queued) {
        self.counters.queued_bytes.fetch_sub(payload.len(), Ordering::Relaxed);
        // A bus without a connection accepts a message and discards it.
        let was_connected = self.bus.is_connected();
        match self.bus.publish(Outgoing::new(route, payload)).await {
            Ok(()) if was_connected && self.bus.is_connected() => {
                self.counters.published.fetch_add(1, Ordering::Relaxed);
            }
            Ok(()) => self.counters.note_dropped(&self.env),
            Err(error) => {
                tracing::debug!(%error, "event publish failed");
                self.counters.note_dropped(&self.env);
            }
        }
    }
}

/// Rate-limits the log lines about dropped events.
#[derive(Debug, Default)]
struct DropReporter {
    reported: u64,
    next_line_at: Duration,
}

impl DropReporter {
    /// Time of the next log line, if there are unreported dropped events.
    fn due(&self, counters: &EventCounters) -> Option<Duration> {
        (counters.dropped.load(Ordering::Relaxed) > self.reported).then_some(self.next_line_at)
    }

    fn report(&mut self, counters: &EventCounters, now: Duration) {
        let dropped = counters.dropped.load(Ordering::Relaxed);
        tracing::warn!(
            events = dropped - self.reported,
            impact = "subscribers detect the gap and fetch",
            "events dropped"
        );
        *self = Self { reported: dropped, next_line_at: now + LOG_INTERVAL };
    }
}

#[cfg(test)]
mod tests;
