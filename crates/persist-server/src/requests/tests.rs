//! Requests that never reach the engine, and the order of those that do.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{AskError, Outgoing, ServeOptions, ask, serve, service_error};
use dormouse_protocol::data::{DestroyReply, DestroyRequest, GetReply, GetRequest};
use dormouse_protocol::deadline::TIME_LEFT_HEADER;
use dormouse_protocol::{ErrorCode, Headers, OverloadCause, TenantRule};
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};

use super::*;
use crate::admission::{Amount, REFUSALS_PER_SECOND, SharesSettings};

/// An engine that keeps its requests until the test responds.
#[derive(Clone, Default)]
struct HeldRequests(Arc<Mutex<Vec<Submission>>>);

impl RequestSink for HeldRequests {
    fn submit(&self, _: &Subject, submission: Submission) {
        self.0.lock().unwrap().push(submission);
    }

    fn set_tenant_limits(&self, _: TenantId, _: TenantLimits) {}
}

struct Scene {
    env: Env,
    broker: MemoryBroker,
    caller: Arc<dyn Bus>,
    held: HeldRequests,
    admission: Arc<Admission>,
    closed: Stop,
    tasks: Tasks,
}

impl Scene {
    async fn new(max_requests: u64) -> Self {
        let clock = VirtualClock::starting_at(Duration::ZERO);
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
        let broker = MemoryBroker::new();
        let bus: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("server")));
        let (replies, tasks) = (Tasks::new(), Tasks::new());
        let (prefix, name) = (Prefix::default(), ServerName::new("a").unwrap());
        let requests =
            serve(&bus, &env, &replies, prefix.server_all(&name), ServeOptions::default()).await.unwrap();
        let (held, closed) = (HeldRequests::default(), Stop::new());
        let whole = Amount { requests: max_requests, bytes: 64_000_000, items: 1_000_000 };
        let settings = SharesSettings { whole, ..SharesSettings::default() };
        let admission = Admission::with(settings, TenantRule::default(), env.clone());
        let intake = RequestIntake {
            steps: (LongestSteps::default(), Env::system()),
            prefix,
            name,
            bus,
            engine: held.clone(),
            admission: Arc::clone(&admission),
            stats: OpStats::default(),
            progress: DataProgress::new(&env, Arc::default()),
        };
        tasks.spawn("requests", intake.run(requests, closed.clone(), tasks.stop().clone()));
        let caller = Arc::new(broker.connect(MemoryOptions::named("caller")));
        Self { env, broker, caller, held, admission, closed, tasks }
    }

    async fn get(&self, timeout: Duration) -> Result<GetReply, AskError> {
        let subject = Subject::new("orders").unwrap();
        let route = Prefix::default().server(&ServerName::new("a").unwrap(), Op::Get, &subject);
        ask(&*self.caller, route, &GetRequest::key("k"), timeout).await
    }

    fn get_message(&self) -> Outgoing {
        let subject = Subject::new("orders").unwrap();
        let route = Prefix::default().server(&ServerName::new("a").unwrap(), Op::Get, &subject);
        Outgoing::new(route, encode(&GetRequest::key("k")).unwrap())
    }

    async fn code(&self) -> ErrorCode {
        match self.get(Duration::from_secs(5)).await {
            Err(AskError::Service(error)) => error.code,
            other => panic!("{other:?}"),
        }
    }

    /// Sends a request without waiting, and leaves it unanswered if the engine gets it.
    async fn send(&self, subject: &str, op: Op, payload: Vec<u8>) {
        let route =
            Prefix::default().server(&ServerName::new("a").unwrap(), op, &Subject::new(subject).unwrap());
        let message = Outgoing::new(route, payload.into());
        let mut asked = Box::pin(self.caller.request(message, Duration::from_secs(5)));
        assert!(futures::poll!(&mut asked).is_pending());
    }

    async fn refusal(&self, subject: &str, op: Op, payload: Vec<u8>) -> ErrorReply {
        let route =
            Prefix::default().server(&ServerName::new("a").unwrap(), op, &Subject::new(subject).unwrap());
        let message = Outgoing::new(route, payload.into());
        let reply = self.caller.request(message, Duration::from_secs(5)).await.unwrap();
        service_error(&reply).expect("the request is refused")
    }

    async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
}

fn a_get() -> Vec<u8> {
    encode(&GetRequest::key("k")).unwrap().to_vec()
}

/// A request above the share of its tenant gets `overloaded` before its body is decoded. A tenant without requests in
/// flight is served, and so are the changes of the same tenant.
#[tokio::test(start_paused = true)]
async fn overload_refusal_precedes_decoding() {
    let scene = Scene::new(64).await;
    while scene.admission.metrics().over_share.load(Ordering::Relaxed) == 0 {
        scene.send("greedy.orders", Op::Get, a_get()).await;
        scene.settle().await;
    }
    let in_flight = scene.admission.in_flight();
    let refusal = scene.refusal("greedy.orders", Op::Get, b"no MessagePack".to_vec()).await;
    assert_eq!(refusal, OverloadCause::TenantShare.into());
    assert_eq!(scene.admission.in_flight(), in_flight);
    // Other requests are decoded.
    for (subject, op) in [("polite.orders", Op::Get), ("greedy.orders", Op::Set)] {
        let refusal = scene.refusal(subject, op, b"no MessagePack".to_vec()).await;
        assert_eq!(refusal.code, ErrorCode::BadRequest, "{subject} {op}");
    }
    let answered = scene.held.0.lock().unwrap().split_off(0);
    let answered_number = answered.len();
    answered.into_iter().for_each(|held| (held.respond)(Err(ErrorReply::unavailable("done"))));
    assert_eq!(scene.admission.in_flight(), answered_number as u64, "a reply counts until it is sent");
    scene.settle().await;
    assert_eq!(scene.admission.in_flight(), 0);
    scene.send("greedy.orders", Op::Get, a_get()).await;
    scene.settle().await;
    assert_eq!(scene.held.0.lock().unwrap().len(), 1, "the share is free again");
}

/// A request above the size limit of its operation gets `too_large` before its body is decoded.
#[tokio::test(start_paused = true)]
async fn request_over_size_of_its_operation_is_not_decoded() {
    let scene = Scene::new(64).await;
    for (op, most) in [(Op::Get, 256 * 1_024), (Op::Configure, 64 * 1_024), (Op::Info, 8 * 1_024)] {
        let refusal = scene.refusal("orders", op, vec![0xc1; most + 1]).await;
        assert_eq!(
            (refusal.code, refusal.limit.as_deref()),
            (ErrorCode::TooLarge, Some("max_request_bytes"))
        );
        let refusal = scene.refusal("orders", op, vec![0xc1; most]).await;
        assert_eq!(refusal.code, ErrorCode::BadRequest, "{op}");
    }
    let refusal = scene.refusal("orders", Op::Set, vec![0xc1; 900_000]).await;
    assert_eq!(refusal.code, ErrorCode::BadRequest);
    assert_eq!(scene.admission.metrics().too_large.load(Ordering::Relaxed), 3);
}

/// A tenant gets a bounded number of refusals in a second. Its further requests are dropped and counted; another tenant
/// still gets its refusals.
#[tokio::test(start_paused = true)]
async fn overload_refusals_above_limit_are_dropped_and_counted() {
    let scene = Scene::new(64).await;
    for _ in 0..REFUSALS_PER_SECOND + 5 {
        scene.send("greedy.orders", Op::Info, vec![0; 9_000]).await;
    }
    scene.settle().await;
    assert_eq!(scene.admission.metrics().dropped.load(Ordering::Relaxed), 5);
    assert!(scene.admission.metrics().dropped_since(scene.env.boot()));
    let refusal = scene.refusal("polite.orders", Op::Info, vec![0; 9_000]).await;
    assert_eq!(refusal.code, ErrorCode::TooLarge);
    tokio::time::advance(Duration::from_secs(1)).await;
    scene.refusal("greedy.orders", Op::Info, vec![0; 9_000]).await;
    assert!(!scene.admission.metrics().dropped_since(scene.env.boot()));
    assert_eq!(
        scene.admission.busiest_tenants(10, &BTreeMap::new())[0].in_use.requests_per_second,
        REFUSALS_PER_SECOND + 5
    );
}

/// Invalid requests get no more replies than requests above a share, and the rest is dropped and counted.
#[tokio::test(start_paused = true)]
async fn refusals_of_invalid_requests_are_limited_per_tenant() {
    let scene = Scene::new(64).await;
    let headers = Headers(vec![(TIME_LEFT_HEADER.to_owned(), "soon".to_owned())]);
    for _ in 0..REFUSALS_PER_SECOND + 5 {
        let message = Outgoing { headers: headers.clone(), ..scene.get_message() };
        let mut asked = Box::pin(scene.caller.request(message, Duration::from_secs(5)));
        assert!(futures::poll!(&mut asked).is_pending());
    }
    scene.settle().await;
    assert_eq!(scene.admission.metrics().dropped.load(Ordering::Relaxed), 5);
    let refusal = scene.refusal("polite.orders", Op::Info, vec![0; 9_000]).await;
    assert_eq!(refusal.code, ErrorCode::TooLarge);
}

/// A request of another tenant waits for at most one turn of a flood that arrived before it.
#[tokio::test(start_paused = true)]
async fn flood_delays_other_tenant_by_one_turn() {
    let scene = Scene::new(32_768).await;
    for number in 0..1_000 {
        scene.send(&format!("greedy.s{number}"), Op::Get, a_get()).await;
    }
    scene.send("polite.orders", Op::Get, a_get()).await;
    scene.settle().await;
    let held = scene.held.0.lock().unwrap();
    let first = held[0].tenant;
    let position = held.iter().position(|submission| submission.tenant != first).unwrap();
    assert_eq!(position, 64, "64 KiB, at 1 KiB a request");
    assert_eq!(held.len(), 1_001);
}

/// The read whose time runs out in the queue is refused without the engine.
#[tokio::test(start_paused = true)]
async fn deadline_passed_read_is_not_submitted() {
    let scene = Scene::new(64).await;
    let headers = Headers(vec![(TIME_LEFT_HEADER.to_owned(), "0".to_owned())]);
    let message = Outgoing { headers, ..scene.get_message() };
    let reply = scene.caller.request(message, Duration::from_secs(1)).await.unwrap();
    assert_eq!(service_error(&reply), Some(time_ran_out()));
    assert!(scene.held.0.lock().unwrap().is_empty());
    assert_eq!(scene.admission.metrics().expired.load(Ordering::Relaxed), 1);
}

/// The deadline of a request counts from its receipt. A header that is no number is refused.
#[tokio::test(start_paused = true)]
async fn deadline_of_request_counts_from_receipt() {
    let scene = Scene::new(64).await;
    for (text, left) in [(None, 10_000), (Some("250"), 250), (Some("1"), 1)] {
        let headers = text.map(|text| (TIME_LEFT_HEADER.to_owned(), text.to_owned()));
        let received = scene.env.boot();
        let message = Outgoing { headers: Headers(headers.into_iter().collect()), ..scene.get_message() };
        assert!(scene.caller.request(message, Duration::from_secs(1)).await.is_err());
        let submission = scene.held.0.lock().unwrap().pop().unwrap();
        assert_eq!(submission.deadline, received + Duration::from_millis(left), "{text:?}");
    }
    let headers = Headers(vec![(TIME_LEFT_HEADER.to_owned(), "soon".to_owned())]);
    let message = Outgoing { headers, ..scene.get_message() };
    let reply = scene.caller.request(message, Duration::from_secs(1)).await.unwrap();
    assert_eq!(service_error(&reply).unwrap().code, ErrorCode::BadRequest);
    assert!(scene.held.0.lock().unwrap().is_empty());
}

/// A request that arrives after the close gets `not_owner` and never reaches the engine.
#[tokio::test(start_paused = true)]
async fn request_after_close_gets_not_owner() {
    let scene = Scene::new(64).await;
    scene.closed.request();
    assert_eq!(scene.code().await, ErrorCode::NotOwner);
    assert_eq!(scene.held.0.lock().unwrap().len(), 0);
    assert_eq!(scene.tasks.finish(Duration::from_secs(1)).await, Ok(()));
}

/// A request that was sent before the intake stops still reaches the engine and gets its reply.
#[tokio::test(start_paused = true)]
async fn request_received_before_stop_reaches_engine() {
    let scene = Scene::new(64).await;
    let subject = Subject::new("orders").unwrap();
    let route = Prefix::default().server(&ServerName::new("a").unwrap(), Op::Get, &subject);
    let request = GetRequest::key("k");
    let mut asked = Box::pin(ask::<_, GetReply>(&*scene.caller, route, &request, Duration::from_secs(5)));
    // One poll sends the request; the server's task has not run yet.
    assert!(futures::poll!(&mut asked).is_pending());
    assert_eq!(scene.tasks.finish(Duration::from_secs(1)).await, Ok(()));
    let taken = scene.held.0.lock().unwrap().pop().expect("the engine has the request");
    (taken.respond)(Err(ErrorReply::unavailable("late")));
    assert!(matches!(asked.await, Err(AskError::Service(error)) if error.code == ErrorCode::Unavailable));
}

/// If the payload limit of the bus shrinks during a request, a reply above it becomes `indeterminate`.
#[tokio::test(start_paused = true)]
async fn reply_over_reduced_payload_limit_is_indeterminate() {
    let scene = Scene::new(64).await;
    let subject = Subject::new("orders").unwrap();
    let route = Prefix::default().server(&ServerName::new("a").unwrap(), Op::Destroy, &subject);
    let request = DestroyRequest::default();
    let mut asked = Box::pin(ask::<_, DestroyReply>(&*scene.caller, route, &request, Duration::from_secs(5)));
    assert!(futures::poll!(&mut asked).is_pending());
    while scene.held.0.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let taken = scene.held.0.lock().unwrap().pop().unwrap();
    scene.broker.set_max_payload(1);
    let position = dormouse_protocol::Position::default();
    (taken.respond)(Ok(SubjectReply::Destroy(DestroyReply { position, duplicate: false })));
    // The reply is queued. The bus carries no reply until the limit grows again.
    scene.broker.set_max_payload(1_000);
    let error = asked.await.unwrap_err();
    assert!(matches!(&error, AskError::Service(reply) if reply.code == ErrorCode::Indeterminate), "{error}");
}

/// An encoded destroy reply decodes to the same position.
#[test]
fn reply_of_engine_is_encoded() {
    let position = dormouse_protocol::Position::default();
    let payload = write(&SubjectReply::Destroy(DestroyReply { position, duplicate: false })).unwrap();
    assert_eq!(dormouse_protocol::decode::<DestroyReply>(&payload).unwrap().position, position);
}

/// Each operation has its own stats entry.
#[test]
fn operation_stats_exist_for_each_op() {
    let stats = OpStats::default();
    for (position, op) in Op::ALL.iter().enumerate() {
        assert!(Arc::ptr_eq(stats.of(*op), &stats.0[position]));
    }
}
