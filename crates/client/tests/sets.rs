//! Sets that are not awaited one by one: their order, their batching, and the result of each caller.

mod support;

use std::time::Duration;

use dormouse_bus::memory::MemoryOptions;
use dormouse_client::{
    Client, Error, ErrorKind, ErrorReply, Level, MessageId, NewMessage, Seq, Stream, Term,
};
use dormouse_protocol::data::{SetOutcome, SetReply, SetRequest};
use dormouse_protocol::{Op, decode};

use support::{CannedReply, Fleet, at, done, reply, result};

async fn fleet(answers: impl FnMut(Op, &[u8], usize) -> CannedReply + Send + 'static) -> Fleet {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", answers).await;
    fleet
}

async fn stream(fleet: &Fleet) -> Stream {
    fleet.client().await.stream("app.x").unwrap()
}

fn sent(fleet: &Fleet) -> Vec<SetRequest> {
    fleet.arrivals.payloads("a set").iter().map(|payload| decode(payload).unwrap()).collect()
}

/// The values of each request, as text.
fn values(fleet: &Fleet) -> Vec<Vec<String>> {
    let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    sent(fleet)
        .into_iter()
        .map(|request| request.sets.into_iter().map(|set| text(set.value.unwrap())).collect())
        .collect()
}

fn late(answer: CannedReply) -> CannedReply {
    CannedReply::Late(Duration::from_millis(500), Box::new(answer))
}

/// Sets that are queued while a request is in flight share the next request, in order.
#[tokio::test(start_paused = true)]
async fn sets_queued_during_request_share_next_request() {
    let fleet = fleet(|_, payload, _| late(done(payload))).await;
    let stream = stream(&fleet).await;
    let first = stream.publish("0");
    fleet.arrivals.wait_for("a set", 1).await;
    let rest: Vec<_> = (1..100).map(|number| stream.publish(number.to_string())).collect();
    assert_eq!(first.await.unwrap(), result(1));
    for (position, ack) in rest.into_iter().enumerate() {
        assert_eq!(ack.await.unwrap(), result(position as u64 + 1));
    }
    let expected = [vec!["0".to_owned()], (1..100).map(|number| number.to_string()).collect()];
    assert_eq!(values(&fleet), expected);
}

/// Sets keep the order of the calls across retries of the same request.
#[tokio::test(start_paused = true)]
async fn sets_keep_call_order_across_retries() {
    let fleet = fleet(|_, payload, asked| match asked {
        0 | 2 => CannedReply::Silence,
        1 => CannedReply::Error(ErrorReply::overloaded("busy", 10)),
        _ => done(payload),
    })
    .await;
    let stream = stream(&fleet).await;
    let early = stream.publish("0");
    fleet.arrivals.wait_for("a set", 1).await;
    let late = [stream.publish("1"), stream.publish("2")];
    early.await.unwrap();
    for ack in late {
        ack.await.unwrap();
    }
    let mut requests = sent(&fleet);
    let last = requests.pop().unwrap();
    // The same request in each attempt, under its id.
    assert!(requests.iter().all(|request| *request == requests[0]), "{requests:?}");
    assert!(last.request.unwrap().counter > requests[0].request.unwrap().counter);
    assert_eq!(values(&fleet).last().unwrap(), &["1", "2"]);
}

/// If the server rejects one set of a request, the other sets succeed.
#[tokio::test(start_paused = true)]
async fn set_rejected_does_not_affect_others_in_request() {
    let there = MessageId { term: Term::new(1), seq: Seq::new(9) };
    let fleet = fleet(move |_, payload, _| {
        let request: SetRequest = decode(payload).unwrap();
        let outcome = |(position, set): (usize, &dormouse_protocol::data::SetItem)| match set.expect {
            Some(_) => SetOutcome::Error(ErrorReply::wrong_last(Some(there))),
            None => SetOutcome::Ok(result(position as u64 + 1)),
        };
        reply(&SetReply { results: request.sets.iter().enumerate().map(outcome).collect() })
    })
    .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let (first, refused, last) = (kv.put("a", "1"), kv.create("b", "2"), kv.put("c", "3"));
    assert_eq!(first.await.unwrap(), result(1));
    assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(last.await.unwrap(), result(3));
    assert_eq!(fleet.arrivals.count("a set"), 1);
}

/// A set that expires in flight is indeterminate; the other sets of the request succeed without a resend.
#[tokio::test(start_paused = true)]
async fn set_with_short_deadline_does_not_affect_others() {
    let fleet = fleet(|_, payload, _| late(done(payload))).await;
    let stream = stream(&fleet).await;
    let short = stream.clone().with_deadline(Duration::from_millis(100));
    let (short, long) = (short.publish("short"), stream.publish("long"));
    let started = fleet.now();
    let error = short.await.unwrap_err();
    assert!(matches!(error, Error::Indeterminate { .. }), "{error:?}");
    assert_eq!(fleet.now() - started, Duration::from_millis(100));
    assert_eq!(long.await.unwrap(), result(2));
    assert_eq!(values(&fleet), [["short", "long"]], "no resend");
}

/// A set that expires in the queue fails as timed out and is never sent.
#[tokio::test(start_paused = true)]
async fn set_expired_in_queue_is_never_sent() {
    let fleet = fleet(|_, payload, _| late(done(payload))).await;
    let stream = stream(&fleet).await;
    let first = stream.publish("first");
    fleet.arrivals.wait_for("a set", 1).await;
    let short = stream.clone().with_deadline(Duration::from_millis(100)).publish("short");
    let last = stream.publish("last");
    let started = fleet.now();
    assert_eq!(short.await.unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(fleet.now() - started, Duration::from_millis(100));
    first.await.unwrap();
    last.await.unwrap();
    assert_eq!(values(&fleet), [["first"], ["last"]]);
}

/// A set that expires before the first send fails as timed out and is never sent.
#[tokio::test(start_paused = true)]
async fn set_expired_before_first_send_is_timed_out() {
    let fleet = Fleet::new();
    // Nothing can be sent before the location of the subject is known.
    fleet
        .coordinator(|asked| match asked {
            0 => CannedReply::Error(ErrorReply::unavailable("no server")),
            _ => late(at("a")),
        })
        .await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    let stream = stream(&fleet).await;
    let short = stream.clone().with_deadline(Duration::from_millis(100));
    let (short, long) = (short.publish("short"), stream.publish("long"));
    assert_eq!(short.await.unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(long.await.unwrap(), result(1));
    assert_eq!(values(&fleet), [["long"]]);
}

/// Each request carries one level, so sets of different levels use separate requests.
#[tokio::test(start_paused = true)]
async fn sets_of_different_levels_use_separate_requests() {
    let fleet = fleet(|_, payload, _| done(payload)).await;
    let stream = stream(&fleet).await;
    let disk = stream.clone().with_level(Level::Disk);
    let acks = [stream.publish("0"), disk.publish("1"), disk.publish("2"), stream.publish("3")];
    for ack in acks {
        ack.await.unwrap();
    }
    let levels: Vec<_> = sent(&fleet).iter().map(|request| (request.level, request.sets.len())).collect();
    assert_eq!(levels, [(None, 1), (Some(Level::Disk), 2), (None, 1)]);
}

/// A set is sent even if the caller drops its ack.
#[tokio::test(start_paused = true)]
async fn set_with_dropped_ack_is_still_sent() {
    let fleet = fleet(|_, payload, _| done(payload)).await;
    let stream = stream(&fleet).await;
    drop(stream.publish("0"));
    stream.publish("1").await.unwrap();
    assert_eq!(values(&fleet), [["0", "1"]]);
}

/// If the set queue of a subject is full, the client rejects the set at once; other subjects have their own share.
#[tokio::test(start_paused = true)]
async fn set_queue_full_rejects_at_once_per_subject() {
    let fleet = fleet(|_, _, _| CannedReply::Silence).await;
    let bus = std::sync::Arc::new(fleet.broker.connect(MemoryOptions::named("client")));
    let client = Client::builder().env(fleet.env.clone()).queue_bytes(40_000).over(bus).await.unwrap();
    let stream = client.stream("app.x").unwrap();
    let message = || NewMessage::new(vec![0; 4_000]);
    let waiting = [stream.publish_with(message()), stream.publish_with(message())];
    let started = fleet.now();
    let error = stream.publish_with(message()).await.unwrap_err();
    assert!(matches!(error, Error::QueueFull { limit_bytes: 10_000 }), "{error:?}");
    assert_eq!(fleet.now(), started);
    let elsewhere = client.stream("app.y").unwrap().with_deadline(Duration::from_secs(1));
    assert!(matches!(elsewhere.publish_with(message()).await, Err(Error::Indeterminate { .. })));
    // After the waiting sets have their results, the queue has room again.
    let [first, second] = waiting;
    assert!(first.await.is_err() && second.await.is_err());
    let error = stream.publish_with(message()).await.unwrap_err();
    assert!(matches!(error, Error::Indeterminate { .. }), "{error:?}");
}

/// Closing the client waits for sets in flight; queued and later sets fail with `Closed`.
#[tokio::test(start_paused = true)]
async fn client_close_awaits_sets_in_flight_and_sends_no_more() {
    let fleet = fleet(|_, payload, _| late(done(payload))).await;
    let client = fleet.client().await;
    let stream = client.stream("app.x").unwrap();
    let in_flight = stream.publish("0");
    fleet.arrivals.wait_for("a set", 1).await;
    let waiting = stream.publish("1");
    client.close().await;
    assert_eq!(in_flight.await.unwrap(), result(1));
    assert!(matches!(waiting.await, Err(Error::Closed)));
    assert!(matches!(stream.publish("2").await, Err(Error::Closed)));
    assert_eq!(values(&fleet), [["0"]]);
}

/// If the runtime of a set ends, pending sets are indeterminate and the next set of the subject succeeds.
#[test]
fn set_of_ended_runtime_does_not_block_next_set() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let main = runtime();
    let (fleet, stream) = main.block_on(async {
        let fleet =
            fleet(|_, payload, asked| if asked == 0 { CannedReply::Silence } else { done(payload) }).await;
        let stream = stream(&fleet).await.with_deadline(Duration::from_secs(3_600));
        (fleet, stream)
    });
    let (in_flight, waits) = {
        // The first set gets no reply, and the second waits for it; then their sender task is gone.
        let short = runtime();
        let acks = short.block_on(async {
            let first = stream.publish("0");
            tokio::task::yield_now().await;
            (first, stream.publish("1"))
        });
        drop(short);
        acks
    };
    main.block_on(async {
        for ack in [in_flight, waits] {
            assert_eq!(ack.await.unwrap_err().kind(), ErrorKind::Indeterminate);
        }
        stream.publish("2").await.unwrap();
        assert_eq!(values(&fleet).last().unwrap(), &["2"]);
        // The sender task runs once more and finds its queue empty.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    });
    // Outside a runtime a set cannot be sent, and this does not affect later sets.
    let outside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(stream.publish("3"))));
    assert!(outside.is_err());
    main.block_on(async { stream.publish("4").await.unwrap() });
}
