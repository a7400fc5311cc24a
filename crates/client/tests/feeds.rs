//! Feeds over the messaging system: what they hear, what they ask, what they tell, how they end.

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

use support::{Answer, CLIENT, Fleet, at, found, info, message, reply};

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

fn told(message: Message) -> Update {
    Update::Set { message, replaces: None }
}

/// A stream in which rev n appended the message with seq n: how far it has come.
#[derive(Clone)]
struct Stream(Arc<AtomicU64>);

impl Stream {
    fn answer(&self, op: Op, payload: &[u8]) -> Answer {
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
            other => panic!("{other} was asked"),
        }
    }

    /// Appends in silence.
    fn appends(&self, messages: u64) {
        self.0.fetch_add(messages, Ordering::Relaxed);
    }

    /// Appends and announces it.
    async fn announces(&self, fleet: &Fleet, messages: u64) {
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

/// The next update that is no mark.
async fn next(feed: &mut Feed) -> Update {
    loop {
        match feed.next().await.unwrap().unwrap() {
            Update::CaughtUp(_) => {}
            update => return update,
        }
    }
}

async fn tells(feed: &mut Feed, revs: impl IntoIterator<Item = u64>) {
    for rev in revs {
        assert_eq!(next(feed).await, told(written(rev)));
    }
}

#[tokio::test(start_paused = true)]
async fn changes_come_in_order_each_once() {
    let (fleet, _) = fleet_at(3).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    assert_eq!(feed.next().await.unwrap().unwrap(), Update::CaughtUp(position(3)));
    for rev in [4, 5, 5, 4, 6] {
        fleet.event(SUBJECT, &event(rev, vec![set(written(rev))])).await;
    }
    tells(&mut feed, 4..=6).await;
    assert_eq!(feed.position(), Some(position(6)));
    assert_eq!(fleet.arrivals.count("a changes"), 0);
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_change_is_told() {
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

#[tokio::test(start_paused = true)]
async fn a_lost_event_is_asked_for_and_so_is_a_lost_last_one() {
    let (fleet, stream) = fleet_at(0).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    stream.appends(1);
    stream.announces(&fleet, 1).await;
    tells(&mut feed, 1..=2).await;
    stream.appends(2);
    fleet.event(SUBJECT, &event(4, vec![])).await;
    tells(&mut feed, 3..=4).await;
    assert_eq!(feed.next().await.unwrap().unwrap(), Update::CaughtUp(position(4)));
}

#[tokio::test(start_paused = true)]
async fn a_feed_from_the_beginning_tells_what_is_there_and_goes_on_without_a_seam() {
    let (fleet, stream) = fleet_at(3).await;
    let client = fleet.client().await;
    let mut feed = feed(&client, FeedFrom::Beginning).await;
    // Before the feed has asked anything.
    stream.announces(&fleet, 2).await;
    tells(&mut feed, 1..=5).await;
    assert_eq!(feed.next().await.unwrap().unwrap(), Update::CaughtUp(position(5)));
    stream.announces(&fleet, 1).await;
    tells(&mut feed, 6..=6).await;
}

#[tokio::test(start_paused = true)]
async fn a_feed_goes_on_after_a_position() {
    let (fleet, stream) = fleet_at(5).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::After(position(3))).await;
    tells(&mut feed, 4..=5).await;
    stream.announces(&fleet, 1).await;
    tells(&mut feed, 6..=6).await;
}

#[tokio::test(start_paused = true)]
async fn what_happens_while_the_feed_begins_is_told_unless_it_belongs_to_the_beginning() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| Answer::Late(Duration::from_millis(100), Box::new(info(5)))).await;
    let client = fleet.client().await;
    let (mut feed, ()) = tokio::join!(feed(&client, FeedFrom::Now), async {
        fleet.arrivals.wait_for("a info", 1).await;
        for rev in 4..=6 {
            fleet.event(SUBJECT, &event(rev, vec![set(written(rev))])).await;
        }
    });
    tells(&mut feed, 6..=6).await;
}

#[tokio::test(start_paused = true)]
async fn a_feed_of_a_key_tells_of_that_key_and_of_what_concerns_all() {
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
    assert_eq!(next(&mut one).await, told(under(3, "a")));
    assert_eq!(next(&mut one).await, cleared);
    for update in [told(under(2, "ab")), told(under(3, "a")), cleared] {
        assert_eq!(next(&mut some).await, update);
    }
}

#[tokio::test(start_paused = true)]
async fn the_history_of_a_key_is_the_message_under_it_and_the_empty_key_is_one() {
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
    assert_eq!(next(&mut feed).await, told(message(2, Some(""), Some(""))));
}

#[tokio::test(start_paused = true)]
async fn a_large_value_is_fetched_unless_it_was_replaced_meanwhile() {
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
                // What asking again does cure.
                return Answer::Error(ErrorReply::new(ErrorCode::Internal, "not now"));
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
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    for rev in [1, 2] {
        let mut announced = message(rev, Some("k"), None);
        announced.value_omitted = true;
        fleet.event(SUBJECT, &event(rev, vec![set(announced)])).await;
    }
    assert_eq!(next(&mut feed).await, told(message(1, Some("k"), Some("fetched"))));
    let Update::Set { message: replaced, .. } = next(&mut feed).await else { panic!("no message") };
    assert!(replaced.value.is_none() && replaced.value_omitted);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_makes_no_sense_counts_as_lost() {
    let (fleet, stream) = fleet_at(0).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    stream.appends(1);
    fleet.event_bytes(SUBJECT, Bytes::from_static(b"\xc1")).await;
    tells(&mut feed, 1..=1).await;
    stream.appends(1);
    fleet.event(SUBJECT, &Event { v: ProtocolVersion::new(2), ..event(2, vec![]) }).await;
    tells(&mut feed, 2..=2).await;
}

#[tokio::test(start_paused = true)]
async fn what_happened_while_the_connection_was_lost_is_told_once_it_is_back() {
    let (fleet, stream) = fleet_at(0).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    stream.announces(&fleet, 1).await;
    tells(&mut feed, 1..=1).await;
    fleet.broker.disconnect(CLIENT);
    stream.announces(&fleet, 2).await;
    fleet.broker.reconnect(CLIENT);
    tells(&mut feed, 2..=3).await;
}

#[tokio::test(start_paused = true)]
async fn a_feed_asks_another_server_when_its_own_is_announced_as_gone() {
    let fleet = Fleet::new();
    let stream = Stream(Arc::new(AtomicU64::new(1)));
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    for name in ["a", "b"] {
        let served = stream.clone();
        fleet.server(name, move |op, payload, _| served.answer(op, payload)).await;
    }
    let mut feed = feed(&fleet.client().await, FeedFrom::After(position(0))).await;
    tells(&mut feed, 1..=1).await;
    assert_eq!(feed.next().await.unwrap().unwrap(), Update::CaughtUp(position(1)));
    stream.appends(1);
    fleet.announce_gone("a").await;
    tells(&mut feed, 2..=2).await;
    assert_eq!(fleet.arrivals.count("b changes"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_hears_nothing_asks_all_the_same() {
    let (fleet, stream) = fleet_at(0).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    let before = fleet.now();
    stream.appends(1);
    tells(&mut feed, 1..=1).await;
    assert!((40..=75).contains(&(fleet.now() - before).as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_sleeps_costs_a_bounded_buffer_and_loses_nothing() {
    let (fleet, stream) = fleet_at(0).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Now).await;
    // More than the application's and the messaging system's buffers hold together.
    stream.announces(&fleet, 10_000).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fleet.arrivals.count("a changes"), 0);
    tells(&mut feed, 1..=10_000).await;
    // What did not fit was asked for once the reader was there.
    assert!((1..=3).contains(&fleet.arrivals.count("a changes")));
    stream.announces(&fleet, 1).await;
    tells(&mut feed, 10_001..=10_001).await;
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_sat_out() {
    let fleet = Fleet::new();
    let stream = Stream(Arc::new(AtomicU64::new(2)));
    fleet.coordinator(|_| at("a")).await;
    let served = stream.clone();
    fleet
        .server("a", move |op, payload, asked| match asked {
            0..40 => Answer::Error(ErrorReply::unavailable("not now")),
            40 => Answer::Silence,
            _ => served.answer(op, payload),
        })
        .await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Beginning).await;
    tells(&mut feed, 1..=2).await;
}

#[tokio::test(start_paused = true)]
async fn what_asking_again_does_not_cure_is_told_once_and_ends_the_feed() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| Answer::Error(ErrorReply::new(ErrorCode::Corrupt, "broken"))).await;
    let mut feed = feed(&fleet.client().await, FeedFrom::Beginning).await;
    let Some(Err(Error::Service(error))) = feed.next().await else { panic!("no error") };
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert!(feed.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_may_not_ask_says_so() {
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

#[tokio::test(start_paused = true)]
async fn a_feed_that_may_not_listen_fails_at_once() {
    let (fleet, _) = fleet_at(0).await;
    let mut options = MemoryOptions::named("limited");
    options.subscribe = Permission { allow: vec![], deny: vec![RoutePattern::new("persist.events.>")] };
    let kv = fleet.client_with(options).await.kv(SUBJECT).unwrap();
    let refused = kv.feed(FeedKeys::All, FeedFrom::Beginning).await;
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_feed_ends_with_its_client_and_says_so() {
    let (fleet, _) = fleet_at(0).await;
    let client = fleet.client().await;
    let mut feed = feed(&client, FeedFrom::Beginning).await;
    assert_eq!(feed.next().await.unwrap().unwrap(), Update::CaughtUp(position(0)));
    client.close().await;
    assert!(matches!(feed.next().await, Some(Err(Error::Closed))));
    assert!(feed.next().await.is_none());
}
