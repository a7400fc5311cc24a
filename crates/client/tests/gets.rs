//! Concurrent gets: which ones share a request, and that each has the result that it would have alone.

mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_client::{Error, ErrorCode, ErrorKind, ErrorReply, Kv, MalformedCause, Message, Position, Seq};
use dormouse_protocol::data::{GetReply, GetRequest};
use dormouse_protocol::{Op, decode};
use futures::FutureExt;
use futures::future::join_all;

use support::{CannedReply, Fleet, at, found, message, nothing, reply};

async fn fleet(answers: impl FnMut(Op, &[u8], usize) -> CannedReply + Send + 'static) -> Fleet {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", answers).await;
    fleet
}

async fn kv(fleet: &Fleet) -> Kv {
    fleet.client().await.kv("app.x").unwrap()
}

/// The targets of each request.
fn asked(fleet: &Fleet) -> Vec<Vec<String>> {
    fleet.arrivals.payloads("a get").iter().map(|payload| wanted(payload).1).collect()
}

/// Whether a request asks for a list, and its targets.
fn wanted(payload: &[u8]) -> (bool, Vec<String>) {
    let GetRequest { v: _, seq, key, keys, seqs } = decode(payload).unwrap();
    let is_list = keys.is_some() || seqs.is_some();
    let seqs = seq.into_iter().chain(seqs.into_iter().flatten()).map(|seq| format!("#{}", seq.get()));
    (is_list, key.into_iter().chain(keys.into_iter().flatten()).chain(seqs).collect())
}

fn numbers(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

/// The message of `name`: a key, or a seq after `#`. Its value is the name.
fn named(name: &str) -> Message {
    match name.strip_prefix('#') {
        Some(seq) => message(seq.parse().unwrap(), None, Some(name)),
        None => message(1, Some(name), Some(name)),
    }
}

/// All requested messages exist; at most `fits` of them fit in one reply.
fn store(payload: &[u8], fits: usize) -> CannedReply {
    let names = wanted(payload).1;
    let answered = names.len().min(fits);
    let messages = names[..answered].iter().map(|name| named(name)).collect();
    reply(&GetReply { position: Position::default(), messages, answered: answered as u64 })
}

/// A late reply, before any queued get times out.
fn late(answer: CannedReply) -> CannedReply {
    CannedReply::Late(Duration::from_millis(10), Box::new(answer))
}

/// A much later reply.
fn slow(answer: CannedReply) -> CannedReply {
    CannedReply::Late(Duration::from_millis(900), Box::new(answer))
}

type Value = Result<Option<bytes::Bytes>, Error>;

/// Polls each once, so that its get is sent or queued.
fn begin<F: Future>(gets: impl IntoIterator<Item = F>) -> Vec<Pin<Box<F>>> {
    let mut gets: Vec<_> = gets.into_iter().map(Box::pin).collect();
    for get in &mut gets {
        assert!(get.as_mut().now_or_never().is_none(), "the get is not pending");
    }
    gets
}

/// Gets of the keys `0`, `1`, … that are sent or queued.
fn begin_keys(kv: &Kv, number: u64) -> Vec<Pin<Box<impl Future<Output = Value> + use<'_>>>> {
    begin(numbers(0..number).into_iter().map(|key| kv.get(key)))
}

fn text(outcome: Value) -> String {
    String::from_utf8(outcome.unwrap().unwrap().to_vec()).unwrap()
}

/// Gets that are called while two requests are in flight share the next request.
#[tokio::test(start_paused = true)]
async fn gets_called_during_two_requests_share_next_request() {
    let fleet = fleet(|_, payload, _| late(store(payload, usize::MAX))).await;
    let kv = kv(&fleet).await;
    let outcomes = join_all(begin_keys(&kv, 256)).await;
    assert_eq!(outcomes.into_iter().map(text).collect::<Vec<_>>(), numbers(0..256));
    assert_eq!(asked(&fleet), [vec!["0".to_owned()], vec!["1".to_owned()], numbers(2..256)]);
    let payloads = fleet.arrivals.payloads("a get");
    let lists = payloads.iter().map(|payload| wanted(payload).0);
    assert_eq!(lists.collect::<Vec<_>>(), [false, false, true]);
}

/// Gets by seq and gets by key use separate requests; a single get is sent as a plain get.
#[tokio::test(start_paused = true)]
async fn gets_by_seq_and_by_key_use_separate_requests() {
    let fleet = fleet(|_, payload, _| late(store(payload, usize::MAX))).await;
    let client = fleet.client().await;
    let (kv, stream) = (client.kv("app.x").unwrap(), client.stream("app.x").unwrap());
    let get = |name: &str| {
        let (kv, stream, name) = (kv.clone(), stream.clone(), name.to_owned());
        async move {
            let found = match name.strip_prefix('#') {
                Some(seq) => stream.get(Seq::new(seq.parse().unwrap())).await.unwrap().unwrap().value,
                None => kv.get(name.clone()).await.unwrap(),
            };
            assert_eq!(found.unwrap(), name);
        }
    };
    join_all(begin(["a", "b", "c", "#1", "d", "#2", "#1"].map(get))).await;
    let expected: [&[&str]; 4] = [&["a"], &["b"], &["c", "d"], &["#1", "#2", "#1"]];
    assert_eq!(asked(&fleet), expected);
    join_all(begin(["#5", "#6", "#7"].map(get))).await;
    assert_eq!(asked(&fleet)[4..], [["#5"], ["#6"], ["#7"]]);
    assert!(!wanted(&fleet.arrivals.payloads("a get")[6]).0, "a single get is no list");
}

/// A get is never answered by a request that was sent before the call.
#[tokio::test(start_paused = true)]
async fn get_never_uses_reply_of_earlier_request() {
    let version = Arc::new(AtomicU64::new(1));
    let seen = Arc::clone(&version);
    // The value of each message is the version at the arrival of the request.
    let fleet = fleet(move |_, payload, _| {
        let value = seen.load(Ordering::SeqCst).to_string();
        let names = wanted(payload).1;
        let messages: Vec<_> = names.iter().map(|name| message(1, Some(name), Some(&value))).collect();
        late(reply(&GetReply { position: Position::default(), answered: messages.len() as u64, messages }))
    })
    .await;
    let kv = kv(&fleet).await;
    let (sender, mut results) = tokio::sync::mpsc::channel(200);
    for round in 0..200 {
        version.fetch_add(1, Ordering::SeqCst);
        let (kv, version, sender) = (kv.clone(), Arc::clone(&version), sender.clone());
        fleet.spawn(async move {
            let called = version.load(Ordering::SeqCst);
            let key = if round % 2 == 0 { "hot".to_owned() } else { round.to_string() };
            sender.send((called, text(kv.get(key).await))).await.unwrap();
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(sender);
    let mut gets = 0;
    while let Some((called, found)) = results.recv().await {
        assert!(found.parse::<u64>().unwrap() >= called, "called at {called}, answered from {found}");
        gets += 1;
    }
    assert_eq!(gets, 200);
    assert!(asked(&fleet).len() < 100, "the gets did not share requests");
}

/// Dropping a get in flight lets the next request go; a get that is dropped in the queue is never sent.
#[tokio::test(start_paused = true)]
async fn get_dropped_in_flight_frees_capacity_and_queued_is_unsent() {
    let fleet =
        fleet(|_, payload, asked| if asked < 2 { CannedReply::Silence } else { store(payload, 99) }).await;
    let kv = kv(&fleet).await;
    let mut gets = begin_keys(&kv, 6);
    // No time passes from here to the end.
    while fleet.arrivals.count("a get") < 2 {
        for get in &mut gets[..2] {
            assert!(get.as_mut().now_or_never().is_none());
        }
        tokio::task::yield_now().await;
    }
    drop(gets.remove(4));
    drop(gets.remove(0));
    fleet.arrivals.wait_for("a get", 3).await;
    assert_eq!(asked(&fleet), [vec!["0"], vec!["1"], vec!["2", "3", "5"]]);
    for (get, key) in gets.drain(1..4).zip(["2", "3", "5"]) {
        assert_eq!(text(get.await), key);
    }
}

/// Gets that do not fit into a reply are sent again before later gets.
#[tokio::test(start_paused = true)]
async fn gets_beyond_reply_limit_are_resent_before_later_gets() {
    let fleet = fleet(|_, payload, _| late(store(payload, 3))).await;
    let kv = kv(&fleet).await;
    let outcomes = join_all(begin_keys(&kv, 14)).await;
    assert_eq!(outcomes.into_iter().map(text).collect::<Vec<_>>(), numbers(0..14));
    // After the first of them, the client knows that a reply holds three.
    let expected = [0..1, 1..2, 2..14, 5..8, 8..11, 11..14].map(numbers);
    assert_eq!(asked(&fleet), expected);
}

/// A get that is dropped in flight and stays unanswered is not sent again.
#[tokio::test(start_paused = true)]
async fn get_dropped_in_flight_is_not_resent() {
    let fleet = fleet(|_, payload, _| late(store(payload, 1))).await;
    let kv = kv(&fleet).await;
    let mut gets = begin_keys(&kv, 6);
    join_all(gets.drain(..2)).await;
    fleet.arrivals.wait_for("a get", 3).await;
    drop(gets.remove(1));
    let outcomes = join_all(gets).await;
    assert_eq!(outcomes.into_iter().map(text).collect::<Vec<_>>(), ["2", "4", "5"]);
    assert_eq!(asked(&fleet), [0..1, 1..2, 2..6, 4..5, 5..6].map(numbers));
}

/// If the server does not support lists of seqs, the client sends each get alone.
#[tokio::test(start_paused = true)]
async fn gets_by_seq_fall_back_if_server_lacks_seq_lists() {
    let fleet = fleet(|_, payload, _| {
        let answer = if decode::<GetRequest>(payload).unwrap().seqs.is_some() {
            CannedReply::Error(ErrorReply::bad_request("a get names exactly one of seq, key and keys"))
        } else {
            store(payload, 1)
        };
        late(answer)
    })
    .await;
    let stream = fleet.client().await.stream("app.x").unwrap();
    let outcomes = join_all(begin((1..=10).map(|seq| stream.get(Seq::new(seq))))).await;
    let seqs: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap().unwrap().seq.get()).collect();
    assert_eq!(seqs, (1..=10).collect::<Vec<_>>());
    assert_eq!(fleet.arrivals.count("a get"), 2 + 1 + 8);
}

/// A get of a value that is too large or corrupt fails alone; the other gets of the group succeed.
#[tokio::test(start_paused = true)]
async fn get_of_unreadable_value_fails_alone() {
    // The key `giant` comes without its value in a list, and fails alone; the key `poison` fails every list.
    let fleet = fleet(|_, payload, _| {
        let (is_list, names) = wanted(payload);
        late(match names[0].as_str() {
            "giant" if !is_list => CannedReply::Error(ErrorReply::too_large("max_reply_bytes", 2, 1)),
            "poison" => CannedReply::Error(ErrorReply::corrupt("object", "torn")),
            _ if names.iter().any(|name| name == "poison") => {
                CannedReply::Error(ErrorReply::corrupt("object", "torn"))
            }
            _ => {
                let messages =
                    names.iter().map(|name| Message { value_omitted: name == "giant", ..named(name) });
                let messages: Vec<_> = messages.collect();
                reply(&GetReply { position: Position::default(), answered: messages.len() as u64, messages })
            }
        })
    })
    .await;
    let kv = kv(&fleet).await;
    let outcomes = join_all(begin(["a", "b", "c", "giant", "d"].map(|key| kv.get(key)))).await;
    assert_eq!(outcomes[3].as_ref().unwrap_err().kind(), ErrorKind::TooLarge, "{outcomes:?}");
    assert!(matches!(outcomes[3], Err(Error::TooLarge { .. })));
    assert_eq!(outcomes.into_iter().filter_map(|outcome| outcome.ok()?).count(), 4);
    let outcomes = join_all(begin(["a", "b", "c", "poison", "giant", "d"].map(|key| kv.get(key)))).await;
    assert!(matches!(&outcomes[3], Err(Error::Service(reply)) if reply.code == ErrorCode::Corrupt));
    assert!(matches!(outcomes[4], Err(Error::TooLarge { .. })));
    assert_eq!(outcomes.into_iter().filter_map(|outcome| outcome.ok()?).count(), 4);
}

/// A mismatched or `unsupported` reply fails all gets of the request without a retry.
#[tokio::test(start_paused = true)]
async fn gets_in_one_request_share_request_error() {
    let fleet = fleet(|_, payload, _| {
        late(match wanted(payload) {
            (true, names) if names.len() > 2 => {
                let (other, answered) = (message(1, Some("other"), Some("v")), names.len() as u64);
                reply(&GetReply { position: Position::default(), messages: vec![other], answered })
            }
            (true, _) => CannedReply::Error(ErrorReply::unsupported("not this one")),
            (false, _) => nothing(),
        })
    })
    .await;
    let kv = kv(&fleet).await;
    let outcomes = join_all(begin_keys(&kv, 5)).await;
    assert!(outcomes[..2].iter().all(|outcome| matches!(outcome, Ok(None))));
    let malformed =
        |outcome: &_| matches!(outcome, Err(Error::Malformed { cause: MalformedCause::UnexpectedMessage }));
    assert!(outcomes[2..].iter().all(malformed), "{outcomes:?}");
    let outcomes = join_all(begin_keys(&kv, 4)).await;
    let unsupported =
        |outcome: &_| matches!(outcome, Err(Error::Service(reply)) if reply.code == ErrorCode::Unsupported);
    assert!(outcomes[2..].iter().all(unsupported), "{outcomes:?}");
    assert_eq!(fleet.arrivals.count("a get"), 6, "a get was sent again");
}

/// Slow gets in flight do not delay later gets of the same subject.
#[tokio::test(start_paused = true)]
async fn get_slow_does_not_delay_other_gets() {
    let fleet = fleet(|_, payload, _| match wanted(payload).1[0].as_str() {
        "slow" => slow(store(payload, 1)),
        _ => late(store(payload, 99)),
    })
    .await;
    let kv = kv(&fleet).await;
    let mut slow_gets = begin(["slow", "slow"].map(|key| kv.get(key)));
    // Gets other than the first queued ones pass the slow ones, too, and not one after the other.
    for _ in 0..3 {
        let fast = join_all(begin_keys(&kv, 10));
        tokio::select! {
            biased;
            outcomes = fast => assert_eq!(outcomes.into_iter().map(text).collect::<Vec<_>>(), numbers(0..10)),
            _ = join_all(&mut slow_gets) => panic!("gets waited for the slow requests"),
        }
    }
    // Two slow requests and their queued gets; then two and their queued gets, and again.
    let sizes: Vec<_> = asked(&fleet).iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 1, 10, 1, 1, 8, 1, 1, 8]);
    for get in slow_gets {
        assert_eq!(text(get.await), "slow");
    }
}

/// Each get of one request fails at its own deadline, and the others wait for the reply.
#[tokio::test(start_paused = true)]
async fn gets_in_one_request_keep_separate_deadlines() {
    let fleet = fleet(|_, payload, _| match wanted(payload) {
        (false, _) => late(store(payload, 1)),
        (true, _) => slow(store(payload, 99)),
    })
    .await;
    let kv = kv(&fleet).await;
    let short = kv.clone().with_deadline(Duration::from_millis(100));
    let first = begin_keys(&kv, 2);
    let mut rest = begin([short.get("short"), kv.get("long")]);
    let started = fleet.now();
    let answered = join_all(first);
    let (short_get, long_get) = (rest.remove(0), rest.remove(0));
    let (answered, outcome) = tokio::join!(answered, short_get);
    assert_eq!(answered.len(), 2);
    match outcome {
        Err(Error::Deadline { deadline, last: None }) => assert_eq!(deadline, Duration::from_millis(100)),
        other => panic!("{other:?}"),
    }
    assert_eq!(fleet.now() - started, Duration::from_millis(100));
    assert_eq!(text(long_get.await), "long");
    assert_eq!(asked(&fleet), [vec!["0"], vec!["1"], vec!["short", "long"]]);
}

/// A get that is sent again alone keeps its original deadline.
#[tokio::test(start_paused = true)]
async fn get_resent_alone_keeps_original_deadline() {
    let fleet = fleet(|_, payload, asked| match (asked, wanted(payload)) {
        (0 | 1, _) => late(store(payload, 1)),
        (_, (true, _)) => late(CannedReply::Error(ErrorReply::bad_request("?"))),
        (_, (false, _)) => CannedReply::Silence,
    })
    .await;
    let kv = kv(&fleet).await;
    let deadline = Duration::from_millis(300);
    let short = kv.clone().with_deadline(deadline);
    let started = fleet.now();
    let first = begin_keys(&kv, 2);
    let rest = begin(["a", "b"].map(|key| short.get(key)));
    let (_, outcomes) = tokio::join!(join_all(first), join_all(rest));
    for outcome in outcomes {
        assert!(matches!(outcome, Err(Error::Deadline { deadline: own, .. }) if own == deadline));
    }
    assert_eq!(fleet.now() - started, deadline);
}

/// Closing the client ends queued gets and gets in a shared request with `Closed`.
#[tokio::test(start_paused = true)]
async fn client_close_ends_queued_and_grouped_gets() {
    let fleet = fleet(|_, payload, _| match wanted(payload) {
        (false, _) => late(store(payload, 1)),
        (true, _) => CannedReply::Silence,
    })
    .await;
    let client = fleet.client().await;
    let kv = client.kv("app.x").unwrap();
    let mut gets = begin_keys(&kv, 5);
    for get in gets.drain(..2) {
        get.await.unwrap();
    }
    fleet.arrivals.wait_for("a get", 3).await;
    // One more request is sent, and then further gets are queued.
    let mut gets: Vec<_> = gets;
    gets.extend(begin_keys(&kv, 3));
    let started = fleet.now();
    client.close().await;
    let outcomes = join_all(gets.drain(..3)).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Error::Closed))), "{outcomes:?}");
    assert_eq!(fleet.now(), started, "close waited for a shared request");
    gets.remove(0).await.unwrap();
    let outcomes = join_all(gets).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Error::Closed))), "{outcomes:?}");
    assert!(matches!(kv.get("k").await, Err(Error::Closed)));
}

/// Gets of different subjects do not wait for one another.
#[tokio::test(start_paused = true)]
async fn gets_of_different_subjects_do_not_wait() {
    let fleet = fleet(|_, payload, _| found(named(&wanted(payload).1[0]))).await;
    let client = fleet.client().await;
    let stores: Vec<_> = (0..20).map(|number| client.kv(&format!("app.s{number}")).unwrap()).collect();
    let outcomes = join_all(begin(stores.iter().map(|kv| kv.get("k")))).await;
    assert!(outcomes.into_iter().all(|outcome| text(outcome) == "k"));
    assert_eq!(fleet.arrivals.count("a get"), 20);
}
