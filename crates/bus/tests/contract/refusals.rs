//! What the messaging system forbids.

use dormouse_bus::{BusEvent, RequestError, SubscribeError, SubscribeOptions};
use dormouse_protocol::{Happened, Route, RoutePattern};

use crate::fixture::{Fixture, LONG, listen, message, next, respond, wait_for, within};

pub async fn a_forbidden_request_fails_at_once(system: impl Fixture) {
    let bus = system.connect_limited().await;
    let mut events = bus.events();
    // Quotes, and what cannot be printed, are legal in a route and come back written in another way.
    for route in [
        "forbidden.a",
        "forbidden.\"a\\u0041\"",
        "forbidden.ü",
        "forbidden.a\u{200d}b",
        "forbidden.\u{e0001}",
    ] {
        // It would wait ten times as long as the test.
        let error = within(bus.request(message(route, ""), 10 * LONG)).await.unwrap_err();
        assert_eq!(error, RequestError::PermissionDenied(Route::new(route)));
        assert_eq!(error.happened(), Happened::No);
        wait_for(&mut events, |event| *event == BusEvent::PublishDenied(Route::new(route))).await;
    }
}

pub async fn a_forbidden_publish_is_told(system: impl Fixture) {
    let bus = system.connect_limited().await;
    let mut events = bus.events();
    bus.publish(message("forbidden.a", "")).await.unwrap();
    wait_for(&mut events, |event| *event == BusEvent::PublishDenied(Route::new("forbidden.a"))).await;
}

pub async fn a_forbidden_subscription_fails(system: impl Fixture) {
    let bus = system.connect_limited().await;
    let mut events = bus.events();
    for (pattern, queue) in [("forbidden.a", None), ("forbidden.>", None), ("forbidden.*", Some("group"))] {
        let options = SubscribeOptions { queue: queue.map(str::to_owned), capacity: 1 };
        let pattern = RoutePattern::new(pattern);
        match within(bus.subscribe(pattern.clone(), options)).await {
            Err(error) => assert_eq!(error, SubscribeError::PermissionDenied(pattern.clone())),
            // On a busy machine the word of it may come only now.
            Ok(mut subscription) => assert!(within(subscription.next()).await.is_none()),
        }
        wait_for(&mut events, |event| *event == BusEvent::SubscribeDenied(pattern.clone())).await;
    }
}

pub async fn a_refusal_hits_only_its_own_route(system: impl Fixture) {
    let (limited, free) = (system.connect_limited().await, system.connect().await);
    let mut slow = listen(&free, "allowed.slow").await;
    respond(system.tasks(), &free, listen(&free, "allowed.echo").await, |delivery| delivery.payload);
    let waiting = limited.request(message("allowed.slow", ""), LONG);
    let meanwhile = async {
        let asked = next(&mut slow).await;
        limited.request(message("forbidden.slow", ""), LONG).await.unwrap_err();
        assert_eq!(limited.request(message("allowed.echo", "x"), LONG).await.unwrap().payload, "x");
        free.publish(message(asked.reply_to.unwrap().as_str(), "y")).await.unwrap();
    };
    let (reply, ()) = tokio::join!(waiting, meanwhile);
    assert_eq!(reply.unwrap().payload, "y");
}
