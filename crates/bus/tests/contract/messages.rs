//! Requests, publishes and subscriptions without faults.

use bytes::Bytes;
use dormouse_bus::{
    BusEvent, Outgoing, PublishError, RequestError, SubscribeError, SubscribeOptions, Subscription,
};
use dormouse_protocol::{Executed, Headers, Route, RoutePattern};
use futures::future::join_all;

use crate::fixture::{
    Fixture, LONG, MAX_PAYLOAD_BYTES, SHORT, join, listen, message, next, respond, wait_for, within,
};

/// A request receives the reply, also on the connection that serves it.
pub async fn request_receives_reply(system: impl Fixture) {
    let (asking, answering) = (system.connect().await, system.connect().await);
    respond(system.tasks(), &answering, listen(&answering, "echo.*").await, |delivery| delivery.payload);
    let reply = asking.request(message("echo.a", "hello"), LONG).await.unwrap();
    assert_eq!(reply.payload, "hello");
    assert!(reply.headers.is_empty());
    // Also on the connection that serves it.
    assert_eq!(answering.request(message("echo.b", ""), LONG).await.unwrap().payload, "");
}

/// Each of many concurrent requests receives its own reply.
pub async fn requests_in_parallel_receive_matching_replies(system: impl Fixture) {
    let (asking, answering) = (system.connect().await, system.connect().await);
    respond(system.tasks(), &answering, listen(&answering, "echo").await, |delivery| delivery.payload);
    let requests = (0..500).map(|number| {
        let asking = &asking;
        async move {
            let reply = asking.request(message("echo", format!("{number}")), LONG).await.unwrap();
            assert_eq!(reply.payload, format!("{number}"));
        }
    });
    join_all(requests).await;
}

/// A request without a responder fails at once as not executed.
pub async fn request_without_responder_fails_at_once(system: impl Fixture) {
    let bus = system.connect().await;
    let error = bus.request(message("nobody", "hello"), LONG).await.unwrap_err();
    assert_eq!(error, RequestError::NoResponders(Route::new("nobody")));
    assert_eq!(error.executed(), Executed::No);
}

/// A request to a hung responder fails at its deadline with unknown execution.
pub async fn request_to_hung_responder_fails_at_deadline(system: impl Fixture) {
    let (asking, hung) = (system.connect().await, system.connect().await);
    let mut requests = listen(&hung, "hung").await;
    let error = asking.request(message("hung", "hello"), SHORT).await.unwrap_err();
    assert_eq!(error, RequestError::Deadline { route: Route::new("hung"), deadline: SHORT });
    assert_eq!(error.executed(), Executed::Unknown);
    assert_eq!(next(&mut requests).await.payload, "hello");
}

/// A reply after the deadline is discarded and never answers a later request.
pub async fn reply_after_deadline_is_discarded(system: impl Fixture) {
    let (asking, answering) = (system.connect().await, system.connect().await);
    let mut requests = listen(&answering, "slow").await;
    asking.request(message("slow", "first"), SHORT).await.unwrap_err();
    let first = next(&mut requests).await.reply_to.unwrap();
    let second = async {
        let reply_to = next(&mut requests).await.reply_to.unwrap();
        answering.publish(Outgoing::new(first, Bytes::from("late"))).await.unwrap();
        answering.publish(Outgoing::new(reply_to, Bytes::from("in time"))).await.unwrap();
    };
    let (reply, ()) = tokio::join!(asking.request(message("slow", "second"), LONG), second);
    assert_eq!(reply.unwrap().payload, "in time");
}

/// Members of a queue group share the messages; other groups and plain subscriptions receive all of them.
pub async fn queue_group_shares_messages_others_get_all(system: impl Fixture) {
    const MESSAGES: usize = 40;
    let (one, other, sender) = (system.connect().await, system.connect().await, system.connect().await);
    let mut members = [join(&one, "work.*", "workers").await, join(&other, "work.*", "workers").await];
    let mut alone = [join(&one, "work.*", "loners").await, listen(&other, "work.>").await];
    for number in 0..MESSAGES {
        sender.publish(message("work.item", format!("{number}"))).await.unwrap();
    }
    for subscription in &mut alone {
        for number in 0..MESSAGES {
            assert_eq!(next(subscription).await.payload, format!("{number}"));
        }
    }
    let [first, second] = &mut members;
    let mut shared = Vec::new();
    while shared.len() < MESSAGES {
        let delivery =
            tokio::select! { delivery = next(first) => delivery, delivery = next(second) => delivery };
        shared.push(String::from_utf8(delivery.payload.to_vec()).unwrap().parse::<usize>().unwrap());
    }
    shared.sort_unstable();
    assert_eq!(shared, (0..MESSAGES).collect::<Vec<_>>());
}

/// Two groups of one name are one, whatever their patterns.
pub async fn queue_group_is_identified_by_name_alone(system: impl Fixture) {
    const MESSAGES: usize = 40;
    let (one, other, sender) = (system.connect().await, system.connect().await, system.connect().await);
    let mut one_pattern = join(&one, "work.*", "workers").await;
    let mut other_pattern = join(&other, "*.item", "workers").await;
    for number in 0..MESSAGES {
        sender.publish(message("work.item", format!("{number}"))).await.unwrap();
    }
    // Only one of the two subscriptions receives each of these.
    for end in ["work.end", "end.item"] {
        sender.publish(message(end, "")).await.unwrap();
    }
    let mut shared = Vec::new();
    while next_of(&mut one_pattern, &mut shared).await != "work.end" {}
    while next_of(&mut other_pattern, &mut shared).await != "end.item" {}
    shared.sort_unstable();
    assert_eq!(shared, (0..MESSAGES).collect::<Vec<_>>());
}

/// Takes a message, notes its number if it has one, and returns its route.
async fn next_of(subscription: &mut Subscription, numbers: &mut Vec<usize>) -> String {
    let delivery = next(subscription).await;
    numbers.extend(std::str::from_utf8(&delivery.payload).unwrap().parse::<usize>());
    delivery.route.as_str().to_owned()
}

/// The wildcards `*` and `>` match whole tokens.
pub async fn wildcards_match_whole_tokens(system: impl Fixture) {
    let bus = system.connect().await;
    let mut one = listen(&bus, "a.*.c").await;
    let mut open = listen(&bus, "a.>").await;
    for route in ["a", "a.b", "a.b.c", "a.b.c.d", "b.b.c", "a.x.c"] {
        bus.publish(message(route, route)).await.unwrap();
    }
    for expected in ["a.b.c", "a.x.c"] {
        assert_eq!(next(&mut one).await.route.as_str(), expected);
    }
    for expected in ["a.b", "a.b.c", "a.b.c.d", "a.x.c"] {
        let delivery = next(&mut open).await;
        assert_eq!((delivery.route.as_str(), delivery.reply_to), (expected, None));
    }
}

/// Headers arrive unchanged and in order, including repeated names and empty values.
pub async fn headers_arrive(system: impl Fixture) {
    let bus = system.connect().await;
    let mut received = listen(&bus, "headers").await;
    let pairs = [("Empty", ""), ("Name", "first: with colon"), ("Name", "second"), ("case-Kept", "é ü")];
    let headers = Headers(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
    let sent = Outgoing { headers: headers.clone(), ..message("headers", "body") };
    bus.publish(sent).await.unwrap();
    let delivery = next(&mut received).await;
    assert_eq!((delivery.headers, delivery.payload), (headers, Bytes::from("body")));
}

/// A message up to the maximum payload, headers included, is accepted; a larger one is rejected.
pub async fn message_up_to_max_payload_is_accepted(system: impl Fixture) {
    let bus = system.connect().await;
    let mut received = listen(&bus, "large").await;
    assert_eq!(bus.max_payload(), MAX_PAYLOAD_BYTES);
    bus.publish(message("large", vec![7; MAX_PAYLOAD_BYTES])).await.unwrap();
    assert_eq!(next(&mut received).await.payload.len(), MAX_PAYLOAD_BYTES);

    // The headers of this message take 24 bytes in the format of NATS.
    let headers = Headers(vec![("Name".to_owned(), "value".to_owned())]);
    let with_headers = |bytes| Outgoing { headers: headers.clone(), ..message("large", vec![7; bytes]) };
    bus.publish(with_headers(MAX_PAYLOAD_BYTES - 25)).await.unwrap();
    assert_eq!(next(&mut received).await.payload.len(), MAX_PAYLOAD_BYTES - 25);

    let limit_bytes = MAX_PAYLOAD_BYTES;
    for (too_large, size_bytes) in [
        (message("large", vec![7; MAX_PAYLOAD_BYTES + 1]), MAX_PAYLOAD_BYTES + 1),
        (with_headers(MAX_PAYLOAD_BYTES - 24), MAX_PAYLOAD_BYTES + 1),
    ] {
        assert_eq!(
            bus.publish(too_large.clone()).await,
            Err(PublishError::TooLarge { size_bytes, limit_bytes })
        );
        assert_eq!(
            bus.request(too_large, LONG).await.unwrap_err(),
            RequestError::TooLarge { size_bytes, limit_bytes }
        );
    }
}

/// A full subscription drops the newest messages and reports a slow consumer.
pub async fn subscription_full_drops_newest_and_reports(system: impl Fixture) {
    let (slow, sender) = (system.connect().await, system.connect().await);
    let mut events = slow.events();
    let pattern = RoutePattern::new("flood.*");
    let options = SubscribeOptions { queue: None, capacity: 4 };
    let mut flooded = slow.subscribe(pattern.clone(), options).await.unwrap();
    for number in 0..10 {
        sender.publish(message("flood.a", format!("{number}"))).await.unwrap();
    }
    wait_for(&mut events, |event| *event == BusEvent::SlowConsumer(Some(pattern.clone()))).await;
    for number in 0..4 {
        assert_eq!(next(&mut flooded).await.payload, format!("{number}"));
    }
    // The queue has room again. The last messages of the flood may still be in flight; dropped messages are lost.
    loop {
        sender.publish(message("flood.b", "later")).await.unwrap();
        let delivery = next(&mut flooded).await;
        assert_ne!(delivery.payload, "4");
        if delivery.payload == "later" {
            break;
        }
    }
    assert!((1..=6).contains(&flooded.dropped()), "{} dropped", flooded.dropped());
}

/// A subscription drops large messages when its unread messages reach the byte limit.
pub async fn subscription_bounds_bytes_of_unread_messages(system: impl Fixture) {
    const MOST_BYTES: usize = 128 * 1_024 * 1_024;
    let (slow, sender) = (system.connect().await, system.connect().await);
    let mut events = slow.events();
    let pattern = RoutePattern::new("flood.*");
    let mut flooded = slow.subscribe(pattern.clone(), SubscribeOptions::default()).await.unwrap();
    // One payload for all messages: the test is about the queue.
    let payload = Bytes::from(vec![b'x'; sender.max_payload().min(1_000_000)]);
    let sent = 3 * MOST_BYTES / 2 / payload.len();
    for _ in 0..sent {
        sender.publish(Outgoing::new(Route::new("flood.a"), payload.clone())).await.unwrap();
    }
    wait_for(&mut events, |event| *event == BusEvent::SlowConsumer(Some(pattern.clone()))).await;
    // The queue was full. The messages taken at once free their bytes only afterwards.
    let mut taken = Vec::new();
    flooded.next_many(&mut taken, sent).await;
    assert!(taken.len() * payload.len() <= MOST_BYTES, "{} messages waited", taken.len());
    // After that the queue has room again.
    drop(taken);
    loop {
        sender.publish(message("flood.b", "later")).await.unwrap();
        if next(&mut flooded).await.payload == "later" {
            break;
        }
    }
}

/// A dropped subscription no longer answers requests.
pub async fn subscription_dropped_is_removed(system: impl Fixture) {
    let (asking, answering) = (system.connect().await, system.connect().await);
    drop(listen(&answering, "brief").await);
    // The server processes the unsubscribe later.
    let gone = async {
        let gone = RequestError::NoResponders(Route::new("brief"));
        while asking.request(message("brief", ""), SHORT).await.unwrap_err() != gone {}
    };
    within(gone).await;
}

/// After an unsubscribe, the subscription still delivers the messages sent before.
pub async fn subscription_ended_delivers_messages_sent_before(system: impl Fixture) {
    const SENT: usize = 500;
    let (sending, listening) = (system.connect().await, system.connect().await);
    respond(system.tasks(), &sending, listen(&sending, "echo").await, |delivery| delivery.payload);
    for round in 0..10 {
        let pattern = format!("ending.{round}");
        let mut messages = listen(&listening, &pattern).await;
        for _ in 0..SENT {
            sending.publish(message(&pattern, "")).await.unwrap();
        }
        // When the request has its reply, the server has forwarded all earlier messages of the connection.
        sending.request(message("echo", ""), LONG).await.unwrap();
        messages.unsubscribe();
        let mut arrived = 0;
        while within(messages.next()).await.is_some() {
            arrived += 1;
        }
        assert_eq!(arrived, SENT);
    }
}

/// A subscription is active when `subscribe` returns.
pub async fn subscription_is_active_when_subscribe_returns(system: impl Fixture) {
    let (asking, answering) = (system.connect().await, system.connect().await);
    for number in 0..200 {
        let route = format!("fresh.{number}");
        let mut subscription = listen(&answering, &route).await;
        let asked = asking.request(message(&route, ""), LONG);
        let answer = async {
            let reply_to = next(&mut subscription).await.reply_to.unwrap();
            answering.publish(Outgoing::new(reply_to, Bytes::new())).await.unwrap();
        };
        tokio::select! {
            biased;
            reply = async { tokio::join!(asked, answer).0 } => { reply.unwrap(); }
            () = tokio::time::sleep(LONG) => panic!("request {number} was not answered"),
        }
    }
}

/// The bus rejects invalid routes, headers, patterns and queue names.
pub async fn bus_rejects_invalid_routes_headers_and_patterns(system: impl Fixture) {
    let bus = system.connect().await;
    for route in ["", "a..b", "a.*", "a.>", "a b", "a\r\nPUB b 0"] {
        let refused = bus.publish(message(route, "")).await.unwrap_err();
        assert!(matches!(refused, PublishError::Invalid { .. }), "{route:?}");
        let refused = bus.request(message(route, ""), LONG).await.unwrap_err();
        assert!(matches!(refused, RequestError::Invalid { .. }), "{route:?}");
    }
    let headers = Headers(vec![("Name".to_owned(), "value\r\nOther: value".to_owned())]);
    let refused = bus.publish(Outgoing { headers, ..message("a", "") }).await.unwrap_err();
    assert!(matches!(refused, PublishError::Invalid { .. }));
    for (pattern, queue) in [("", None), ("a.>.b", None), ("a b", None), ("a", Some("")), ("a", Some("q r"))]
    {
        let pattern = RoutePattern::new(pattern);
        let options = SubscribeOptions { queue: queue.map(str::to_owned), capacity: 1 };
        let refused = bus.subscribe(pattern.clone(), options).await.unwrap_err();
        assert_eq!(refused, SubscribeError::Invalid(pattern));
    }
}
