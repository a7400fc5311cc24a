//! Handovers: by order, by drain, and at shutdown.

mod support;

use std::sync::Arc;
use std::time::Duration;

use dormouse_persist_server::server::ServeEnd;
use dormouse_protocol::health::HealthStatus;
use dormouse_protocol::{ErrorCode, ServerName};
use support::{Fleet, TTL, owned_by, some_log};

const DEADLINE: Duration = Duration::from_secs(30);

/// A handover order releases only its subject; this server then redirects to the new owner and keeps serving the rest.
#[tokio::test(start_paused = true)]
async fn handover_order_moves_only_its_subject() {
    let fleet = Fleet::new().await;
    let first = fleet.serve("a").await;
    let _second = fleet.serve("b").await;
    for name in ["moved", "kept"] {
        fleet.set("a", name, "k", "v").await.unwrap();
    }
    for _ in 0..3 {
        fleet.order(first.log(), "moved").await;
    }
    fleet.until("the subject is released", || fleet.coordinator.received("a: release moved")).await;
    assert!(!fleet.coordinator.received("a: release kept"));
    // The server redirects a request to the new owner, as the coordinator names it, and does not claim the subject
    // back.
    fleet.coordinator.script().refuse_claim = owned_by("b");
    let error = fleet.get("a", "moved", "k").await.unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some(ServerName::new("b").unwrap())));
    fleet.coordinator.script().refuse_claim = Arc::new(|_| None);
    assert_eq!(fleet.get("b", "moved", "k").await.unwrap().as_deref(), Some("v"));
    assert_eq!(fleet.get("a", "kept", "k").await.unwrap().as_deref(), Some("v"));
    let health = fleet.fresh_health("a").await;
    assert_eq!((health.status, health.figures["subjects_handed_over"]), (HealthStatus::Ok, 1));
}

/// A handover order for an unowned subject gets a release; an order for another process gets no reaction.
#[tokio::test(start_paused = true)]
async fn handover_order_for_unowned_subject_sends_release() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    fleet.set("a", "kept", "k", "v").await.unwrap();
    fleet.order(&some_log("a", &fleet.env), "kept").await;
    fleet.order(server.log(), "unknown").await;
    fleet.until("the release is sent", || fleet.coordinator.received("a: release unknown")).await;
    assert!(!fleet.coordinator.received("a: claim unknown"));
    assert!(!fleet.coordinator.received("a: release kept"));
    assert_eq!(fleet.health("a").await.figures["subjects_handed_over"], 0);
}

/// The server resends a release until the coordinator answers, and does not claim the subject again meanwhile.
#[tokio::test(start_paused = true)]
async fn release_is_resent_until_answered_without_new_claim() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    fleet.set("a", "moved", "k", "v").await.unwrap();
    let claims = fleet.coordinator.times("a: claim moved");
    fleet.coordinator.script().releases_unanswered = 3;
    fleet.order(server.log(), "moved").await;
    let requests = async {
        fleet.until("the release was sent", || fleet.coordinator.script().releases_unanswered == 2).await;
        fleet.get("a", "moved", "k").await
    };
    assert_eq!(requests.await.unwrap_err().code, ErrorCode::NotOwner);
    assert!(fleet.coordinator.received("a: release moved"), "the release comes before the redirect");
    assert_eq!(fleet.coordinator.times("a: claim moved"), claims);
}

/// A drain hands over all open subjects; the server continues with a new log that owns nothing until an undrain.
#[tokio::test(start_paused = true)]
async fn drain_hands_over_all_and_continues_with_new_log() {
    let fleet = Fleet::new().await;
    let mut first = fleet.serve("a").await;
    let _second = fleet.serve("b").await;
    let names: Vec<_> = (0..30).map(|number| format!("orders.{number}")).collect();
    fleet.set("a", "dormant", "k", "v").await.unwrap();
    tokio::time::sleep(Duration::from_secs(70)).await;
    for name in &names {
        fleet.set("a", name, "k", "v").await.unwrap();
    }
    fleet.coordinator.script().drained.push("a".to_owned());
    let ServeEnd::Drained = first.ended().await else { panic!("the server has to continue with a new log") };
    for name in &names {
        assert!(fleet.coordinator.received(&format!("a: release {name}")));
        assert_eq!(fleet.get("b", name, "k").await.unwrap().as_deref(), Some("v"));
    }
    let health = fleet.health("a").await;
    assert_eq!((health.status, health.figures["draining"]), (HealthStatus::Degraded, 1));
    assert!(health.problems[0].starts_with("draining"), "{:?}", health.problems);

    let old = first.log().clone();
    let prepared = first.restart_after_drain(DEADLINE).await.unwrap();
    assert_eq!(prepared.predecessor(), Some(&old));
    first = fleet.serve_prepared("a", prepared).await;
    assert!(tokio::time::timeout(TTL * 10, first.ended()).await.is_err(), "one restart is enough");
    let health = fleet.health("a").await;
    assert!(health.problems[0].starts_with("drained"), "{:?}", health.problems);
    // The dormant subject belonged to the log that has ended.
    assert_eq!(fleet.get("b", "dormant", "k").await.unwrap().as_deref(), Some("v"));

    fleet.coordinator.script().drained.clear();
    tokio::time::sleep(TTL).await;
    fleet.set("a", "new", "k", "v").await.unwrap();
    tokio::time::sleep(TTL).await;
    let health = fleet.health("a").await;
    assert_eq!((health.status, health.figures["open_subjects"]), (HealthStatus::Ok, 1));
}

/// The uptime of a server counts from the start of the process, also after the restart with a new log that ends a
/// drain.
#[tokio::test(start_paused = true)]
async fn server_uptime_continues_after_new_log() {
    let fleet = Fleet::new().await;
    let first = fleet.serve("a").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = fleet.health("a").await;
    assert!(before.uptime_ms >= 5_000, "{before:?}");

    let prepared = first.restart_after_drain(DEADLINE).await.unwrap();
    let _second = fleet.serve_prepared("a", prepared).await;
    let after = fleet.health("a").await;
    assert_ne!(after.id, before.id, "the server has a new log");
    assert!(after.uptime_ms >= before.uptime_ms, "{before:?} {after:?}");
}

/// A subject that opens during a drain is served and then handed over.
#[tokio::test(start_paused = true)]
async fn subject_opened_during_drain_is_served_and_handed_over() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    fleet.set("a", "dormant", "k", "v").await.unwrap();
    tokio::time::sleep(Duration::from_secs(70)).await;
    fleet.coordinator.script().drained.push("a".to_owned());
    tokio::time::sleep(TTL / 2).await;
    assert_eq!(fleet.get("a", "dormant", "k").await.unwrap().as_deref(), Some("v"));
    fleet.until("the subject is handed over", || fleet.coordinator.received("a: release dormant")).await;
    assert!(matches!(server.ended().await, ServeEnd::Drained));
}

/// During a shutdown the server still serves the subjects whose handover has not started.
#[tokio::test(start_paused = true)]
async fn shutdown_serves_subjects_not_yet_handed_over() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    let names: Vec<_> = (0..40).map(|number| format!("orders.{number}")).collect();
    for name in &names {
        fleet.set("a", name, "k", "v").await.unwrap();
    }
    // The running handovers wait for the coordinator, so the other handovers cannot start.
    fleet.coordinator.script().releases_unanswered = usize::MAX;
    let requests = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let asked =
            names.iter().map(|name| tokio::time::timeout(Duration::from_secs(1), fleet.get("a", name, "k")));
        let answers = futures::future::join_all(asked).await;
        let served: Vec<_> = answers.into_iter().flatten().collect();
        assert!(served.iter().all(|answer| matches!(answer, Ok(Some(value)) if value == "v")), "{served:?}");
        served.len()
    };
    let (handed_back, served) = tokio::join!(server.shutdown(DEADLINE), requests);
    assert!(handed_back);
    assert_eq!(served, 24, "all but those in handover");
}

/// A heartbeat lists at most 32 subjects, the busiest first, with requests per second and bytes.
#[tokio::test(start_paused = true)]
async fn heartbeat_lists_busiest_subjects_first() {
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
