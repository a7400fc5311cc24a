//! What becomes of requests that no engine should see, and what the budget gives.

use std::sync::Mutex;
use std::time::Duration;

use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{AskError, ServeOptions, ask, serve};
use dormouse_protocol::ErrorCode;
use dormouse_protocol::data::{DestroyReply, DestroyRequest, GetReply, GetRequest};
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};

use super::*;

/// An engine that keeps what it is given and answers when told.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<Vec<Submission>>>);

impl Submit for Held {
    fn submit(&self, _: &Subject, submission: Submission) {
        self.0.lock().unwrap().push(submission);
    }
}

struct Scene {
    broker: MemoryBroker,
    caller: Arc<dyn Bus>,
    held: Held,
    budget: Arc<Budget>,
    closed: Stop,
    tasks: Tasks,
}

impl Scene {
    async fn new(most_requests: usize) -> Self {
        let clock = VirtualClock::starting_at(Duration::ZERO);
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
        let broker = MemoryBroker::new();
        let bus: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("server")));
        let (replies, tasks) = (Tasks::new(), Tasks::new());
        let (prefix, name) = (Prefix::default(), ServerName::new("a").unwrap());
        let requests =
            serve(&bus, &env, &replies, prefix.server_all(&name), ServeOptions::default()).await.unwrap();
        let (held, budget, closed) = (Held::default(), Budget::new(most_requests, 1_000_000), Stop::new());
        let intake = Intake {
            prefix,
            name,
            bus,
            engine: held.clone(),
            budget: Arc::clone(&budget),
            stats: OpStats::default(),
        };
        tasks.spawn("requests", intake.run(requests, closed.clone(), tasks.stop().clone()));
        let caller = Arc::new(broker.connect(MemoryOptions::named("caller")));
        Self { broker, caller, held, budget, closed, tasks }
    }

    async fn get(&self, patience: Duration) -> Result<GetReply, AskError> {
        let subject = Subject::new("orders").unwrap();
        let route = Prefix::default().server(&ServerName::new("a").unwrap(), Op::Get, &subject);
        ask(&*self.caller, route, &GetRequest::key("k"), patience).await
    }

    async fn code(&self) -> ErrorCode {
        match self.get(Duration::from_secs(5)).await {
            Err(AskError::Service(error)) => error.code,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_the_budget_is_refused_at_once() {
    let scene = Scene::new(2).await;
    for _ in 0..2 {
        // Nobody answers these: the callers give up, but the work is still there.
        assert!(matches!(scene.get(Duration::from_secs(1)).await, Err(AskError::Request(_))));
    }
    assert_eq!(scene.budget.in_flight(), 2);
    assert_eq!(scene.code().await, ErrorCode::Overloaded);
    let done = scene.held.0.lock().unwrap().pop().unwrap();
    (done.respond)(Err(ErrorReply::unavailable("done")));
    assert_eq!(scene.budget.in_flight(), 1);
    assert!(
        matches!(scene.get(Duration::from_secs(1)).await, Err(AskError::Request(_))),
        "there is room again"
    );
    assert_eq!(scene.held.0.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_the_close_is_told_so() {
    let scene = Scene::new(10).await;
    scene.closed.give();
    assert_eq!(scene.code().await, ErrorCode::NotOwner);
    assert_eq!(scene.held.0.lock().unwrap().len(), 0);
    assert_eq!(scene.tasks.finish(Duration::from_secs(1)).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn what_has_arrived_when_listening_ends_is_still_taken() {
    let scene = Scene::new(10).await;
    let subject = Subject::new("orders").unwrap();
    let route = Prefix::default().server(&ServerName::new("a").unwrap(), Op::Get, &subject);
    let request = GetRequest::key("k");
    let mut asked = Box::pin(ask::<_, GetReply>(&*scene.caller, route, &request, Duration::from_secs(5)));
    // One poll sends the request; the server's task has not run yet.
    assert!(futures::poll!(&mut asked).is_pending());
    assert_eq!(scene.tasks.finish(Duration::from_secs(1)).await, Ok(()));
    let taken = scene.held.0.lock().unwrap().pop().expect("the request was taken");
    (taken.respond)(Err(ErrorReply::unavailable("late")));
    assert!(matches!(asked.await, Err(AskError::Service(error)) if error.code == ErrorCode::Unavailable));
}

/// A server's largest payload may shrink while a request is under way.
#[tokio::test(start_paused = true)]
async fn a_result_that_does_not_fit_any_more_never_hides_a_change() {
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
    (taken.respond)(Ok(Reply::Destroy(DestroyReply { position, duplicate: false })));
    // The answer is queued; nothing gets through before there is room again.
    scene.broker.set_max_payload(1_000);
    let error = asked.await.unwrap_err();
    assert!(matches!(&error, AskError::Service(reply) if reply.code == ErrorCode::Indeterminate), "{error}");
}

#[test]
fn an_answer_of_any_kind_is_written() {
    let position = dormouse_protocol::Position::default();
    let payload = write(&Reply::Destroy(DestroyReply { position, duplicate: false })).unwrap();
    assert_eq!(dormouse_protocol::decode::<DestroyReply>(&payload).unwrap().position, position);
}

#[test]
fn every_operation_has_its_figures() {
    let stats = OpStats::default();
    for (position, op) in Op::ALL.iter().enumerate() {
        assert!(Arc::ptr_eq(stats.of(*op), &stats.0[position]));
    }
}

#[test]
fn a_budget_refuses_by_number_and_by_size_and_takes_back() {
    let budget = Budget::new(2, 100);
    let first = budget.take(60).unwrap();
    assert!(budget.take(41).is_err(), "too many bytes");
    let second = budget.take(40).unwrap();
    let error = budget.take(0).err().unwrap();
    assert_eq!((error.code, error.retry_after_ms), (ErrorCode::Overloaded, Some(RETRY_AFTER_MS)));
    assert_eq!((budget.in_flight(), budget.refused()), (2, 2));
    drop((first, second));
    assert_eq!(budget.in_flight(), 0);
    assert!(budget.take(100).is_ok());
}
