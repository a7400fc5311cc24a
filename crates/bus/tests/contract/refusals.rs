//! Denied permissions.

use dormouse_bus::{BusEvent, RequestError, SubscribeError, SubscribeOptions};
use dormouse_protocol::{Executed, Route, RoutePattern};

use crate::fixture::{Fixture, LONG, listen, message, next, respond, wait_for, within};

/// A request without permission fails at once as not executed, for all spellings of a route.
pub async fn request_without_permission_fails_at_once(system: impl Fixture) {
    let bus = system.connect_limited().await;
    let mut events = bus.events();
    // Quotes and unprintable characters are valid in a route, and the server reports them in another notation.
    for route in [
        "forbidden.a",
        "forbidden.\"a\\u0041\"",
        "forbidden.ü",
        "forbidden.a\u{200d}b",
        "forbidden.\u{e0001}",
    ] {
        // The deadline of the request is ten times that of the test.
        let error = within(bus.request(message(route, ""), 10 * LONG)).await.unwrap_err();
        assert_eq!(error, RequestError::PermissionDenied(Route::new(route)));
        assert_eq!(error.executed(), Executed::No);
        wait_for(&mut events, |event| *event == BusEvent::PublishDenied(Route::new(route))).await;
    }
}

/// A publish without permission is reported by an event.
pub async fn publish_without_permission_is_reported(system: impl Fixture) {
    let bus = system.connect_limited().await;
    let mut events = bus.events();
    bus.publish(message("forbidden.a", "")).await.unwrap();
    wait_for(&mut events, |event| *event == BusEvent::PublishDenied(Route::new("forbidden.a"))).await;
}

/// A subscription without permission fails or ends, and is reported by an event.
pub async fn subscription_without_permission_fails(system: impl Fixture) {
    let bus = system.connect_limited().await;
    let mut events = bus.events();
    for (pattern, queue) in [("forbidden.a", None), ("forbidden.>", None), ("forbidden.*", Some("group"))] {
        let options = SubscribeOptions { queue: queue.map(str::to_owned), capacity: 1 };
        let pattern = RoutePattern::new(pattern);
        match within(bus.subscribe(pattern.clone(), options)).await {
            Err(error) => assert_eq!(error, SubscribeError::PermissionDenied(pattern.clone())),
            // On a busy machine the denial may arrive only now.
            Ok(mut subscription) => assert!(within(subscription.next()).await.is_none()),
        }
        wait_for(&mut events, |event| *event == BusEvent::SubscribeDenied(pattern.clone())).await;
    }
}

/// A denied request does not affect requests on other routes.
pub async fn permission_denial_affects_only_one_route(system: impl Fixture) {
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
