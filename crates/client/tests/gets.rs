//! Gets that are in flight at the same time: who shares a request, and that nobody is told less than he would be alone.

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

use support::{Answer, Fleet, at, found, message, nothing, reply};

async fn fleet(answers: impl FnMut(Op, &[u8], usize) -> Answer + Send + 'static) -> Fleet {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", answers).await;
    fleet
}

async fn kv(fleet: &Fleet) -> Kv {
    fleet.client().await.kv("app.x").unwrap()
}

/// What each request asked for.
fn asked(fleet: &Fleet) -> Vec<Vec<String>> {
    fleet.arrivals.payloads("a get").iter().map(|payload| wanted(payload).1).collect()
}

/// Whether a request asks for a list, and what for.
fn wanted(payload: &[u8]) -> (bool, Vec<String>) {
    let GetRequest { v: _, seq, key, keys, seqs } = decode(payload).unwrap();
    let is_list = keys.is_some() || seqs.is_some();
    let seqs = seq.into_iter().chain(seqs.into_iter().flatten()).map(|seq| format!("#{}", seq.get()));
    (is_list, key.into_iter().chain(keys.into_iter().flatten()).chain(seqs).collect())
}

fn numbers(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

/// The message that stands for `name`: a key, or a seq after `#`. Its value is the name.
fn named(name: &str) -> Message {
    match name.strip_prefix('#') {
        Some(seq) => message(seq.parse().unwrap(), None, Some(name)),
        None => message(1, Some(name), Some(name)),
    }
}

/// Everything that is asked for is there, and at most `fits` of it in one answer.
fn store(payload: &[u8], fits: usize) -> Answer {
    let names = wanted(payload).1;
    let answered = names.len().min(fits);
    let messages = names[..answered].iter().map(|name| named(name)).collect();
    reply(&GetReply { position: Position::default(), messages, answered: answered as u64 })
}

/// Later, but before anybody loses patience.
fn late(answer: Answer) -> Answer {
    Answer::Late(Duration::from_millis(10), Box::new(answer))
}

/// Much later.
fn slow(answer: Answer) -> Answer {
    Answer::Late(Duration::from_millis(900), Box::new(answer))
}

type Value = Result<Option<bytes::Bytes>, Error>;

/// Polls each once, so that it is on its way.
fn begin<F: Future>(gets: impl IntoIterator<Item = F>) -> Vec<Pin<Box<F>>> {
    let mut gets: Vec<_> = gets.into_iter().map(Box::pin).collect();
    for get in &mut gets {
        assert!(get.as_mut().now_or_never().is_none(), "it is not on its way");
    }
    gets
}

/// Gets of the keys `0`, `1`, … that are on their way.
fn begin_keys(kv: &Kv, number: u64) -> Vec<Pin<Box<impl Future<Output = Value> + use<'_>>>> {
    begin(numbers(0..number).into_iter().map(|key| kv.get(key)))
}

fn text(outcome: Value) -> String {
    String::from_utf8(outcome.unwrap().unwrap().to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_called_while_two_requests_are_in_flight_goes_with_the_next() {
    let fleet = fleet(|_, payload, _| late(store(payload, usize::MAX))).await;
    let kv = kv(&fleet).await;
    let outcomes = join_all(begin_keys(&kv, 256)).await;
    assert_eq!(outcomes.into_iter().map(text).collect::<Vec<_>>(), numbers(0..256));
    assert_eq!(asked(&fleet), [vec!["0".to_owned()], vec!["1".to_owned()], numbers(2..256)]);
    let payloads = fleet.arrivals.payloads("a get");
    let lists = payloads.iter().map(|payload| wanted(payload).0);
    assert_eq!(lists.collect::<Vec<_>>(), [false, false, true]);
}

#[tokio::test(start_paused = true)]
async fn seqs_go_with_seqs_and_keys_with_keys_and_one_by_itself() {
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
    assert!(!wanted(&fleet.arrivals.payloads("a get")[6]).0, "it went alone");
}

#[tokio::test(start_paused = true)]
async fn a_get_is_never_answered_by_a_request_that_was_sent_before_it_was_called() {
    let version = Arc::new(AtomicU64::new(1));
    let seen = Arc::clone(&version);
    // Each message has as its value the version that there is when the request arrives.
    let fleet = fleet(move |_, payload, _| {
        let value = seen.load(Ordering::SeqCst).to_string();
        let names = wanted(payload).1;
        let messages: Vec<_> = names.iter().map(|name| message(1, Some(name), Some(&value))).collect();
        late(reply(&GetReply { position: Position::default(), answered: messages.len() as u64, messages }))
    })
    .await;
    let kv = kv(&fleet).await;
    let (tell, mut told) = tokio::sync::mpsc::channel(200);
    for round in 0..200 {
        version.fetch_add(1, Ordering::SeqCst);
        let (kv, version, tell) = (kv.clone(), Arc::clone(&version), tell.clone());
        fleet.spawn(async move {
            let called = version.load(Ordering::SeqCst);
            let key = if round % 2 == 0 { "hot".to_owned() } else { round.to_string() };
            tell.send((called, text(kv.get(key).await))).await.unwrap();
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(tell);
    let mut gets = 0;
    while let Some((called, found)) = told.recv().await {
        assert!(found.parse::<u64>().unwrap() >= called, "called at {called}, answered from {found}");
        gets += 1;
    }
    assert_eq!(gets, 200);
    assert!(asked(&fleet).len() < 100, "they did not share requests");
}

#[tokio::test(start_paused = true)]
async fn a_get_that_is_dropped_in_flight_makes_room_and_one_that_waits_is_not_asked_for() {
    let fleet = fleet(|_, payload, asked| if asked < 2 { Answer::Silence } else { store(payload, 99) }).await;
    let kv = kv(&fleet).await;
    let mut gets = begin_keys(&kv, 6);
    // From here on no time passes until the end.
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

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_an_answer_is_asked_for_again_before_what_came_later() {
    let fleet = fleet(|_, payload, _| late(store(payload, 3))).await;
    let kv = kv(&fleet).await;
    let outcomes = join_all(begin_keys(&kv, 14)).await;
    assert_eq!(outcomes.into_iter().map(text).collect::<Vec<_>>(), numbers(0..14));
    // From the first of them it is known that an answer holds three.
    let expected = [0..1, 1..2, 2..14, 5..8, 8..11, 11..14].map(numbers);
    assert_eq!(asked(&fleet), expected);
}

#[tokio::test(start_paused = true)]
async fn who_left_while_his_request_was_in_flight_is_not_asked_for_again() {
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

#[tokio::test(start_paused = true)]
async fn a_server_that_knows_no_lists_of_seqs_is_asked_for_each() {
    let fleet = fleet(|_, payload, _| {
        let answer = if decode::<GetRequest>(payload).unwrap().seqs.is_some() {
            Answer::Error(ErrorReply::bad_request("a get names exactly one of seq, key and keys"))
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

#[tokio::test(start_paused = true)]
async fn who_asks_for_what_no_answer_holds_is_told_so_and_hides_no_other() {
    // Together the giant comes without its value, alone not at all; one key is poison to every list.
    let fleet = fleet(|_, payload, _| {
        let (is_list, names) = wanted(payload);
        late(match names[0].as_str() {
            "giant" if !is_list => Answer::Error(ErrorReply::too_large("max_reply_bytes", 2, 1)),
            "poison" => Answer::Error(ErrorReply::corrupt("object", "torn")),
            _ if names.iter().any(|name| name == "poison") => {
                Answer::Error(ErrorReply::corrupt("object", "torn"))
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

#[tokio::test(start_paused = true)]
async fn an_error_of_the_request_is_that_of_each_get_in_it() {
    let fleet = fleet(|_, payload, _| {
        late(match wanted(payload) {
            (true, names) if names.len() > 2 => {
                let (other, answered) = (message(1, Some("other"), Some("v")), names.len() as u64);
                reply(&GetReply { position: Position::default(), messages: vec![other], answered })
            }
            (true, _) => Answer::Error(ErrorReply::unsupported("not this one")),
            (false, _) => nothing(),
        })
    })
    .await;
    let kv = kv(&fleet).await;
    let outcomes = join_all(begin_keys(&kv, 5)).await;
    assert!(outcomes[..2].iter().all(|outcome| matches!(outcome, Ok(None))));
    let malformed =
        |outcome: &_| matches!(outcome, Err(Error::Malformed { cause: MalformedCause::NotAsked }));
    assert!(outcomes[2..].iter().all(malformed), "{outcomes:?}");
    let outcomes = join_all(begin_keys(&kv, 4)).await;
    let unsupported =
        |outcome: &_| matches!(outcome, Err(Error::Service(reply)) if reply.code == ErrorCode::Unsupported);
    assert!(outcomes[2..].iter().all(unsupported), "{outcomes:?}");
    assert_eq!(fleet.arrivals.count("a get"), 6, "one of them was asked for again");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_gets_that_are_slow() {
    let fleet = fleet(|_, payload, _| match wanted(payload).1[0].as_str() {
        "slow" => slow(store(payload, 1)),
        _ => late(store(payload, 99)),
    })
    .await;
    let kv = kv(&fleet).await;
    let mut slow_ones = begin(["slow", "slow"].map(|key| kv.get(key)));
    // Not only those that waited first, and not one after the other either.
    for _ in 0..3 {
        let fast = join_all(begin_keys(&kv, 10));
        tokio::select! {
            biased;
            outcomes = fast => assert_eq!(outcomes.into_iter().map(text).collect::<Vec<_>>(), numbers(0..10)),
            _ = join_all(&mut slow_ones) => panic!("they waited for what is slow"),
        }
    }
    // Two that wait in vain and their company; then two and their company, and again.
    let sizes: Vec<_> = asked(&fleet).iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 1, 10, 1, 1, 8, 1, 1, 8]);
    for get in slow_ones {
        assert_eq!(text(get.await), "slow");
    }
}

#[tokio::test(start_paused = true)]
async fn each_get_has_its_own_deadline_in_the_same_request() {
    let fleet = fleet(|_, payload, _| match wanted(payload) {
        (false, _) => late(store(payload, 1)),
        (true, _) => slow(store(payload, 99)),
    })
    .await;
    let kv = kv(&fleet).await;
    let hasty = kv.clone().with_deadline(Duration::from_millis(100));
    let first = begin_keys(&kv, 2);
    let mut rest = begin([hasty.get("hasty"), kv.get("patient")]);
    let started = fleet.now();
    let answered = join_all(first);
    let (hasty_get, patient) = (rest.remove(0), rest.remove(0));
    let (answered, hasty) = tokio::join!(answered, hasty_get);
    assert_eq!(answered.len(), 2);
    match hasty {
        Err(Error::Deadline { deadline, last: None }) => assert_eq!(deadline, Duration::from_millis(100)),
        other => panic!("{other:?}"),
    }
    assert_eq!(fleet.now() - started, Duration::from_millis(100));
    assert_eq!(text(patient.await), "patient");
    assert_eq!(asked(&fleet), [vec!["0"], vec!["1"], vec!["hasty", "patient"]]);
}

#[tokio::test(start_paused = true)]
async fn what_has_to_be_asked_alone_has_no_more_time_for_it() {
    let fleet = fleet(|_, payload, asked| match (asked, wanted(payload)) {
        (0 | 1, _) => late(store(payload, 1)),
        (_, (true, _)) => late(Answer::Error(ErrorReply::bad_request("?"))),
        (_, (false, _)) => Answer::Silence,
    })
    .await;
    let kv = kv(&fleet).await;
    let deadline = Duration::from_millis(300);
    let hasty = kv.clone().with_deadline(deadline);
    let started = fleet.now();
    let first = begin_keys(&kv, 2);
    let rest = begin(["a", "b"].map(|key| hasty.get(key)));
    let (_, outcomes) = tokio::join!(join_all(first), join_all(rest));
    for outcome in outcomes {
        assert!(matches!(outcome, Err(Error::Deadline { deadline: own, .. }) if own == deadline));
    }
    assert_eq!(fleet.now() - started, deadline);
}

#[tokio::test(start_paused = true)]
async fn closing_ends_what_waits_and_what_went_together() {
    let fleet = fleet(|_, payload, _| match wanted(payload) {
        (false, _) => late(store(payload, 1)),
        (true, _) => Answer::Silence,
    })
    .await;
    let client = fleet.client().await;
    let kv = client.kv("app.x").unwrap();
    let mut gets = begin_keys(&kv, 5);
    for get in gets.drain(..2) {
        get.await.unwrap();
    }
    fleet.arrivals.wait_for("a get", 3).await;
    // One more request goes, and then others wait again.
    let mut gets: Vec<_> = gets;
    gets.extend(begin_keys(&kv, 3));
    let started = fleet.now();
    client.close().await;
    let outcomes = join_all(gets.drain(..3)).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Error::Closed))), "{outcomes:?}");
    assert_eq!(fleet.now(), started, "the end of a shared request was waited for");
    gets.remove(0).await.unwrap();
    let outcomes = join_all(gets).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Error::Closed))), "{outcomes:?}");
    assert!(matches!(kv.get("k").await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn subjects_do_not_wait_for_each_other() {
    let fleet = fleet(|_, payload, _| found(named(&wanted(payload).1[0]))).await;
    let client = fleet.client().await;
    let stores: Vec<_> = (0..20).map(|number| client.kv(&format!("app.s{number}")).unwrap()).collect();
    let outcomes = join_all(begin(stores.iter().map(|kv| kv.get("k")))).await;
    assert!(outcomes.into_iter().all(|outcome| text(outcome) == "k"));
    assert_eq!(fleet.arrivals.count("a get"), 20);
}
