//! Sets that are not awaited one by one: their order, their company, and what each caller is told.

mod support;

use std::time::Duration;

use dormouse_bus::memory::MemoryOptions;
use dormouse_client::{
    Client, Error, ErrorKind, ErrorReply, Level, MessageId, NewMessage, Seq, Stream, Term,
};
use dormouse_protocol::data::{SetOutcome, SetReply, SetRequest};
use dormouse_protocol::{Op, decode};

use support::{Answer, Fleet, at, done, reply, result};

async fn fleet(answers: impl FnMut(Op, &[u8], usize) -> Answer + Send + 'static) -> Fleet {
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

fn late(answer: Answer) -> Answer {
    Answer::Late(Duration::from_millis(500), Box::new(answer))
}

#[tokio::test(start_paused = true)]
async fn what_queues_while_a_request_is_in_flight_goes_with_the_next_in_order() {
    let fleet = fleet(|_, payload, _| late(done(payload))).await;
    let stream = stream(&fleet).await;
    let first = stream.publish("0");
    fleet.arrivals.wait_for("a set", 1).await;
    let rest: Vec<_> = (1..100).map(|number| stream.publish(number.to_string())).collect();
    assert_eq!(first.await.unwrap(), result(1));
    for (place, ack) in rest.into_iter().enumerate() {
        assert_eq!(ack.await.unwrap(), result(place as u64 + 1));
    }
    let expected = [vec!["0".to_owned()], (1..100).map(|number| number.to_string()).collect()];
    assert_eq!(values(&fleet), expected);
}

#[tokio::test(start_paused = true)]
async fn the_order_of_the_calls_survives_retries() {
    let fleet = fleet(|_, payload, asked| match asked {
        0 | 2 => Answer::Silence,
        1 => Answer::Error(ErrorReply::overloaded("busy", 10)),
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
    // The same request each time, under its id.
    assert!(requests.iter().all(|request| *request == requests[0]), "{requests:?}");
    assert!(last.request.unwrap().counter > requests[0].request.unwrap().counter);
    assert_eq!(values(&fleet).last().unwrap(), &["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn one_set_that_is_refused_leaves_its_company_alone() {
    let there = MessageId { term: Term::new(1), seq: Seq::new(9) };
    let fleet = fleet(move |_, payload, _| {
        let request: SetRequest = decode(payload).unwrap();
        let outcome = |(place, set): (usize, &dormouse_protocol::data::SetItem)| match set.expect {
            Some(_) => SetOutcome::Error(ErrorReply::wrong_last(Some(there))),
            None => SetOutcome::Ok(result(place as u64 + 1)),
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

#[tokio::test(start_paused = true)]
async fn a_caller_who_cannot_wait_hurts_no_other() {
    let fleet = fleet(|_, payload, _| late(done(payload))).await;
    let stream = stream(&fleet).await;
    let hasty = stream.clone().with_deadline(Duration::from_millis(100));
    let (hasty, patient) = (hasty.publish("hasty"), stream.publish("patient"));
    let started = fleet.now();
    let error = hasty.await.unwrap_err();
    assert!(matches!(error, Error::Indeterminate { .. }), "{error:?}");
    assert_eq!(fleet.now() - started, Duration::from_millis(100));
    assert_eq!(patient.await.unwrap(), result(2));
    assert_eq!(values(&fleet), [["hasty", "patient"]], "it was sent again");
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_vain_for_its_turn_is_never_sent() {
    let fleet = fleet(|_, payload, _| late(done(payload))).await;
    let stream = stream(&fleet).await;
    let first = stream.publish("first");
    fleet.arrivals.wait_for("a set", 1).await;
    let hasty = stream.clone().with_deadline(Duration::from_millis(100)).publish("hasty");
    let last = stream.publish("last");
    let started = fleet.now();
    assert_eq!(hasty.await.unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(fleet.now() - started, Duration::from_millis(100));
    first.await.unwrap();
    last.await.unwrap();
    assert_eq!(values(&fleet), [["first"], ["last"]]);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_before_anything_was_sent_is_told_that_nothing_happened() {
    let fleet = Fleet::new();
    // Until it is known where the subject is, nothing can be sent.
    fleet
        .coordinator(|asked| match asked {
            0 => Answer::Error(ErrorReply::unavailable("no server")),
            _ => late(at("a")),
        })
        .await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    let stream = stream(&fleet).await;
    let hasty = stream.clone().with_deadline(Duration::from_millis(100));
    let (hasty, patient) = (hasty.publish("hasty"), stream.publish("patient"));
    assert_eq!(hasty.await.unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(patient.await.unwrap(), result(1));
    assert_eq!(values(&fleet), [["patient"]]);
}

#[tokio::test(start_paused = true)]
async fn levels_travel_with_the_sets_they_were_asked_for() {
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

#[tokio::test(start_paused = true)]
async fn dropping_the_acknowledgement_does_not_take_the_set_back() {
    let fleet = fleet(|_, payload, _| done(payload)).await;
    let stream = stream(&fleet).await;
    drop(stream.publish("0"));
    stream.publish("1").await.unwrap();
    assert_eq!(values(&fleet), [["0", "1"]]);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_the_queue_is_refused_at_once_and_other_subjects_have_room() {
    let fleet = fleet(|_, _, _| Answer::Silence).await;
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
    // Once those who waited have been told, there is room again.
    let [first, second] = waiting;
    assert!(first.await.is_err() && second.await.is_err());
    let error = stream.publish_with(message()).await.unwrap_err();
    assert!(matches!(error, Error::Indeterminate { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_what_is_in_flight_and_sends_nothing_more() {
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

#[test]
fn a_set_whose_runtime_ends_leaves_the_way_free_for_the_next() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let main = runtime();
    let (fleet, stream) = main.block_on(async {
        let fleet = fleet(|_, payload, asked| if asked == 0 { Answer::Silence } else { done(payload) }).await;
        let stream = stream(&fleet).await.with_deadline(Duration::from_secs(3_600));
        (fleet, stream)
    });
    let (in_flight, waits) = {
        // Nobody answers the first, and the second waits for it; then what sends them is gone.
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
        // What sends them has its turn, and sees that nothing waits.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    });
    // Outside of a runtime a set cannot be sent, and that is no harm to the next either.
    let outside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(stream.publish("3"))));
    assert!(outside.is_err());
    main.block_on(async { stream.publish("4").await.unwrap() });
}
