//! Live watches: what is new, what is repeated, what is missing.

mod support;

use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::memory::{MemoryOptions, Permission};
use dormouse_client::{Error, Message, Position, Rev, Seq, SubjectConfig, Term, Update, Watch};
use dormouse_protocol::data::GetRequest;
use dormouse_protocol::message::{ConfigureChange, DeleteAllChange, DeleteChange, Removed, SetChange};
use dormouse_protocol::{Change, Event, Op, ProtocolVersion, RoutePattern, decode};

use support::{Answer, CLIENT, Fleet, at, found, info, message};

const SUBJECT: &str = "app.x";

fn position(term: u64, rev: u64) -> Position {
    Position { term: Term::new(term), rev: Rev::new(rev) }
}

/// An event of one term that holds `changes` and leaves the subject at `rev`.
fn event(term: u64, base: u64, rev: u64, changes: Vec<Change>) -> Event {
    Event {
        v: ProtocolVersion::CURRENT,
        term: Term::new(term),
        term_base: Rev::new(base),
        rev: Rev::new(rev),
        changes,
    }
}

fn written(rev: u64, key: &str) -> Message {
    message(rev, Some(key), Some("v"))
}

fn set(rev: u64, key: &str) -> Change {
    Change::Set(SetChange { message: written(rev, key), replaces: None })
}

async fn sets(fleet: &Fleet, revs: impl IntoIterator<Item = u64>) {
    for rev in revs {
        fleet.event(SUBJECT, &event(1, 0, rev, vec![set(rev, "k")])).await;
    }
}

/// A fleet whose subject is at `rev` of term 1.
async fn fleet_at(rev: u64) -> Fleet {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", move |_, _, _| info(rev)).await;
    fleet
}

async fn watch_all(fleet: &Fleet) -> Watch {
    fleet.client().await.kv(SUBJECT).unwrap().watch_all().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn changes_come_in_order_each_once() {
    let fleet = fleet_at(3).await;
    let mut watch = watch_all(&fleet).await;
    sets(&fleet, [4, 5, 5, 4, 6]).await;
    for rev in 4..=6 {
        assert_eq!(watch.next().await, Some(Update::Set(written(rev, "k"))));
    }
    sets(&fleet, [7]).await;
    assert_eq!(watch.next().await, Some(Update::Set(written(7, "k"))));
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_change_is_told() {
    let fleet = fleet_at(1).await;
    let mut watch = watch_all(&fleet).await;
    let removed = vec![Removed { seq: Seq::new(1), key: Some("k".into()) }];
    let config = SubjectConfig { max_msgs: Some(5), ..SubjectConfig::default() };
    let changes = vec![
        Change::Delete(DeleteChange { rev: Rev::new(2), removed }),
        Change::DeleteAll(DeleteAllChange { rev: Rev::new(3), end_seq: Seq::new(9), count: 4 }),
        Change::Configure(ConfigureChange { rev: Rev::new(4), config: config.clone() }),
    ];
    fleet.event(SUBJECT, &event(1, 0, 4, changes)).await;
    assert_eq!(watch.next().await, Some(Update::Removed { seq: Seq::new(1), key: Some("k".into()) }));
    assert_eq!(watch.next().await, Some(Update::Cleared { end_seq: Seq::new(9) }));
    assert_eq!(watch.next().await, Some(Update::Configured(config)));
}

#[tokio::test(start_paused = true)]
async fn a_lost_event_is_a_gap_and_so_is_a_lost_last_one() {
    let fleet = fleet_at(0).await;
    let mut watch = watch_all(&fleet).await;
    sets(&fleet, [1, 3]).await;
    fleet.event(SUBJECT, &event(1, 0, 5, vec![])).await;
    assert_eq!(watch.next().await, Some(Update::Set(written(1, "k"))));
    let gap = Update::Gap { seen: Some(position(1, 1)), now: Some(position(1, 3)) };
    assert_eq!(watch.next().await, Some(gap));
    assert_eq!(watch.next().await, Some(Update::Set(written(3, "k"))));
    let beacon = Update::Gap { seen: Some(position(1, 3)), now: Some(position(1, 5)) };
    assert_eq!(watch.next().await, Some(beacon));
}

#[tokio::test(start_paused = true)]
async fn the_loss_of_the_very_first_change_is_a_gap() {
    let fleet = fleet_at(3).await;
    let mut watch = watch_all(&fleet).await;
    sets(&fleet, [5]).await;
    let gap = Update::Gap { seen: Some(position(1, 3)), now: Some(position(1, 5)) };
    assert_eq!(watch.next().await, Some(gap));
    assert_eq!(watch.next().await, Some(Update::Set(written(5, "k"))));
}

#[tokio::test(start_paused = true)]
async fn what_happens_while_the_watch_begins_is_heard_unless_it_belongs_to_the_beginning() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| Answer::Late(Duration::from_millis(100), Box::new(info(5)))).await;
    let (mut watch, ()) = tokio::join!(watch_all(&fleet), async {
        fleet.arrivals.wait_for("a info", 1).await;
        sets(&fleet, [4, 5, 6]).await;
    });
    assert_eq!(watch.next().await, Some(Update::Set(written(6, "k"))));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_cannot_ask_where_it_begins_reports_one_gap() {
    let nobody = Fleet::new();
    let forbidden = fleet_at(0).await;
    let mut options = MemoryOptions::named("limited");
    options.publish = Permission { allow: vec![], deny: vec![RoutePattern::new("persist.server.*.info.>")] };
    let limited = forbidden.client_with(options).await.kv(SUBJECT).unwrap();
    let before = nobody.now();
    let watches = [(&nobody, watch_all(&nobody).await), (&forbidden, limited.watch_all().await.unwrap())];
    assert!(nobody.now() - before <= Duration::from_secs(2));
    for (fleet, mut watch) in watches {
        sets(fleet, [4, 5]).await;
        assert_eq!(watch.next().await, Some(Update::Gap { seen: None, now: Some(position(1, 4)) }));
        assert_eq!(watch.next().await, Some(Update::Set(written(4, "k"))));
        assert_eq!(watch.next().await, Some(Update::Set(written(5, "k"))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_hears_of_everything_from_the_first_change_on_has_no_gap() {
    let fleet = Fleet::new();
    let mut watch = watch_all(&fleet).await;
    sets(&fleet, [1]).await;
    assert_eq!(watch.next().await, Some(Update::Set(written(1, "k"))));
}

#[tokio::test(start_paused = true)]
async fn a_watch_across_destroy_hears_of_it_and_goes_on() {
    let destroy = || Change::DeleteAll(DeleteAllChange { rev: Rev::new(2), end_seq: Seq::new(1), count: 1 });
    let fleet = fleet_at(0).await;
    let mut watch = watch_all(&fleet).await;
    sets(&fleet, [1]).await;
    fleet.event(SUBJECT, &event(1, 0, 2, vec![destroy()])).await;
    fleet.event(SUBJECT, &event(2, 2, 3, vec![set(3, "k")])).await;
    assert_eq!(watch.next().await, Some(Update::Set(written(1, "k"))));
    assert_eq!(watch.next().await, Some(Update::Cleared { end_seq: Seq::new(1) }));
    assert_eq!(watch.next().await, Some(Update::Set(written(3, "k"))));
}

#[tokio::test(start_paused = true)]
async fn a_destroy_that_nobody_heard_of_is_a_gap() {
    let fleet = fleet_at(0).await;
    let mut watch = watch_all(&fleet).await;
    sets(&fleet, [1]).await;
    fleet.event(SUBJECT, &event(2, 2, 3, vec![set(3, "k")])).await;
    assert_eq!(watch.next().await, Some(Update::Set(written(1, "k"))));
    let gap = Update::Gap { seen: Some(position(1, 1)), now: Some(position(2, 3)) };
    assert_eq!(watch.next().await, Some(gap));
    assert_eq!(watch.next().await, Some(Update::Set(written(3, "k"))));
}

#[tokio::test(start_paused = true)]
async fn a_failover_goes_on_without_a_gap_and_the_old_server_is_not_listened_to() {
    let fleet = fleet_at(0).await;
    let mut watch = watch_all(&fleet).await;
    sets(&fleet, [1]).await;
    fleet.event(SUBJECT, &event(2, 1, 2, vec![set(2, "new")])).await;
    fleet.event(SUBJECT, &event(1, 0, 3, vec![set(2, "old"), set(3, "old")])).await;
    fleet.event(SUBJECT, &event(2, 1, 3, vec![set(3, "new")])).await;
    let mut keys = Vec::new();
    for _ in 0..3 {
        let Some(Update::Set(message)) = watch.next().await else { panic!("no message") };
        keys.push(message.key.unwrap());
    }
    assert_eq!(keys, ["k", "new", "new"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_a_key_hears_of_that_key_and_of_what_concerns_all() {
    let fleet = fleet_at(0).await;
    let kv = fleet.client().await.kv(SUBJECT).unwrap();
    let mut one = kv.watch("a").await.unwrap();
    let mut some = kv.watch_prefix("a").await.unwrap();
    let changes = vec![
        set(1, "b"),
        set(2, "ab"),
        set(3, "a"),
        Change::Configure(ConfigureChange { rev: Rev::new(4), config: SubjectConfig::default() }),
        Change::DeleteAll(DeleteAllChange { rev: Rev::new(5), end_seq: Seq::new(9), count: 4 }),
    ];
    fleet.event(SUBJECT, &event(1, 0, 5, changes)).await;
    let cleared = Update::Cleared { end_seq: Seq::new(9) };
    assert_eq!(one.next().await, Some(Update::Set(written(3, "a"))));
    assert_eq!(one.next().await, Some(cleared.clone()));
    assert_eq!(some.next().await, Some(Update::Set(written(2, "ab"))));
    assert_eq!(some.next().await, Some(Update::Set(written(3, "a"))));
    assert_eq!(some.next().await, Some(cleared));
}

#[tokio::test(start_paused = true)]
async fn a_large_value_is_fetched_unless_it_was_replaced_meanwhile() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet
        .server("a", |op, payload, _| {
            if op == Op::Info {
                return info(0);
            }
            // Under seq 2 there is already what a later rev wrote.
            let seq = decode::<GetRequest>(payload).unwrap().seq.unwrap();
            let mut held = message(seq.get(), Some("k"), Some("fetched"));
            if seq.get() == 2 {
                held.rev = Rev::new(9);
            }
            found(held)
        })
        .await;
    let mut watch = watch_all(&fleet).await;
    for rev in [1, 2] {
        let mut announced = message(rev, Some("k"), None);
        announced.value_omitted = true;
        let change = Change::Set(SetChange { message: announced, replaces: None });
        fleet.event(SUBJECT, &event(1, 0, rev, vec![change])).await;
    }
    assert_eq!(watch.next().await, Some(Update::Set(message(1, Some("k"), Some("fetched")))));
    let Some(Update::Set(replaced)) = watch.next().await else { panic!("no message") };
    assert!(replaced.value.is_none() && replaced.value_omitted);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_makes_no_sense_is_a_gap() {
    let fleet = fleet_at(0).await;
    let mut watch = watch_all(&fleet).await;
    sets(&fleet, [1]).await;
    fleet.event_bytes(SUBJECT, Bytes::from_static(b"\xc1")).await;
    let mut newer = event(1, 0, 2, vec![]);
    newer.v = ProtocolVersion::new(2);
    fleet.event(SUBJECT, &newer).await;
    assert_eq!(watch.next().await, Some(Update::Set(written(1, "k"))));
    for _ in 0..2 {
        let gap = Update::Gap { seen: Some(position(1, 1)), now: None };
        assert_eq!(watch.next().await, Some(gap));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_a_gap_once_it_is_back() {
    let fleet = fleet_at(0).await;
    let mut watch = watch_all(&fleet).await;
    sets(&fleet, [1]).await;
    fleet.broker.disconnect(CLIENT);
    sets(&fleet, [2]).await;
    fleet.broker.reconnect(CLIENT);
    assert_eq!(watch.next().await, Some(Update::Set(written(1, "k"))));
    assert_eq!(watch.next().await, Some(Update::Gap { seen: Some(position(1, 1)), now: None }));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_sleeps_costs_a_bounded_buffer_and_hears_of_its_loss() {
    let fleet = fleet_at(0).await;
    let mut watch = watch_all(&fleet).await;
    // More than the application's and the messaging system's buffers hold together.
    sets(&fleet, 1..=10_000).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut received, mut gaps) = (0, 0);
    loop {
        match tokio::time::timeout(Duration::from_secs(1), watch.next()).await {
            Ok(Some(Update::Set(_))) => received += 1,
            Ok(Some(Update::Gap { .. })) => gaps += 1,
            Ok(other) => panic!("{other:?}"),
            Err(_) => break,
        }
    }
    assert!(received < 5_000, "{received} updates were held for a reader that slept");
    assert!(gaps > 0);
}

#[tokio::test(start_paused = true)]
async fn losing_the_last_events_to_a_full_buffer_is_told_after_what_was_kept() {
    let fleet = fleet_at(0).await;
    let mut watch = watch_all(&fleet).await;
    // The watch gets no chance to run meanwhile: its buffer holds 4,096 and the last four are dropped.
    sets(&fleet, 1..=4_100).await;
    for rev in 1..=4_096 {
        assert_eq!(watch.next().await, Some(Update::Set(written(rev, "k"))));
    }
    assert_eq!(watch.next().await, Some(Update::Gap { seen: Some(position(1, 4_096)), now: None }));
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_with_its_client() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| Answer::Silence).await;
    let client = fleet.client().await;
    let mut watch = client.stream(SUBJECT).unwrap().watch().await.unwrap();
    client.close().await;
    assert_eq!(watch.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_not_permitted_fails_at_once() {
    let fleet = Fleet::new();
    let mut options = MemoryOptions::named("limited");
    options.subscribe = Permission { allow: vec![], deny: vec![RoutePattern::new("persist.events.>")] };
    let kv = fleet.client_with(options).await.kv(SUBJECT).unwrap();
    let refused = kv.watch("k").await;
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
}
