//! Calls while the fleet moves subjects, delays replies, rejects requests or fails.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormouse_bus::memory::{MemoryOptions, Permission};
use dormouse_client::{Error, ErrorReply, Executed, IndeterminateCause, Position, Rev, Subject, Term};
use dormouse_protocol::data::{DestroyReply, SetRequest};
use dormouse_protocol::{Op, ProtocolVersion, RoutePattern, decode};
use futures::FutureExt;

use support::{CannedReply, Fleet, at, done, found, message, nothing, reply, server_name};

const MOMENT: Duration = Duration::from_millis(200);

/// Concurrent calls share one lookup, and later calls use the cached location.
#[tokio::test(start_paused = true)]
async fn location_lookup_is_shared_and_cached() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| CannedReply::Late(MOMENT, Box::new(at("a")))).await;
    fleet.server("a", |_, _, _| nothing()).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let gets = futures::future::join_all((0..20).map(|_| kv.get("k"))).await;
    assert!(gets.iter().all(|got| matches!(got, Ok(None))));
    kv.get("k").await.unwrap();
    assert_eq!(fleet.arrivals.count("coordinator locate"), 1);
    assert_eq!(fleet.arrivals.count("a get"), 21);
}

/// If the caller that started a lookup is dropped, other callers still receive the result.
#[tokio::test(start_paused = true)]
async fn location_lookup_outlives_first_caller() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| CannedReply::Late(MOMENT, Box::new(at("a")))).await;
    fleet.server("a", |_, _, _| nothing()).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let (mut first, mut second) = (Box::pin(kv.get("k")), Box::pin(kv.get("k")));
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    drop(first);
    assert!(matches!(second.await, Ok(None)));
    assert_eq!(fleet.arrivals.count("coordinator locate"), 1);
}

/// If all callers of a lookup are dropped, the next call starts a new lookup at once.
#[tokio::test(start_paused = true)]
async fn location_lookup_abandoned_does_not_block_next_call() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| if asked == 0 { CannedReply::Silence } else { at("a") }).await;
    fleet.server("a", |_, _, _| nothing()).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let mut abandoned = Box::pin(kv.get("k"));
    assert!((&mut abandoned).now_or_never().is_none());
    drop(abandoned);
    let before = fleet.now();
    kv.get("k").await.unwrap();
    assert_eq!(fleet.now(), before, "the call waited for the abandoned look-up");
}

/// The client follows the owner hint of a `not_owner` reply without a pause and caches it.
#[tokio::test(start_paused = true)]
async fn client_follows_owner_hint_at_once() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| CannedReply::Error(ErrorReply::not_owner(Some(server_name("b"))))).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let stream = fleet.client().await.stream("app.x").unwrap();
    let before = fleet.now();
    stream.publish("one").await.unwrap();
    stream.publish("two").await.unwrap();
    assert_eq!(fleet.now(), before);
    assert_eq!(fleet.arrivals.list(), ["coordinator locate", "a set", "b set", "b set"]);
}

/// If two servers name each other as owner, the client sends a bounded number of requests until the deadline.
#[tokio::test(start_paused = true)]
async fn client_owner_hint_loop_is_bounded() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| CannedReply::Error(ErrorReply::not_owner(Some(server_name("b"))))).await;
    fleet.server("b", |_, _, _| CannedReply::Error(ErrorReply::not_owner(Some(server_name("a"))))).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let error = kv.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    let arrivals = fleet.arrivals.list().len();
    assert!((10..200).contains(&arrivals), "{arrivals}");
    assert!(fleet.arrivals.count("coordinator locate") > 5);
}

/// If the server has no responder, the client asks the coordinator again and succeeds at the next server.
#[tokio::test(start_paused = true)]
async fn client_without_responder_asks_coordinator_again() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked < 3 { "a" } else { "b" })).await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    kv.put("k", "1").await.unwrap();
    fleet.stop_party("a").await;
    let before = fleet.now();
    kv.put("k", "2").await.unwrap();
    assert!(fleet.now() - before < Duration::from_secs(1));
    assert_eq!(fleet.arrivals.count("coordinator locate"), 4);
    assert_eq!(fleet.arrivals.count("b set"), 1);
}

/// Without a fleet, a call fails by its deadline and reports that it was not executed.
#[tokio::test(start_paused = true)]
async fn client_without_fleet_fails_by_deadline_not_executed() {
    let fleet = Fleet::new();
    let kv = fleet.client().await.kv("app.x").unwrap().with_deadline(Duration::from_secs(3));
    let before = fleet.now();
    let error = kv.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Deadline { last: Some(_), .. }), "{error:?}");
    assert_eq!(error.executed(), Executed::No);
    let took = fleet.now() - before;
    assert!(took <= Duration::from_secs(3) && took > Duration::from_secs(1), "{took:?}");
}

/// If a read has no reply, the client asks the coordinator again and retries within the deadline.
#[tokio::test(start_paused = true)]
async fn read_without_reply_is_retried_within_deadline() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| CannedReply::Silence).await;
    fleet.server("b", |_, _, _| found(message(1, Some("k"), Some("v")))).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert_eq!(kv.get("k").await.unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(fleet.arrivals.list(), ["coordinator locate", "a get", "coordinator locate", "b get"]);
}

/// If a read never has a reply, the client retries with growing timeouts and fails at the deadline.
#[tokio::test(start_paused = true)]
async fn read_without_any_reply_fails_at_deadline() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| CannedReply::Silence).await;
    let kv = fleet.client().await.kv("app.x").unwrap().with_deadline(Duration::from_secs(8));
    let before = fleet.now();
    let error = kv.get("k").await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    assert_eq!(fleet.now() - before, Duration::from_secs(8));
    assert_eq!(fleet.arrivals.count("a get"), 4); // Waited for 1, 2, 4 and 1 seconds.
}

/// A change without a reply is resent as the same request, and is indeterminate only at the deadline.
#[tokio::test(start_paused = true)]
async fn change_without_reply_is_resent_until_indeterminate() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| CannedReply::Silence).await;
    let kv = fleet.client().await.kv("app.x").unwrap().with_deadline(Duration::from_secs(8));
    let before = fleet.now();
    let error = kv.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Indeterminate { cause: IndeterminateCause::Unanswered(_) }), "{error:?}");
    assert_eq!(error.executed(), Executed::Unknown);
    assert_eq!(fleet.now() - before, Duration::from_secs(8));
    // Waited for 2, 4 and 2 seconds.
    let sent = fleet.arrivals.payloads("a set");
    assert!(sent.len() == 3 && sent.iter().all(|payload| *payload == sent[0]), "the same request each time");
}

/// If the reply to a change is lost, the retry sends the same request and succeeds.
#[tokio::test(start_paused = true)]
async fn change_with_lost_reply_succeeds_on_retry() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| CannedReply::Silence).await;
    fleet
        .server(
            "b",
            |_, payload, asked| {
                if asked == 0 { CannedReply::Error(ErrorReply::not_owner(None)) } else { done(payload) }
            },
        )
        .await;
    fleet.client().await.kv("app.x").unwrap().put("k", "v").await.unwrap();
    assert_eq!(fleet.arrivals.payloads("a set")[0], fleet.arrivals.payloads("b set")[1]);
}

/// If the reply to a destroy is lost, the client sends the same request again and returns its result.
#[tokio::test(start_paused = true)]
async fn destroy_with_lost_reply_is_retried_under_same_id() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| CannedReply::Silence).await;
    let position = Position { term: Term::new(1), rev: Rev::new(7) };
    fleet.server("b", move |_, _, _| reply(&DestroyReply { position, duplicate: true })).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert_eq!(kv.destroy().await.unwrap(), position);
    assert_eq!(fleet.arrivals.list(), ["coordinator locate", "a destroy", "coordinator locate", "b destroy"]);
    assert_eq!(fleet.arrivals.payloads("a destroy"), fleet.arrivals.payloads("b destroy"));
}

/// After a request without a reply, the next call asks the coordinator for the location.
#[tokio::test(start_paused = true)]
async fn client_after_timeout_looks_up_location_again() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| CannedReply::Silence).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    // Time for one attempt.
    kv.clone().with_deadline(Duration::from_secs(1)).put("k", "1").await.unwrap_err();
    kv.put("k", "2").await.unwrap();
    assert_eq!(fleet.arrivals.list(), ["coordinator locate", "a set", "coordinator locate", "b set"]);
}

/// The client waits for a slow change until the deadline, while it resends the request.
#[tokio::test(start_paused = true)]
async fn change_with_slow_reply_is_awaited_until_deadline() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    // The change is executed after 9 s; then its repeats are answered, too.
    let asked_at = |asked: usize| [0, 2, 6][asked];
    fleet
        .server("a", move |_, payload, asked| {
            let rest = Duration::from_secs(9 - asked_at(asked));
            CannedReply::Late(rest, Box::new(done(payload)))
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let before = fleet.now();
    kv.put("k", "v").await.unwrap();
    assert_eq!((fleet.now() - before, fleet.arrivals.count("a set")), (Duration::from_secs(9), 3));
}

/// After a retryable error, the client waits for the retry delay and resends the change under the same request id.
#[tokio::test(start_paused = true)]
async fn change_after_retryable_error_is_resent_under_same_id() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet
        .server("a", |_, payload, asked| match asked {
            0 => CannedReply::Error(ErrorReply::overloaded("busy", 700)),
            1 => CannedReply::Error(ErrorReply::unavailable("no lease")),
            _ => done(payload),
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let before = fleet.now();
    kv.put("k", "v").await.unwrap();
    assert!(fleet.now() - before >= Duration::from_millis(700), "the retry delay was not respected");
    kv.put("k", "v").await.unwrap();
    let names: Vec<_> = fleet
        .arrivals
        .payloads("a set")
        .iter()
        .map(|payload| decode::<SetRequest>(payload).unwrap().request.unwrap())
        .collect();
    assert_eq!(names.len(), 4);
    assert!(names[0] == names[1] && names[1] == names[2]);
    assert!(names[3].session == names[0].session && names[3].counter > names[0].counter);
}

/// A call that the client has no permission for fails at once.
#[tokio::test(start_paused = true)]
async fn client_call_without_permission_fails_at_once() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| nothing()).await;
    for denied in ["persist.coord.locate.app.x", "persist.server.*.set.>"] {
        let mut options = MemoryOptions::named("limited");
        options.publish = Permission { allow: vec![], deny: vec![RoutePattern::new(denied)] };
        let kv = fleet.client_with(options).await.kv("app.x").unwrap();
        let before = fleet.now();
        let error = kv.put("k", "v").await.unwrap_err();
        assert!(matches!(error, Error::PermissionDenied { .. }), "{error:?}");
        assert_eq!(fleet.now(), before);
    }
}

/// A client without permission for gone announcements still completes calls.
#[tokio::test(start_paused = true)]
async fn client_without_announcement_permission_still_works() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    let mut options = MemoryOptions::named("limited");
    options.subscribe = Permission { allow: vec![], deny: vec![RoutePattern::new("persist.coord.gone")] };
    fleet.client_with(options).await.kv("app.x").unwrap().put("k", "v").await.unwrap();
}

/// If a server is announced gone, its pending change goes to the next server at once, as the same request.
#[tokio::test(start_paused = true)]
async fn change_at_gone_server_is_resent_elsewhere_at_once() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| CannedReply::Silence).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let before = fleet.now();
    let (outcome, ()) = tokio::join!(kv.put("k", "v"), async {
        fleet.arrivals.wait_for("a set", 1).await;
        fleet.announce_gone("a").await;
    });
    outcome.unwrap();
    assert_eq!(fleet.now() - before, Duration::ZERO);
    assert_eq!(fleet.arrivals.payloads("a set"), fleet.arrivals.payloads("b set"));
}

/// A gone announcement of the server ends the pause before the next attempt.
#[tokio::test(start_paused = true)]
async fn client_retry_pause_ends_on_gone_announcement() {
    let fleet = Fleet::new();
    let declared = Arc::new(AtomicBool::new(false));
    let dead = Arc::clone(&declared);
    // The server that the coordinator names does not respond until it is declared dead.
    fleet.coordinator(move |_| at(if dead.load(Ordering::Relaxed) { "b" } else { "a" })).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let (outcome, announced) = tokio::join!(async { (kv.put("k", "v").await, fleet.now()) }, async {
        // By then the pauses have their full length.
        tokio::time::sleep(Duration::from_secs(4)).await;
        declared.store(true, Ordering::Relaxed);
        fleet.announce_gone("a").await;
        fleet.now()
    });
    outcome.0.unwrap();
    assert_eq!(outcome.1, announced);
}

/// If a server is announced gone during a lookup, the client ignores a result that names this server.
#[tokio::test(start_paused = true)]
async fn location_older_than_gone_announcement_is_ignored() {
    let fleet = Fleet::new();
    // The third reply is in flight when its server is declared dead.
    let answers = |asked| match asked {
        0 | 1 => at("a"),
        2 => CannedReply::Late(MOMENT, Box::new(at("a"))),
        _ => at("b"),
    };
    fleet.coordinator(answers).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let (written, announced) = tokio::join!(async { kv.put("k", "v").await.map(|_| fleet.now()) }, async {
        while fleet.arrivals.count("coordinator locate") < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fleet.announce_gone("a").await;
        fleet.now()
    });
    let waited = written.unwrap().saturating_sub(announced);
    assert!(waited <= MOMENT, "{waited:?}: the client sent to the dead server again and paused");
}

/// A change that a leaving server rejects with `not_owner` goes to the next server.
#[tokio::test(start_paused = true)]
async fn change_rejected_by_leaving_server_goes_elsewhere() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    let refusal = CannedReply::Error(ErrorReply::not_owner(None));
    fleet.server("a", move |_, _, _| CannedReply::Late(MOMENT, Box::new(refusal.clone()))).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let (outcome, ()) = tokio::join!(kv.put("k", "v"), async {
        fleet.arrivals.wait_for("a set", 1).await;
        fleet.announce_gone("a").await;
    });
    outcome.unwrap();
    assert_eq!(fleet.arrivals.count("b set"), 1);
}

/// A call with a zero deadline sends nothing and reports that it was not executed.
#[tokio::test(start_paused = true)]
async fn client_with_zero_deadline_sends_nothing() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    kv.put("k", "v").await.unwrap();
    let arrived = fleet.arrivals.list();
    let without_time = kv.clone().with_deadline(Duration::ZERO);
    for outcome in [without_time.put("k", "v").await.map(|_| ()), without_time.get("k").await.map(|_| ())] {
        assert!(
            matches!(outcome, Err(ref error @ Error::Deadline { .. }) if error.executed() == Executed::No),
            "{outcome:?}"
        );
    }
    assert_eq!(fleet.arrivals.list(), arrived);
}

/// If the lookup takes all the time until the deadline, the client sends no change.
#[tokio::test(start_paused = true)]
async fn client_deadline_spent_on_lookup_sends_no_change() {
    let fleet = Fleet::new();
    // The reply arrives at the moment when the deadline passes.
    fleet.coordinator(|_| CannedReply::Late(MOMENT, Box::new(at("a")))).await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap().with_deadline(MOMENT);
    let outcome = kv.put("k", "v").await;
    assert!(matches!(outcome, Err(Error::Deadline { .. })), "{outcome:?}");
    assert_eq!(fleet.arrivals.count("a set"), 0);
}

/// If the coordinator fails, the change is reported as not executed.
#[tokio::test(start_paused = true)]
async fn coordinator_error_means_change_not_executed() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| CannedReply::Error(ErrorReply::internal("?"))).await;
    let error = fleet.client().await.kv("app.x").unwrap().put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Coordinator(_)), "{error:?}");
    assert_eq!(error.executed(), Executed::No);
}

/// If a server is announced gone, its pending read goes to the next server at once.
#[tokio::test(start_paused = true)]
async fn read_at_gone_server_is_resent_elsewhere_at_once() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| CannedReply::Silence).await;
    fleet.server("b", |_, _, _| nothing()).await;
    let client = fleet.client().await;
    let (kv, other) = (client.kv("app.x").unwrap(), client.kv("app.x").unwrap());
    let before = fleet.now();
    let (outcome, ()) = tokio::join!(kv.get("k"), async {
        fleet.arrivals.wait_for("a get", 1).await;
        fleet.announce_gone("c").await;
        fleet.announce_gone("a").await;
    });
    outcome.unwrap();
    other.get("k").await.unwrap();
    assert_eq!(fleet.now(), before);
    assert_eq!(fleet.arrivals.count("coordinator locate"), 2);
    assert_eq!(fleet.arrivals.count("b get"), 2);
}

/// The client obeys a gone announcement of a newer protocol version.
#[tokio::test(start_paused = true)]
async fn gone_announcement_of_newer_version_is_honored() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| CannedReply::Silence).await;
    fleet.server("b", |_, _, _| nothing()).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let before = fleet.now();
    let (outcome, ()) = tokio::join!(kv.get("k"), async {
        fleet.arrivals.wait_for("a get", 1).await;
        fleet.announce_gone_in_version("a", ProtocolVersion::new(2)).await;
    });
    outcome.unwrap();
    assert_eq!(fleet.now(), before);
}

/// The client sends a slow flush only once.
#[tokio::test(start_paused = true)]
async fn flush_with_slow_reply_is_sent_once() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    let position = Position::default();
    fleet
        .server("a", move |op, _, _| {
            assert_eq!(op, Op::Flush);
            let reply = reply(&dormouse_protocol::data::FlushReply { position });
            CannedReply::Late(Duration::from_secs(9), Box::new(reply))
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert_eq!(kv.flush().await.unwrap(), position);
    assert_eq!(fleet.arrivals.count("a flush"), 1);
}

/// An undecodable reply fails a read as not executed and leaves a change indeterminate.
#[tokio::test(start_paused = true)]
async fn reply_undecodable_leaves_only_change_indeterminate() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| CannedReply::Reply(bytes::Bytes::from_static(b"\xc1garbage"))).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let read = kv.get("k").await.unwrap_err();
    assert!(matches!(read, Error::Malformed { .. }), "{read:?}");
    assert_eq!(read.executed(), Executed::No);
    let change = kv.put("k", "v").await.unwrap_err();
    assert!(matches!(change, Error::Indeterminate { cause: IndeterminateCause::Malformed(_) }), "{change:?}");
}

/// A closed client sends no request and fails calls with `Closed`.
#[tokio::test(start_paused = true)]
async fn client_closed_sends_nothing() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    let client = fleet.client().await;
    let kv = client.kv("app.x").unwrap();
    client.close().await;
    assert!(matches!(kv.put("k", "v").await, Err(Error::Closed)));
    assert!(fleet.arrivals.list().is_empty());
}

/// The call `locate` asks the coordinator each time and retries while it is unavailable.
#[tokio::test(start_paused = true)]
async fn locate_always_asks_coordinator() {
    let fleet = Fleet::new();
    fleet
        .coordinator(|asked| match asked {
            0 => CannedReply::Error(ErrorReply::unavailable("no live server")),
            1 => at("a"),
            _ => at("b"),
        })
        .await;
    let client = fleet.client().await;
    let subject = Subject::new("app.x").unwrap();
    assert_eq!(client.locate(&subject).await.unwrap().as_str(), "a");
    assert_eq!(client.locate(&subject).await.unwrap().as_str(), "b");
}

/// Each attempt carries the time that the caller still waits; about the default time needs no header.
#[tokio::test(start_paused = true)]
async fn attempts_carry_remaining_time() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet
        .server("a", |_, _, asked| match asked {
            0 | 2 => CannedReply::Silence,
            _ => nothing(),
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert_eq!(kv.get("k").await.unwrap(), None);
    assert_eq!(fleet.arrivals.times_left_ms("a get"), [10_000, 9_000]);
    let kv = kv.with_deadline(Duration::from_secs(4));
    assert_eq!(kv.get("k").await.unwrap(), None);
    assert_eq!(fleet.arrivals.times_left_ms("a get")[2..], [4_000, 3_000]);
}
