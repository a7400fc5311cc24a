//! The server as a member: leases, claims, takeovers, and the way out.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Outgoing, RequestError};
use dormouse_persist_server::authority::LeaseView;
use dormouse_persist_server::membership::{Member, Membership};
use dormouse_persist_server::server::{Ended, ServeError};
use dormouse_protocol::data::{FlushReply, FlushRequest};
use dormouse_protocol::fleet::ServerLoad;
use dormouse_protocol::health::HealthStatus;
use dormouse_protocol::{ErrorCode, ErrorReply, Incarnation, Op, Prefix, Route, ServerName};
use dormouse_runtime::Tasks;
use support::{Fleet, LAPSE, TTL, owned_by, some_log};

#[tokio::test(start_paused = true)]
async fn nobody_is_served_before_the_first_lease() {
    let fleet = Fleet::new().await;
    fleet.coordinator.script().refuse_join = Arc::new(|_| Some(ErrorReply::unavailable("learning")));
    let mut server = fleet.start("a").await;
    assert!(tokio::time::timeout(Duration::from_secs(60), server.ready()).await.is_err());
    assert_eq!(fleet.health("a").await.status, HealthStatus::NotServing);
    let message = Outgoing::new(Route::new("persist.server.a.get.orders"), Bytes::new());
    let unheard = fleet.bus().request(message, Duration::from_secs(1)).await;
    assert!(matches!(unheard, Err(RequestError::NoResponders(_))), "{unheard:?}");

    fleet.coordinator.script().refuse_join = Arc::new(|_| None);
    server.ready().await.unwrap();
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap(), None);
    let health = fleet.health("a").await;
    assert_eq!((health.status, health.problems), (HealthStatus::Ok, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_name_in_use_is_final_at_the_start_and_later() {
    let fleet = Fleet::new().await;
    let holder = some_log("a", &fleet.env);
    let refusal = ErrorReply::name_in_use(holder);
    let said = refusal.clone();
    fleet.coordinator.script().refuse_join = Arc::new(move |_| Some(said.clone()));
    let mut server = fleet.start("a").await;
    let error = server.ready().await.unwrap_err();
    assert!(matches!(&error, ServeError::Refused(error) if *error == refusal), "{error}");

    fleet.coordinator.script().refuse_join = Arc::new(|_| None);
    let server = fleet.serve("b").await;
    let said = refusal.clone();
    fleet.coordinator.script().refuse_heartbeat = Arc::new(move |_| Some(said.clone()));
    let Ended::Failed(ended) = server.ended().await else { panic!("nobody has taken it over") };
    assert!(matches!(&*ended, ServeError::Refused(error) if *error == refusal), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_heard_any_more_ends() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    assert!(tokio::time::timeout(Duration::from_secs(60), server.ended()).await.is_err());
    fleet.bus_of("a").close().await;
    let Ended::Failed(ended) = server.ended().await else { panic!("nobody has taken it over") };
    assert!(matches!(*ended, ServeError::Unheard), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn a_restart_names_its_predecessor() {
    let fleet = Fleet::new().await;
    let first = fleet.serve("a").await;
    let log = first.log().clone();
    assert!(first.shutdown(Duration::from_secs(30)).await);
    let expected = log.clone();
    fleet.coordinator.script().refuse_join = Arc::new(move |join| {
        (join.predecessor.as_ref() != Some(&expected)).then(|| ErrorReply::name_in_use(expected.clone()))
    });
    let second = fleet.serve("a").await;
    assert_ne!(*second.log(), log);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_refused_names_the_owner() {
    let fleet = Fleet::new().await;
    let first = fleet.serve("a").await;
    let _second = fleet.serve("b").await;
    fleet.set("a", "orders", "k", "v").await.unwrap();
    let _: FlushReply = fleet.ask("a", Op::Flush, "orders", &FlushRequest::default()).await.unwrap();
    fleet.coordinator.script().refuse_claim = owned_by("a");
    let error = fleet.get("b", "orders", "k").await.unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some(ServerName::new("a").unwrap())));
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap().as_deref(), Some("v"));
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn without_a_lease_the_bucket_proves_every_answer() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve("a").await;
    fleet.set("a", "orders", "k", "v").await.unwrap();
    fleet.coordinator.script().deaf_to.push("a".to_owned());
    tokio::time::sleep(LAPSE).await;
    let barriers = fleet.health("a").await.figures["barriers_asked_of_the_bucket"];
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap().as_deref(), Some("v"));
    fleet.set("a", "orders", "k", "w").await.unwrap();
    let health = fleet.health("a").await;
    assert_eq!(health.status, HealthStatus::Degraded);
    assert!(health.figures["barriers_asked_of_the_bucket"] > barriers, "the bucket was asked");
    // What this server does not have yet, it cannot open without asking.
    assert_eq!(fleet.get("a", "others", "k").await.unwrap_err().code, ErrorCode::Unavailable);
    assert!(health.problems[0].starts_with("no lease"), "{:?}", health.problems);

    fleet.coordinator.script().deaf_to.clear();
    tokio::time::sleep(TTL).await;
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap().as_deref(), Some("w"));
    let health = fleet.health("a").await;
    assert_eq!((health.status, health.figures["lease_generation"]), (HealthStatus::Ok, 2));
}

#[tokio::test(start_paused = true)]
async fn who_was_overtaken_while_cut_off_does_not_serve_the_past() {
    let fleet = Fleet::new().await;
    let first = fleet.serve("a").await;
    let _second = fleet.serve("b").await;
    fleet.set("a", "orders", "k", "old").await.unwrap();
    fleet.coordinator.script().deaf_to.push("a".to_owned());
    tokio::time::sleep(TTL * 2).await;
    fleet.set("b", "orders", "k", "new").await.unwrap();

    fleet.coordinator.script().deaf_to.clear();
    fleet.coordinator.script().refuse_claim = owned_by("b");
    tokio::time::sleep(TTL).await;
    // It has a lease again, but not one that it trusts: first the bucket is asked, and there lies the seal.
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap_err().code, ErrorCode::NotOwner);
    assert!(matches!(first.ended().await, Ended::TakenOver));
    assert_eq!(fleet.get("b", "orders", "k").await.unwrap().as_deref(), Some("new"));

    // It goes on under a fresh log, and asks for the subject as anybody would.
    let old = first.log().clone();
    let prepared = first.succeed(Duration::from_secs(30)).await.unwrap();
    assert_eq!(prepared.predecessor(), Some(&old));
    let successor = fleet.serve_prepared("a", prepared).await;
    assert_ne!(*successor.log(), old);
    let error = fleet.get("a", "orders", "k").await.unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some(ServerName::new("b").unwrap())));
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_forgot_everything_is_joined_again() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    fleet.set("a", "orders", "k", "v").await.unwrap();
    let forgotten = server.log().clone();
    {
        let mut script = fleet.coordinator.script();
        script.incarnation = Incarnation::new(fleet.env.ulid());
        script.heard.clear();
        let once = std::sync::atomic::AtomicBool::new(true);
        script.refuse_heartbeat = Arc::new(move |_| {
            once.swap(false, std::sync::atomic::Ordering::Relaxed)
                .then(|| ErrorReply::unknown_server(&forgotten))
        });
    }
    tokio::time::sleep(TTL).await;
    assert!(fleet.coordinator.heard("a: join"));
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap().as_deref(), Some("v"));
    assert!(fleet.health("a").await.figures["lease_generation"] > 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_hands_everything_back_and_another_server_goes_on() {
    let fleet = Fleet::new().await;
    let first = fleet.serve("a").await;
    let _second = fleet.serve("b").await;
    for number in 0..20 {
        let name = format!("orders.{number}");
        fleet.set("a", &name, "k", "v").await.unwrap();
    }
    assert!(first.shutdown(Duration::from_secs(30)).await);
    let at = |what: &str| fleet.coordinator.script().heard.iter().position(|heard| heard == what);
    let order = [at("a: draining"), at("a: release orders.7"), at("a: leave")];
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{order:?}");
    // Whoever is asked now needs nobody's permission: the subjects are nobody's.
    for number in 0..20 {
        let name = format!("orders.{number}");
        assert_eq!(fleet.get("b", &name, "k").await.unwrap().as_deref(), Some("v"));
    }
    let message = Outgoing::new(Route::new("persist.server.a.get.orders"), Bytes::new());
    let unheard = fleet.bus().request(message, Duration::from_secs(1)).await;
    assert!(matches!(unheard, Err(RequestError::NoResponders(_))), "{unheard:?}");
}

#[tokio::test(start_paused = true)]
async fn who_asks_during_a_shutdown_learns_that_nothing_came_of_it() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    fleet.set("a", "orders", "k", "v").await.unwrap();
    // A coordinator that says nothing makes the steps long enough to be seen from outside.
    fleet.coordinator.script().deaf_to.push("a".to_owned());
    let ask = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let draining = fleet.get("a", "orders", "k").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        (draining, fleet.get("a", "orders", "k").await)
    };
    let (handed_back, (draining, closing)) = tokio::join!(server.shutdown(Duration::from_secs(30)), ask);
    assert!(handed_back);
    assert_eq!(
        draining.unwrap().as_deref(),
        Some("v"),
        "until nobody can be sent here any more, all are served"
    );
    assert_eq!(closing.unwrap_err().code, ErrorCode::NotOwner);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_without_a_coordinator_takes_no_longer_the_more_subjects_there_are() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    for number in 0..100 {
        let name = format!("orders.{number}");
        fleet.set("a", &name, "k", "v").await.unwrap();
    }
    fleet.coordinator.script().deaf_to.push("a".to_owned());
    tokio::time::sleep(LAPSE).await;
    let before = fleet.env.boot();
    assert!(server.shutdown(Duration::from_secs(30)).await);
    let took = fleet.env.boot() - before;
    assert!(
        took < Duration::from_secs(3),
        "only the farewell waits for its deadline, but this took {took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_left_trusts_no_lease_and_does_not_come_back_however_long_its_tasks_take() {
    let fleet = Fleet::new().await;
    let (tasks, view) = (Tasks::new(), LeaseView::new(fleet.env.clone()));
    let log = some_log("a", &fleet.env);
    let member = Member {
        log: log.clone(),
        predecessor: None,
        capacity: 100,
        load: Arc::new(ServerLoad::default),
        busiest: Arc::new(Vec::new),
    };
    let prefix = Prefix::default();
    let membership = Membership::start(fleet.bus(), &fleet.env, &tasks, &prefix, member, view.clone());
    membership.first_lease().await.unwrap();
    membership.drain().await;
    assert!(view.generation().is_some());
    // From the leave on a heartbeat is one of a stranger, as the coordinator sees it.
    fleet.coordinator.script().refuse_heartbeat =
        Arc::new(|heartbeat| Some(ErrorReply::unknown_server(&heartbeat.log)));
    membership.leave(Duration::from_secs(1)).await.unwrap();
    assert_eq!(view.generation(), None, "others may have everything already");
    tokio::time::sleep(TTL * 10).await;
    assert_eq!(view.generation(), None);
    let script = fleet.coordinator.script();
    assert_eq!(script.heard.last().map(String::as_str), Some("a: leave"), "{:?}", script.heard);
    assert_eq!(script.heard.iter().filter(|heard| *heard == "a: join").count(), 1);
}
