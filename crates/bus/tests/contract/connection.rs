//! The messaging system goes away and comes back; the bus is closed.

use dormouse_bus::{BusEvent, PublishError, RequestError, SubscribeError, SubscribeOptions};
use dormouse_protocol::{Happened, Route, RoutePattern};

use crate::fixture::{Fixture, LONG, SHORT, listen, message, next, respond, wait_for, within};

pub async fn the_connection_comes_back_with_its_subscriptions(mut system: impl Fixture) {
    let (listening, sending) = (system.connect().await, system.connect().await);
    let mut heard = listen(&listening, "news.*").await;
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
        // In force from the event on: not one message is lost any more.
        sending.publish(message("news.a", format!("{round}"))).await.unwrap();
        assert_eq!(next(&mut heard).await.payload, format!("{round}"));
        assert_eq!(sending.request(message("echo", "x"), LONG).await.unwrap().payload, "x");
    }
}

pub async fn a_request_waits_for_the_connection(mut system: impl Fixture) {
    let (asking, answering) = (system.connect().await, system.connect().await);
    respond(system.tasks(), &answering, listen(&answering, "echo").await, |delivery| delivery.payload);
    let mut events = asking.events();
    system.stop().await;
    wait_for(&mut events, |event| *event == BusEvent::Disconnected).await;
    let asked = async {
        loop {
            // The answering connection may be back a moment later than the asking one.
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

pub async fn a_request_without_connection_is_not_sent_after_its_deadline(mut system: impl Fixture) {
    let (asking, answering) = (system.connect().await, system.connect().await);
    let mut requests = listen(&answering, "ask").await;
    let (mut at_asking, mut at_answering) = (asking.events(), answering.events());
    system.stop().await;
    wait_for(&mut at_asking, |event| *event == BusEvent::Disconnected).await;
    let error = asking.request(message("ask", "too late"), SHORT).await.unwrap_err();
    assert_eq!((&error, error.happened()), (&RequestError::Disconnected, Happened::No));
    system.start_again().await;
    for events in [&mut at_asking, &mut at_answering] {
        wait_for(events, |event| *event == BusEvent::Connected).await;
    }
    asking.publish(message("ask", "in time")).await.unwrap();
    assert_eq!(next(&mut requests).await.payload, "in time");
}

pub async fn a_request_in_flight_runs_to_its_deadline_when_the_connection_is_lost(mut system: impl Fixture) {
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

pub async fn what_is_published_without_connection_goes_nowhere(mut system: impl Fixture) {
    let (sending, listening) = (system.connect().await, system.connect().await);
    let mut heard = listen(&listening, "news").await;
    let (mut at_sending, mut at_listening) = (sending.events(), listening.events());
    system.stop().await;
    wait_for(&mut at_sending, |event| *event == BusEvent::Disconnected).await;
    // More than any queue takes: none of them may wait.
    for _ in 0..5_000 {
        within(sending.publish(message("news", "lost"))).await.unwrap();
    }
    system.start_again().await;
    for events in [&mut at_sending, &mut at_listening] {
        wait_for(events, |event| *event == BusEvent::Connected).await;
    }
    sending.publish(message("news", "first")).await.unwrap();
    assert_eq!(next(&mut heard).await.payload, "first");
}

pub async fn a_closed_bus_does_nothing_more(system: impl Fixture) {
    let (closing, other) = (system.connect().await, system.connect().await);
    let mut heard = listen(&closing, "news").await;
    let mut requests = listen(&other, "hung").await;
    let mut events = closing.events();
    let close = async {
        next(&mut requests).await;
        closing.close().await;
    };
    let (waiting, ()) = tokio::join!(within(closing.request(message("hung", ""), 10 * LONG)), close);
    // It had arrived: what came of it nobody knows.
    let error = waiting.unwrap_err();
    assert_eq!((&error, error.happened()), (&RequestError::Closed { sent: true }, Happened::Unknown));
    wait_for(&mut events, |event| *event == BusEvent::Closed).await;
    assert!(within(heard.next()).await.is_none());
    assert!(!closing.is_connected());
    let error = closing.request(message("hung", ""), LONG).await.unwrap_err();
    assert_eq!((&error, error.happened()), (&RequestError::Closed { sent: false }, Happened::No));
    assert_eq!(closing.publish(message("news", "")).await, Err(PublishError::Closed));
    let subscribed = closing.subscribe(RoutePattern::new("news"), SubscribeOptions::default()).await;
    assert_eq!(subscribed.unwrap_err(), SubscribeError::Closed);
    // A second time is no harm.
    within(closing.close()).await;
}

pub async fn what_was_published_before_closing_arrives(system: impl Fixture) {
    let (closing, other) = (system.connect().await, system.connect().await);
    let mut heard = listen(&other, "last").await;
    for number in 0..1_000 {
        closing.publish(message("last", format!("{number}"))).await.unwrap();
    }
    within(closing.close()).await;
    for number in 0..1_000 {
        assert_eq!(next(&mut heard).await.payload, format!("{number}"));
    }
}
