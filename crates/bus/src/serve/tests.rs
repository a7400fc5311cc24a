use dormouse_runtime::{SeededEntropy, VirtualClock};

use super::*;
use crate::memory::{MemoryBroker, MemoryOptions};
use crate::{AskError, RequestError, ask};

const LONG: Duration = Duration::from_secs(60);

struct World {
    broker: MemoryBroker,
    bus: Arc<dyn Bus>,
    env: Env,
    tasks: Tasks,
}

impl World {
    fn new() -> Self {
        let broker = MemoryBroker::new();
        let bus = Arc::new(broker.connect(MemoryOptions::named("server")));
        let clock = Arc::new(VirtualClock::starting_at(Duration::ZERO));
        let env = Env::simulated(clock, Arc::new(SeededEntropy::new(1)));
        Self { broker, bus, env, tasks: Tasks::new() }
    }

    async fn serve(&self, options: ServeOptions) -> Requests {
        serve(&self.bus, &self.env, &self.tasks, RoutePattern::new("ask"), options).await.unwrap()
    }

    async fn ask(&self) -> Result<u64, AskError> {
        ask(&*self.bus, Route::new("ask"), "?", LONG).await
    }
}

/// The reply queue drops replies over its capacity and counts them.
#[tokio::test(start_paused = true)]
async fn reply_queue_over_capacity_drops_and_counts() {
    let world = World::new();
    let mut requests = world.serve(ServeOptions { reply_capacity: 2, ..ServeOptions::default() }).await;
    let answer_all = async {
        let mut burst = Vec::new();
        while burst.len() < 3 {
            requests.next_many(&mut burst, 3).await;
        }
        // The task that sends the replies does not run in between.
        for incoming in burst {
            incoming.responder.ok(encode(&7_u64).unwrap());
        }
    };
    let (one, two, three, ()) = tokio::join!(world.ask(), world.ask(), world.ask(), answer_all);
    assert_eq!((one.unwrap(), two.unwrap()), (7, 7));
    assert!(matches!(three.unwrap_err(), AskError::Request(RequestError::Deadline { .. })));
    assert_eq!(requests.stats().read().dropped, 1);
}

/// If the reply queue exceeds its byte limit, a read gets `overloaded`, and a change keeps its result.
#[tokio::test(start_paused = true)]
async fn reply_queue_bounds_bytes_but_keeps_change_results() {
    let world = World::new();
    let options = ServeOptions { reply_capacity_bytes: 100, ..ServeOptions::default() };
    let mut requests = world.serve(options).await;
    let large = encode(&"x".repeat(80)).unwrap();
    let answer_all = async {
        let mut burst = Vec::new();
        while burst.len() < 3 {
            requests.next_many(&mut burst, 3).await;
        }
        // The task that sends the replies does not run in between.
        let mut responders = burst.into_iter().map(|incoming| incoming.responder);
        responders.next().unwrap().ok(large.clone());
        responders.next().unwrap().ok(large.clone());
        responders.next().unwrap().changing().ok(large.clone());
    };
    let ask = || ask::<_, String>(&*world.bus, Route::new("ask"), "?", LONG);
    let (read, refused, changed, ()) = tokio::join!(ask(), ask(), ask(), answer_all);
    assert_eq!((read.unwrap().len(), changed.unwrap().len()), (80, 80));
    let AskError::Service(refused) = refused.unwrap_err() else { panic!("no service error") };
    assert_eq!(refused.code, ErrorCode::Overloaded);
    // Sent replies free their space.
    let answer = async { requests.next().await.unwrap().responder.ok(large.clone()) };
    let (read, ()) = tokio::join!(ask(), answer);
    assert_eq!(read.unwrap().len(), 80);
}

/// A reply is sent even if the service ends before it, and then the route has no responder.
#[tokio::test(start_paused = true)]
async fn reply_queue_is_sent_after_service_ends() {
    let world = World::new();
    let mut requests = world.serve(ServeOptions::default()).await;
    let answer = async {
        let incoming = requests.next().await.unwrap();
        drop(requests);
        incoming.responder.ok(encode(&7_u64).unwrap());
        world.tasks.finish(LONG).await.unwrap();
    };
    let (answered, ()) = tokio::join!(world.ask(), answer);
    assert_eq!(answered.unwrap(), 7);
    // The route has no responder any more.
    assert!(matches!(world.ask().await.unwrap_err(), AskError::Request(RequestError::NoResponders(_))));
}

/// A service replies only to allowed inboxes and counts rejected and unanswerable requests.
#[tokio::test(start_paused = true)]
async fn service_replies_only_to_allowed_inboxes() {
    let world = World::new();
    let mut requests = world
        .serve(ServeOptions {
            inbox_prefixes: InboxPrefixes::parse("_INBOX_app", &dormouse_protocol::Prefix::default())
                .unwrap(),
            ..ServeOptions::default()
        })
        .await;
    let stats = Arc::clone(requests.stats());
    world.tasks.spawn("answer", async move {
        while let Some(incoming) = requests.next().await {
            incoming.responder.ok(encode(&7_u64).unwrap());
        }
    });
    let inbox_prefix = "_INBOX_app".to_owned();
    let app = world.broker.connect(MemoryOptions { inbox_prefix, ..MemoryOptions::named("app") });
    assert_eq!(ask::<str, u64>(&app, Route::new("ask"), "?", LONG).await.unwrap(), 7);
    assert!(matches!(world.ask().await.unwrap_err(), AskError::Request(RequestError::Deadline { .. })));
    world.bus.publish(Outgoing::new(Route::new("ask"), Bytes::new())).await.unwrap();
    assert_eq!(ask::<str, u64>(&app, Route::new("ask"), "?", LONG).await.unwrap(), 7);
    let figures = stats.read();
    assert_eq!((figures.requests, figures.refused, figures.unanswerable), (2, 1, 1));
}

/// The service statistics count the time from the arrival of a request to its reply.
#[tokio::test(start_paused = true)]
async fn service_stats_count_time_from_arrival_to_reply() {
    let world = World::new();
    let mut requests = world.serve(ServeOptions::default()).await;
    let answer = async {
        let incoming = requests.next().await.unwrap();
        tokio::time::sleep(Duration::from_millis(250)).await;
        incoming.responder.ok(encode(&7_u64).unwrap());
    };
    let (answered, ()) = tokio::join!(world.ask(), answer);
    answered.unwrap();
    assert_eq!(requests.stats().read().processing, Duration::from_millis(250));
}

/// If a result exceeds the maximum payload, a read gets `too_large` and a change gets `indeterminate`.
#[tokio::test(start_paused = true)]
async fn reply_over_max_payload_of_change_is_indeterminate() {
    let world = World::new();
    world.broker.set_max_payload(1_000);
    let mut requests = world.serve(ServeOptions::default()).await;
    for changes in [false, true] {
        let answer = async {
            let mut responder = requests.next().await.unwrap().responder;
            if changes {
                responder = responder.changing();
            }
            responder.ok(vec![7; 1_001].into());
        };
        let (answered, ()) = tokio::join!(world.ask(), answer);
        let error = answered.unwrap_err();
        let AskError::Service(reply) = &error else { panic!("{error}") };
        let expected = if changes { ErrorCode::Indeterminate } else { ErrorCode::TooLarge };
        assert_eq!(reply.code, expected, "{error}");
        assert_eq!(error.executed() == dormouse_protocol::Executed::Unknown, changes, "{error}");
    }
}

/// An error reply over the size limit is cut to its code.
#[test]
fn error_reply_over_limit_is_cut_to_code() {
    let error = ErrorReply::internal("x".repeat(10_000));
    let (headers, body) = encode_error(&error, 1_000);
    assert!(validate::size_bytes(&headers, &body) <= 1_000);
    assert_eq!(dormouse_protocol::decode::<ErrorReply>(&body).unwrap().code, ErrorCode::Internal);
    let (_, body) = encode_error(&error, 100_000);
    assert_eq!(dormouse_protocol::decode::<ErrorReply>(&body).unwrap(), error);
}

/// Errors caused by the caller do not replace the last error of the service.
#[test]
fn service_stats_last_error_ignores_caller_errors() {
    let stats = EndpointStats::default();
    stats.count_error(Duration::ZERO, &ErrorReply::internal("disk"));
    stats.count_error(Duration::ZERO, &ErrorReply::bad_request("typo"));
    let figures = stats.read();
    assert_eq!(
        (figures.requests, figures.errors, figures.last_error.as_deref()),
        (2, 2, Some("internal: disk"))
    );
}

/// The statistics count each error under its code, an overload under its cause, and each reply under its time.
#[test]
fn service_stats_count_codes_causes_and_times() {
    let stats = EndpointStats::default();
    stats.count_answer(Duration::from_micros(50));
    stats.count_error(Duration::from_secs(90), &OverloadCause::SubjectQueue.into());
    stats.count_error(Duration::ZERO, &ErrorReply::new(ErrorCode::from("new".to_owned()), ""));
    assert_eq!(stats.errors_of(&ErrorCode::Overloaded), 1);
    assert_eq!(stats.errors_of(&ErrorCode::Other("newer".to_owned())), 1);
    assert_eq!(stats.errors_of(&ErrorCode::Internal), 0);
    assert_eq!(stats.overloaded_of(OverloadCause::SubjectQueue), 1);
    assert_eq!(stats.overloaded_of(OverloadCause::OpenSubjects), 0);
    let times = stats.answer_times();
    assert_eq!((times[0], times[ANSWER_TIMES.len()], stats.requests()), (2, 1, 3));
    assert_eq!(stats.read().errors, 2);
}
