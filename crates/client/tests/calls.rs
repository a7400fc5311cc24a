//! What a call does while the fleet moves, hesitates, refuses or dies.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormouse_bus::memory::{MemoryOptions, Permission};
use dormouse_client::{Error, ErrorReply, Happened, IndeterminateCause, Position, Rev, Subject, Term};
use dormouse_protocol::data::{DestroyReply, SetRequest};
use dormouse_protocol::{Op, ProtocolVersion, RoutePattern, decode};
use futures::FutureExt;

use support::{Answer, Fleet, at, done, found, message, nothing, reply, server_name};

const MOMENT: Duration = Duration::from_millis(200);

#[tokio::test(start_paused = true)]
async fn a_location_is_asked_for_once_and_remembered() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| Answer::Late(MOMENT, Box::new(at("a")))).await;
    fleet.server("a", |_, _, _| nothing()).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let gets = futures::future::join_all((0..20).map(|_| kv.get("k"))).await;
    assert!(gets.iter().all(|got| matches!(got, Ok(None))));
    kv.get("k").await.unwrap();
    assert_eq!(fleet.arrivals.count("coordinator locate"), 1);
    assert_eq!(fleet.arrivals.count("a get"), 21);
}

#[tokio::test(start_paused = true)]
async fn a_look_up_outlives_the_caller_who_began_it() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| Answer::Late(MOMENT, Box::new(at("a")))).await;
    fleet.server("a", |_, _, _| nothing()).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let (mut first, mut second) = (Box::pin(kv.get("k")), Box::pin(kv.get("k")));
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    drop(first);
    assert!(matches!(second.await, Ok(None)));
    assert_eq!(fleet.arrivals.count("coordinator locate"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_look_up_that_everybody_left_does_not_stand_in_the_way() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| if asked == 0 { Answer::Silence } else { at("a") }).await;
    fleet.server("a", |_, _, _| nothing()).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let mut abandoned = Box::pin(kv.get("k"));
    assert!((&mut abandoned).now_or_never().is_none());
    drop(abandoned);
    let before = fleet.now();
    kv.get("k").await.unwrap();
    assert_eq!(fleet.now(), before, "it waited for the abandoned look-up");
}

#[tokio::test(start_paused = true)]
async fn the_hint_of_a_former_owner_is_followed_at_once() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| Answer::Error(ErrorReply::not_owner(Some(server_name("b"))))).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let stream = fleet.client().await.stream("app.x").unwrap();
    let before = fleet.now();
    stream.publish("one").await.unwrap();
    stream.publish("two").await.unwrap();
    assert_eq!(fleet.now(), before);
    assert_eq!(fleet.arrivals.list(), ["coordinator locate", "a set", "b set", "b set"]);
}

#[tokio::test(start_paused = true)]
async fn servers_that_name_each_other_do_not_keep_us_running() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| Answer::Error(ErrorReply::not_owner(Some(server_name("b"))))).await;
    fleet.server("b", |_, _, _| Answer::Error(ErrorReply::not_owner(Some(server_name("a"))))).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let error = kv.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    let arrivals = fleet.arrivals.list().len();
    assert!((10..200).contains(&arrivals), "{arrivals}");
    assert!(fleet.arrivals.count("coordinator locate") > 5);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_nobody_hears_is_looked_for_elsewhere() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked < 3 { "a" } else { "b" })).await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    kv.put("k", "1").await.unwrap();
    fleet.leaves("a").await;
    let before = fleet.now();
    kv.put("k", "2").await.unwrap();
    assert!(fleet.now() - before < Duration::from_secs(1));
    assert_eq!(fleet.arrivals.count("coordinator locate"), 4);
    assert_eq!(fleet.arrivals.count("b set"), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_fleet_a_call_ends_at_its_deadline_and_nothing_happened() {
    let fleet = Fleet::new();
    let kv = fleet.client().await.kv("app.x").unwrap().with_deadline(Duration::from_secs(3));
    let before = fleet.now();
    let error = kv.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Deadline { last: Some(_), .. }), "{error:?}");
    assert_eq!(error.happened(), Happened::No);
    let took = fleet.now() - before;
    assert!(took <= Duration::from_secs(3) && took > Duration::from_secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_read_without_answer_is_repeated_within_the_deadline() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| Answer::Silence).await;
    fleet.server("b", |_, _, _| found(message(1, Some("k"), Some("v")))).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert_eq!(kv.get("k").await.unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(fleet.arrivals.list(), ["coordinator locate", "a get", "coordinator locate", "b get"]);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_nobody_answers_ends_at_its_deadline() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| Answer::Silence).await;
    let kv = fleet.client().await.kv("app.x").unwrap().with_deadline(Duration::from_secs(8));
    let before = fleet.now();
    let error = kv.get("k").await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    assert_eq!(fleet.now() - before, Duration::from_secs(8));
    assert_eq!(fleet.arrivals.count("a get"), 4); // Waited for 1, 2, 4 and 1 seconds.
}

#[tokio::test(start_paused = true)]
async fn a_change_without_answer_is_sent_again_under_its_id_and_its_fate_is_open_at_the_deadline_only() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| Answer::Silence).await;
    let kv = fleet.client().await.kv("app.x").unwrap().with_deadline(Duration::from_secs(8));
    let before = fleet.now();
    let error = kv.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Indeterminate { cause: IndeterminateCause::Unanswered(_) }), "{error:?}");
    assert_eq!(error.happened(), Happened::Unknown);
    assert_eq!(fleet.now() - before, Duration::from_secs(8));
    // Waited for 2, 4 and 2 seconds.
    let sent = fleet.arrivals.payloads("a set");
    assert!(sent.len() == 3 && sent.iter().all(|payload| *payload == sent[0]), "the same request each time");
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_answer_is_lost_succeeds_with_the_next_one() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| Answer::Silence).await;
    fleet
        .server(
            "b",
            |_, payload, asked| {
                if asked == 0 { Answer::Error(ErrorReply::not_owner(None)) } else { done(payload) }
            },
        )
        .await;
    fleet.client().await.kv("app.x").unwrap().put("k", "v").await.unwrap();
    assert_eq!(fleet.arrivals.payloads("a set")[0], fleet.arrivals.payloads("b set")[1]);
}

#[tokio::test(start_paused = true)]
async fn a_destroy_whose_answer_is_lost_is_repeated_under_its_id_and_answered() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| Answer::Silence).await;
    let position = Position { term: Term::new(1), rev: Rev::new(7) };
    fleet.server("b", move |_, _, _| reply(&DestroyReply { position, duplicate: true })).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert_eq!(kv.destroy().await.unwrap(), position);
    assert_eq!(fleet.arrivals.list(), ["coordinator locate", "a destroy", "coordinator locate", "b destroy"]);
    assert_eq!(fleet.arrivals.payloads("a destroy"), fleet.arrivals.payloads("b destroy"));
}

#[tokio::test(start_paused = true)]
async fn after_silence_the_next_call_asks_where_the_subject_is() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| Answer::Silence).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    // Time for one try.
    kv.clone().with_deadline(Duration::from_secs(1)).put("k", "1").await.unwrap_err();
    kv.put("k", "2").await.unwrap();
    assert_eq!(fleet.arrivals.list(), ["coordinator locate", "a set", "coordinator locate", "b set"]);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_takes_long_is_waited_for_until_the_deadline() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    // It is carried out after 9 s, and with that its repeats are answered, too.
    let asked_at = |asked: usize| [0, 2, 6][asked];
    fleet
        .server("a", move |_, payload, asked| {
            let rest = Duration::from_secs(9 - asked_at(asked));
            Answer::Late(rest, Box::new(done(payload)))
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let before = fleet.now();
    kv.put("k", "v").await.unwrap();
    assert_eq!((fleet.now() - before, fleet.arrivals.count("a set")), (Duration::from_secs(9), 3));
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_sent_again_under_the_same_name() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet
        .server("a", |_, payload, asked| match asked {
            0 => Answer::Error(ErrorReply::overloaded("busy", 700)),
            1 => Answer::Error(ErrorReply::unavailable("no lease")),
            _ => done(payload),
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let before = fleet.now();
    kv.put("k", "v").await.unwrap();
    assert!(
        fleet.now() - before >= Duration::from_millis(700),
        "it did not stay away as long as it was told"
    );
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

#[tokio::test(start_paused = true)]
async fn a_forbidden_call_fails_at_once() {
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

#[tokio::test(start_paused = true)]
async fn a_client_that_may_not_hear_announcements_works_all_the_same() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    let mut options = MemoryOptions::named("limited");
    options.subscribe = Permission { allow: vec![], deny: vec![RoutePattern::new("persist.coord.gone")] };
    fleet.client_with(options).await.kv("app.x").unwrap().put("k", "v").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_at_a_server_that_is_gone_goes_elsewhere_at_once() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| Answer::Silence).await;
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

#[tokio::test(start_paused = true)]
async fn a_pause_before_the_next_try_ends_when_the_server_is_announced_as_gone() {
    let fleet = Fleet::new();
    let declared = Arc::new(AtomicBool::new(false));
    let dead = Arc::clone(&declared);
    // Nobody answers at the one that the coordinator names until it is declared dead.
    fleet.coordinator(move |_| at(if dead.load(Ordering::Relaxed) { "b" } else { "a" })).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let (outcome, announced) = tokio::join!(async { (kv.put("k", "v").await, fleet.now()) }, async {
        // By then the pauses are as long as they get.
        tokio::time::sleep(Duration::from_secs(4)).await;
        declared.store(true, Ordering::Relaxed);
        fleet.announce_gone("a").await;
        fleet.now()
    });
    outcome.0.unwrap();
    assert_eq!(outcome.1, announced);
}

#[tokio::test(start_paused = true)]
async fn a_location_that_an_announcement_has_overtaken_is_not_believed() {
    let fleet = Fleet::new();
    // The third answer is on its way when its server is declared dead.
    let answers = |asked| match asked {
        0 | 1 => at("a"),
        2 => Answer::Late(MOMENT, Box::new(at("a"))),
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
    assert!(waited <= MOMENT, "{waited:?}: it asked the dead once more and paused");
}

#[tokio::test(start_paused = true)]
async fn what_a_leaving_server_refuses_in_its_last_moment_goes_elsewhere() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    let refusal = Answer::Error(ErrorReply::not_owner(None));
    fleet.server("a", move |_, _, _| Answer::Late(MOMENT, Box::new(refusal.clone()))).await;
    fleet.server("b", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let (outcome, ()) = tokio::join!(kv.put("k", "v"), async {
        fleet.arrivals.wait_for("a set", 1).await;
        fleet.announce_gone("a").await;
    });
    outcome.unwrap();
    assert_eq!(fleet.arrivals.count("b set"), 1);
}

#[tokio::test(start_paused = true)]
async fn without_time_nothing_is_sent() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    kv.put("k", "v").await.unwrap();
    let arrived = fleet.arrivals.list();
    let hurried = kv.clone().with_deadline(Duration::ZERO);
    for outcome in [hurried.put("k", "v").await.map(|_| ()), hurried.get("k").await.map(|_| ())] {
        assert!(
            matches!(outcome, Err(ref error @ Error::Deadline { .. }) if error.happened() == Happened::No),
            "{outcome:?}"
        );
    }
    assert_eq!(fleet.arrivals.list(), arrived);
}

#[tokio::test(start_paused = true)]
async fn a_look_up_that_takes_all_the_time_leaves_none_to_send_a_change() {
    let fleet = Fleet::new();
    // The answer comes in the very moment in which the deadline passes.
    fleet.coordinator(|_| Answer::Late(MOMENT, Box::new(at("a")))).await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    let kv = fleet.client().await.kv("app.x").unwrap().with_deadline(MOMENT);
    let outcome = kv.put("k", "v").await;
    assert!(matches!(outcome, Err(Error::Deadline { .. })), "{outcome:?}");
    assert_eq!(fleet.arrivals.count("a set"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_fails_has_changed_nothing() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| Answer::Error(ErrorReply::internal("?"))).await;
    let error = fleet.client().await.kv("app.x").unwrap().put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Coordinator(_)), "{error:?}");
    assert_eq!(error.happened(), Happened::No);
}

#[tokio::test(start_paused = true)]
async fn a_read_at_a_server_that_is_gone_goes_elsewhere_at_once() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| Answer::Silence).await;
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

#[tokio::test(start_paused = true)]
async fn an_announcement_of_a_newer_version_is_heeded() {
    let fleet = Fleet::new();
    fleet.coordinator(|asked| at(if asked == 0 { "a" } else { "b" })).await;
    fleet.server("a", |_, _, _| Answer::Silence).await;
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

#[tokio::test(start_paused = true)]
async fn a_flush_that_takes_long_is_not_asked_for_twice() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    let position = Position::default();
    fleet
        .server("a", move |op, _, _| {
            assert_eq!(op, Op::Flush);
            let reply = reply(&dormouse_protocol::data::FlushReply { position });
            Answer::Late(Duration::from_secs(9), Box::new(reply))
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    assert_eq!(kv.flush().await.unwrap(), position);
    assert_eq!(fleet.arrivals.count("a flush"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_garbage_is_an_error_that_says_what_may_have_happened() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| Answer::Reply(bytes::Bytes::from_static(b"\xc1garbage"))).await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let read = kv.get("k").await.unwrap_err();
    assert!(matches!(read, Error::Malformed { .. }), "{read:?}");
    assert_eq!(read.happened(), Happened::No);
    let change = kv.put("k", "v").await.unwrap_err();
    assert!(matches!(change, Error::Indeterminate { cause: IndeterminateCause::Malformed(_) }), "{change:?}");
}

#[tokio::test(start_paused = true)]
async fn a_closed_client_sends_nothing() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, payload, _| done(payload)).await;
    let client = fleet.client().await;
    let kv = client.kv("app.x").unwrap();
    client.close().await;
    assert!(matches!(kv.put("k", "v").await, Err(Error::Closed)));
    assert!(fleet.arrivals.list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn locate_always_asks_the_coordinator() {
    let fleet = Fleet::new();
    fleet
        .coordinator(|asked| match asked {
            0 => Answer::Error(ErrorReply::unavailable("no live server")),
            1 => at("a"),
            _ => at("b"),
        })
        .await;
    let client = fleet.client().await;
    let subject = Subject::new("app.x").unwrap();
    assert_eq!(client.locate(&subject).await.unwrap().as_str(), "a");
    assert_eq!(client.locate(&subject).await.unwrap().as_str(), "b");
}
