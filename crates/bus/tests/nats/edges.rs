use std::sync::Arc;

use dormouse_bus::nats::{Authentication, ConnectError, NatsOptions, Secret};
use dormouse_bus::{Bus, BusEvent, Outgoing, RequestError, ServeOptions, SubscribeOptions, serve};
use dormouse_harness::{NatsServer, nats_server_program};
use dormouse_protocol::{Route, RoutePattern};
use dormouse_runtime::{Env, Tasks};
use futures::StreamExt;

use crate::{LONG, assert_works, connect, options, server, wait_for, within};

fn alice(server: &NatsServer) -> NatsOptions {
    let authentication =
        Authentication::UserPassword { user: "alice".to_owned(), password: Secret::new("alice") };
    NatsOptions { authentication, ..options(&server.url()) }
}

fn permissions(permissions: &str) -> String {
    format!(
        "authorization {{ users: [\n\
         {{ user: alice, password: alice, permissions: {{ {permissions} }} }}\n\
         {{ user: root, password: root }} ] }}\n"
    )
}

#[tokio::test]
async fn a_forbidden_inbox_is_said_and_another_one_works() {
    let server = server(permissions("subscribe: { deny: \"_INBOX.>\" }")).await;
    let error = within(connect(alice(&server))).await.unwrap_err();
    assert!(matches!(error, ConnectError::InboxDenied { .. }), "{error}");
    assert!(error.to_string().contains("_INBOX."), "{error}");

    let inbox_prefix = "_INBOX_alice".parse().unwrap();
    let bus = connect(NatsOptions { inbox_prefix, ..alice(&server) }).await.unwrap();
    let mut heard = bus.subscribe(RoutePattern::new("ask"), SubscribeOptions::default()).await.unwrap();
    let asked = bus.request(Outgoing::new(Route::new("ask"), "".into()), LONG);
    let answered = async {
        let reply_to = heard.next().await.unwrap().reply_to.unwrap();
        assert!(reply_to.as_str().starts_with("_INBOX_alice."), "{reply_to}");
        bus.publish(Outgoing::new(reply_to, "yes".into())).await.unwrap();
    };
    assert_eq!(tokio::join!(asked, answered).0.unwrap().payload, "yes");
}

/// As clients usually are: they may listen to their inbox, but not write to it.
#[tokio::test]
async fn who_may_not_write_to_its_own_inbox_still_connects_and_subscribes() {
    let server =
        server(permissions("publish: { allow: [\"ask.>\"] }, subscribe: { deny: \"secret\" }")).await;
    let root = connect(options(&server.url().replace("://", "://root:root@"))).await.unwrap();
    let bus = connect(alice(&server)).await.unwrap();
    let mut events = bus.events();
    let mut heard = bus.subscribe(RoutePattern::new("news"), SubscribeOptions::default()).await.unwrap();
    root.publish(Outgoing::new(Route::new("news"), "new".into())).await.unwrap();
    assert_eq!(within(heard.next()).await.unwrap().payload, "new");
    for _ in 0..50 {
        let denied = bus.subscribe(RoutePattern::new("secret"), SubscribeOptions::default()).await;
        denied.unwrap_err();
    }
    let error = bus.request(Outgoing::new(Route::new("ask.a"), "".into()), LONG).await.unwrap_err();
    assert!(matches!(error, RequestError::NoResponders(_)), "{error}");
    // Our own messages to ourselves were refused all along; nobody was told.
    while let Ok(event) = events.try_recv() {
        assert!(matches!(event, BusEvent::SubscribeDenied(_)), "{event:?}");
    }
}

#[tokio::test]
async fn a_subscription_that_is_forbidden_after_a_reconnect_ends() {
    let mut server = server(permissions("subscribe: { deny: \"other\" }")).await;
    let bus = connect(alice(&server)).await.unwrap();
    let mut heard = bus.subscribe(RoutePattern::new("news"), SubscribeOptions::default()).await.unwrap();
    let mut events = bus.events();
    server.set_config(permissions("subscribe: { deny: \"news\" }"));
    server.restart().await.unwrap();
    wait_for(&mut events, BusEvent::SubscribeDenied(RoutePattern::new("news"))).await;
    assert!(within(heard.next()).await.is_none());
}

#[tokio::test]
async fn the_largest_payload_is_read_again_after_a_reconnect() {
    let mut server = server("max_payload: 1000").await;
    let bus = connect(options(&server.url())).await.unwrap();
    assert_eq!(bus.max_payload(), 1000);
    let mut events = bus.events();
    server.set_config("max_payload: 2000");
    server.restart().await.unwrap();
    wait_for(&mut events, BusEvent::Connected).await;
    assert_eq!(bus.max_payload(), 2000);
}

#[tokio::test]
async fn a_server_that_is_about_to_go_is_announced() {
    let server = server("").await;
    let bus = connect(options(&server.url())).await.unwrap();
    let mut events = bus.events();
    let signal = format!("ldm={}", server.pid().unwrap());
    let status = tokio::process::Command::new(nats_server_program().unwrap())
        .args(["--signal", &signal])
        .status()
        .await
        .unwrap();
    assert!(status.success());
    wait_for(&mut events, BusEvent::LameDuck).await;
}

/// A client could otherwise make the server publish for it.
#[tokio::test]
async fn a_request_with_a_strange_reply_address_is_not_answered() {
    let server = server("").await;
    let bus: Arc<dyn Bus> = Arc::new(connect(options(&server.url())).await.unwrap());
    let (env, tasks) = (Env::system(), Tasks::new());
    let mut requests =
        serve(&bus, &env, &tasks, RoutePattern::new("ask"), ServeOptions::default()).await.unwrap();
    let raw = async_nats::connect(server.url()).await.unwrap();
    let mut answers = raw.subscribe(">").await.unwrap();
    raw.publish("ask", "no reply address".into()).await.unwrap();
    raw.publish_with_reply("ask", "persist.events.orders", "not an inbox".into()).await.unwrap();
    raw.publish_with_reply("ask", "_INBOX.>", "a wildcard".into()).await.unwrap();
    raw.publish_with_reply("ask", "_INBOX.me", "good".into()).await.unwrap();
    let incoming = within(requests.next()).await.unwrap();
    assert_eq!(incoming.payload, "good");
    incoming.responder.ok("yes".into());
    let answer = within(async {
        loop {
            let message = answers.next().await.unwrap();
            if message.subject.as_str() != "ask" {
                return message;
            }
        }
    });
    assert_eq!(answer.await.subject.as_str(), "_INBOX.me");
    let figures = requests.stats().read();
    assert_eq!((figures.requests, figures.unanswerable, figures.refused), (1, 1, 2));
}

#[tokio::test]
async fn tasks_end_with_the_bus_whether_closed_or_dropped() {
    let mut server = server("").await;
    for (closed, while_down) in [(true, false), (false, false), (true, true)] {
        let tasks = Tasks::new();
        let bus = options(&server.url()).connect(Env::system(), &tasks).await.unwrap();
        let heard = bus.subscribe(RoutePattern::new("news"), SubscribeOptions::default()).await.unwrap();
        assert_works(&bus).await;
        if while_down {
            let mut events = bus.events();
            server.stop().await.unwrap();
            wait_for(&mut events, BusEvent::Disconnected).await;
        }
        if closed {
            within(bus.close()).await;
        }
        drop(bus);
        tasks.finish(LONG).await.unwrap();
        drop(heard);
    }
}

/// A program may end as soon as it has closed its bus: here its whole runtime is gone then.
#[test]
fn what_was_published_is_sent_when_close_returns() {
    let here = tokio::runtime::Runtime::new().unwrap();
    // One thread: nothing is sent on the side while the messages are published.
    let there = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = here.block_on(server(""));
    let mut heard = here.block_on(async {
        let bus = connect(options(&server.url())).await.unwrap();
        let heard = bus.subscribe(RoutePattern::new("last"), SubscribeOptions::default()).await.unwrap();
        (bus, heard)
    });
    there.block_on(async {
        let bus = connect(options(&server.url())).await.unwrap();
        for number in 0..1_000 {
            bus.publish(Outgoing::new(Route::new("last"), format!("{number}").into())).await.unwrap();
        }
        bus.close().await;
    });
    there.shutdown_background();
    here.block_on(async {
        for number in 0..1_000 {
            assert_eq!(within(heard.1.next()).await.unwrap().payload, format!("{number}"));
        }
    });
}
