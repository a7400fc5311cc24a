//! Drains, moves and rebalances against a scripted coordinator.

use dormouse_protocol::TenantName;
use dormouse_protocol::admin::{
    Assigned, DrainReply, MoveReply, MoveRequest, MovesReply, PlannedMove, RebalanceReply, RebalanceRequest,
    ServerBalance, SubjectsReply, SubjectsRequest, TenantEntry, TenantLimitReply, TenantLimitRequest,
    TenantsReply, TenantsRequest,
};
use dormouse_protocol::route::AdminRoute;
use dormouse_protocol::tenant::{TenantLimits, TenantUse};

use super::*;

type Answer = Result<Bytes, ErrorReply>;

impl Fleet {
    /// A fleet whose coordinator answers admin requests by a script. The script also gets the number of earlier
    /// requests to the same route.
    async fn coordinated(script: impl Fn(&AdminRoute, &[u8], usize) -> Answer + Send + 'static) -> Self {
        let fleet = Self::empty();
        let prefix = fleet.prefix.clone();
        let asked = Lock::new(Vec::new());
        fleet
            .answer(fleet.prefix.admin_all(), move |request| {
                let route = prefix.parse_admin(request.route.as_str()).unwrap();
                let mut asked = asked.lock();
                let before = asked.iter().filter(|earlier| **earlier == route).count();
                match script(&route, &request.payload, before) {
                    Ok(reply) => request.responder.ok(reply),
                    Err(error) => request.responder.error(&error),
                }
                asked.push(route);
            })
            .await;
        fleet
    }
}

fn servers(entries: Vec<ServerEntry>) -> Answer {
    let incarnation = "01J9Z3ABCDEFGHJKMNPQRSTVWX".parse().unwrap();
    Ok(bytes(&ServersReply { incarnation, servers: entries }))
}

fn name(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

/// `s` with this state and `left` subjects, and another server that takes them.
fn draining_servers(state: ServerState, left: u64) -> Vec<ServerEntry> {
    let server = ServerEntry { assigned_subjects: left, ..entry("s", state) };
    vec![server, entry("t", ServerState::Alive)]
}

fn ordered(state: ServerState) -> Answer {
    Ok(bytes(&DrainReply { server: draining_servers(state, 2).remove(0) }))
}

fn unexpected(route: &AdminRoute) -> Answer {
    Err(ErrorReply::bad_request(format!("unexpected: {route:?}")))
}

/// A fleet in which the drain of `s` ends in this state after a few polls.
async fn draining_until(state: ServerState, left: u64) -> Fleet {
    Fleet::coordinated(move |route, _, before| match (route, before) {
        (AdminRoute::Servers, 0) => servers(draining_servers(ServerState::Alive, 3)),
        (AdminRoute::Servers, 1..=2) => servers(draining_servers(ServerState::Draining, 2)),
        (AdminRoute::Servers, _) => servers(draining_servers(state, left)),
        (AdminRoute::Drain(_), _) => ordered(ServerState::Draining),
        (other, _) => unexpected(other),
    })
    .await
}

/// `server drain` waits until the server is drained.
#[tokio::test]
async fn drain_command_waits_until_server_is_drained() {
    let fleet = draining_until(ServerState::Drained, 0).await;
    assert_eq!(fleet.run("server drain s").await.text(), "s is drained\n");
    let shown = draining_until(ServerState::Drained, 0).await.run("server drain s --json").await.json();
    assert_eq!((shown.len(), &shown[0]["name"], &shown[0]["state"]), (1, &json!("s"), &json!("drained")));
}

/// `server drain` exits with code 4 if the drain is cancelled, and with code 1 if the server is dead.
#[tokio::test]
async fn drain_command_fails_if_server_is_undrained_or_dead() {
    for (state, code) in [(ServerState::Alive, 4), (ServerState::Dead, 1)] {
        let ran = draining_until(state, 1).await.run("server drain s").await;
        assert_eq!(ran.exit_code(), code, "{}", ran.printed);
    }
}

/// `server drain --no-wait` returns at once, and `server undrain` cancels the drain.
#[tokio::test]
async fn drain_command_returns_at_once_with_no_wait() {
    let fleet = Fleet::coordinated(|route, _, _| match route {
        AdminRoute::Servers => servers(draining_servers(ServerState::Alive, 2)),
        AdminRoute::Drain(_) => ordered(ServerState::Draining),
        AdminRoute::Undrain(_) => ordered(ServerState::Alive),
        other => unexpected(other),
    })
    .await;
    assert_eq!(fleet.run("server drain s --no-wait").await.text(), "s is draining, with 2 subjects\n");
    assert_eq!(fleet.run("server undrain s --json").await.json()[0]["state"], "alive");
}

/// A command for an unknown server exits with code 3 and sends no order.
#[tokio::test]
async fn operator_command_for_unknown_server_is_not_found() {
    let fleet = Fleet::coordinated(|route, _, _| match route {
        AdminRoute::Servers => servers(draining_servers(ServerState::Alive, 2)),
        other => unexpected(other),
    })
    .await;
    for line in ["server drain u", "server undrain u", "server info u", "subject move app.s --to u"] {
        assert_eq!(fleet.run(line).await.exit_code(), 3, "{line}");
    }
}

/// A drain order without a reply is indeterminate; without a responder it is unavailable.
#[tokio::test]
async fn drain_command_without_reply_is_indeterminate() {
    assert_eq!(Fleet::empty().run("server drain s --deadline 50ms").await.exit_code(), 5);
    let fleet = Fleet::empty();
    let known = servers(draining_servers(ServerState::Alive, 2)).unwrap();
    fleet
        .answer(fleet.prefix.admin_servers().into(), move |request| request.responder.ok(known.clone()))
        .await;
    // The coordinator gets the order and never replies.
    let kept = Lock::new(Vec::new());
    let drain = fleet.prefix.admin_drain(&name("s")).into();
    fleet.answer(drain, move |request| kept.lock().push(request)).await;
    assert_eq!(fleet.run("server drain s --deadline 50ms").await.exit_code(), 7);
}

/// `server info` includes the health of a live process and sends no health request to a dead one.
#[tokio::test]
async fn server_info_includes_health_of_live_process() {
    let fleet = Fleet::empty();
    let known = vec![entry("s", ServerState::Alive), entry("gone", ServerState::Dead)];
    let known = servers(known).unwrap();
    fleet
        .answer(fleet.prefix.admin_servers().into(), move |request| request.responder.ok(known.clone()))
        .await;
    let health = json!({
        "kind": "server", "name": "s", "id": "s-1", "version": "0.1.0", "status": "degraded",
        "problems": ["lease expired"], "uptime_ms": 5, "figures": { "retained_slots": 12 },
    });
    let health = Bytes::from(health.to_string());
    fleet
        .answer(fleet.prefix.health_of("s").into(), move |request| request.responder.ok(health.clone()))
        .await;
    let shown = fleet.run("server info s").await;
    for part in ["s-01J9Z3ABCDEFGHJKMNPQRSTVWX", "alive", "degraded", "lease expired", "retained_slots", "12"]
    {
        assert!(shown.text().contains(part), "{part}: {}", shown.printed);
    }
    let shown = fleet.run("server info s --json").await.json();
    assert_eq!((&shown[0]["state"], &shown[0]["health"]["status"]), (&json!("alive"), &json!("degraded")));
    // A dead server gets no health request.
    let dead = fleet.run("server info gone --json").await.json();
    assert_eq!((&dead[0]["state"], dead[0].get("health_error")), (&json!("dead"), None));
}

/// `server metrics` prints the text of the process unchanged, and reports an error reply as a failure.
#[tokio::test]
async fn server_metrics_prints_text_or_error() {
    let fleet = Fleet::empty();
    let text = "# TYPE dormouse_changes_total counter\ndormouse_changes_total 7\n";
    fleet
        .answer(fleet.prefix.metrics_of("s").into(), move |request| request.responder.ok(Bytes::from(text)))
        .await;
    assert_eq!(fleet.run("server metrics s").await.text(), text);
    assert_eq!(fleet.run("server metrics s --json").await.json()[0]["metrics"], json!(text));
    fleet
        .answer(fleet.prefix.metrics_of("t").into(), |request| {
            request.responder.error(&ErrorReply::too_large("max_payload", 2, 1));
        })
        .await;
    let failed = fleet.run("server metrics t").await;
    assert_eq!(failed.exit_code(), 1);
}

/// Three pages of two, of which the second is empty.
fn page(payload: &[u8]) -> Answer {
    let request: SubjectsRequest = decode(payload).unwrap();
    let (names, cursor): (&[&str], _) = match request.after.as_ref().map(Subject::as_str) {
        None => (&["app.a", "app.b"], Some("app.b")),
        Some("app.b") => (&[], Some("app.m")),
        Some("app.m") => (&["app.y", "app.z"], None),
        Some(other) => panic!("{other}"),
    };
    // The reply shows the test the fields of the request.
    let server = request.server.unwrap_or_else(|| name(if request.pattern == ">" { "all" } else { "some" }));
    let subjects =
        names.iter().map(|name| Assigned { subject: subject(name), server: server.clone() }).collect();
    Ok(bytes(&SubjectsReply { subjects, cursor: cursor.map(subject) }))
}

/// `subject ls` reads all pages, even after an empty one, respects the limit, and prints one document per subject.
#[tokio::test]
async fn subject_ls_reads_all_pages_and_prints_one_line_each() {
    let fleet = Fleet::coordinated(|route, payload, _| match route {
        AdminRoute::Subjects => page(payload),
        other => unexpected(other),
    })
    .await;
    let listed = async |line: &str| {
        let shown = fleet.run(line).await.json();
        let field = |line: &Value| {
            format!("{} {}", line["subject"].as_str().unwrap(), line["server"].as_str().unwrap())
        };
        shown.iter().map(field).collect::<Vec<_>>()
    };
    assert_eq!(listed("subjects ls --json").await, ["app.a all", "app.b all", "app.y all", "app.z all"]);
    assert_eq!(listed("subjects ls app.* --limit 1 --json").await, ["app.a some"]);
    assert_eq!(listed("subject ls --server s --limit 3 --json").await, ["app.a s", "app.b s", "app.y s"]);
    let table = fleet.run("subjects ls").await;
    assert!(table.text().contains("SUBJECT") && table.text().contains("app.z"), "{}", table.text());
}

fn tenant(name: &str) -> TenantName {
    TenantName::new(name).unwrap()
}

/// `tenant ls` prints all pages, with use and limits.
#[tokio::test]
async fn tenant_list_command_prints_use_and_limits() {
    let limits = TenantLimits { requests: Some(100), uploads: Some(0), ..TenantLimits::NONE };
    let in_use = TenantUse { requests: 7, bytes: 4_096, refused: 3, ..TenantUse::default() };
    let fleet = Fleet::coordinated(move |route, payload, _| match route {
        AdminRoute::Tenants => {
            let TenantsRequest { after, .. } = decode(payload).unwrap();
            let (name, cursor) =
                if after.is_none() { ("acme", Some(tenant("acme"))) } else { ("umbrella", None) };
            let entry = TenantEntry { tenant: tenant(name), limits, in_use, servers: 2 };
            Ok(bytes(&TenantsReply { tenants: vec![entry], cursor }))
        }
        other => unexpected(other),
    })
    .await;
    let shown = fleet.run("tenant ls --json").await.json();
    assert_eq!((shown.len(), &shown[1]["tenant"]), (2, &json!("umbrella")));
    assert_eq!(
        shown[0],
        json!({
            "tenant": "acme",
            "servers": 2,
            "limits": { "requests": 100, "uploads": 0 },
            "use": {
                "requests": 7, "bytes": 4_096, "open_subjects": 0, "creations_per_minute": 0,
                "messages_per_second": 0, "stored_bytes": 0, "unshipped_bytes": 0, "uploads": 0,
                "requests_per_second": 0, "refused": 3
            }
        })
    );
    let table = fleet.run("tenants ls").await;
    for part in ["TENANT", "UNSHIPPED", "acme", "umbrella", "7 of 100", "0 of 0", "4096"] {
        assert!(table.text().contains(part), "{part}: {}", table.text());
    }
}

/// `tenant limit` sends the given limits, and prints all limits of the tenant.
#[tokio::test]
async fn tenant_limit_command_prints_all_limits() {
    let fleet = Fleet::coordinated(|route, payload, _| match route {
        AdminRoute::TenantLimit => {
            let TenantLimitRequest { tenant, clear, limits, .. } = decode(payload).unwrap();
            if tenant.is_shared() {
                return Err(ErrorReply::bad_request("no limits of its own"));
            }
            let before = TenantLimits { bytes: Some(4_096), ..TenantLimits::NONE };
            Ok(bytes(&TenantLimitReply { limits: if clear { limits } else { before.updated(limits) } }))
        }
        other => unexpected(other),
    })
    .await;
    let changed = fleet.run("tenant limit user.alice --requests 100").await;
    assert_eq!(changed.text(), "user.alice is limited to requests 100, bytes 4096\n");
    let shown = fleet.run("tenant limit acme --clear --uploads 0 --json").await.json();
    assert_eq!(shown, [json!({ "tenant": "acme", "limits": { "uploads": 0 } })]);
    assert_eq!(fleet.run("tenant limit acme --clear").await.text(), "acme has no limits\n");
    assert_eq!(fleet.run("tenant limit * --requests 1").await.exit_code(), 1);
    assert_eq!(Fleet::empty().run("tenant limit acme --clear --deadline 50ms").await.exit_code(), 5);
}

/// `subject move` waits until the move is done or the deadline ends, and fails for an unfit target.
#[tokio::test]
async fn move_command_waits_until_deadline() {
    let fleet = Fleet::coordinated(|route, payload, before| match route {
        AdminRoute::Servers => {
            let draining = entry("d", ServerState::Draining);
            servers(vec![entry("s", ServerState::Alive), draining, entry("gone", ServerState::Dead)])
        }
        AdminRoute::Move(moved) => {
            let MoveRequest { to, .. } = decode(payload).unwrap();
            let done = moved.as_str() == "app.quick" && before > 1;
            Ok(bytes(&MoveReply { from: Some(name("f")), to, done }))
        }
        other => unexpected(other),
    })
    .await;
    assert_eq!(fleet.run("subject move app.quick --to s").await.text(), "app.quick is assigned to s\n");
    assert_eq!(
        fleet.run("subject move app.slow --to s --no-wait --json").await.json(),
        [json!({ "subject": "app.slow", "from": "f", "to": "s", "done": false })]
    );
    assert_eq!(fleet.run("subject move app.slow --to s --deadline 50ms").await.exit_code(), 7);
    assert_eq!(fleet.run("subject move app.quick --to d").await.exit_code(), 4);
    assert_eq!(fleet.run("subject move app.quick --to gone").await.exit_code(), 5);
}

fn plan() -> Bytes {
    let planned = |number: u64| PlannedMove {
        subject: subject(&format!("app.{number}")),
        from: name("s"),
        to: name("t"),
        requests_per_second: 1_000 + number,
        bytes: 77,
    };
    let balance = ServerBalance {
        name: name("s"),
        capacity: 100,
        assigned_subjects: 21,
        assigned_subjects_after: 19,
        requests_per_second: 4_000,
        requests_per_second_after: 1_997,
    };
    bytes(&RebalanceReply { moves: vec![planned(1), planned(2)], servers: vec![balance] })
}

/// A coordinator that plans two moves, and reports `end` after a few polls.
async fn rebalancing(end: MovesReply) -> Fleet {
    Fleet::coordinated(move |route, payload, before| match route {
        AdminRoute::Moves => Ok(bytes(&match before {
            0 => MovesReply { pending: 0, done: 5, given_up: 1 },
            1..=2 => MovesReply { pending: 2, done: 5, given_up: 1 },
            _ => end.clone(),
        })),
        AdminRoute::Rebalance => {
            let request: RebalanceRequest = decode(payload).unwrap();
            assert!(request.dry_run || request.most_moves == 7);
            Ok(plan())
        }
        other => unexpected(other),
    })
    .await
}

/// `rebalance` prints the plan and waits for its moves; a dry run only prints it.
#[tokio::test]
async fn rebalance_command_prints_plan_and_waits_for_moves() {
    let fleet = rebalancing(MovesReply { pending: 0, done: 7, given_up: 1 }).await;
    let dry = fleet.run("rebalance --dry-run").await;
    for part in ["app.1", "1002", "77", "21", "19", "4000", "1997"] {
        assert!(dry.text().contains(part), "{part}: {}", dry.printed);
    }
    assert!(!dry.text().contains("moved"), "{}", dry.printed);
    let carried_out = rebalancing(MovesReply { pending: 0, done: 7, given_up: 1 }).await;
    let shown = carried_out.run("rebalance --most-moves 7 --json").await.json();
    assert_eq!((shown.len(), &shown[0]["moves"][1]["subject"]), (2, &json!("app.2")));
    assert_eq!(shown[1], json!({ "done": 2, "given_up": 0 }));
}

/// `rebalance` exits with code 1 if moves fail or if a coordinator restart forgets them.
#[tokio::test]
async fn rebalance_command_fails_if_moves_fail_or_are_forgotten() {
    for end in [
        MovesReply { pending: 0, done: 6, given_up: 2 },
        // The reply of a restarted coordinator.
        MovesReply { pending: 0, done: 0, given_up: 0 },
    ] {
        let ran = rebalancing(end).await.run("rebalance --most-moves 7").await;
        assert_eq!(ran.exit_code(), 1, "{}", ran.printed);
    }
}

/// If the outcome of a rebalance request is unknown, the CLI does not resend it and exits with code 7.
#[tokio::test]
async fn rebalance_command_is_never_resent() {
    let fleet = Fleet::coordinated(|route, _, before| match route {
        AdminRoute::Moves => Ok(bytes(&MovesReply { pending: 0, done: 0, given_up: 0 })),
        AdminRoute::Rebalance => {
            assert_eq!(before, 0);
            Err(ErrorReply::internal("a bug"))
        }
        other => unexpected(other),
    })
    .await;
    assert_eq!(fleet.run("rebalance").await.exit_code(), 7);
}
