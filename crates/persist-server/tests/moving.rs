//! Subjects that are handed over: by order, all of them, and at the end of a process.

mod support;

use std::sync::Arc;
use std::time::Duration;

use dormouse_persist_server::server::Ended;
use dormouse_protocol::health::HealthStatus;
use dormouse_protocol::{ErrorCode, ServerName};
use support::{Fleet, TTL, owned_by, some_log};

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn an_order_has_one_subject_handed_over_and_no_other() {
    let fleet = Fleet::new().await;
    let first = fleet.serve("a").await;
    let _second = fleet.serve("b").await;
    for name in ["moved", "kept"] {
        fleet.set("a", name, "k", "v").await.unwrap();
    }
    for _ in 0..3 {
        fleet.order(first.log(), "moved").await;
    }
    fleet.until("it is released", || fleet.coordinator.heard("a: release moved")).await;
    assert!(!fleet.coordinator.heard("a: release kept"));
    // Whoever still asks here is told by the coordinator's word, and nothing is claimed back.
    fleet.coordinator.script().refuse_claim = owned_by("b");
    let error = fleet.get("a", "moved", "k").await.unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some(ServerName::new("b").unwrap())));
    fleet.coordinator.script().refuse_claim = Arc::new(|_| None);
    assert_eq!(fleet.get("b", "moved", "k").await.unwrap().as_deref(), Some("v"));
    assert_eq!(fleet.get("a", "kept", "k").await.unwrap().as_deref(), Some("v"));
    let health = fleet.health("a").await;
    assert_eq!((health.status, health.figures["subjects_handed_over"]), (HealthStatus::Ok, 1));
}

#[tokio::test(start_paused = true)]
async fn an_order_for_what_is_not_held_is_answered_with_a_release_and_one_for_another_process_not_at_all() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    fleet.set("a", "kept", "k", "v").await.unwrap();
    fleet.order(&some_log("a", &fleet.env), "kept").await;
    fleet.order(server.log(), "unknown").await;
    fleet.until("it is said", || fleet.coordinator.heard("a: release unknown")).await;
    assert!(!fleet.coordinator.heard("a: claim unknown"));
    assert!(!fleet.coordinator.heard("a: release kept"));
    assert_eq!(fleet.health("a").await.figures["subjects_handed_over"], 0);
}

#[tokio::test(start_paused = true)]
async fn a_release_is_said_until_it_is_heard_and_nothing_is_claimed_back_meanwhile() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    fleet.set("a", "moved", "k", "v").await.unwrap();
    let claims = fleet.coordinator.times("a: claim moved");
    fleet.coordinator.script().releases_unanswered = 3;
    fleet.order(server.log(), "moved").await;
    let asking = async {
        fleet.until("it was said", || fleet.coordinator.script().releases_unanswered == 2).await;
        fleet.get("a", "moved", "k").await
    };
    assert_eq!(asking.await.unwrap_err().code, ErrorCode::NotOwner);
    assert!(fleet.coordinator.heard("a: release moved"), "before anybody was sent away");
    assert_eq!(fleet.coordinator.times("a: claim moved"), claims);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_to_be_empty_hands_everything_over_and_goes_on_with_a_log_that_owns_nothing() {
    let fleet = Fleet::new().await;
    let mut first = fleet.serve("a").await;
    let _second = fleet.serve("b").await;
    let names: Vec<_> = (0..30).map(|number| format!("orders.{number}")).collect();
    fleet.set("a", "asleep", "k", "v").await.unwrap();
    tokio::time::sleep(Duration::from_secs(70)).await;
    for name in &names {
        fleet.set("a", name, "k", "v").await.unwrap();
    }
    fleet.coordinator.script().drained.push("a".to_owned());
    let Ended::Emptied = first.ended().await else { panic!("it is to go on") };
    for name in &names {
        assert!(fleet.coordinator.heard(&format!("a: release {name}")));
        assert_eq!(fleet.get("b", name, "k").await.unwrap().as_deref(), Some("v"));
    }
    let health = fleet.health("a").await;
    assert_eq!((health.status, health.figures["draining"]), (HealthStatus::Degraded, 1));
    assert!(health.problems[0].starts_with("draining"), "{:?}", health.problems);

    let old = first.log().clone();
    let prepared = first.begin_anew(DEADLINE).await.unwrap();
    assert_eq!(prepared.predecessor(), Some(&old));
    first = fleet.serve_prepared("a", prepared).await;
    assert!(tokio::time::timeout(TTL * 10, first.ended()).await.is_err(), "once is enough");
    let health = fleet.health("a").await;
    assert!(health.problems[0].starts_with("drained"), "{:?}", health.problems);
    // The one that slept belonged to the log that is over.
    assert_eq!(fleet.get("b", "asleep", "k").await.unwrap().as_deref(), Some("v"));

    fleet.coordinator.script().drained.clear();
    tokio::time::sleep(TTL).await;
    fleet.set("a", "new", "k", "v").await.unwrap();
    tokio::time::sleep(TTL).await;
    let health = fleet.health("a").await;
    assert_eq!((health.status, health.figures["open_subjects"]), (HealthStatus::Ok, 1));
}

/// The uptime of a server counts from the start of the process, over the restart with a new log that ends a drain.
#[tokio::test(start_paused = true)]
async fn server_uptime_continues_over_a_new_log() {
    let fleet = Fleet::new().await;
    let first = fleet.serve("a").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = fleet.health("a").await;
    assert!(before.uptime_ms >= 5_000, "{before:?}");

    let prepared = first.begin_anew(DEADLINE).await.unwrap();
    let _second = fleet.serve_prepared("a", prepared).await;
    let after = fleet.health("a").await;
    assert_ne!(after.id, before.id, "a new log");
    assert!(after.uptime_ms >= before.uptime_ms, "{before:?} {after:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_opened_while_a_server_is_to_be_empty_is_served_and_handed_over_at_once() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    fleet.set("a", "asleep", "k", "v").await.unwrap();
    tokio::time::sleep(Duration::from_secs(70)).await;
    fleet.coordinator.script().drained.push("a".to_owned());
    tokio::time::sleep(TTL / 2).await;
    assert_eq!(fleet.get("a", "asleep", "k").await.unwrap().as_deref(), Some("v"));
    fleet.until("it is handed over", || fleet.coordinator.heard("a: release asleep")).await;
    assert!(matches!(server.ended().await, Ended::Emptied));
}

#[tokio::test(start_paused = true)]
async fn while_a_process_that_is_to_end_hands_over_what_is_left_is_served() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    let names: Vec<_> = (0..40).map(|number| format!("orders.{number}")).collect();
    for name in &names {
        fleet.set("a", name, "k", "v").await.unwrap();
    }
    // Those under way wait for the coordinator, so the others have to wait for their turn.
    fleet.coordinator.script().releases_unanswered = usize::MAX;
    let asking = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let asked =
            names.iter().map(|name| tokio::time::timeout(Duration::from_secs(1), fleet.get("a", name, "k")));
        let answers = futures::future::join_all(asked).await;
        let served: Vec<_> = answers.into_iter().flatten().collect();
        assert!(served.iter().all(|answer| matches!(answer, Ok(Some(value)) if value == "v")), "{served:?}");
        served.len()
    };
    let (handed_back, served) = tokio::join!(server.shutdown(DEADLINE), asking);
    assert!(handed_back);
    assert_eq!(served, 24, "all but those under way");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_name_the_busiest_subjects_first() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve("a").await;
    for number in 0..40 {
        fleet.set("a", &format!("quiet.{number}"), "k", "v").await.unwrap();
    }
    for _ in 0..500 {
        fleet.set("a", "busy", "k", "v").await.unwrap();
    }
    tokio::time::sleep(TTL / 2).await;
    let busiest = fleet.coordinator.script().busiest.clone();
    assert_eq!((busiest.len(), busiest[0].subject.as_str()), (32, "busy"));
    assert!(busiest[0].requests_per_second > 10 && busiest[0].bytes > 0, "{:?}", busiest[0]);
    assert!(busiest[1].requests_per_second < 2);
}
