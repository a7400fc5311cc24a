//! Requests over the wire: every operation, and invalid requests.

mod support;

use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::Outgoing;
use dormouse_protocol::data::{
    ChangesReply, ChangesRequest, ConfigureReply, ConfigureRequest, DeleteAllReply, DeleteAllRequest,
    DeleteReply, DeleteRequest, DestroyReply, DestroyRequest, FlushReply, FlushRequest, GetAllReply,
    GetAllRequest, GetReply, GetRequest, InfoReply, InfoRequest, KeysReply, KeysRequest, SetItem, SetOutcome,
    SetReply, SetRequest,
};
use dormouse_protocol::health::HealthStatus;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorCode, Level, Op, Prefix, ProtocolVersion, Seq, ServerName, Subject, encode};
use support::Fleet;

/// The server answers each operation of the protocol over the bus.
#[tokio::test(start_paused = true)]
async fn server_answers_each_operation() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve("a").await;
    for (key, value) in [("one", "1"), ("two", "2"), ("three", "3"), ("", "the empty key")] {
        fleet.set("a", "numbers", key, value).await.unwrap();
    }
    let first: GetReply = fleet.ask("a", Op::Get, "numbers", &GetRequest::seq(Seq::new(1))).await.unwrap();
    assert_eq!(first.messages[0].key.as_deref(), Some("one"));
    assert_eq!(fleet.get("a", "numbers", "").await.unwrap().as_deref(), Some("the empty key"));
    let null = SetRequest { sets: vec![SetItem::default()], ..SetRequest::default() };
    let reply: SetReply = fleet.ask("a", Op::Set, "numbers", &null).await.unwrap();
    assert!(matches!(reply.results.as_slice(), [SetOutcome::Ok(_)]), "the null value is a value: {reply:?}");

    let all: GetAllReply = fleet.ask("a", Op::GetAll, "numbers", &GetAllRequest::default()).await.unwrap();
    assert_eq!(all.messages.len(), 5);
    assert_eq!(all.messages[4].value, None);
    let keys: KeysReply = fleet.ask("a", Op::Keys, "numbers", &KeysRequest::default()).await.unwrap();
    assert_eq!(keys.keys, ["", "one", "three", "two"]);

    let written = all.position;
    let delete =
        DeleteRequest { keys: vec!["two".to_owned(), "no such".to_owned()], ..DeleteRequest::default() };
    let deleted: DeleteReply = fleet.ask("a", Op::Delete, "numbers", &delete).await.unwrap();
    assert_eq!(deleted.seqs, [Seq::new(2)]);
    let up_to = DeleteAllRequest { end_seq: Some(Seq::new(3)), ..DeleteAllRequest::default() };
    let deleted: DeleteAllReply = fleet.ask("a", Op::DeleteAll, "numbers", &up_to).await.unwrap();
    assert_eq!(deleted.count, 2);

    let metadata = [("for".to_owned(), "a test".to_owned())].into();
    let config = SubjectConfig { metadata, ..SubjectConfig::default() };
    let configure = ConfigureRequest { config: config.clone(), ..ConfigureRequest::default() };
    let configured: ConfigureReply = fleet.ask("a", Op::Configure, "numbers", &configure).await.unwrap();
    let info: InfoReply = fleet.ask("a", Op::Info, "numbers", &InfoRequest::default()).await.unwrap();
    assert_eq!((info.position, info.config, info.count), (configured.position, config, 2));
    assert_eq!((info.level, info.bucket_rev), (Level::Bucket, info.position.rev));
    let since = ChangesRequest { after: written, ..ChangesRequest::default() };
    let changes: ChangesReply = fleet.ask("a", Op::Changes, "numbers", &since).await.unwrap();
    assert_eq!((changes.position, changes.resync), (info.position, false));

    let flushed: FlushReply = fleet.ask("a", Op::Flush, "numbers", &FlushRequest::default()).await.unwrap();
    assert_eq!(flushed.position, info.position);
    let info: InfoReply = fleet.ask("a", Op::Info, "numbers", &InfoRequest::default()).await.unwrap();
    assert_eq!(info.bucket_rev, info.position.rev);

    let ended: DestroyReply =
        fleet.ask("a", Op::Destroy, "numbers", &DestroyRequest::default()).await.unwrap();
    assert!(ended.position.rev >= info.position.rev);
    assert_eq!(fleet.get("a", "numbers", "one").await.unwrap(), None);
}

/// The server rejects malformed requests and newer versions with the right error code and continues to serve.
#[tokio::test(start_paused = true)]
async fn server_rejects_malformed_requests_with_code() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve("a").await;
    let get = encode(&GetRequest::key("k")).unwrap();
    let too_long = format!("persist.server.a.get.{}", "x".repeat(600));
    for (route, payload) in [
        ("persist.server.a.steal.orders", get.clone()),
        ("persist.server.a.get", get.clone()),
        (too_long.as_str(), get.clone()),
        ("persist.server.a.get.orders", Bytes::from_static(b"\xc1\xff garbage")),
        ("persist.server.a.get.orders", Bytes::new()),
        ("persist.server.a.get.orders", get.slice(..get.len() - 1)),
        ("persist.server.a.get.orders", [get.clone(), Bytes::from_static(b"\x00")].concat().into()),
        ("persist.server.a.get.orders", encode(&GetRequest::default()).unwrap()),
        ("persist.server.a.set.orders", encode(&SetRequest::default()).unwrap()),
        ("persist.server.a.info.orders", Bytes::from_static(b"\xa4info")),
    ] {
        assert_eq!(fleet.refusal(route, payload).await, ErrorCode::BadRequest, "{route}");
    }
    let newer = GetRequest { v: ProtocolVersion::new(2), ..GetRequest::key("k") };
    assert_eq!(
        fleet.refusal("persist.server.a.get.orders", encode(&newer).unwrap()).await,
        ErrorCode::UnsupportedVersion
    );
    // The server still serves.
    assert_eq!(fleet.get("a", "orders", "k").await.unwrap(), None);
}

/// The server enforces configured limits and a TTL, names the violated limit, and reports them in info.
#[tokio::test(start_paused = true)]
async fn subject_limits_are_configured_enforced_and_reported() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve("a").await;
    let config = SubjectConfig { max_msgs: Some(1), max_msg_size: Some(5), ..SubjectConfig::default() };
    let request = ConfigureRequest { config: config.clone(), ..ConfigureRequest::default() };
    let _: ConfigureReply = fleet.ask("a", Op::Configure, "orders", &request).await.unwrap();
    let item = |key: &str, value: &'static [u8], ttl_ms| SetItem {
        key: Some(key.to_owned()),
        value: Some(Bytes::from_static(value)),
        ttl_ms,
        ..SetItem::default()
    };
    let sets =
        vec![item("a", b"first", None), item("b", b"much too long", None), item("c", b"last", Some(60_000))];
    let set = SetRequest { sets, ..SetRequest::default() };
    let reply: SetReply = fleet.ask("a", Op::Set, "orders", &set).await.unwrap();
    let [SetOutcome::Ok(_), SetOutcome::Error(error), SetOutcome::Ok(_)] = reply.results.as_slice() else {
        panic!("{reply:?}")
    };
    assert_eq!((error.code.clone(), error.limit.as_deref()), (ErrorCode::TooLarge, Some("max_msg_size")));
    assert_eq!(
        fleet.get("a", "orders", "a").await.unwrap(),
        None,
        "the limit removed the older of two messages"
    );
    let info: InfoReply = fleet.ask("a", Op::Info, "orders", &InfoRequest::default()).await.unwrap();
    assert_eq!((info.count, info.bytes, info.config), (1, 4, config));
    assert_eq!((info.details.expiring, info.details.next_expiry.is_some()), (1, true));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(fleet.get("a", "orders", "c").await.unwrap(), None);
}

/// The NATS service stats count requests and errors by operation, and the health reports the totals.
#[tokio::test(start_paused = true)]
async fn request_stats_are_counted_by_operation() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve("a").await;
    fleet.set("a", "orders", "k", "v").await.unwrap();
    fleet.get("a", "orders", "k").await.unwrap();
    fleet.get("a", "orders", "k").await.unwrap();
    fleet.refusal("persist.server.a.steal.orders", Bytes::new()).await;
    fleet.refusal("persist.server.a.get.orders", Bytes::new()).await;
    let reply = fleet.raw("$SRV.STATS.dormouse-persist-server", Bytes::new()).await;
    let stats: serde_json::Value = serde_json::from_slice(&reply.payload).unwrap();
    assert_eq!(stats["type"], "io.nats.micro.v1.stats_response");
    let count = |name: &str| {
        let endpoints = stats["endpoints"].as_array().unwrap();
        let endpoint = endpoints.iter().find(|endpoint| endpoint["name"] == name).unwrap();
        (endpoint["num_requests"].as_u64().unwrap(), endpoint["num_errors"].as_u64().unwrap())
    };
    assert_eq!((count("set"), count("get"), count("keys"), count("other")), ((1, 0), (3, 1), (0, 0), (1, 1)));
    let health = fleet.health("a").await;
    assert_eq!((health.figures["requests"], health.figures["requests_in_flight"]), (4, 0));
}

/// If a tenant sends more garbage than gets refusals, the rest is dropped, counted, and reported in health. Meanwhile
/// another tenant is served.
#[tokio::test(start_paused = true)]
async fn overload_drops_are_counted_and_reported_in_health() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve("a").await;
    fleet.set("a", "polite.numbers", "k", "1").await.unwrap();
    let route = Prefix::default().server(
        &ServerName::new("a").unwrap(),
        Op::Info,
        &Subject::new("greedy.numbers").unwrap(),
    );
    let garbage = Bytes::from(vec![0xc1; 9_000]);
    // Each is sent and given up at once.
    for _ in 0..1_100 {
        let message = Outgoing::new(route.clone(), garbage.clone());
        let mut asked = Box::pin(fleet.bus().request(message, Duration::from_secs(1)));
        assert!(futures::poll!(&mut asked).is_pending());
    }
    assert_eq!(fleet.get("a", "polite.numbers", "k").await.unwrap().as_deref(), Some("1"));
    let health = fleet.health("a").await;
    let dropped = health.figures["requests_dropped_total"];
    assert!((1..=100).contains(&dropped), "{dropped}");
    assert_eq!(health.figures["requests_over_size_total"], 1_100);
    assert_eq!((health.status, health.figures["tenants"]), (HealthStatus::Degraded, 2));
    assert!(health.problems[0].starts_with("requests dropped"), "{:?}", health.problems);
    tokio::time::advance(Duration::from_secs(301)).await;
    assert_eq!(fleet.health("a").await.figures["requests_dropped_total"], dropped);
}

/// Requests that the queues of the control connection drop are counted, too, and reported in health.
#[tokio::test(start_paused = true)]
async fn control_drops_are_counted_and_reported_in_health() {
    let fleet = Fleet::new().await;
    let _server = fleet.serve_apart("a").await;
    assert_eq!(fleet.health("a").await.status, HealthStatus::Ok);
    let route = Prefix::default().health_of("a");
    let mut asked = Vec::new();
    for _ in 0..300 {
        let message = Outgoing::new(route.clone(), Bytes::new());
        asked.push(Box::pin(fleet.bus().request(message, Duration::from_secs(1))));
        assert!(futures::poll!(asked.last_mut().unwrap()).is_pending());
    }
    // The first 256 fit.
    asked.swap_remove(0).await.unwrap();
    let health = fleet.health("a").await;
    assert_eq!((health.status, health.figures["messages_dropped_total"]), (HealthStatus::Degraded, 44));
    assert!(health.problems[0].starts_with("requests or replies dropped"), "{:?}", health.problems);
}
