//! Requests, publications and subscriptions while all is well.

use bytes::Bytes;
use dormouse_bus::{
    BusEvent, Outgoing, PublishError, RequestError, SubscribeError, SubscribeOptions, Subscription,
};
use dormouse_protocol::{Happened, Headers, Route, RoutePattern};
use futures::future::join_all;

use crate::fixture::{
    Fixture, LONG, MAX_PAYLOAD_BYTES, SHORT, join, listen, message, next, respond, wait_for, within,
};

pub async fn a_request_is_answered(system: impl Fixture) {
    let (asking, answering) = (system.connect().await, system.connect().await);
    respond(system.tasks(), &answering, listen(&answering, "echo.*").await, |delivery| delivery.payload);
    let reply = asking.request(message("echo.a", "hello"), LONG).await.unwrap();
    assert_eq!(reply.payload, "hello");
    assert!(reply.headers.is_empty());
    // Also to oneself.
    assert_eq!(answering.request(message("echo.b", ""), LONG).await.unwrap().payload, "");
}

pub async fn many_requests_at_once_each_get_their_own_answer(system: impl Fixture) {
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

pub async fn nobody_there_is_said_at_once(system: impl Fixture) {
    let bus = system.connect().await;
    let error = bus.request(message("nobody", "hello"), LONG).await.unwrap_err();
    assert_eq!(error, RequestError::NoResponders(Route::new("nobody")));
    assert_eq!(error.happened(), Happened::No);
}

pub async fn a_hung_responder_costs_the_deadline(system: impl Fixture) {
    let (asking, hung) = (system.connect().await, system.connect().await);
    let mut requests = listen(&hung, "hung").await;
    let error = asking.request(message("hung", "hello"), SHORT).await.unwrap_err();
    assert_eq!(error, RequestError::Deadline { route: Route::new("hung"), deadline: SHORT });
    assert_eq!(error.happened(), Happened::Unknown);
    assert_eq!(next(&mut requests).await.payload, "hello");
}

pub async fn a_late_answer_goes_to_nobody(system: impl Fixture) {
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

pub async fn a_queue_group_shares_what_others_all_get(system: impl Fixture) {
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
pub async fn a_queue_group_is_known_by_its_name_alone(system: impl Fixture) {
    const MESSAGES: usize = 40;
    let (one, other, sender) = (system.connect().await, system.connect().await, system.connect().await);
    let mut one_pattern = join(&one, "work.*", "workers").await;
    let mut other_pattern = join(&other, "*.item", "workers").await;
    for number in 0..MESSAGES {
        sender.publish(message("work.item", format!("{number}"))).await.unwrap();
    }
    // Each of these is heard by one of the two only.
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

pub async fn headers_arrive(system: impl Fixture) {
    let bus = system.connect().await;
    let mut heard = listen(&bus, "headers").await;
    let pairs = [("Empty", ""), ("Name", "first: with colon"), ("Name", "second"), ("case-Kept", "é ü")];
    let headers = Headers(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
    let sent = Outgoing { headers: headers.clone(), ..message("headers", "body") };
    bus.publish(sent).await.unwrap();
    let delivery = next(&mut heard).await;
    assert_eq!((delivery.headers, delivery.payload), (headers, Bytes::from("body")));
}

pub async fn a_message_may_be_as_large_as_the_limit_and_no_larger(system: impl Fixture) {
    let bus = system.connect().await;
    let mut heard = listen(&bus, "large").await;
    assert_eq!(bus.max_payload(), MAX_PAYLOAD_BYTES);
    bus.publish(message("large", vec![7; MAX_PAYLOAD_BYTES])).await.unwrap();
    assert_eq!(next(&mut heard).await.payload.len(), MAX_PAYLOAD_BYTES);

    // The headers of this one, as NATS writes them, take 24 bytes.
    let headers = Headers(vec![("Name".to_owned(), "value".to_owned())]);
    let with_headers = |bytes| Outgoing { headers: headers.clone(), ..message("large", vec![7; bytes]) };
    bus.publish(with_headers(MAX_PAYLOAD_BYTES - 25)).await.unwrap();
    assert_eq!(next(&mut heard).await.payload.len(), MAX_PAYLOAD_BYTES - 25);

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

pub async fn a_full_subscription_drops_the_newest_and_says_so(system: impl Fixture) {
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
    // There is room again. The end of the flood may still be on its way; what was dropped is gone.
    loop {
        sender.publish(message("flood.b", "later")).await.unwrap();
        let delivery = next(&mut flooded).await;
        assert_ne!(delivery.payload, "4");
        if delivery.payload == "later" {
            break;
        }
    }
}

pub async fn large_messages_that_nobody_takes_are_dropped_before_they_fill_the_memory(system: impl Fixture) {
    const MOST_BYTES: usize = 128 * 1_024 * 1_024;
    let (slow, sender) = (system.connect().await, system.connect().await);
    let mut events = slow.events();
    let pattern = RoutePattern::new("flood.*");
    let mut flooded = slow.subscribe(pattern.clone(), SubscribeOptions::default()).await.unwrap();
    // One copy, however often it is sent: it is the queue that is to be looked at.
    let payload = Bytes::from(vec![b'x'; sender.max_payload().min(1_000_000)]);
    let sent = 3 * MOST_BYTES / 2 / payload.len();
    for _ in 0..sent {
        sender.publish(Outgoing::new(Route::new("flood.a"), payload.clone())).await.unwrap();
    }
    wait_for(&mut events, |event| *event == BusEvent::SlowConsumer(Some(pattern.clone()))).await;
    // It was full, and what is taken at once makes room for others only after that.
    let mut taken = Vec::new();
    flooded.next_many(&mut taken, sent).await;
    assert!(taken.len() * payload.len() <= MOST_BYTES, "{} messages waited", taken.len());
    // Once they are taken there is room again.
    drop(taken);
    loop {
        sender.publish(message("flood.b", "later")).await.unwrap();
        if next(&mut flooded).await.payload == "later" {
            break;
        }
    }
}

pub async fn a_dropped_subscription_is_gone(system: impl Fixture) {
    let (asking, answering) = (system.connect().await, system.connect().await);
    drop(listen(&answering, "brief").await);
    // The server hears of it in its own time.
    let gone = async {
        let gone = RequestError::NoResponders(Route::new("brief"));
        while asking.request(message("brief", ""), SHORT).await.unwrap_err() != gone {}
    };
    within(gone).await;
}

pub async fn what_was_sent_before_listening_ended_arrives(system: impl Fixture) {
    const SENT: usize = 500;
    let (sending, listening) = (system.connect().await, system.connect().await);
    respond(system.tasks(), &sending, listen(&sending, "echo").await, |delivery| delivery.payload);
    for round in 0..10 {
        let pattern = format!("ending.{round}");
        let mut messages = listen(&listening, &pattern).await;
        for _ in 0..SENT {
            sending.publish(message(&pattern, "")).await.unwrap();
        }
        // What came before a request of the same connection, the server has sent on when that is answered.
        sending.request(message("echo", ""), LONG).await.unwrap();
        messages.unsubscribe();
        let mut arrived = 0;
        while within(messages.next()).await.is_some() {
            arrived += 1;
        }
        assert_eq!(arrived, SENT);
    }
}

pub async fn a_subscription_is_in_force_when_subscribe_returns(system: impl Fixture) {
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

pub async fn what_no_transport_carries_is_refused(system: impl Fixture) {
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
