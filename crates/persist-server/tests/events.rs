//! Events that subscribers of a subject receive.

mod support;

use std::time::Duration;

use dormouse_bus::{SubscribeOptions, Subscription};
use dormouse_protocol::data::{DeleteReply, DeleteRequest};
use dormouse_protocol::{Change, Event, Op, Prefix, decode};
use support::{Fleet, subject};

async fn listen(fleet: &Fleet, name: &str) -> Subscription {
    let pattern = Prefix::default().events(&subject(name)).into();
    fleet.bus().subscribe(pattern, SubscribeOptions::default()).await.unwrap()
}

async fn next(events: &mut Subscription) -> Event {
    let delivery = tokio::time::timeout(Duration::from_secs(120), events.next()).await.unwrap().unwrap();
    decode(&delivery.payload).unwrap()
}

/// Events carry each change once in rev order, and beacons follow when no changes happen.
#[tokio::test(start_paused = true)]
async fn events_carry_changes_in_rev_order_then_beacons() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve("a").await;
    let mut events = listen(&fleet, "orders").await;
    let mut last = fleet.set("a", "orders", "k", "0").await.unwrap().rev;
    for number in 1..100 {
        last = fleet.set("a", "orders", "k", &number.to_string()).await.unwrap().rev;
    }
    let delete = DeleteRequest { keys: vec!["k".to_owned()], ..DeleteRequest::default() };
    let deleted: DeleteReply = fleet.ask("a", Op::Delete, "orders", &delete).await.unwrap();
    assert_eq!(deleted.position.rev, last.next());

    let mut changes: Vec<Change> = Vec::new();
    while changes.last().is_none_or(|change| change.rev() < deleted.position.rev) {
        let event = next(&mut events).await;
        assert_eq!(event.term, deleted.position.term);
        assert!(event.changes.last().is_none_or(|change| change.rev() == event.rev));
        changes.extend(event.changes);
    }
    let revs: Vec<u64> = changes.iter().map(|change| change.rev().get()).collect();
    let first = revs[0];
    assert_eq!(revs, (first..first + 101).collect::<Vec<_>>(), "no gap, no repetition");
    assert!(matches!(changes.last(), Some(Change::Delete(_))));

    // Without further changes, the server publishes a few beacons.
    for _ in 0..3 {
        let beacon = next(&mut events).await;
        assert_eq!((beacon.position(), beacon.changes.len()), (deleted.position, 0));
    }
}

/// The event of a large value omits the value, and a get returns it.
#[tokio::test(start_paused = true)]
async fn event_of_large_value_omits_value() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve("a").await;
    let mut events = listen(&fleet, "orders").await;
    let value = "v".repeat(200_000);
    fleet.set("a", "orders", "k", &value).await.unwrap();
    let message = loop {
        if let Some(Change::Set(change)) = next(&mut events).await.changes.into_iter().next() {
            break change.message;
        }
    };
    assert_eq!((message.value, message.value_omitted, message.size), (None, true, 200_000));
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap(), Some(value));
}
