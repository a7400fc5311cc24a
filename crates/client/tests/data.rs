//! Replies as results of calls: values, errors, batches.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_client::{
    Error, ErrorCode, ErrorReply, Executed, MAX_VALUE_IN_MEMORY_BYTES, Message, MessageId, NewMessage, Seq,
    Term,
};
use dormouse_protocol::data::{
    DeleteReply, DeleteRequest, Expect, GetReply, GetRequest, SetOutcome, SetReply, SetRequest,
};
use dormouse_protocol::limits::MAX_QUERY_BYTES;
use dormouse_protocol::{Op, Position, decode};

use support::{CannedReply, Fleet, at, done, found, message, nothing, reply, result};

fn id(seq: u64) -> MessageId {
    MessageId { term: Term::new(1), seq: Seq::new(seq) }
}

fn refused(error: ErrorReply) -> CannedReply {
    reply(&SetReply { results: vec![SetOutcome::Error(error)] })
}

/// A fleet whose only server sends scripted replies.
async fn fleet(answers: impl FnMut(Op, &[u8], usize) -> CannedReply + Send + 'static) -> Fleet {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", answers).await;
    fleet
}

/// A null value, an empty value and an absent key are distinct results.
#[tokio::test(start_paused = true)]
async fn value_null_empty_and_absent_are_distinct() {
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

/// If a reply for several keys omits a value, the client fetches the value by its seq.
#[tokio::test(start_paused = true)]
async fn value_omitted_from_reply_is_fetched_by_seq() {
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

/// A value that no reply can carry fails with `TooLarge`; the client does not return null.
#[tokio::test(start_paused = true)]
async fn value_omitted_from_all_replies_is_not_null() {
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

/// Expectations reach the server, and a failed expectation is a typed error that is not retried.
#[tokio::test(start_paused = true)]
async fn set_expectation_is_sent_and_failure_is_typed() {
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
    assert_eq!(empty.executed(), Executed::No);
    assert_eq!(kv.put("k", "v").await.unwrap(), result(1));
    assert_eq!(fleet.arrivals.count("a set"), 4, "a rejected set was sent again");
}

/// A failed create returns `KeyExists` even if the server replies `wrong_last`.
#[tokio::test(start_paused = true)]
async fn create_conflict_is_always_key_exists() {
    let fleet = fleet(|_, _, _| refused(ErrorReply::wrong_last(Some(id(3))))).await;
    let exists = fleet.client().await.kv("app.x").unwrap().create("k", "v").await.unwrap_err();
    assert!(matches!(exists, Error::KeyExists { actual: Some(actual) } if actual == id(3)), "{exists:?}");
}

/// A delete reports whether the key existed.
#[tokio::test(start_paused = true)]
async fn delete_reports_whether_key_existed() {
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

/// Keys that do not fit one request are not sent: several requests would not be one atomic change.
#[tokio::test(start_paused = true)]
async fn delete_many_above_request_size_sends_nothing() {
    let fleet = fleet(|_, payload, _| {
        assert!(payload.len() <= MAX_QUERY_BYTES);
        let keys = decode::<DeleteRequest>(payload).unwrap().keys.len() as u64;
        let seqs = (1..=keys).map(Seq::new).collect();
        reply(&DeleteReply { position: Position::default(), seqs, duplicate: false })
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let keys = |number: usize| (0..number).map(|key| format!("{key:0100}"));
    let error = kv.delete_many(keys(2_600)).await.unwrap_err();
    assert!(matches!(&error, Error::TooLarge { limit, .. } if limit == "max_request_bytes"), "{error}");
    assert_eq!((error.executed(), fleet.arrivals.count("a delete")), (Executed::No, 0));
    assert_eq!(kv.delete_many(keys(2_400)).await.unwrap().len(), 2_400);
}

/// A publish batch over the maximum payload is split into several requests, in order.
#[tokio::test(start_paused = true)]
async fn publish_batch_is_split_by_max_payload_in_order() {
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

/// If the server rejects one entry of `put_many`, the other entries succeed.
#[tokio::test(start_paused = true)]
async fn put_many_rejected_entry_does_not_affect_others() {
    let fleet = fleet(|op, payload, _| match op {
        Op::UploadBegin => CannedReply::Error(ErrorReply::too_large("max_upload_bytes", 100_000, 90_000)),
        Op::UploadCancel => CannedReply::Silence,
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

/// After `too_large`, `put_many` splits the request, keeps the order and uses new request ids; only an oversized entry
/// fails.
#[tokio::test(start_paused = true)]
async fn put_many_is_split_again_after_too_large() {
    // The size limit of the servers has shrunk, and the client does not know it yet.
    let refusal = |size| CannedReply::Error(ErrorReply::too_large("max_payload", size, 15_000));
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
    assert_eq!(names.len(), requests.len(), "requests of different content share an id");
}

/// If the maximum payload shrinks during a publish batch, the later requests are smaller.
#[tokio::test(start_paused = true)]
async fn publish_batch_adapts_to_shrinking_max_payload() {
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

/// If a request of a split publish batch fails, the remaining messages fail with `NotSent`.
#[tokio::test(start_paused = true)]
async fn publish_batch_sends_no_rest_after_failed_request() {
    let fleet = fleet(|_, payload, _| match decode::<SetRequest>(payload).unwrap().sets.len() {
        1 => CannedReply::Error(ErrorReply::unsupported("this")),
        _ => CannedReply::Error(ErrorReply::too_large("max_payload", 2, 1)),
    })
    .await;
    let results = fleet.client().await.stream("app.x").unwrap().publish_batch(["1", "2", "3", "4"]).await;
    assert!(matches!(results[0], Err(Error::Service(_))), "{results:?}");
    assert_eq!(results.len(), 4);
    assert!(results[1..].iter().all(|result| matches!(result, Err(Error::NotSent))), "{results:?}");
    assert_eq!(fleet.arrivals.count("a set"), 3);
}

/// After `too_large`, `get_many` splits the request and returns all keys in order.
#[tokio::test(start_paused = true)]
async fn get_many_is_split_again_after_too_large() {
    let fleet = fleet(|_, payload, _| {
        let keys = decode::<GetRequest>(payload).unwrap().keys.unwrap();
        if keys.len() > 2 {
            return CannedReply::Error(ErrorReply::too_large("max_payload", 2, 1));
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

/// A store with the keys `giant` (no reply carries its value), `moving` (replaced between two requests) and
/// `small`, which are requested together.
fn store(payload: &[u8]) -> CannedReply {
    let request: GetRequest = decode(payload).unwrap();
    let omitted = |seq, key| Message { value_omitted: true, ..message(seq, Some(key), None) };
    match (request.seq.map(Seq::get), request.key.as_deref()) {
        (Some(1), _) => CannedReply::Error(ErrorReply::too_large("max_payload", 2, 1)),
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

/// A value that cannot be fetched stays omitted; `get_many` returns the other keys, and a replaced key with its new
/// value.
#[tokio::test(start_paused = true)]
async fn get_many_unfetchable_value_hides_no_other_key() {
    let fleet = fleet(|_, payload, _| store(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let messages = kv.get_many(["giant", "moving", "small"]).await.unwrap();
    let [giant, moving, small] = &messages[..] else { panic!("{messages:?}") };
    assert!(giant.value_omitted && giant.value.is_none());
    assert_eq!((moving.seq.get(), moving.value.as_deref()), (9, Some(&b"newer"[..])));
    assert_eq!(small.value.as_deref(), Some(&b"v"[..]));
}

/// If a key is replaced during the fetch of its value, the get returns the new value.
#[tokio::test(start_paused = true)]
async fn get_of_key_replaced_during_fetch_returns_new_value() {
    let fleet = fleet(|op, _, asked| match (asked, op) {
        (0, Op::Get) => found(Message { value_omitted: true, ..message(1, Some("k"), None) }),
        (1, Op::GetChunk) => CannedReply::Error(ErrorReply::wrong_last(None)),
        (2, Op::Get) => found(message(2, Some("k"), Some("newer"))),
        other => panic!("{other:?}"),
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert_eq!(kv.get("k").await.unwrap().as_deref(), Some(&b"newer"[..]));
}

/// If a request of a split publish batch is indeterminate, the remaining messages are not sent.
#[tokio::test(start_paused = true)]
async fn publish_batch_sends_no_rest_after_indeterminate() {
    let fleet =
        fleet(|_, payload, asked| if asked == 0 { done(payload) } else { CannedReply::Silence }).await;
    fleet.broker.set_max_payload(64 * 1_024);
    let stream = fleet.client().await.stream("app.x").unwrap().with_deadline(Duration::from_secs(2));
    let results = stream.publish_batch(vec![vec![0; 40_000]; 4]).await;
    assert!(results[0].is_ok());
    assert!(matches!(results[1], Err(Error::Indeterminate { .. })), "{:?}", results[1]);
    assert!(matches!(results[2], Err(Error::NotSent)) && matches!(results[3], Err(Error::NotSent)));
    assert_eq!(fleet.arrivals.count("a set"), 2);
}

/// The call `get_many` repeats requests until the server has answered all keys.
#[tokio::test(start_paused = true)]
async fn get_many_repeats_until_all_keys_are_answered() {
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

/// A set whose reply holds no results is indeterminate.
#[tokio::test(start_paused = true)]
async fn set_reply_without_results_is_indeterminate() {
    let fleet = fleet(|_, _, _| reply(&SetReply { results: vec![] })).await;
    let error = fleet.client().await.kv("app.x").unwrap().put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Indeterminate { .. }), "{error:?}");
}

/// If the server does not support the level, the client returns the error of the server.
#[tokio::test(start_paused = true)]
async fn level_unsupported_by_server_returns_server_error() {
    let fleet = fleet(|_, _, _| CannedReply::Error(ErrorReply::unsupported("level bucket"))).await;
    let kv = fleet.client().await.kv("app.x").unwrap().with_level(dormouse_client::Level::Bucket);
    let error = kv.put("k", "v").await.unwrap_err();
    assert!(matches!(&error, Error::Service(reply) if reply.code == ErrorCode::Unsupported), "{error:?}");
    let sent: SetRequest = decode(&fleet.arrivals.payloads("a set")[0]).unwrap();
    assert_eq!(sent.level, Some(dormouse_client::Level::Bucket));
}

/// The client rejects an invalid subject before it sends a request.
#[tokio::test(start_paused = true)]
async fn subject_invalid_is_rejected_before_sending() {
    let fleet = Fleet::new();
    let client = fleet.client().await;
    for bad in ["", "app.*", "app.>", "a b", "a..b"] {
        assert!(matches!(client.kv(bad), Err(Error::InvalidSubject(_))), "{bad:?}");
        assert!(matches!(client.stream(bad), Err(Error::InvalidSubject(_))), "{bad:?}");
    }
}

/// If the time of a request of a split publish batch runs out at the server, no later message is sent.
#[tokio::test(start_paused = true)]
async fn publish_batch_stops_at_refusal_of_late_request() {
    let fleet = fleet(|_, payload, asked| match asked {
        0 => done(payload),
        _ => CannedReply::Error(dormouse_protocol::deadline::time_ran_out()),
    })
    .await;
    fleet.broker.set_max_payload(64 * 1_024);
    let stream = fleet.client().await.stream("app.x").unwrap().with_deadline(Duration::from_secs(2));
    let results = stream.publish_batch(vec![vec![0; 40_000]; 4]).await;
    assert!(results[0].is_ok());
    assert!(matches!(results[1], Err(Error::Deadline { .. })), "{:?}", results[1]);
    assert!(matches!(results[2], Err(Error::NotSent)) && matches!(results[3], Err(Error::NotSent)));
    let sent = fleet.arrivals.payloads("a set");
    assert!(sent[1..].iter().all(|payload| *payload == sent[1]), "a later message was sent");
}
