//! Long results: two pages ahead of the reader, no more.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dormouse_client::{Error, Kv, Message, Seq, SeqRange, Stream};
use dormouse_protocol::data::{GetAllReply, GetAllRequest, GetRequest, KeysReply, KeysRequest};
use dormouse_protocol::{ErrorCode, ErrorReply, Op, Position, decode};

use support::{Answer, Fleet, at, found, message, nothing, reply};

const LAST_SEQ: u64 = 10;
const PER_PAGE: usize = 3;

/// Serves messages 1 to `LAST_SEQ`, `PER_PAGE` at a time.
fn page(payload: &[u8]) -> Answer {
    let request: GetAllRequest = decode(payload).unwrap();
    let start = request.start_seq.map_or(1, Seq::get).max(1);
    let end = request.end_seq.map_or(LAST_SEQ, Seq::get).min(LAST_SEQ);
    let mut seqs: Vec<u64> = (start..=end).collect();
    if request.reverse {
        seqs.reverse();
    }
    let size = PER_PAGE.min(usize::try_from(request.limit.unwrap_or(u64::MAX)).unwrap());
    let cursor = seqs.get(size).map(|&seq| Seq::new(seq));
    let messages = seqs.into_iter().take(size).map(|seq| message(seq, Some("k"), Some("v"))).collect();
    reply(&GetAllReply { position: Position::default(), messages, cursor })
}

async fn fleet() -> Fleet {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet
        .server("a", |op, payload, _| match op {
            Op::GetAll => page(payload),
            _ => panic!("unexpected {op}"),
        })
        .await;
    fleet
}

async fn stream(fleet: &Fleet) -> Stream {
    fleet.client().await.stream("app.x").unwrap()
}

async fn kv(fleet: &Fleet) -> Kv {
    fleet.client().await.kv("app.x").unwrap()
}

async fn seqs(stream: &Stream, range: impl Into<SeqRange>) -> Vec<u64> {
    let messages = stream.get_all(range).all().await.unwrap();
    messages.iter().map(|message| message.seq.get()).collect()
}

#[tokio::test(start_paused = true)]
async fn ranges_directions_and_limits_are_kept_across_pages() {
    let fleet = fleet().await;
    let stream = stream(&fleet).await;
    assert_eq!(seqs(&stream, ..).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(seqs(&stream, 2..=9).await, (2..=9).collect::<Vec<_>>());
    assert_eq!(seqs(&stream, 9..).await, [9, 10]);
    assert_eq!(seqs(&stream, SeqRange::all().reverse()).await, (1..=10).rev().collect::<Vec<_>>());
    assert_eq!(seqs(&stream, SeqRange::from(2..9).reverse().limit(5)).await, [8, 7, 6, 5, 4]);
    assert_eq!(seqs(&stream, SeqRange::all().limit(3)).await, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn an_empty_range_costs_no_request() {
    let fleet = fleet().await;
    assert!(seqs(&stream(&fleet).await, 5..5).await.is_empty());
    assert!(fleet.arrivals.list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn two_pages_are_ahead_of_the_one_that_is_read_and_no_other() {
    let fleet = fleet().await;
    let stream = stream(&fleet).await;
    let mut messages = stream.get_all(..);
    messages.next().await.unwrap().unwrap();
    // Two of the first page are left, and the second and third are fetched without being asked for.
    fleet.arrivals.wait_for("a get_all", 3).await;
    // However long the reader takes, the fourth is not.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(fleet.arrivals.count("a get_all"), 3);
    messages.next().await.unwrap().unwrap();
    messages.next().await.unwrap().unwrap();
    assert_eq!(fleet.arrivals.count("a get_all"), 3);
    messages.next().await.unwrap().unwrap();
    fleet.arrivals.wait_for("a get_all", 4).await;
    assert_eq!(messages.all().await.unwrap().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_limited_reading_asks_for_no_page_beyond_it() {
    let fleet = fleet().await;
    let stream = stream(&fleet).await;
    assert_eq!(seqs(&stream, SeqRange::all().limit(4)).await, [1, 2, 3, 4]);
    assert_eq!(fleet.arrivals.count("a get_all"), 2);
}

#[tokio::test(start_paused = true)]
async fn entries_carry_their_prefix_to_every_page() {
    let fleet = fleet().await;
    assert_eq!(kv(&fleet).await.entries("k").all().await.unwrap().len(), 10);
    for payload in fleet.arrivals.payloads("a get_all") {
        assert_eq!(decode::<GetAllRequest>(&payload).unwrap().key_prefix.as_deref(), Some("k"));
    }
}

#[tokio::test(start_paused = true)]
async fn keys_go_on_after_the_last_one() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet
        .server("a", |_, payload, _| {
            let request: KeysRequest = decode(payload).unwrap();
            assert_eq!(request.prefix.as_deref(), Some("p"));
            let (keys, cursor) = match request.cursor.as_deref() {
                None => (["pa", "pb"], Some("pb")),
                Some("pb") => (["pc", "pd"], None),
                other => panic!("{other:?}"),
            };
            let keys = keys.map(str::to_owned).to_vec();
            reply(&KeysReply { position: Position::default(), keys, cursor: cursor.map(str::to_owned) })
        })
        .await;
    assert_eq!(kv(&fleet).await.keys("p").all().await.unwrap(), ["pa", "pb", "pc", "pd"]);
}

fn omitted(seq: u64, key: &str) -> Message {
    Message { value_omitted: true, ..message(seq, Some(key), None) }
}

/// A page of a value that no answer carries, of a key that is replaced meanwhile, and of an ordinary message.
fn awkward_page(op: Op, payload: &[u8]) -> Answer {
    if op == Op::GetAll {
        let request: GetAllRequest = decode(payload).unwrap();
        let mut messages =
            vec![omitted(1, "giant"), omitted(2, "moving"), message(3, Some("small"), Some("v"))];
        if request.reverse {
            messages.reverse();
        } else if request.start_seq == Some(Seq::new(4)) {
            messages = vec![message(4, Some("moving"), Some("newer"))];
        }
        return reply(&GetAllReply { position: Position::default(), messages, cursor: None });
    }
    let request: GetRequest = decode(payload).unwrap();
    match (request.seq.map(Seq::get), request.key.as_deref()) {
        (Some(1), _) => found(omitted(1, "giant")),
        (Some(2), _) => nothing(),
        (None, Some("moving")) => found(message(4, Some("moving"), Some("newer"))),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_fetched_does_not_end_the_reading() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |op, payload, _| awkward_page(op, payload)).await;
    let kv = kv(&fleet).await;
    let upwards = kv.entries("").all().await.unwrap();
    assert!(upwards[0].value_omitted && upwards[0].value.is_none());
    // What is under the key by now stands behind what was the last page.
    assert_eq!(upwards.iter().map(|message| message.seq.get()).collect::<Vec<_>>(), [1, 3, 4]);
    let downwards = kv.entries_in("", SeqRange::all().reverse()).all().await.unwrap();
    assert_eq!(downwards.iter().map(|message| message.seq.get()).collect::<Vec<_>>(), [3, 4, 1]);
    assert_eq!(downwards[1].value.as_deref(), Some(&b"newer"[..]));
}

/// The second page is asked for before the values of the first are fetched. What takes the place of one of them meanwhile
/// is on the second page as it is by then, not on the one that came.
#[tokio::test(start_paused = true)]
async fn a_key_that_is_replaced_while_its_page_is_read_is_not_missed() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    let is_replaced = AtomicBool::new(false);
    fleet
        .server("a", move |op, payload, _| {
            if op == Op::Get {
                is_replaced.store(true, Ordering::Relaxed);
                return nothing();
            }
            let request: GetAllRequest = decode(payload).unwrap();
            let (messages, cursor) = if request.start_seq.is_none() {
                (vec![omitted(1, "moving")], Some(Seq::new(2)))
            } else if is_replaced.load(Ordering::Relaxed) {
                (vec![message(2, Some("other"), Some("v")), message(3, Some("moving"), Some("newer"))], None)
            } else {
                (vec![message(2, Some("other"), Some("v"))], None)
            };
            reply(&GetAllReply { position: Position::default(), messages, cursor })
        })
        .await;
    assert_eq!(seqs(&stream(&fleet).await, ..).await, [2, 3]);
    assert_eq!(fleet.arrivals.count("a get_all"), 3, "the second page was there before");
}

#[tokio::test(start_paused = true)]
async fn a_page_that_could_not_be_had_ahead_of_time_is_asked_for_when_it_is_due() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    let asked = AtomicU64::new(0);
    fleet
        .server("a", move |_, payload, _| match asked.fetch_add(1, Ordering::Relaxed) {
            1 => Answer::Error(ErrorReply::new(ErrorCode::Corrupt, "not yet")),
            _ => page(payload),
        })
        .await;
    assert_eq!(seqs(&stream(&fleet).await, ..).await, (1..=10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_cursor_that_stands_still_ends_in_an_error_and_not_in_a_circle() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet
        .server("a", |_, _, _| {
            let cursor = Some(Seq::new(1));
            reply(&GetAllReply { position: Position::default(), messages: vec![], cursor })
        })
        .await;
    let mut messages = stream(&fleet).await.get_all(1..);
    assert!(matches!(messages.next().await, Some(Err(Error::Malformed { .. }))));
    assert!(messages.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_last_page_that_comes_again_and_again_ends_in_an_error_and_not_in_a_circle() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet
        .server("a", |op, _, _| match op {
            Op::Get => nothing(),
            _ => reply(&GetAllReply {
                position: Position::default(),
                messages: vec![omitted(1, "moving")],
                cursor: None,
            }),
        })
        .await;
    let all = stream(&fleet).await.get_all(..).all().await;
    assert!(matches!(all, Err(Error::Malformed { .. })), "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn reading_that_is_cut_short_does_not_look_complete() {
    let fleet = fleet().await;
    let client = fleet.client().await;
    let mut messages = client.stream("app.x").unwrap().get_all(..);
    messages.next().await.unwrap().unwrap();
    client.close().await;
    let rest = messages.all().await;
    assert!(matches!(rest, Err(Error::Closed)), "{rest:?}");
}
