//! The server as a member: leases, claims, takeovers, and shutdown.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Outgoing, RequestError};
use dormouse_persist_server::authority::LeaseView;
use dormouse_persist_server::membership::{MemberInfo, Membership};
use dormouse_persist_server::progress::DataProgress;
use dormouse_persist_server::pulse;
use dormouse_persist_server::server::{ProcessExit, ServeEnd, ServeError, ServerSide};
use dormouse_protocol::data::{FlushReply, FlushRequest};
use dormouse_protocol::fleet::ServerLoad;
use dormouse_protocol::health::HealthStatus;
use dormouse_protocol::tenant::{LimitedTenant, TenantLimits, TenantName};
use dormouse_protocol::{ErrorCode, ErrorReply, Incarnation, Op, OverloadCause, Prefix, Route, ServerName};
use dormouse_runtime::Tasks;
use support::{Fleet, LAPSE, TTL, owned_by, some_log};

/// Before its first lease the server serves no requests and reports `not_serving`.
#[tokio::test(start_paused = true)]
async fn server_before_first_lease_serves_nothing() {
    let fleet = Fleet::new().await;
    fleet.coordinator.script().refuse_join = Arc::new(|_| Some(ErrorReply::unavailable("learning")));
    let mut server = fleet.start("a").await;
    assert!(tokio::time::timeout(Duration::from_secs(60), server.ready()).await.is_err());
    assert_eq!(fleet.health("a").await.status, HealthStatus::NotServing);
    let message = Outgoing::new(Route::new("persist.server.a.get.orders"), Bytes::new());
    let unanswered = fleet.bus().request(message, Duration::from_secs(1)).await;
    assert!(matches!(unanswered, Err(RequestError::NoResponders(_))), "{unanswered:?}");

    fleet.coordinator.script().refuse_join = Arc::new(|_| None);
    server.ready().await.unwrap();
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap(), None);
    let health = fleet.health("a").await;
    assert_eq!((health.status, health.problems), (HealthStatus::Ok, vec![]));
}

/// A server that gets `name_in_use` for its join or a heartbeat ends with that error.
#[tokio::test(start_paused = true)]
async fn server_refused_with_name_in_use_ends() {
    let fleet = Fleet::new().await;
    let holder = some_log("a", &fleet.env);
    let refusal = ErrorReply::name_in_use(holder);
    let reply = refusal.clone();
    fleet.coordinator.script().refuse_join = Arc::new(move |_| Some(reply.clone()));
    let mut server = fleet.start("a").await;
    let error = server.ready().await.unwrap_err();
    assert!(matches!(&error, ServeError::Refused(error) if *error == refusal), "{error}");

    fleet.coordinator.script().refuse_join = Arc::new(|_| None);
    let server = fleet.serve("b").await;
    let reply = refusal.clone();
    fleet.coordinator.script().refuse_heartbeat = Arc::new(move |_| Some(reply.clone()));
    let ServeEnd::Failed(ended) = server.ended().await else { panic!("no server has taken its log over") };
    assert!(matches!(&*ended, ServeError::Refused(error) if *error == refusal), "{ended}");
}

/// If its bus connection closes, the server ends with `SubscriptionDenied`.
#[tokio::test(start_paused = true)]
async fn server_with_closed_bus_ends() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    assert!(tokio::time::timeout(Duration::from_secs(60), server.ended()).await.is_err());
    fleet.bus_of("a").close().await;
    let ServeEnd::Failed(ended) = server.ended().await else { panic!("no server has taken its log over") };
    assert!(matches!(*ended, ServeError::SubscriptionDenied), "{ended}");
}

/// A restarted server joins with a new log and names its earlier log as predecessor.
#[tokio::test(start_paused = true)]
async fn server_restart_names_predecessor_in_join() {
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

/// If the coordinator refuses a claim, the client gets `not_owner` with the name of the owner.
#[tokio::test(start_paused = true)]
async fn claim_refusal_names_owner_to_client() {
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

/// Without a lease the server proves each read by a read barrier, opens no subject, and reports `degraded`.
#[tokio::test(start_paused = true)]
async fn read_without_lease_uses_barrier_and_health_is_degraded() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve("a").await;
    fleet.set("a", "orders", "k", "v").await.unwrap();
    fleet.coordinator.script().silent_to.push("a".to_owned());
    tokio::time::sleep(LAPSE).await;
    let barriers = fleet.health("a").await.figures["read_barriers_total"];
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap().as_deref(), Some("v"));
    fleet.set("a", "orders", "k", "w").await.unwrap();
    let health = fleet.fresh_health("a").await;
    assert_eq!(health.status, HealthStatus::Degraded);
    assert!(health.figures["read_barriers_total"] > barriers, "each reply needed a barrier");
    // The server cannot open an unowned subject without the coordinator's permission.
    assert_eq!(fleet.get("a", "others", "k").await.unwrap_err().code, ErrorCode::Unavailable);
    assert!(health.problems[0].starts_with("lease expired"), "{:?}", health.problems);

    fleet.coordinator.script().silent_to.clear();
    tokio::time::sleep(TTL).await;
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap().as_deref(), Some("w"));
    let health = fleet.health("a").await;
    assert_eq!((health.status, health.figures["lease_generation"]), (HealthStatus::Ok, 2));
}

/// A server that was fenced while disconnected answers `not_owner` and restarts with a new log.
#[tokio::test(start_paused = true)]
async fn server_fenced_while_disconnected_serves_no_stale_data() {
    let fleet = Fleet::new().await;
    let first = fleet.serve("a").await;
    let _second = fleet.serve("b").await;
    fleet.set("a", "orders", "k", "old").await.unwrap();
    fleet.coordinator.script().silent_to.push("a".to_owned());
    tokio::time::sleep(TTL * 2).await;
    fleet.set("b", "orders", "k", "new").await.unwrap();

    fleet.coordinator.script().silent_to.clear();
    fleet.coordinator.script().refuse_claim = owned_by("b");
    tokio::time::sleep(TTL).await;
    // Its new lease is not confirmed: the read barrier comes first, and finds the seal.
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap_err().code, ErrorCode::NotOwner);
    assert!(matches!(first.ended().await, ServeEnd::TakenOver));
    assert_eq!(fleet.get("b", "orders", "k").await.unwrap().as_deref(), Some("new"));

    // The process continues with a new log, and has to claim the subject like any server.
    let old = first.log().clone();
    let prepared = first.restart_after_takeover(Duration::from_secs(30)).await.unwrap();
    assert_eq!(prepared.predecessor(), Some(&old));
    let successor = fleet.serve_prepared("a", prepared).await;
    assert_ne!(*successor.log(), old);
    let error = fleet.get("a", "orders", "k").await.unwrap_err();
    assert_eq!((error.code, error.owner), (ErrorCode::NotOwner, Some(ServerName::new("b").unwrap())));
}

/// If the coordinator lost its state, the server joins again and serves with a new lease generation.
#[tokio::test(start_paused = true)]
async fn server_rejoins_coordinator_that_lost_its_state() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    fleet.set("a", "orders", "k", "v").await.unwrap();
    let forgotten = server.log().clone();
    {
        let mut script = fleet.coordinator.script();
        script.incarnation = Incarnation::new(fleet.env.ulid());
        script.calls.clear();
        let once = std::sync::atomic::AtomicBool::new(true);
        script.refuse_heartbeat = Arc::new(move |_| {
            once.swap(false, std::sync::atomic::Ordering::Relaxed)
                .then(|| ErrorReply::unknown_server(&forgotten))
        });
    }
    tokio::time::sleep(TTL).await;
    assert!(fleet.coordinator.received("a: join"));
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap().as_deref(), Some("v"));
    assert!(fleet.health("a").await.figures["lease_generation"] > 1);
}

/// A shutdown reports draining, releases all subjects and leaves; another server then serves them.
#[tokio::test(start_paused = true)]
async fn shutdown_releases_subjects_and_another_server_continues() {
    let fleet = Fleet::new().await;
    let first = fleet.serve("a").await;
    let _second = fleet.serve("b").await;
    for number in 0..20 {
        let name = format!("orders.{number}");
        fleet.set("a", &name, "k", "v").await.unwrap();
    }
    assert!(first.shutdown(Duration::from_secs(30)).await);
    let at = |call: &str| fleet.coordinator.script().calls.iter().position(|received| received == call);
    let order = [at("a: draining"), at("a: release orders.7"), at("a: leave")];
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{order:?}");
    // The released subjects have no owner: the second server opens them.
    for number in 0..20 {
        let name = format!("orders.{number}");
        assert_eq!(fleet.get("b", &name, "k").await.unwrap().as_deref(), Some("v"));
    }
    let message = Outgoing::new(Route::new("persist.server.a.get.orders"), Bytes::new());
    let unanswered = fleet.bus().request(message, Duration::from_secs(1)).await;
    assert!(matches!(unanswered, Err(RequestError::NoResponders(_))), "{unanswered:?}");
}

/// During a shutdown a request is served until the server closes, and then gets `not_owner`.
#[tokio::test(start_paused = true)]
async fn request_during_shutdown_is_served_or_gets_not_owner() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    fleet.set("a", "orders", "k", "v").await.unwrap();
    // A coordinator that does not reply makes the steps long enough to observe them from outside.
    fleet.coordinator.script().silent_to.push("a".to_owned());
    let ask = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let draining = fleet.get("a", "orders", "k").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        (draining, fleet.get("a", "orders", "k").await)
    };
    let (handed_back, (draining, closing)) = tokio::join!(server.shutdown(Duration::from_secs(30)), ask);
    assert!(handed_back);
    assert_eq!(draining.unwrap().as_deref(), Some("v"), "the server serves until it closes");
    assert_eq!(closing.unwrap_err().code, ErrorCode::NotOwner);
}

/// Without a coordinator, a shutdown with 100 subjects waits for only one call deadline.
#[tokio::test(start_paused = true)]
async fn shutdown_without_coordinator_takes_constant_time() {
    let fleet = Fleet::new().await;
    let server = fleet.serve("a").await;
    for number in 0..100 {
        let name = format!("orders.{number}");
        fleet.set("a", &name, "k", "v").await.unwrap();
    }
    fleet.coordinator.script().silent_to.push("a".to_owned());
    tokio::time::sleep(LAPSE).await;
    let before = fleet.env.boot();
    assert!(server.shutdown(Duration::from_secs(30)).await);
    let took = fleet.env.boot() - before;
    assert!(took < Duration::from_secs(3), "only the leave waits for its deadline, but this took {took:?}");
}

/// After a leave the process holds no lease and never joins again, even if its tasks continue to run.
#[tokio::test(start_paused = true)]
async fn leave_drops_lease_and_server_never_rejoins() {
    let fleet = Fleet::new().await;
    let (tasks, view) = (Tasks::new(), LeaseView::new(fleet.env.clone()));
    let log = some_log("a", &fleet.env);
    let side = ServerSide { bus: Arc::clone(fleet.bus()), env: fleet.env.clone() };
    let progress = DataProgress::new(&fleet.env, Arc::default());
    pulse::start(&side, &tasks, &progress, Box::new(|_| Vec::new()));
    let member = MemberInfo {
        log: log.clone(),
        predecessor: None,
        capacity: 100,
        load: Arc::new(ServerLoad::default),
        busiest: Arc::new(Vec::new),
        tenants: Arc::new(Vec::new),
        limits: Arc::new(drop),
        progress,
        exit: ProcessExit::new(|| panic!("a stalled data side ended its process")),
    };
    let prefix = Prefix::default();
    let membership = Membership::start(&side, &tasks, &prefix, member, view.clone());
    membership.first_lease().await.unwrap();
    membership.drain().await;
    assert!(view.generation().is_some());
    // After the leave, the coordinator does not know the sender of a heartbeat.
    fleet.coordinator.script().refuse_heartbeat =
        Arc::new(|heartbeat| Some(ErrorReply::unknown_server(&heartbeat.log)));
    membership.leave(Duration::from_secs(1)).await.unwrap();
    assert_eq!(view.generation(), None, "other servers may already own its subjects");
    tokio::time::sleep(TTL * 10).await;
    assert_eq!(view.generation(), None);
    let script = fleet.coordinator.script();
    assert_eq!(script.calls.last().map(String::as_str), Some("a: leave"), "{:?}", script.calls);
    assert_eq!(script.calls.iter().filter(|received| *received == "a: join").count(), 1);
}

/// A server applies the limits of tenants when a lease names another revision of them, and reports what its tenants use.
#[tokio::test(start_paused = true)]
async fn tenant_limits_arrive_with_lease() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve("a").await;
    let limits = TenantLimits { messages_per_second: Some(1), ..TenantLimits::NONE };
    let names = ["greedy", "other"].map(|name| TenantName::new(name).unwrap());
    fleet.coordinator.script().limits = names.map(|tenant| LimitedTenant { tenant, limits }).into();
    // Two sets at the same moment.
    let set_twice = async |tenant: &str| {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let [a, b] = ["a", "b"].map(|name| format!("{tenant}.{name}"));
        let both = futures::join!(fleet.set("a", &a, "k", "v"), fleet.set("a", &b, "k", "v"));
        both.0.and(both.1).map(drop)
    };
    assert_eq!(set_twice("greedy").await, Err(OverloadCause::TenantShare.into()));
    assert_eq!(set_twice("polite").await, Ok(()));
    tokio::time::sleep(TTL).await;
    let used = fleet.coordinator.script().tenants.clone();
    assert!(
        used.iter().any(|one| one.tenant.as_str() == "polite" && one.in_use.open_subjects == 2),
        "{used:?}"
    );
    fleet.coordinator.script().limits.clear();
    assert_eq!(set_twice("greedy").await, Ok(()));
}
