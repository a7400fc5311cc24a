//! Published and dropped events. The tests in `tests/` check over the wire that events arrive in order.

use dormouse_bus::SubscribeOptions;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_protocol::limits::EVENT_INLINE_LIMIT_BYTES;
use dormouse_protocol::message::{Change, SetChange};
use dormouse_protocol::{Headers, Message, Rev, Seq, Term, Timestamp, decode};

use super::*;

fn set(rev: u64, value_bytes: usize) -> Change {
    let message = Message {
        seq: Seq::new(rev),
        term: Term::new(1),
        rev: Rev::new(rev),
        key: None,
        value: Some(Bytes::from(vec![7; value_bytes])),
        headers: Headers::default(),
        timestamp: Timestamp::default(),
        size: value_bytes as u64,
        value_omitted: false,
        expires_at: None,
    };
    Change::Set(SetChange { message, replaces: None })
}

fn event(changes: Vec<Change>) -> Event {
    let rev = changes.last().map_or(Rev::new(9), Change::rev);
    Event { v: Default::default(), term: Term::new(1), term_base: Rev::new(0), rev, changes }
}

/// A bus that accepts nothing until `free` has permits.
struct StuckBus {
    free: tokio::sync::Semaphore,
    events: tokio::sync::broadcast::Sender<dormouse_bus::BusEvent>,
}

#[async_trait::async_trait]
impl Bus for StuckBus {
    async fn request(
        &self,
        _: Outgoing,
        _: Duration,
    ) -> Result<dormouse_bus::Reply, dormouse_bus::RequestError> {
        Err(dormouse_bus::RequestError::Closed { sent: false })
    }

    async fn publish(&self, _: Outgoing) -> Result<(), dormouse_bus::PublishError> {
        let _turn = self.free.acquire().await;
        Ok(())
    }

    async fn subscribe(
        &self,
        _: dormouse_protocol::RoutePattern,
        _: SubscribeOptions,
    ) -> Result<dormouse_bus::Subscription, dormouse_bus::SubscribeError> {
        Err(dormouse_bus::SubscribeError::Closed)
    }

    async fn round_trip(&self, _: Duration) -> Result<(), dormouse_bus::RoundTripError> {
        Ok(())
    }

    fn events(&self) -> tokio::sync::broadcast::Receiver<dormouse_bus::BusEvent> {
        self.events.subscribe()
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn max_payload(&self) -> usize {
        1_024 * 1_024
    }

    async fn close(&self) {}
}

/// Publishing never blocks the subject, and each event is either published or counted as dropped.
#[tokio::test(start_paused = true)]
async fn event_queue_never_blocks_and_counts_dropped_events() {
    let clock = dormouse_runtime::VirtualClock::starting_at(Duration::ZERO);
    let env = Env::simulated(Arc::new(clock), Arc::new(dormouse_runtime::SeededEntropy::new(1)));
    let stuck = Arc::new(StuckBus {
        free: tokio::sync::Semaphore::new(0),
        events: tokio::sync::broadcast::channel(1).0,
    });
    let bus: Arc<dyn Bus> = stuck.clone();
    let tasks = Tasks::new();
    let events = EventPublisher::start(Prefix::default(), &bus, &env, &tasks);
    let subject = Subject::new("orders").unwrap();
    let all = QUEUE_EVENTS as u64 + 1_000;
    for rev in 1..=all {
        events.publish(&subject, event(vec![set(rev, 10)]));
    }
    assert!(events.dropped() > 0 && events.dropped_since(Duration::ZERO));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!events.dropped_since(Duration::from_secs(1)));
    // Queued events are published, also after the stop signal.
    stuck.free.add_permits(1);
    assert_eq!(tasks.finish(Duration::from_secs(5)).await, Ok(()));
    assert_eq!(events.published() + events.dropped(), all);
    assert_eq!(events.published(), QUEUE_EVENTS as u64);
}

/// The event queue drops events above its byte limit.
#[tokio::test(start_paused = true)]
async fn event_queue_is_bounded_in_bytes() {
    let clock = dormouse_runtime::VirtualClock::starting_at(Duration::ZERO);
    let env = Env::simulated(Arc::new(clock), Arc::new(dormouse_runtime::SeededEntropy::new(1)));
    let stuck = Arc::new(StuckBus {
        free: tokio::sync::Semaphore::new(0),
        events: tokio::sync::broadcast::channel(1).0,
    });
    let bus: Arc<dyn Bus> = stuck;
    let events = EventPublisher::start(Prefix::default(), &bus, &env, &Tasks::new());
    let subject = Subject::new("orders").unwrap();
    let fitting = QUEUE_BYTES / EVENT_INLINE_LIMIT_BYTES;
    for rev in 1..=fitting as u64 + 10 {
        events.publish(&subject, event(vec![set(rev, EVENT_INLINE_LIMIT_BYTES)]));
    }
    assert!((11..100).contains(&events.dropped()), "{}", events.dropped());
}

fn env() -> Env {
    let clock = dormouse_runtime::VirtualClock::starting_at(Duration::from_secs(1_000));
    Env::simulated(Arc::new(clock), Arc::new(dormouse_runtime::SeededEntropy::new(1)))
}

/// An event that is published while the bus is disconnected counts as dropped.
#[tokio::test(start_paused = true)]
async fn event_published_while_disconnected_counts_as_dropped() {
    let (broker, env, tasks) = (MemoryBroker::new(), env(), Tasks::new());
    let bus: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("server")));
    let events = EventPublisher::start(Prefix::default(), &bus, &env, &tasks);
    let subject = Subject::new("orders").unwrap();
    broker.disconnect("server");
    events.publish(&subject, event(vec![set(1, 10)]));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((events.published(), events.dropped()), (0, 1));
    assert!(events.dropped_since(env.boot() - Duration::from_secs(1)));
    broker.reconnect("server");
    events.publish(&subject, event(vec![set(2, 10)]));
    assert_eq!(tasks.finish(Duration::from_secs(5)).await, Ok(()));
    assert_eq!((events.published(), events.dropped()), (1, 1));
}

/// An event above the payload limit of the bus is dropped, and the other events are published.
#[tokio::test(start_paused = true)]
async fn event_over_payload_limit_is_dropped_alone() {
    let (broker, env, tasks) = (MemoryBroker::new(), env(), Tasks::new());
    let bus: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("server")));
    let subject = Subject::new("orders").unwrap();
    let listener = broker.connect(MemoryOptions::named("listener"));
    let pattern = Prefix::default().events(&subject).into();
    let mut received = listener.subscribe(pattern, SubscribeOptions::default()).await.unwrap();
    let events = EventPublisher::start(Prefix::default(), &bus, &env, &tasks);
    for (rev, value_bytes) in [(1, 10), (2, bus.max_payload()), (3, 10)] {
        events.publish(&subject, event(vec![set(rev, value_bytes)]));
    }
    assert_eq!(tasks.finish(Duration::from_secs(5)).await, Ok(()));
    assert_eq!((events.published(), events.dropped()), (2, 1));
    for rev in [1, 3] {
        let event: Event = decode(&received.next().await.unwrap().payload).unwrap();
        assert_eq!(event.rev, Rev::new(rev));
    }
}

/// The server logs dropped events at most every ten seconds.
#[test]
fn event_drop_warnings_are_at_least_10_seconds_apart() {
    let (env, counters) = (env(), EventCounters::default());
    let mut drops = DropReporter::default();
    assert_eq!(drops.due(&counters), None);
    counters.note_dropped(&env);
    let now = env.boot();
    assert!(drops.due(&counters).is_some_and(|due| due <= now));
    drops.report(&counters, now);
    assert_eq!(drops.due(&counters), None);
    counters.note_dropped(&env);
    assert_eq!(drops.due(&counters), Some(now + LOG_INTERVAL));
}
