//! Feeds over the messaging system: their events, their queries, their updates, and their ends.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::memory::{MemoryOptions, Permission};
use dormouse_client::{
    Client, Error, ErrorCode, ErrorReply, Feed, FeedFrom, FeedKeys, Message, Position, Rev, Seq,
    SubjectConfig, Term, Update,
};
use dormouse_protocol::data::{ChangesReply, ChangesRequest, GetAllReply, GetRequest};
use dormouse_protocol::message::{ConfigureChange, DeleteAllChange, DeleteChange, Removed, SetChange};
use dormouse_protocol::{Change, Event, Op, ProtocolVersion, RoutePattern, decode};

use support::{CLIENT, CannedReply, Fleet, at, found, info, message, reply};

const SUBJECT: &str = "app.x";

fn position(rev: u64) -> Position {
    Position { term: Term::new(1), rev: Rev::new(rev) }
}

/// An event of term 1 that holds `changes` and leaves the subject at `rev`.
fn event(rev: u64, changes: Vec<Change>) -> Event {
    Event {
        v: ProtocolVersion::CURRENT,
        term: Term::new(1),
        term_base: Rev::new(0),
        rev: Rev::new(rev),
        changes,
    }
}

fn written(rev: u64) -> Message {
    message(rev, None, Some("v"))
}

fn set(message: Message) -> Change {
    Change::Set(SetChange { message, replaces: None })
}

/// Returns the update of a message that replaces none.
fn set_update(message: Message) -> Update {
    Update::Set { message, replaces: None }
}

/// A stream in which rev n has appended the message with seq n; holds its last rev.
#[derive(Clone)]
struct Stream(Arc<AtomicU64>);

impl Stream {
    fn answer(&self, op: Op, payload: &[u8]) -> CannedReply {
        let rev = self.0.load(Ordering::Relaxed);
        match op {
            Op::Info => info(rev),
            Op::Changes => {
                let after = decode::<ChangesRequest>(payload).unwrap().after.rev.get();
                reply(&ChangesReply {
                    position: position(rev),
                    term_base: Rev::new(0),
                    resync: false,
                    changes: (after + 1..=rev).map(|rev| set(written(rev))).collect(),
                    more: false,
                })
            }
            Op::GetAll => reply(&GetAllReply {
                position: position(rev),
                messages: (1..=rev).map(written).collect(),
                cursor: None,
            }),
            other => panic!("unexpected op {other}"),
        }
    }

    /// Appends without an event.
    fn append(&self, messages: u64) {
        self.0.fetch_add(messages, Ordering::Relaxed);
    }

    /// Appends and publishes the event.
    async fn append_and_publish(&self, fleet: &Fleet, messages: u64) {
        for _ in 0..messages {
            let rev = self.0.fetch_add(1, Ordering::Relaxed) + 1;
            fleet.event(SUBJECT, &event(rev, vec![set(written(rev))])).await;
        }
    }
}

/// A fleet with one server, `a`, that serves a stream of `rev` messages.
async fn fleet_at(rev: u64) -> (Fleet, Stream) {
    let fleet = Fleet::new();
    let stream = Stream(Arc::new(AtomicU64::new(rev)));
    fleet.coordinator(|_| at("a")).await;
    let served = stream.clone();
    fleet.server("a", move |op, payload, _| served.answer(op, payload)).await;
    (fleet, stream)
}

async fn feed(client: &Client, from: FeedFrom) -> Feed {
    client.stream(SUBJECT).unwrap().feed(from).await.unwrap()
}

/// The next update other than `CaughtUp`.
async fn next(feed: &mut Feed) -> Update {
    loop {
        match feed.next().await.unwrap().unwrap() {
            Update::CaughtUp(_) => {}
            update => return update,
        }
    }
}

/// Checks that the feed delivers the messages of these revs.
async fn expect_sets(feed: &mut Feed, revs: impl IntoIterator<Item = u64>) {
    for rev in revs {
        assert_eq!(next(feed).await, set_update(written(rev)));
    }
}

/// A feed delivers each change once and in order, even if events repeat.
#[tokio::test(start_paused = true)]
async fn feed_delivers_changes_once_and_in_order() {
    let (fleet, _) = fleet_at(3).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    assert_eq!(feed.next().await.unwrap().unwrap(), Update::CaughtUp(position(3)));
    for rev in [4, 5, 5, 4, 6] {
        fleet.event(SUBJECT, &event(rev, vec![set(written(rev))])).await;
    }
    expect_sets(&mut feed, 4..=6).await;
    assert_eq!(feed.position(), Some(position(6)));
    assert_eq!(fleet.arrivals.count("a changes"), 0);
}

/// A feed reports removals, clears and configuration changes.
#[tokio::test(start_paused = true)]
async fn feed_reports_all_kinds_of_change() {
    let (fleet, _) = fleet_at(1).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    let removed = vec![Removed { seq: Seq::new(1), key: Some("k".into()) }];
    let config = SubjectConfig { max_msgs: Some(5), ..SubjectConfig::default() };
    let changes = vec![
        Change::Delete(DeleteChange { rev: Rev::new(2), removed }),
        Change::DeleteAll(DeleteAllChange { rev: Rev::new(3), end_seq: Seq::new(9), count: 4 }),
        Change::Configure(ConfigureChange { rev: Rev::new(4), config: config.clone() }),
    ];
    fleet.event(SUBJECT, &event(4, changes)).await;
    assert_eq!(next(&mut feed).await, Update::Removed { seq: Seq::new(1), key: Some("k".into()) });
    assert_eq!(next(&mut feed).await, Update::Cleared { end_seq: Seq::new(9) });
    assert_eq!(next(&mut feed).await, Update::Configured(config));
}

/// A feed fetches the changes of a lost event, also if the last event was lost.
#[tokio::test(start_paused = true)]
async fn feed_gap_is_refetched() {
    let (fleet, stream) = fleet_at(0).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    stream.append(1);
    stream.append_and_publish(&fleet, 1).await;
    expect_sets(&mut feed, 1..=2).await;
    stream.append(2);
    fleet.event(SUBJECT, &event(4, vec![])).await;
    expect_sets(&mut feed, 3..=4).await;
    assert_eq!(feed.next().await.unwrap().unwrap(), Update::CaughtUp(position(4)));
}

/// A feed from the beginning delivers the existing messages and continues with new changes without a gap.
#[tokio::test(start_paused = true)]
async fn feed_from_beginning_continues_without_gap() {
    let (fleet, stream) = fleet_at(3).await;
    let client = fleet.client().await;
    let mut feed = feed(&client, FeedFrom::Beginning).await;
    // Before the first query of the feed.
    stream.append_and_publish(&fleet, 2).await;
    expect_sets(&mut feed, 1..=5).await;
    assert_eq!(feed.next().await.unwrap().unwrap(), Update::CaughtUp(position(5)));
    stream.append_and_publish(&fleet, 1).await;
    expect_sets(&mut feed, 6..=6).await;
}

/// A feed after a position delivers the later changes and continues with new ones.
#[tokio::test(start_paused = true)]
async fn feed_after_position_delivers_only_later_changes() {
    let (fleet, stream) = fleet_at(5).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::After(position(3))).await;
    expect_sets(&mut feed, 4..=5).await;
    stream.append_and_publish(&fleet, 1).await;
    expect_sets(&mut feed, 6..=6).await;
}

/// A feed delivers an event that arrives during its start only if the event is newer than the start position.
#[tokio::test(start_paused = true)]
async fn feed_start_delivers_only_events_after_start_position() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| CannedReply::Late(Duration::from_millis(100), Box::new(info(5)))).await;
    let client = fleet.client().await;
    let (mut feed, ()) = tokio::join!(feed(&client, FeedFrom::Now), async {
        fleet.arrivals.wait_for("a info", 1).await;
        for rev in 4..=6 {
            fleet.event(SUBJECT, &event(rev, vec![set(written(rev))])).await;
        }
    });
    expect_sets(&mut feed, 6..=6).await;
}

/// A watch of a key or prefix delivers the changes of matching keys and clears of the whole subject.
#[tokio::test(start_paused = true)]
async fn watch_reports_matching_keys_and_clears() {
    let (fleet, _) = fleet_at(0).await;
    let kv = fleet.client().await.kv(SUBJECT).unwrap();
    let mut one = kv.watch("a").await.unwrap();
    let mut some = kv.watch_prefix("a").await.unwrap();
    let under = |rev, key| message(rev, Some(key), Some("v"));
    let changes = vec![
        set(under(1, "b")),
        set(under(2, "ab")),
        set(under(3, "a")),
        Change::Configure(ConfigureChange { rev: Rev::new(4), config: SubjectConfig::default() }),
        Change::DeleteAll(DeleteAllChange { rev: Rev::new(5), end_seq: Seq::new(9), count: 4 }),
    ];
    fleet.event(SUBJECT, &event(5, changes)).await;
    let cleared = Update::Cleared { end_seq: Seq::new(9) };
    assert_eq!(next(&mut one).await, set_update(under(3, "a")));
    assert_eq!(next(&mut one).await, cleared);
    for update in [set_update(under(2, "ab")), set_update(under(3, "a")), cleared] {
        assert_eq!(next(&mut some).await, update);
    }
}

/// A watch with history first delivers the current message of its key, also if the key is empty.
#[tokio::test(start_paused = true)]
async fn watch_with_history_delivers_message_of_empty_key() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet
        .server("a", |op, payload, _| {
            assert_eq!((op, decode::<GetRequest>(payload).unwrap().key), (Op::Get, Some(String::new())));
            found(message(2, Some(""), Some("")))
        })
        .await;
    let kv = fleet.client().await.kv(SUBJECT).unwrap();
    let mut feed = kv.watch_with_history("").await.unwrap();
    assert_eq!(next(&mut feed).await, set_update(message(2, Some(""), Some(""))));
}

/// A feed fetches a value that the event omits; if the message was replaced, the value stays omitted.
#[tokio::test(start_paused = true)]
async fn feed_fetches_large_value_unless_replaced() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    let mut refusals = 2;
    fleet
        .server("a", move |op, payload, _| {
            if op == Op::Info {
                return info(0);
            }
            if refusals > 0 {
                refusals -= 1;
                // A temporary error.
                return CannedReply::Error(ErrorReply::new(ErrorCode::Internal, "not now"));
            }
            // Seq 2 already has the message of a later rev.
            let seq = decode::<GetRequest>(payload).unwrap().seq.unwrap();
            let mut held = message(seq.get(), Some("k"), Some("fetched"));
            if seq.get() == 2 {
                held.rev = Rev::new(9);
            }
            found(held)
        })
        .await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    for rev in [1, 2] {
        let mut announced = message(rev, Some("k"), None);
        announced.value_omitted = true;
        fleet.event(SUBJECT, &event(rev, vec![set(announced)])).await;
    }
    assert_eq!(next(&mut feed).await, set_update(message(1, Some("k"), Some("fetched"))));
    let Update::Set { message: replaced, .. } = next(&mut feed).await else { panic!("no message") };
    assert!(replaced.value.is_none() && replaced.value_omitted);
}

/// A feed treats an undecodable event, or one of a newer version, as lost and fetches the changes.
#[tokio::test(start_paused = true)]
async fn feed_undecodable_event_counts_as_lost() {
    let (fleet, stream) = fleet_at(0).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    stream.append(1);
    fleet.event_bytes(SUBJECT, Bytes::from_static(b"\xc1")).await;
    expect_sets(&mut feed, 1..=1).await;
    stream.append(1);
    fleet.event(SUBJECT, &Event { v: ProtocolVersion::new(2), ..event(2, vec![]) }).await;
    expect_sets(&mut feed, 2..=2).await;
}

/// After a reconnect, a feed delivers the changes that it missed.
#[tokio::test(start_paused = true)]
async fn feed_after_reconnect_delivers_missed_changes() {
    let (fleet, stream) = fleet_at(0).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    stream.append_and_publish(&fleet, 1).await;
    expect_sets(&mut feed, 1..=1).await;
    fleet.broker.disconnect(CLIENT);
    stream.append_and_publish(&fleet, 2).await;
    fleet.broker.reconnect(CLIENT);
    expect_sets(&mut feed, 2..=3).await;
}

/// If the server of a feed is announced gone, the feed asks the next server.
#[tokio::test(start_paused = true)]
async fn feed_asks_next_server_on_gone_announcement() {
    let fleet = Fleet::new();
    let stream = Stream(Arc::new(AtomicU64::new(1)));
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    for name in ["a", "b"] {
        let served = stream.clone();
        fleet.server(name, move |op, payload, _| served.answer(op, payload)).await;
    }
    let mut feed = feed(&fleet.client().await, FeedFrom::After(position(0))).await;
    expect_sets(&mut feed, 1..=1).await;
    assert_eq!(feed.next().await.unwrap().unwrap(), Update::CaughtUp(position(1)));
    stream.append(1);
    fleet.announce_gone("a").await;
    expect_sets(&mut feed, 2..=2).await;
    assert_eq!(fleet.arrivals.count("b changes"), 1);
}

/// A feed that receives no events finds a change by polling within 75 seconds.
#[tokio::test(start_paused = true)]
async fn feed_without_events_finds_changes_by_polling() {
    let (fleet, stream) = fleet_at(0).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    let before = fleet.now();
    stream.append(1);
    expect_sets(&mut feed, 1..=1).await;
    assert!((40..=75).contains(&(fleet.now() - before).as_secs()));
}

/// A slow reader costs a bounded buffer; the feed refetches the dropped events and loses no change.
#[tokio::test(start_paused = true)]
async fn feed_with_slow_reader_is_bounded_and_loses_nothing() {
    let (fleet, stream) = fleet_at(0).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    // More events than the buffers of the application and the messaging system hold together.
    stream.append_and_publish(&fleet, 10_000).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fleet.arrivals.count("a changes"), 0);
    expect_sets(&mut feed, 1..=10_000).await;
    // The dropped events are queried once the reader has caught up to them.
    assert!((1..=3).contains(&fleet.arrivals.count("a changes")));
    stream.append_and_publish(&fleet, 1).await;
    expect_sets(&mut feed, 10_001..=10_001).await;
}

/// A feed retries after transient errors and silence until it succeeds.
#[tokio::test(start_paused = true)]
async fn feed_retries_transient_errors() {
    let fleet = Fleet::new();
    let stream = Stream(Arc::new(AtomicU64::new(2)));
    fleet.coordinator(|_| at("a")).await;
    let served = stream.clone();
    fleet
        .server("a", move |op, payload, asked| match asked {
            0..40 => CannedReply::Error(ErrorReply::unavailable("not now")),
            40 => CannedReply::Silence,
            _ => served.answer(op, payload),
        })
        .await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Beginning).await;
    expect_sets(&mut feed, 1..=2).await;
}

/// A feed reports a permanent error once and ends.
#[tokio::test(start_paused = true)]
async fn feed_permanent_error_is_reported_once_and_ends_feed() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| CannedReply::Error(ErrorReply::new(ErrorCode::Corrupt, "broken"))).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Beginning).await;
    let Some(Err(Error::Service(error))) = feed.next().await else { panic!("no error") };
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert!(feed.next().await.is_none());
}

/// A feed without permission to send requests reports the error and ends.
#[tokio::test(start_paused = true)]
async fn feed_without_request_permission_reports_error() {
    let (fleet, _) = fleet_at(0).await;
    let mut options = MemoryOptions::named("limited");
    options.publish = Permission { allow: vec![], deny: vec![RoutePattern::new("persist.server.>")] };
    let stream = fleet.client_with(options).await.stream(SUBJECT).unwrap();
    let refused = stream.feed(FeedFrom::Now).await;
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
    let mut feed = stream.feed(FeedFrom::Beginning).await.unwrap();
    assert!(matches!(feed.next().await, Some(Err(Error::PermissionDenied { .. }))));
    assert!(feed.next().await.is_none());
}

/// A feed without permission to receive events fails at once.
#[tokio::test(start_paused = true)]
async fn feed_without_event_permission_fails_at_once() {
    let (fleet, _) = fleet_at(0).await;
    let mut options = MemoryOptions::named("limited");
    options.subscribe = Permission { allow: vec![], deny: vec![RoutePattern::new("persist.events.>")] };
    let kv = fleet.client_with(options).await.kv(SUBJECT).unwrap();
    let refused = kv.feed(FeedKeys::All, FeedFrom::Beginning).await;
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
}

/// If the client closes, its feed reports `Closed` and ends.
#[tokio::test(start_paused = true)]
async fn feed_of_closed_client_ends_with_error() {
    let (fleet, _) = fleet_at(0).await;
    let client = fleet.client().await;
    let mut feed = feed(&client, FeedFrom::Beginning).await;
    assert_eq!(feed.next().await.unwrap().unwrap(), Update::CaughtUp(position(0)));
    client.close().await;
    assert!(matches!(feed.next().await, Some(Err(Error::Closed))));
    assert!(feed.next().await.is_none());
}
