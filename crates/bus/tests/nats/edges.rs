use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::nats::{Authentication, NatsConnectError, NatsOptions, Secret};
use dormouse_bus::{Bus, BusEvent, Outgoing, RequestError, ServeOptions, SubscribeOptions, serve};
use dormouse_harness::{DialMode, NatsServer, ProxyMode, TcpProxy, nats_server_program};
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

/// If the inbox is denied, the connect fails and names it; another inbox prefix works.
#[tokio::test]
async fn inbox_without_permission_fails_and_other_prefix_works() {
    let server = server(permissions("subscribe: { deny: \"_INBOX.>\" }")).await;
    let error = within(connect(alice(&server))).await.unwrap_err();
    assert!(matches!(error, NatsConnectError::InboxDenied { .. }), "{error}");
    assert!(error.to_string().contains("_INBOX."), "{error}");

    let inbox_prefix = "_INBOX_alice".parse().unwrap();
    let bus = connect(NatsOptions { inbox_prefix, ..alice(&server) }).await.unwrap();
    let mut received = bus.subscribe(RoutePattern::new("ask"), SubscribeOptions::default()).await.unwrap();
    let asked = bus.request(Outgoing::new(Route::new("ask"), "".into()), LONG);
    let answered = async {
        let reply_to = received.next().await.unwrap().reply_to.unwrap();
        assert!(reply_to.as_str().starts_with("_INBOX_alice."), "{reply_to}");
        bus.publish(Outgoing::new(reply_to, "yes".into())).await.unwrap();
    };
    assert_eq!(tokio::join!(asked, answered).0.unwrap().payload, "yes");
}

/// A bus works with the usual permissions of a client: it may subscribe to its inbox, but not publish to it.
#[tokio::test]
async fn nats_client_without_inbox_publish_permission_works() {
    let server =
        server(permissions("publish: { allow: [\"ask.>\"] }, subscribe: { deny: \"secret\" }")).await;
    let root = connect(options(&server.url().replace("://", "://root:root@"))).await.unwrap();
    let bus = connect(alice(&server)).await.unwrap();
    let mut events = bus.events();
    let mut received = bus.subscribe(RoutePattern::new("news"), SubscribeOptions::default()).await.unwrap();
    root.publish(Outgoing::new(Route::new("news"), "new".into())).await.unwrap();
    assert_eq!(within(received.next()).await.unwrap().payload, "new");
    for _ in 0..50 {
        let denied = bus.subscribe(RoutePattern::new("secret"), SubscribeOptions::default()).await;
        denied.unwrap_err();
    }
    let error = bus.request(Outgoing::new(Route::new("ask.a"), "".into()), LONG).await.unwrap_err();
    assert!(matches!(error, RequestError::NoResponders(_)), "{error}");
    // The round-trip messages were denied all the time, without an event.
    while let Ok(event) = events.try_recv() {
        assert!(matches!(event, BusEvent::SubscribeDenied(_)), "{event:?}");
    }
}

/// A subscription ends if the server denies it after a reconnect.
#[tokio::test]
async fn subscription_denied_after_reconnect_ends() {
    let mut server = server(permissions("subscribe: { deny: \"other\" }")).await;
    let bus = connect(alice(&server)).await.unwrap();
    let mut received = bus.subscribe(RoutePattern::new("news"), SubscribeOptions::default()).await.unwrap();
    let mut events = bus.events();
    server.set_config(permissions("subscribe: { deny: \"news\" }"));
    server.restart().await.unwrap();
    wait_for(&mut events, BusEvent::SubscribeDenied(RoutePattern::new("news"))).await;
    assert!(within(received.next()).await.is_none());
}

/// After a reconnect, the bus uses the new maximum payload of the server.
#[tokio::test]
async fn max_payload_is_reread_after_reconnect() {
    let mut server = server("max_payload: 1000").await;
    let bus = connect(options(&server.url())).await.unwrap();
    assert_eq!(bus.max_payload(), 1000);
    let mut events = bus.events();
    server.set_config("max_payload: 2000");
    server.restart().await.unwrap();
    wait_for(&mut events, BusEvent::Connected).await;
    assert_eq!(bus.max_payload(), 2000);
}

/// If the NATS server enters lame duck mode, the bus reports an event.
#[tokio::test]
async fn nats_server_lame_duck_mode_is_reported() {
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

/// A service replies only to inboxes. Otherwise a client could make the server publish to any route.
#[tokio::test]
async fn request_with_non_inbox_reply_route_is_not_answered() {
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

/// The tasks of a bus end when the bus is closed or dropped, even while disconnected.
#[tokio::test]
async fn bus_tasks_end_on_close_or_drop() {
    let mut server = server("").await;
    for (closed, while_down) in [(true, false), (false, false), (true, true)] {
        let tasks = Tasks::new();
        let bus = options(&server.url()).connect(Env::system(), &tasks).await.unwrap();
        let received = bus.subscribe(RoutePattern::new("news"), SubscribeOptions::default()).await.unwrap();
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
        drop(received);
    }
}

/// A program can end right after the close of its bus: this test drops the whole runtime then.
#[test]
fn bus_close_returns_after_published_messages_are_sent() {
    let here = tokio::runtime::Runtime::new().unwrap();
    // One thread: no other task sends while the messages are published.
    let there = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = here.block_on(server(""));
    let mut received = here.block_on(async {
        let bus = connect(options(&server.url())).await.unwrap();
        let received = bus.subscribe(RoutePattern::new("last"), SubscribeOptions::default()).await.unwrap();
        (bus, received)
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
            assert_eq!(within(received.1.next()).await.unwrap().payload, format!("{number}"));
        }
    });
}

/// A publisher waits for a connection that takes no bytes: the messages that wait are bounded by their bytes, not only by
/// their number.
#[tokio::test]
async fn publish_waits_for_stalled_connection() {
    const MESSAGES: usize = 200;
    let server = server(String::new()).await;
    let proxy = TcpProxy::new(DialMode::Immediately).await.unwrap();
    proxy.set_target(server.port());
    let direct = connect(options(&server.url())).await.unwrap();
    let wide = SubscribeOptions { capacity: MESSAGES, ..SubscribeOptions::default() };
    let mut received = direct.subscribe(RoutePattern::new("news"), wide).await.unwrap();
    let bus = connect(options(&format!("nats://127.0.0.1:{}", proxy.port()))).await.unwrap();
    proxy.set(ProxyMode::Stalled);
    let mut published = pin!(async {
        for _ in 0..MESSAGES {
            bus.publish(Outgoing::new(Route::new("news"), vec![0; 500_000].into())).await.unwrap();
        }
    });
    // 100 MB fit no socket. Without a limit, the library takes them at once.
    let waits = tokio::time::timeout(Duration::from_secs(1), &mut published).await.is_err();
    assert!(waits, "{MESSAGES} messages wait in memory");
    proxy.set(ProxyMode::Forward);
    let all = async {
        for _ in 0..MESSAGES {
            assert_eq!(received.next().await.unwrap().payload.len(), 500_000);
        }
    };
    within(async { tokio::join!(published, all) }).await;
}
