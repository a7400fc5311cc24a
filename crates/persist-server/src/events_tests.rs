//! How events are cut to size. That they arrive in order is tested over the wire, in `tests/`.

use dormouse_protocol::message::{DeleteChange, Removed, SetChange};
use dormouse_protocol::{Headers, Message, Rev, Seq, Term, Timestamp, decode};
use proptest::prelude::*;

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

fn cut(event: Event, limit_bytes: usize) -> Vec<Event> {
    payloads(event, limit_bytes)
        .iter()
        .map(|payload| {
            assert!(payload.len() <= limit_bytes);
            decode(payload).unwrap()
        })
        .collect()
}

#[test]
fn an_event_that_fits_is_left_alone() {
    let event = event(vec![set(1, 10), set(2, 10)]);
    assert_eq!(cut(event.clone(), 1_000_000), [event]);
}

#[test]
fn a_large_value_is_announced_by_its_size() {
    let sizes = [EVENT_INLINE_LIMIT_BYTES, EVENT_INLINE_LIMIT_BYTES + 1];
    let [cut] = cut(event(vec![set(1, sizes[0]), set(2, sizes[1])]), 1_000_000).try_into().unwrap();
    let [Change::Set(small), Change::Set(large)] = cut.changes.as_slice() else { panic!("{cut:?}") };
    assert!(!small.message.value_omitted && small.message.value.is_some());
    assert!(large.message.value_omitted && large.message.value.is_none());
    assert_eq!(large.message.size, sizes[1] as u64);
}

#[test]
fn a_change_that_fits_nowhere_leaves_a_hole_that_a_beacon_shows() {
    let removed = (0..1_000).map(|seq| Removed { seq: Seq::new(seq), key: Some("k".repeat(500)) }).collect();
    let huge = Change::Delete(DeleteChange { rev: Rev::new(2), removed });
    let events = cut(event(vec![set(1, 10), huge, set(3, 10)]), 2_000);
    let seen: Vec<(u64, usize)> = events.iter().map(|event| (event.rev.get(), event.changes.len())).collect();
    assert_eq!(seen, [(1, 1), (2, 0), (3, 1)]);
}

proptest! {
    #[test]
    fn a_cut_event_tells_the_same_story(sizes in prop::collection::vec(0usize..3_000, 0..40), limit in 500usize..20_000) {
        let whole = event((1u64..).zip(&sizes).map(|(rev, size)| set(rev, *size)).collect());
        let events = cut(whole.clone(), limit);
        prop_assert_eq!(events.last().map(|event| event.rev), Some(whole.rev));
        let mut last = Rev::new(0);
        for event in &events {
            for change in &event.changes {
                prop_assert_eq!(change.rev(), last.next());
                last = change.rev();
            }
            prop_assert!(event.changes.is_empty() || event.rev == last);
        }
        prop_assert_eq!(events.iter().map(|event| event.changes.len()).sum::<usize>(), sizes.len());
    }
}

/// A bus that takes nothing until it is let go.
struct StuckBus {
    free: tokio::sync::Semaphore,
    happened: tokio::sync::broadcast::Sender<dormouse_bus::BusEvent>,
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
        _: dormouse_bus::SubscribeOptions,
    ) -> Result<dormouse_bus::Subscription, dormouse_bus::SubscribeError> {
        Err(dormouse_bus::SubscribeError::Closed)
    }

    fn events(&self) -> tokio::sync::broadcast::Receiver<dormouse_bus::BusEvent> {
        self.happened.subscribe()
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn max_payload(&self) -> usize {
        1_024 * 1_024
    }

    async fn close(&self) {}
}

#[tokio::test(start_paused = true)]
async fn a_subject_never_waits_and_every_event_is_published_or_counted_as_dropped() {
    let clock = dormouse_runtime::VirtualClock::starting_at(Duration::ZERO);
    let env = Env::simulated(Arc::new(clock), Arc::new(dormouse_runtime::SeededEntropy::new(1)));
    let stuck = Arc::new(StuckBus {
        free: tokio::sync::Semaphore::new(0),
        happened: tokio::sync::broadcast::channel(1).0,
    });
    let bus: Arc<dyn Bus> = stuck.clone();
    let tasks = Tasks::new();
    let events = Events::start(Prefix::default(), &bus, &env, &tasks);
    let subject = Subject::new("orders").unwrap();
    let all = QUEUE_EVENTS as u64 + 1_000;
    for rev in 1..=all {
        events.publish(&subject, event(vec![set(rev, 10)]));
    }
    assert!(events.dropped() > 0 && events.dropped_since(Duration::ZERO));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!events.dropped_since(Duration::from_secs(1)));
    // What was taken is published, also after the stop signal.
    stuck.free.add_permits(1);
    assert_eq!(tasks.finish(Duration::from_secs(5)).await, Ok(()));
    assert_eq!(events.published() + events.dropped(), all);
    assert_eq!(events.published(), QUEUE_EVENTS as u64);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_in_bytes_too() {
    let clock = dormouse_runtime::VirtualClock::starting_at(Duration::ZERO);
    let env = Env::simulated(Arc::new(clock), Arc::new(dormouse_runtime::SeededEntropy::new(1)));
    let stuck = Arc::new(StuckBus {
        free: tokio::sync::Semaphore::new(0),
        happened: tokio::sync::broadcast::channel(1).0,
    });
    let bus: Arc<dyn Bus> = stuck;
    let events = Events::start(Prefix::default(), &bus, &env, &Tasks::new());
    let subject = Subject::new("orders").unwrap();
    let fitting = QUEUE_BYTES / EVENT_INLINE_LIMIT_BYTES;
    for rev in 1..=fitting as u64 + 10 {
        events.publish(&subject, event(vec![set(rev, EVENT_INLINE_LIMIT_BYTES)]));
    }
    assert!((11..100).contains(&events.dropped()), "{}", events.dropped());
}
