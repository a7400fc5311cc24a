//! What the calls make of answers: values, refusals, batches.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_client::{
    Error, ErrorCode, ErrorReply, Happened, MAX_VALUE_IN_MEMORY_BYTES, Message, MessageId, NewMessage, Seq,
    Term,
};
use dormouse_protocol::data::{
    DeleteReply, DeleteRequest, Expect, GetReply, GetRequest, SetOutcome, SetReply, SetRequest,
};
use dormouse_protocol::{Op, Position, decode};

use support::{Answer, Fleet, at, done, found, message, nothing, reply, result};

fn id(seq: u64) -> MessageId {
    MessageId { term: Term::new(1), seq: Seq::new(seq) }
}

fn refused(error: ErrorReply) -> Answer {
    reply(&SetReply { results: vec![SetOutcome::Error(error)] })
}

/// A fleet whose only server answers as told.
async fn fleet(answers: impl FnMut(Op, &[u8], usize) -> Answer + Send + 'static) -> Fleet {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", answers).await;
    fleet
}

#[tokio::test(start_paused = true)]
async fn null_and_empty_and_absent_are_three_things() {
    let fleet = fleet(|_, payload, _| match decode::<GetRequest>(payload).unwrap().key.as_deref() {
        Some("null") => found(message(1, Some("null"), None)),
        Some("") => found(message(2, Some(""), Some(""))),
        _ => nothing(),
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert_eq!(kv.get("null").await.unwrap(), None);
    assert_eq!(kv.entry("null").await.unwrap().unwrap().value, None);
    assert_eq!(kv.get("").await.unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(kv.get("absent").await.unwrap(), None);
    assert_eq!(kv.entry("absent").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_value_too_large_for_a_page_is_fetched_by_its_seq() {
    let fleet = fleet(|_, payload, _| {
        let by_seq = decode::<GetRequest>(payload).unwrap().seq.is_some();
        let mut message = message(5, Some("k"), Some("large"));
        if !by_seq {
            message.value = None;
            message.value_omitted = true;
        }
        found(message)
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert_eq!(kv.get_many(["k"]).await.unwrap()[0].value.as_deref(), Some(&b"large"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_no_answer_carries_is_not_taken_for_null() {
    let fleet = fleet(|_, _, _| {
        let mut message = message(5, Some("k"), None);
        message.value_omitted = true;
        message.size = MAX_VALUE_IN_MEMORY_BYTES + 1;
        found(message)
    })
    .await;
    let error = fleet.client().await.kv("app.x").unwrap().get("k").await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn expectations_travel_and_their_failure_has_a_name() {
    let fleet = fleet(|_, payload, _| match decode::<SetRequest>(payload).unwrap().sets[0].expect {
        Some(Expect::Key(None)) => refused(ErrorReply::key_exists(id(3))),
        Some(Expect::Key(Some(_))) => refused(ErrorReply::wrong_last(Some(id(4)))),
        Some(Expect::Last(_)) => refused(ErrorReply::wrong_last(None)),
        None => done(payload),
    })
    .await;
    let client = fleet.client().await;
    let (kv, stream) = (client.kv("app.x").unwrap(), client.stream("app.x").unwrap());
    let exists = kv.create("k", "v").await.unwrap_err();
    assert!(matches!(exists, Error::KeyExists { actual: Some(actual) } if actual == id(3)), "{exists:?}");
    let changed = kv.update("k", "v", id(1)).await.unwrap_err();
    assert!(matches!(changed, Error::WrongLast { actual: Some(actual) } if actual == id(4)), "{changed:?}");
    let empty = stream.publish_with(NewMessage::new("v").expect_last(Some(id(1)))).await.unwrap_err();
    assert!(matches!(empty, Error::WrongLast { actual: None }), "{empty:?}");
    assert_eq!(empty.happened(), Happened::No);
    assert_eq!(kv.put("k", "v").await.unwrap(), result(1));
    assert_eq!(fleet.arrivals.count("a set"), 4, "a refusal was tried again");
}

#[tokio::test(start_paused = true)]
async fn create_speaks_of_the_key_whatever_the_server_calls_it() {
    let fleet = fleet(|_, _, _| refused(ErrorReply::wrong_last(Some(id(3))))).await;
    let exists = fleet.client().await.kv("app.x").unwrap().create("k", "v").await.unwrap_err();
    assert!(matches!(exists, Error::KeyExists { actual: Some(actual) } if actual == id(3)), "{exists:?}");
}

#[tokio::test(start_paused = true)]
async fn delete_says_whether_something_was_there() {
    let fleet = fleet(|_, payload, _| {
        let request: DeleteRequest = decode(payload).unwrap();
        assert!(request.request.is_some());
        let seqs = if request.keys == ["there"] { vec![Seq::new(1)] } else { vec![] };
        reply(&DeleteReply { position: Position::default(), seqs, duplicate: false })
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert!(kv.delete("there").await.unwrap());
    assert!(!kv.delete("elsewhere").await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_cut_to_the_payload_and_keeps_its_order() {
    let fleet = fleet(|_, payload, _| done(payload)).await;
    fleet.broker.set_max_payload(64 * 1_024);
    let stream = fleet.client().await.stream("app.x").unwrap();
    let messages: Vec<Vec<u8>> = (0..20_u8).map(|number| vec![number; 10_000]).collect();
    let results = stream.publish_batch(messages.clone()).await;
    assert_eq!(results.len(), 20);
    assert!(results.iter().all(Result::is_ok));
    let payloads = fleet.arrivals.payloads("a set");
    assert!((4..=5).contains(&payloads.len()), "{}", payloads.len());
    let sent: Vec<_> = payloads
        .iter()
        .flat_map(|payload| decode::<SetRequest>(payload).unwrap().sets)
        .map(|set| set.value.unwrap().to_vec())
        .collect();
    assert_eq!(sent, messages);
}

#[tokio::test(start_paused = true)]
async fn in_a_batch_what_is_refused_leaves_the_others_alone() {
    let fleet = fleet(|op, payload, _| match op {
        Op::UploadBegin => Answer::Error(ErrorReply::too_large("max_upload_bytes", 100_000, 90_000)),
        Op::UploadCancel => Answer::Silence,
        _ => done(payload),
    })
    .await;
    fleet.broker.set_max_payload(64 * 1_024);
    let kv = fleet.client().await.kv("app.x").unwrap();
    let results = kv.put_many([("a", vec![0; 10]), ("b", vec![0; 100_000]), ("c", vec![0; 10])]).await;
    assert!(results[0].is_ok());
    assert!(matches!(results[1], Err(Error::TooLarge { .. })), "{:?}", results[1]);
    assert!(results[2].is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_cut_anew_when_less_fits_than_was_told() {
    // What the servers can take has shrunk, and nobody has told the client yet.
    let refusal = |size| Answer::Error(ErrorReply::too_large("max_payload", size, 15_000));
    let fleet = fleet(move |_, payload, _| match payload.len() {
        size if size > 15_000 => refusal(size),
        _ => done(payload),
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let entries: Vec<_> = (0..20_u8).map(|number| (format!("{number:02}"), vec![number; 1_000])).collect();
    let mut with_a_giant = entries.clone();
    with_a_giant.insert(9, ("giant".to_owned(), vec![0; 20_000]));
    let results = kv.put_many(with_a_giant).await;
    assert_eq!(results.len(), 21);
    for (position, result) in results.iter().enumerate() {
        match position {
            9 => assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}"),
            _ => assert!(result.is_ok(), "{position}: {result:?}"),
        }
    }
    let requests: Vec<SetRequest> =
        fleet.arrivals.payloads("a set").iter().map(|payload| decode(payload).unwrap()).collect();
    let taken = fleet.arrivals.payloads("a set").into_iter().zip(&requests);
    let taken = taken.filter(|(payload, _)| payload.len() <= 15_000).flat_map(|(_, request)| &request.sets);
    let keys: Vec<_> = taken.map(|set| set.key.clone().unwrap()).collect();
    assert_eq!(keys, entries.into_iter().map(|(key, _)| key).collect::<Vec<_>>());
    let mut names: Vec<_> = requests.iter().map(|request| request.request.unwrap().counter).collect();
    names.dedup();
    assert_eq!(names.len(), requests.len(), "two requests of different content share a name");
}

#[tokio::test(start_paused = true)]
async fn a_batch_heeds_a_payload_that_shrinks_while_it_is_sent() {
    let broker = Arc::new(Mutex::new(None::<dormouse_bus::memory::MemoryBroker>));
    let shrinking = Arc::clone(&broker);
    let fleet = fleet(move |_, payload, _| {
        shrinking.lock().unwrap().as_ref().unwrap().set_max_payload(32 * 1_024);
        done(payload)
    })
    .await;
    *broker.lock().unwrap() = Some(fleet.broker.clone());
    fleet.broker.set_max_payload(64 * 1_024);
    let stream = fleet.client().await.stream("app.x").unwrap();
    let results = stream.publish_batch(vec![vec![0; 10_000]; 20]).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let sent = fleet.arrivals.payloads("a set");
    let sets = sent.iter().map(|payload| decode::<SetRequest>(payload).unwrap().sets.len());
    assert_eq!(sets.collect::<Vec<_>>(), [6, 2, 2, 2, 2, 2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn after_a_request_that_failed_nothing_that_was_cut_off_is_sent() {
    let fleet = fleet(|_, payload, _| match decode::<SetRequest>(payload).unwrap().sets.len() {
        1 => Answer::Error(ErrorReply::unsupported("this")),
        _ => Answer::Error(ErrorReply::too_large("max_payload", 2, 1)),
    })
    .await;
    let results = fleet.client().await.stream("app.x").unwrap().publish_batch(["1", "2", "3", "4"]).await;
    assert!(matches!(results[0], Err(Error::Service(_))), "{results:?}");
    assert_eq!(results.len(), 4);
    assert!(results[1..].iter().all(|result| matches!(result, Err(Error::NotSent))), "{results:?}");
    assert_eq!(fleet.arrivals.count("a set"), 3);
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_cut_anew_when_less_fits_than_was_told() {
    let fleet = fleet(|_, payload, _| {
        let keys = decode::<GetRequest>(payload).unwrap().keys.unwrap();
        if keys.len() > 2 {
            return Answer::Error(ErrorReply::too_large("max_payload", 2, 1));
        }
        let messages = keys.iter().map(|key| message(1, Some(key), Some("v"))).collect();
        reply(&GetReply { position: Position::default(), messages, answered: keys.len() as u64 })
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let messages = kv.get_many(["a", "b", "c", "d", "e"]).await.unwrap();
    let keys: Vec<_> = messages.iter().map(|message| message.key.as_deref().unwrap()).collect();
    assert_eq!(keys, ["a", "b", "c", "d", "e"]);
}

/// A store whose keys `giant` (no answer carries its value), `moving` (replaced between two requests) and `small` are
/// asked for together.
fn store(payload: &[u8]) -> Answer {
    let request: GetRequest = decode(payload).unwrap();
    let omitted = |seq, key| Message { value_omitted: true, ..message(seq, Some(key), None) };
    match (request.seq.map(Seq::get), request.key.as_deref()) {
        (Some(1), _) => Answer::Error(ErrorReply::too_large("max_payload", 2, 1)),
        (Some(2), _) => nothing(),
        (None, Some("moving")) => found(message(9, Some("moving"), Some("newer"))),
        (None, None) => {
            let messages =
                vec![omitted(1, "giant"), omitted(2, "moving"), message(3, Some("small"), Some("v"))];
            reply(&GetReply { position: Position::default(), messages, answered: 3 })
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_fetched_hides_no_other_and_no_key_is_lost() {
    let fleet = fleet(|_, payload, _| store(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let messages = kv.get_many(["giant", "moving", "small"]).await.unwrap();
    let [giant, moving, small] = &messages[..] else { panic!("{messages:?}") };
    assert!(giant.value_omitted && giant.value.is_none());
    assert_eq!((moving.seq.get(), moving.value.as_deref()), (9, Some(&b"newer"[..])));
    assert_eq!(small.value.as_deref(), Some(&b"v"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_replaced_while_its_value_is_fetched_is_not_absent() {
    let fleet = fleet(|op, _, asked| match (asked, op) {
        (0, Op::Get) => found(Message { value_omitted: true, ..message(1, Some("k"), None) }),
        (1, Op::GetChunk) => Answer::Error(ErrorReply::wrong_last(None)),
        (2, Op::Get) => found(message(2, Some("k"), Some("newer"))),
        other => panic!("{other:?}"),
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert_eq!(kv.get("k").await.unwrap().as_deref(), Some(&b"newer"[..]));
}

#[tokio::test(start_paused = true)]
async fn in_a_batch_nothing_overtakes_what_may_be_lost() {
    let fleet = fleet(|_, payload, asked| if asked == 0 { done(payload) } else { Answer::Silence }).await;
    fleet.broker.set_max_payload(64 * 1_024);
    let stream = fleet.client().await.stream("app.x").unwrap().with_deadline(Duration::from_secs(2));
    let results = stream.publish_batch(vec![vec![0; 40_000]; 4]).await;
    assert!(results[0].is_ok());
    assert!(matches!(results[1], Err(Error::Indeterminate { .. })), "{:?}", results[1]);
    assert!(matches!(results[2], Err(Error::NotSent)) && matches!(results[3], Err(Error::NotSent)));
    assert_eq!(fleet.arrivals.count("a set"), 2);
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_asked_for_until_all_are_answered() {
    let asked_for = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked_for);
    let fleet = fleet(move |_, payload, _| {
        let keys = decode::<GetRequest>(payload).unwrap().keys.unwrap();
        seen.lock().unwrap().push(keys.len());
        // Two at a time, and the key `absent` does not exist.
        let messages = keys.iter().take(2).filter(|key| *key != "absent");
        let messages = messages.map(|key| message(1, Some(key), Some("v"))).collect();
        reply(&GetReply { position: Position::default(), messages, answered: keys.len().min(2) as u64 })
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let messages = kv.get_many(["a", "absent", "b", "c", "d"]).await.unwrap();
    let keys: Vec<_> = messages.iter().map(|message| message.key.as_deref().unwrap()).collect();
    assert_eq!(keys, ["a", "b", "c", "d"]);
    assert_eq!(*asked_for.lock().unwrap(), [5, 3, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_results_missing_is_indeterminate() {
    let fleet = fleet(|_, _, _| reply(&SetReply { results: vec![] })).await;
    let error = fleet.client().await.kv("app.x").unwrap().put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Indeterminate { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_server_does_not_offer_comes_back_as_its_own_words() {
    let fleet = fleet(|_, _, _| Answer::Error(ErrorReply::unsupported("level bucket"))).await;
    let kv = fleet.client().await.kv("app.x").unwrap().with_level(dormouse_client::Level::Bucket);
    let error = kv.put("k", "v").await.unwrap_err();
    assert!(matches!(&error, Error::Service(reply) if reply.code == ErrorCode::Unsupported), "{error:?}");
    let sent: SetRequest = decode(&fleet.arrivals.payloads("a set")[0]).unwrap();
    assert_eq!(sent.level, Some(dormouse_client::Level::Bucket));
}

#[tokio::test(start_paused = true)]
async fn a_bad_subject_is_refused_before_anything_is_sent() {
    let fleet = Fleet::new();
    let client = fleet.client().await;
    for bad in ["", "app.*", "app.>", "a b", "a..b"] {
        assert!(matches!(client.kv(bad), Err(Error::InvalidSubject(_))), "{bad:?}");
        assert!(matches!(client.stream(bad), Err(Error::InvalidSubject(_))), "{bad:?}");
    }
}
