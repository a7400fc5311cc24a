//! Stops and restarts of the messaging system, and the close of the bus.

use dormouse_bus::{BusEvent, PublishError, RequestError, RoundTripError, SubscribeError, SubscribeOptions};
use dormouse_protocol::{Executed, Route, RoutePattern};

use crate::fixture::{Fixture, LONG, SHORT, listen, message, next, respond, wait_for, within};

/// After a reconnect, all subscriptions are active when the bus reports `Connected`.
pub async fn reconnect_restores_subscriptions(mut system: impl Fixture) {
    let (listening, sending) = (system.connect().await, system.connect().await);
    let mut received = listen(&listening, "news.*").await;
    respond(system.tasks(), &listening, listen(&listening, "echo").await, |delivery| delivery.payload);
    for round in 0..3 {
        let (mut at_listening, mut at_sending) = (listening.events(), sending.events());
        system.stop().await;
        for events in [&mut at_listening, &mut at_sending] {
            wait_for(events, |event| *event == BusEvent::Disconnected).await;
        }
        assert!(!listening.is_connected() && !sending.is_connected());
        system.start_again().await;
        for events in [&mut at_listening, &mut at_sending] {
            wait_for(events, |event| *event == BusEvent::Connected).await;
        }
        assert!(listening.is_connected() && sending.is_connected());
        // The subscription is active from the event on: no further message is lost.
        sending.publish(message("news.a", format!("{round}"))).await.unwrap();
        assert_eq!(next(&mut received).await.payload, format!("{round}"));
        assert_eq!(sending.request(message("echo", "x"), LONG).await.unwrap().payload, "x");
    }
}

/// A round trip succeeds on a connection, fails at its deadline without one, waits for a reconnect, and fails at once
/// after the close.
pub async fn round_trip_needs_connection(mut system: impl Fixture) {
    let bus = system.connect().await;
    assert_eq!(bus.round_trip(LONG).await, Ok(()));
    let mut events = bus.events();
    system.stop().await;
    wait_for(&mut events, |event| *event == BusEvent::Disconnected).await;
    assert_eq!(bus.round_trip(SHORT).await, Err(RoundTripError::Deadline(SHORT)));
    let (outcome, ()) = tokio::join!(bus.round_trip(LONG), system.start_again());
    assert_eq!(outcome, Ok(()));
    bus.close().await;
    assert_eq!(bus.round_trip(LONG).await, Err(RoundTripError::Closed));
}

/// A request or subscription made while disconnected waits for the reconnect and succeeds.
pub async fn request_while_disconnected_waits_for_reconnect(mut system: impl Fixture) {
    let (asking, answering) = (system.connect().await, system.connect().await);
    respond(system.tasks(), &answering, listen(&answering, "echo").await, |delivery| delivery.payload);
    let mut events = asking.events();
    system.stop().await;
    wait_for(&mut events, |event| *event == BusEvent::Disconnected).await;
    let asked = async {
        loop {
            // The responding connection may reconnect a moment later than the requesting one.
            match asking.request(message("echo", "x"), LONG).await {
                Err(RequestError::NoResponders(_)) => tokio::task::yield_now().await,
                outcome => return outcome,
            }
        }
    };
    let (reply, subscribed, ()) = tokio::join!(asked, listen(&asking, "while.down"), system.start_again());
    assert_eq!(reply.unwrap().payload, "x");
    let mut subscribed = subscribed;
    asking.publish(message("while.down", "y")).await.unwrap();
    assert_eq!(next(&mut subscribed).await.payload, "y");
}

/// A request that expires while disconnected fails as not executed and is never sent.
pub async fn request_expired_while_disconnected_is_never_sent(mut system: impl Fixture) {
    let (asking, answering) = (system.connect().await, system.connect().await);
    let mut requests = listen(&answering, "ask").await;
    let (mut at_asking, mut at_answering) = (asking.events(), answering.events());
    system.stop().await;
    wait_for(&mut at_asking, |event| *event == BusEvent::Disconnected).await;
    let error = asking.request(message("ask", "too late"), SHORT).await.unwrap_err();
    assert_eq!((&error, error.executed()), (&RequestError::Disconnected, Executed::No));
    system.start_again().await;
    for events in [&mut at_asking, &mut at_answering] {
        wait_for(events, |event| *event == BusEvent::Connected).await;
    }
    asking.publish(message("ask", "in time")).await.unwrap();
    assert_eq!(next(&mut requests).await.payload, "in time");
}

/// If the connection is lost, a request in flight fails at its deadline.
pub async fn request_in_flight_at_disconnect_fails_at_deadline(mut system: impl Fixture) {
    let (asking, hung) = (system.connect().await, system.connect().await);
    let mut requests = listen(&hung, "hung").await;
    let deadline = 5 * SHORT;
    let lost = async {
        next(&mut requests).await;
        system.stop().await;
    };
    let (outcome, ()) = tokio::join!(asking.request(message("hung", ""), deadline), lost);
    assert_eq!(outcome.unwrap_err(), RequestError::Deadline { route: Route::new("hung"), deadline });
}

/// A message published while disconnected is discarded without waiting.
pub async fn publish_while_disconnected_is_discarded(mut system: impl Fixture) {
    let (sending, listening) = (system.connect().await, system.connect().await);
    let mut received = listen(&listening, "news").await;
    let (mut at_sending, mut at_listening) = (sending.events(), listening.events());
    system.stop().await;
    wait_for(&mut at_sending, |event| *event == BusEvent::Disconnected).await;
    // More messages than any queue takes: no publish may wait.
    for _ in 0..5_000 {
        within(sending.publish(message("news", "lost"))).await.unwrap();
    }
    system.start_again().await;
    for events in [&mut at_sending, &mut at_listening] {
        wait_for(events, |event| *event == BusEvent::Connected).await;
    }
    sending.publish(message("news", "first")).await.unwrap();
    assert_eq!(next(&mut received).await.payload, "first");
}

/// A closed bus ends its pending requests and subscriptions and rejects all further operations.
pub async fn bus_closed_rejects_all_operations(system: impl Fixture) {
    let (closing, other) = (system.connect().await, system.connect().await);
    let mut received = listen(&closing, "news").await;
    let mut requests = listen(&other, "hung").await;
    let mut events = closing.events();
    let close = async {
        next(&mut requests).await;
        closing.close().await;
    };
    let (waiting, ()) = tokio::join!(within(closing.request(message("hung", ""), 10 * LONG)), close);
    // The request had arrived, so its outcome is unknown.
    let error = waiting.unwrap_err();
    assert_eq!((&error, error.executed()), (&RequestError::Closed { sent: true }, Executed::Unknown));
    wait_for(&mut events, |event| *event == BusEvent::Closed).await;
    assert!(within(received.next()).await.is_none());
    assert!(!closing.is_connected());
    let error = closing.request(message("hung", ""), LONG).await.unwrap_err();
    assert_eq!((&error, error.executed()), (&RequestError::Closed { sent: false }, Executed::No));
    assert_eq!(closing.publish(message("news", "")).await, Err(PublishError::Closed));
    let subscribed = closing.subscribe(RoutePattern::new("news"), SubscribeOptions::default()).await;
    assert_eq!(subscribed.unwrap_err(), SubscribeError::Closed);
    // A second close has no effect.
    within(closing.close()).await;
}

/// Messages that are published before the bus closes arrive in order.
pub async fn bus_close_delivers_published_messages(system: impl Fixture) {
    let (closing, other) = (system.connect().await, system.connect().await);
    let mut received = listen(&other, "last").await;
    for number in 0..1_000 {
        closing.publish(message("last", format!("{number}"))).await.unwrap();
    }
    within(closing.close()).await;
    for number in 0..1_000 {
        assert_eq!(next(&mut received).await.payload, format!("{number}"));
    }
}
