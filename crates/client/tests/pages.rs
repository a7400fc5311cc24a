//! Long results: at most two pages ahead of the reader.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dormouse_client::{Error, Kv, Message, Seq, SeqRange, Stream};
use dormouse_protocol::data::{GetAllReply, GetAllRequest, GetRequest, KeysReply, KeysRequest};
use dormouse_protocol::{ErrorCode, ErrorReply, Op, Position, decode};

use support::{CannedReply, Fleet, at, found, message, nothing, reply};

const LAST_SEQ: u64 = 10;
const PER_PAGE: usize = 3;

/// Serves messages 1 to `LAST_SEQ`, `PER_PAGE` at a time.
fn page(payload: &[u8]) -> CannedReply {
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

/// Range, direction and limit hold across all pages of a result.
#[tokio::test(start_paused = true)]
async fn pages_keep_range_direction_and_limit() {
    let fleet = fleet().await;
    let stream = stream(&fleet).await;
    assert_eq!(seqs(&stream, ..).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(seqs(&stream, 2..=9).await, (2..=9).collect::<Vec<_>>());
    assert_eq!(seqs(&stream, 9..).await, [9, 10]);
    assert_eq!(seqs(&stream, SeqRange::all().reverse()).await, (1..=10).rev().collect::<Vec<_>>());
    assert_eq!(seqs(&stream, SeqRange::from(2..9).reverse().limit(5)).await, [8, 7, 6, 5, 4]);
    assert_eq!(seqs(&stream, SeqRange::all().limit(3)).await, [1, 2, 3]);
}

/// Reading an empty range sends no request.
#[tokio::test(start_paused = true)]
async fn range_empty_sends_no_request() {
    let fleet = fleet().await;
    assert!(seqs(&stream(&fleet).await, 5..5).await.is_empty());
    assert!(fleet.arrivals.list().is_empty());
}

/// The client prefetches two pages ahead of the page being read, and no more.
#[tokio::test(start_paused = true)]
async fn pages_prefetch_is_two_pages_ahead() {
    let fleet = fleet().await;
    let stream = stream(&fleet).await;
    let mut messages = stream.get_all(..);
    messages.next().await.unwrap().unwrap();
    // Two items of the first page are left, and the second and third page are fetched ahead.
    fleet.arrivals.wait_for("a get_all", 3).await;
    // The fourth page is not fetched before the reader continues.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(fleet.arrivals.count("a get_all"), 3);
    messages.next().await.unwrap().unwrap();
    messages.next().await.unwrap().unwrap();
    assert_eq!(fleet.arrivals.count("a get_all"), 3);
    messages.next().await.unwrap().unwrap();
    fleet.arrivals.wait_for("a get_all", 4).await;
    assert_eq!(messages.all().await.unwrap().len(), 6);
}

/// A read with a limit fetches no page beyond the limit.
#[tokio::test(start_paused = true)]
async fn pages_beyond_limit_are_not_fetched() {
    let fleet = fleet().await;
    let stream = stream(&fleet).await;
    assert_eq!(seqs(&stream, SeqRange::all().limit(4)).await, [1, 2, 3, 4]);
    assert_eq!(fleet.arrivals.count("a get_all"), 2);
}

/// Each page request of a read of entries carries the key prefix.
#[tokio::test(start_paused = true)]
async fn pages_of_entries_keep_key_prefix() {
    let fleet = fleet().await;
    assert_eq!(kv(&fleet).await.entries("k").all().await.unwrap().len(), 10);
    for payload in fleet.arrivals.payloads("a get_all") {
        assert_eq!(decode::<GetAllRequest>(&payload).unwrap().key_prefix.as_deref(), Some("k"));
    }
}

/// The next page of keys continues after the cursor of the previous page.
#[tokio::test(start_paused = true)]
async fn pages_of_keys_continue_after_cursor() {
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

/// A page of three messages: no reply carries the first one's value, the second one's key is replaced
/// meanwhile, and the third is ordinary.
fn awkward_page(op: Op, payload: &[u8]) -> CannedReply {
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

/// A value that cannot be fetched stays omitted, a replaced key returns its new value, and the read continues.
#[tokio::test(start_paused = true)]
async fn page_with_unfetchable_value_does_not_end_read() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |op, payload, _| awkward_page(op, payload)).await;
    let kv = kv(&fleet).await;
    let upwards = kv.entries("").all().await.unwrap();
    assert!(upwards[0].value_omitted && upwards[0].value.is_none());
    // The message that has the key by now is after the page that was the last one.
    assert_eq!(upwards.iter().map(|message| message.seq.get()).collect::<Vec<_>>(), [1, 3, 4]);
    let downwards = kv.entries_in("", SeqRange::all().reverse()).all().await.unwrap();
    assert_eq!(downwards.iter().map(|message| message.seq.get()).collect::<Vec<_>>(), [3, 4, 1]);
    assert_eq!(downwards[1].value.as_deref(), Some(&b"newer"[..]));
}

/// The second page is requested before the values of the first are fetched. A message that replaces one of
/// the first page appears on a later state of the second page than the one that was received.
#[tokio::test(start_paused = true)]
async fn page_is_reread_when_prefetched_value_is_gone() {
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
    assert_eq!(fleet.arrivals.count("a get_all"), 3, "the second page is requested twice");
}

/// If the prefetch of a page fails, the client fetches the page again when it is due.
#[tokio::test(start_paused = true)]
async fn page_with_failed_prefetch_is_fetched_when_due() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    let asked = AtomicU64::new(0);
    fleet
        .server("a", move |_, payload, _| match asked.fetch_add(1, Ordering::Relaxed) {
            1 => CannedReply::Error(ErrorReply::new(ErrorCode::Corrupt, "not yet")),
            _ => page(payload),
        })
        .await;
    assert_eq!(seqs(&stream(&fleet).await, ..).await, (1..=10).collect::<Vec<_>>());
}

/// If the cursor does not advance, the read ends with a malformed error.
#[tokio::test(start_paused = true)]
async fn page_cursor_without_progress_is_error() {
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

/// If the server repeats the last page, the read ends with a malformed error.
#[tokio::test(start_paused = true)]
async fn page_repeated_as_last_is_error() {
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

/// If the client closes during a read, the read ends with `Closed`.
#[tokio::test(start_paused = true)]
async fn pages_of_closed_client_end_with_error() {
    let fleet = fleet().await;
    let client = fleet.client().await;
    let mut messages = client.stream("app.x").unwrap().get_all(..);
    messages.next().await.unwrap().unwrap();
    client.close().await;
    let rest = messages.all().await;
    assert!(matches!(rest, Err(Error::Closed)), "{rest:?}");
}
