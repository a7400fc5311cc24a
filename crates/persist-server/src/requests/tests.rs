//! Requests that never reach the engine, and the limits of the budget.

use std::sync::Mutex;
use std::time::Duration;

use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{AskError, Outgoing, ServeOptions, ask, serve, service_error};
use dormouse_protocol::data::{DestroyReply, DestroyRequest, GetReply, GetRequest};
use dormouse_protocol::deadline::TIME_LEFT_HEADER;
use dormouse_protocol::{ErrorCode, Headers, OverloadCause};
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};

use super::*;

/// An engine that keeps its requests until the test responds.
#[derive(Clone, Default)]
struct HeldRequests(Arc<Mutex<Vec<Submission>>>);

impl RequestSink for HeldRequests {
    fn submit(&self, _: &Subject, submission: Submission) {
        self.0.lock().unwrap().push(submission);
    }
}

struct Scene {
    env: Env,
    broker: MemoryBroker,
    caller: Arc<dyn Bus>,
    held: HeldRequests,
    budget: Arc<RequestBudget>,
    closed: Stop,
    tasks: Tasks,
}

impl Scene {
    async fn new(max_requests: usize) -> Self {
        let clock = VirtualClock::starting_at(Duration::ZERO);
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
        let broker = MemoryBroker::new();
        let bus: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("server")));
        let (replies, tasks) = (Tasks::new(), Tasks::new());
        let (prefix, name) = (Prefix::default(), ServerName::new("a").unwrap());
        let requests =
            serve(&bus, &env, &replies, prefix.server_all(&name), ServeOptions::default()).await.unwrap();
        let (held, budget, closed) =
            (HeldRequests::default(), RequestBudget::new(max_requests, 1_000_000), Stop::new());
        let intake = RequestIntake {
            prefix,
            name,
            bus,
            engine: held.clone(),
            budget: Arc::clone(&budget),
            stats: OpStats::default(),
        };
        tasks.spawn("requests", intake.run(requests, closed.clone(), tasks.stop().clone()));
        let caller = Arc::new(broker.connect(MemoryOptions::named("caller")));
        Self { env, broker, caller, held, budget, closed, tasks }
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
}

/// A request above the budget gets `overloaded` at once; unanswered requests use the budget until the engine responds.
#[tokio::test(start_paused = true)]
async fn request_over_budget_is_rejected_at_once() {
    let scene = Scene::new(2).await;
    for _ in 0..2 {
        // These get no reply: the callers time out, but the requests still use the budget.
        assert!(matches!(scene.get(Duration::from_secs(1)).await, Err(AskError::Request(_))));
    }
    assert_eq!(scene.budget.in_flight(), 2);
    assert_eq!(scene.code().await, ErrorCode::Overloaded);
    let done = scene.held.0.lock().unwrap().pop().unwrap();
    (done.respond)(Err(ErrorReply::unavailable("done")));
    assert_eq!(scene.budget.in_flight(), 1);
    assert!(
        matches!(scene.get(Duration::from_secs(1)).await, Err(AskError::Request(_))),
        "the budget has room again"
    );
    assert_eq!(scene.held.0.lock().unwrap().len(), 2);
}

/// The deadline of a request counts from its receipt. A header that is no number is refused.
#[tokio::test(start_paused = true)]
async fn deadline_of_request_counts_from_receipt() {
    let scene = Scene::new(10).await;
    for (text, left) in [(None, 10_000), (Some("250"), 250), (Some("0"), 0)] {
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
    let scene = Scene::new(10).await;
    scene.closed.request();
    assert_eq!(scene.code().await, ErrorCode::NotOwner);
    assert_eq!(scene.held.0.lock().unwrap().len(), 0);
    assert_eq!(scene.tasks.finish(Duration::from_secs(1)).await, Ok(()));
}

/// A request that was sent before the intake stops still reaches the engine and gets its reply.
#[tokio::test(start_paused = true)]
async fn request_received_before_stop_reaches_engine() {
    let scene = Scene::new(10).await;
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
    let scene = Scene::new(10).await;
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

/// The request budget limits requests and bytes, counts rejections, and frees both when a permit is dropped.
#[test]
fn request_budget_limits_count_and_bytes() {
    let budget = RequestBudget::new(2, 100);
    let first = budget.take(60).unwrap();
    assert!(budget.take(41).is_err(), "too many bytes");
    let second = budget.take(40).unwrap();
    let error = budget.take(0).err().unwrap();
    assert_eq!(
        (error.code, error.retry_after_ms),
        (ErrorCode::Overloaded, Some(OverloadCause::RequestsInFlight.retry_after_ms()))
    );
    assert_eq!((budget.in_flight(), budget.refused()), (2, 2));
    drop((first, second));
    assert_eq!(budget.in_flight(), 0);
    assert!(budget.take(100).is_ok());
}
