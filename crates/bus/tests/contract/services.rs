//! Services on top of the port.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dormouse_bus::health::answer_health;
use dormouse_bus::services::{EndpointDescription, ServiceDescription, announce};
use dormouse_bus::{AskError, Bus, Requests, ServeOptions, ask, serve};
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_protocol::{ErrorCode, ErrorReply, Prefix, Route, RoutePattern, decode, encode};
use dormouse_runtime::Tasks;
use serde_json::{Value, json};

use crate::fixture::{Fixture, LONG, MAX_PAYLOAD_BYTES, message};

async fn requests(system: &impl Fixture, bus: &Arc<dyn Bus>, pattern: &str) -> Requests {
    let pattern = RoutePattern::new(pattern);
    serve(bus, &system.env(), system.tasks(), pattern, ServeOptions::default()).await.unwrap()
}

/// Doubles numbers below a hundred, and fails for others.
fn double(tasks: &Tasks, mut requests: Requests) {
    tasks.spawn("double", async move {
        let mut burst = Vec::new();
        while requests.next_many(&mut burst, 16).await > 0 {
            for incoming in burst.drain(..) {
                match decode::<u64>(&incoming.payload) {
                    Ok(number) if number < 100 => incoming.responder.ok(encode(&(2 * number)).unwrap()),
                    Ok(_) => incoming.responder.error(&ErrorReply::unavailable("too\r\nmuch")),
                    Err(error) => incoming.responder.error(&ErrorReply::bad_request(error.to_string())),
                }
            }
        }
    });
}

/// A service returns typed results and errors, sets the error headers and counts requests and errors.
pub async fn service_returns_typed_results_and_errors(system: impl Fixture) {
    let (asking, serving) = (system.connect().await, system.connect().await);
    let requests = requests(&system, &serving, "double.*").await;
    let stats = Arc::clone(requests.stats());
    double(system.tasks(), requests);

    let route = || Route::new("double.it");
    assert_eq!(ask::<u64, u64>(&*asking, route(), &21, LONG).await.unwrap(), 42);
    let error = ask::<u64, u64>(&*asking, route(), &100, LONG).await.unwrap_err();
    let AskError::Service(error) = error else { panic!("{error}") };
    // The body has the complete text; only the header is limited to one line.
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::Unavailable, "too\r\nmuch"));
    let error = ask::<str, u64>(&*asking, route(), "x", LONG).await.unwrap_err();
    assert!(matches!(error, AskError::Service(ErrorReply { code: ErrorCode::BadRequest, .. })), "{error}");
    let error = ask::<u64, String>(&*asking, route(), &1, LONG).await.unwrap_err();
    assert!(matches!(error, AskError::Decode { .. }), "{error}");
    let error = ask::<u64, u64>(&*asking, Route::new("nobody"), &1, LONG).await.unwrap_err();
    assert!(matches!(error, AskError::Request(_)), "{error}");

    let reply = asking.request(message("double.it", encode(&100_u64).unwrap()), LONG).await.unwrap();
    assert_eq!(reply.headers.get(ErrorReply::STATUS_HEADER), Some("503"));
    assert_eq!(reply.headers.get(ErrorReply::TEXT_HEADER), Some("unavailable: too  much"));

    let figures = stats.read();
    assert_eq!((figures.requests, figures.errors), (5, 3));
    assert_eq!(figures.last_error.as_deref(), Some("unavailable: too\r\nmuch"));
}

/// A service reply over the maximum payload becomes the error `too_large`.
pub async fn service_reply_over_max_payload_becomes_error(system: impl Fixture) {
    let (asking, serving) = (system.connect().await, system.connect().await);
    let mut requests = requests(&system, &serving, "large").await;
    system.tasks().spawn("large", async move {
        while let Some(incoming) = requests.next().await {
            let size_bytes: usize = decode(&incoming.payload).unwrap();
            incoming.responder.ok(Bytes::from(vec![0; size_bytes]));
        }
    });
    let fits = asking.request(message("large", encode(&MAX_PAYLOAD_BYTES).unwrap()), LONG).await.unwrap();
    assert_eq!(fits.payload.len(), MAX_PAYLOAD_BYTES);
    let size_bytes = MAX_PAYLOAD_BYTES + 1;
    let error = ask::<usize, u64>(&*asking, Route::new("large"), &size_bytes, LONG).await.unwrap_err();
    assert!(matches!(error, AskError::Service(ErrorReply { code: ErrorCode::TooLarge, .. })), "{error}");
}

/// A service answers the NATS discovery requests for ping, info and statistics.
pub async fn service_is_discoverable(system: impl Fixture) {
    let (asking, serving) = (system.connect().await, system.connect().await);
    let requests = requests(&system, &serving, "double.*").await;
    let stats = Arc::clone(requests.stats());
    double(system.tasks(), requests);
    let service = ServiceDescription {
        name: "doubler".to_owned(),
        id: "D1".to_owned(),
        version: "1.2.3".to_owned(),
        description: "Doubles numbers".to_owned(),
        metadata: BTreeMap::from([("fleet".to_owned(), "test".to_owned())]),
        endpoints: vec![EndpointDescription {
            name: "double".to_owned(),
            pattern: RoutePattern::new("double.*"),
            queue: None,
            metadata: BTreeMap::new(),
            stats,
        }],
    };
    let inboxes = ServeOptions::default().inbox_prefixes;
    announce(&serving, &system.env(), system.tasks(), &inboxes, service).await.unwrap();
    ask::<u64, u64>(&*asking, Route::new("double.it"), &1, LONG).await.unwrap();
    ask::<u64, u64>(&*asking, Route::new("double.it"), &100, LONG).await.unwrap_err();

    let identity =
        json!({ "name": "doubler", "id": "D1", "version": "1.2.3", "metadata": { "fleet": "test" } });
    let with = |more: Value| {
        let mut whole = identity.as_object().unwrap().clone();
        whole.extend(more.as_object().unwrap().clone());
        Value::Object(whole)
    };
    for scope in ["", ".doubler", ".doubler.D1"] {
        let ping = get(&asking, &format!("$SRV.PING{scope}")).await;
        assert_eq!(ping, with(json!({ "type": "io.nats.micro.v1.ping_response" })));
        let info = get(&asking, &format!("$SRV.INFO{scope}")).await;
        let endpoint = json!({ "name": "double", "subject": "double.*", "queue_group": "", "metadata": {} });
        let more = json!({ "type": "io.nats.micro.v1.info_response", "description": "Doubles numbers",
            "endpoints": [endpoint] });
        assert_eq!(info, with(more));
        let mut stats = get(&asking, &format!("$SRV.STATS{scope}")).await;
        let started = stats["started"].take();
        assert!(
            started.as_str().unwrap().ends_with('Z') && started.as_str().unwrap().contains('T'),
            "{started}"
        );
        let time = stats["endpoints"][0]["processing_time"].take().as_u64().unwrap();
        assert_eq!(stats["endpoints"][0]["average_processing_time"].take(), json!(time / 2));
        let endpoint = json!({ "name": "double", "subject": "double.*", "queue_group": "", "num_requests": 2,
            "num_errors": 1, "last_error": "unavailable: too\r\nmuch", "processing_time": null,
            "average_processing_time": null, "data": { "unanswerable": 0, "refused": 0, "dropped": 0 } });
        let more =
            json!({ "type": "io.nats.micro.v1.stats_response", "started": null, "endpoints": [endpoint] });
        assert_eq!(stats, with(more));
    }
    asking.request(message("$SRV.PING.other", ""), LONG).await.unwrap_err();
    asking.request(message("$SRV.PING.doubler.D2", ""), LONG).await.unwrap_err();
}

async fn get(bus: &Arc<dyn Bus>, route: &str) -> Value {
    let reply = bus.request(message(route, ""), LONG).await.unwrap();
    serde_json::from_slice(&reply.payload).unwrap()
}

/// A server answers health requests on the common route and on its own route.
pub async fn health_is_answered_under_both_routes(system: impl Fixture) {
    let (asking, serving) = (system.connect().await, system.connect().await);
    let health = Health {
        kind: "server".to_owned(),
        name: "s1".to_owned(),
        id: "s1-X".to_owned(),
        version: "1.2.3".to_owned(),
        status: HealthStatus::Degraded,
        problems: vec!["look".to_owned()],
        uptime_ms: 7,
        figures: BTreeMap::from([("subjects".to_owned(), 3)]),
    };
    let (prefix, reported) = (Prefix::default(), health.clone());
    let inboxes = ServeOptions::default().inbox_prefixes;
    answer_health(&serving, system.tasks(), &prefix, "s1", &inboxes, move || reported.clone()).await.unwrap();
    for route in ["persist.health", "persist.health.s1"] {
        let answered: Health = serde_json::from_value(get(&asking, route).await).unwrap();
        assert_eq!(answered, health);
    }
    asking.request(message("persist.health.s2", ""), LONG).await.unwrap_err();
}
