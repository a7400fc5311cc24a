//! Requests that no correct client sends, and requests from general NATS tools.

use anyhow::{Context, ensure};
use dormouse_e2e::{Fleet, RawMessage, RawNats};
use dormouse_protocol::data::{GetRequest, SetItem, SetRequest};
use dormouse_protocol::health::Health;
use dormouse_protocol::{ErrorCode, ErrorReply, ProtocolVersion, decode, encode};

/// Returns the error of a reply, from its headers and its body.
pub fn refusal(answer: &RawMessage) -> anyhow::Result<ErrorReply> {
    let error: ErrorReply = decode(&answer.payload).with_context(|| format!("{answer:?}"))?;
    let status = format!("{}: {}", ErrorReply::STATUS_HEADER, error.code.status());
    ensure!(answer.headers.contains(&status), "the headers do not say {status}: {}", answer.headers);
    ensure!(!error.message.is_empty(), "an error without a message");
    Ok(error)
}

/// Fails if the server does not acknowledge a valid set.
async fn check_serving(raw: &mut RawNats) -> anyhow::Result<()> {
    let set = SetRequest {
        sets: vec![SetItem { value: Some("v".into()), ..SetItem::default() }],
        ..SetRequest::default()
    };
    let answer = raw.request("persist.server.persist-1.set.app.well", &encode(&set)?).await?;
    ensure!(answer.headers.is_empty(), "{answer:?}");
    Ok(())
}

/// Malformed requests to a server get typed errors, and the server keeps serving.
#[tokio::test]
async fn hostile_requests_get_typed_errors_server_keeps_serving() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let mut raw = fleet.raw().await?;
            let good = encode(&GetRequest::key("k"))?;
            let newer = encode(&GetRequest { v: ProtocolVersion::new(99), ..GetRequest::key("k") })?;
            let nothing_to_set = encode(&SetRequest::default())?;
            let on = |op: &str, subject: &str| format!("persist.server.persist-1.{op}.{subject}");
            let cases: [(&str, String, Vec<u8>, ErrorCode); 10] = [
                ("garbage", on("get", "app"), vec![0xc1; 64], ErrorCode::BadRequest),
                ("nothing at all", on("get", "app"), Vec::new(), ErrorCode::BadRequest),
                ("cut short", on("get", "app"), good[..good.len() - 1].to_vec(), ErrorCode::BadRequest),
                (
                    "four gigabytes declared",
                    on("set", "app"),
                    vec![0xdf, 255, 255, 255, 255],
                    ErrorCode::BadRequest,
                ),
                ("nested without end", on("set", "app"), vec![0x91; 100_000], ErrorCode::BadRequest),
                ("a newer version", on("get", "app"), newer.to_vec(), ErrorCode::UnsupportedVersion),
                ("an unknown operation", on("explode", "app"), good.to_vec(), ErrorCode::BadRequest),
                ("a subject too long", on("get", &"a".repeat(600)), good.to_vec(), ErrorCode::BadRequest),
                ("an illegal subject", on("get", "app.\u{7f}x"), good.to_vec(), ErrorCode::BadRequest),
                ("nothing to set", on("set", "app"), nothing_to_set.to_vec(), ErrorCode::BadRequest),
            ];
            for (what, route, payload, code) in cases {
                let answer = raw.request(&route, &payload).await.context(what)?;
                let error = refusal(&answer).context(what)?;
                assert_eq!(error.code, code, "{what}: {error}");
                check_serving(&mut raw).await.context(what)?;
            }
            Ok(())
        })
        .await
}

/// A subject with wildcards is rejected on server, coordinator and fleet routes.
#[tokio::test]
async fn subject_with_wildcards_is_rejected_on_each_route() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let mut raw = fleet.raw().await?;
            let good = encode(&GetRequest::key("k"))?;
            // Newer nats-servers reject a token that is a whole wildcard. Inside a token, they treat a wildcard as an
            // ordinary character, and older ones forward everything.
            for subject in ["app.x*", "app.*x", "app.a>b", "app.*", "app.>", "*", ">"] {
                for route in [
                    format!("persist.server.persist-1.get.{subject}"),
                    format!("persist.coord.locate.{subject}"),
                    format!("persist.fleet.claim.{subject}"),
                ] {
                    match raw.request(&route, &good).await {
                        Ok(answer) => {
                            let error = refusal(&answer).context(route)?;
                            assert_eq!(error.code, ErrorCode::BadRequest, "{error}");
                        }
                        Err(error) => {
                            let by_nats = format!("{error:#}").contains("Invalid Publish Subject");
                            ensure!(by_nats && !subject.contains('x') && !subject.contains('b'), "{error:#}");
                        }
                    }
                }
            }
            check_serving(&mut raw).await
        })
        .await
}

/// Malformed requests to the coordinator get `bad_request` or `too_large`, and the coordinator stays ready.
#[tokio::test]
async fn coordinator_answers_hostile_requests_with_typed_errors() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let mut raw = fleet.raw().await?;
            for route in
                ["coord.locate.app", "fleet.join", "fleet.heartbeat", "fleet.claim.app", "fleet.explode"]
            {
                for payload in [&[0xc1; 64][..], &[], &[0xdf, 255, 255, 255, 255], &[0x91; 100_000]] {
                    let answer = raw.request(&format!("persist.{route}"), payload).await?;
                    let error = refusal(&answer).with_context(|| format!("{route} {payload:.4?}"))?;
                    // A look-up is refused by its size before it is decoded.
                    let is_over_size = route.starts_with("coord.locate") && payload.len() > 4_096;
                    let expected = if is_over_size { ErrorCode::TooLarge } else { ErrorCode::BadRequest };
                    assert_eq!(error.code, expected, "{route}: {error}");
                }
            }
            check_serving(&mut raw).await?;
            fleet.wait_ready("coordinator").await
        })
        .await
}

/// Otherwise a client could make a server publish on routes that the client itself may not use.
#[tokio::test]
async fn reply_address_outside_an_inbox_gets_no_reply() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            fleet.expect_warning("reply address is not an inbox");
            let mut raw = fleet.raw().await?;
            let good = encode(&GetRequest::key("k"))?;
            for foreign in ["orders.new", "persist.fleet.leave", "persist.events.app", "_INBOXES.x"] {
                raw.subscribe(foreign).await?;
                for route in [
                    "persist.server.persist-1.get.app",
                    "persist.coord.locate.app",
                    "persist.health",
                    "$SRV.PING",
                ] {
                    raw.publish(route, Some(foreign), &good).await?;
                }
            }
            // Requests of one connection are answered in order per process: after the replies to these, the earlier
            // ones would have been answered.
            check_serving(&mut raw).await?;
            raw.request("persist.health.coordinator", b"").await?;
            raw.request("persist.health.persist-1", b"").await?;
            raw.flush().await?;
            let foreign: Vec<_> =
                raw.arrived().iter().filter(|message| !message.subject.starts_with("_INBOX.")).collect();
            ensure!(foreign.is_empty(), "answered outside every inbox: {foreign:?}");
            Ok(())
        })
        .await
}

/// Each process answers a health request with JSON, alone by name and together on the common route.
#[tokio::test]
async fn health_request_gets_json_from_each_process() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let mut raw = fleet.raw().await?;
            for (name, kind) in
                [("coordinator", "coordinator"), ("persist-1", "server"), ("persist-2", "server")]
            {
                let answer = raw.request(&format!("persist.health.{name}"), b"").await?;
                let health: Health = serde_json::from_slice(&answer.payload)?;
                assert_eq!((health.name.as_str(), health.kind.as_str()), (name, kind));
                assert_eq!(health.problems, Vec::<String>::new());
            }
            // A request to all gets a reply from each.
            raw.subscribe("_INBOX.all").await?;
            raw.publish("persist.health", Some("_INBOX.all"), b"").await?;
            let mut names = Vec::new();
            for _ in 0..3 {
                let health: Health = serde_json::from_slice(&raw.next_on("_INBOX.all").await?.payload)?;
                names.push(health.name);
            }
            names.sort();
            assert_eq!(names, ["coordinator", "persist-1", "persist-2"]);
            Ok(())
        })
        .await
}

/// The NATS services API answers PING, INFO and STATS for the coordinator and the server.
#[tokio::test]
async fn services_api_lists_each_process() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let mut raw = fleet.raw().await?;
            check_serving(&mut raw).await?;
            for (verb, kind) in [
                ("PING", "io.nats.micro.v1.ping_response"),
                ("INFO", "io.nats.micro.v1.info_response"),
                ("STATS", "io.nats.micro.v1.stats_response"),
            ] {
                let inbox = format!("_INBOX.{verb}");
                raw.subscribe(&inbox).await?;
                raw.publish(&format!("$SRV.{verb}"), Some(&inbox), b"").await?;
                let mut names = Vec::new();
                for _ in 0..2 {
                    let answer: serde_json::Value =
                        serde_json::from_slice(&raw.next_on(&inbox).await?.payload)?;
                    assert_eq!(answer["type"], kind);
                    for field in ["id", "version"] {
                        ensure!(answer[field].is_string(), "{verb} has no {field}: {answer}");
                    }
                    let name = answer["name"].as_str().context("a service without a name")?.to_owned();
                    let one = raw.request(&format!("$SRV.{verb}.{name}"), b"").await?;
                    let one: serde_json::Value = serde_json::from_slice(&one.payload)?;
                    assert_eq!(one["id"], answer["id"]);
                    if verb != "PING" {
                        ensure!(
                            answer["endpoints"].as_array().is_some_and(|all| !all.is_empty()),
                            "{answer}"
                        );
                    }
                    names.push(name);
                }
                names.sort();
                names.dedup();
                assert_eq!(names.len(), 2, "{names:?}");
            }
            Ok(())
        })
        .await
}
