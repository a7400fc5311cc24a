//! Commands against a scripted fleet on the in-memory bus: requests, output and exit codes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions, Permission};
use dormouse_bus::{Bus, Incoming, Outgoing, ServeOptions, serve};
use dormouse_protocol::data::{
    DeleteAllReply, DeleteReply, DeleteRequest, GetAllReply, GetReply, KeysReply, SetOutcome, SetReply,
    SetRequest, SetResult,
};
use dormouse_protocol::fleet::{LocateReply, ServerEntry, ServerLoad, ServerState, ServersReply};
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_protocol::message::SetChange;
use dormouse_protocol::{
    Change, ErrorCode, ErrorReply, Event, Headers, Incarnation, Message, MessageId, Op, Position, Prefix,
    ProtocolVersion, Rev, RoutePattern, Seq, ServerName, Subject, Term, Timestamp, decode, encode,
};
use dormouse_runtime::{Env, Lock, Tasks};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::Cli;
use crate::error::FailureKind;
use crate::output::Output;
use crate::session::Session;

mod operator;

const POSITION: Position = Position { term: Term::new(1), rev: Rev::new(3) };

type Script = fn(Op, &[u8]) -> Result<Bytes, ErrorReply>;

/// A fleet whose only server answers by a script.
struct Fleet {
    broker: MemoryBroker,
    bus: Arc<dyn Bus>,
    env: Env,
    tasks: Tasks,
    prefix: Prefix,
}

fn bytes(reply: &impl Serialize) -> Bytes {
    encode(reply).unwrap()
}

impl Fleet {
    fn empty() -> Self {
        let broker = MemoryBroker::new();
        let bus: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("fleet")));
        Self { broker, bus, env: Env::system(), tasks: Tasks::new(), prefix: Prefix::default() }
    }

    async fn scripted(script: Script) -> Self {
        let fleet = Self::empty();
        let name = ServerName::new("s").unwrap();
        let located = bytes(&LocateReply { server: name.clone() });
        fleet.answer(fleet.prefix.locate_all(), move |request| request.responder.ok(located.clone())).await;
        let prefix = fleet.prefix.clone();
        fleet
            .answer(fleet.prefix.server_all(&name), move |request| {
                let route = prefix.parse_server(&name, request.route.as_str()).unwrap();
                match script(route.op, &request.payload) {
                    Ok(reply) => request.responder.ok(reply),
                    Err(error) => request.responder.error(&error),
                }
            })
            .await;
        fleet
    }

    async fn answer(&self, pattern: RoutePattern, reply: impl Fn(Incoming) + Send + 'static) {
        let options = ServeOptions::default();
        let mut requests = serve(&self.bus, &self.env, &self.tasks, pattern, options).await.unwrap();
        self.tasks.spawn("script", async move {
            while let Some(request) = requests.next().await {
                reply(request);
            }
        });
    }

    /// Runs a command line with all permissions.
    async fn run(&self, line: &str) -> CommandRun {
        self.run_as(MemoryOptions::named("cli"), line).await
    }

    async fn run_as(&self, options: MemoryOptions, line: &str) -> CommandRun {
        let cli = Cli::read(std::iter::once("dormouse").chain(line.split_whitespace())).unwrap();
        let printed = Arc::new(Lock::new(Vec::new()));
        let output = Output::to(cli.global.json, Arc::clone(&printed));
        let bus = Arc::new(self.broker.connect(options));
        let session =
            Session::with_bus(bus, cli.global.prefix, cli.global.deadline.into(), output).await.unwrap();
        let outcome = super::run(&session, cli.command).await;
        let kind = outcome.err().map(|failure| failure.kind());
        let printed = String::from_utf8(printed.lock().clone()).unwrap();
        CommandRun { printed, kind }
    }
}

struct CommandRun {
    printed: String,
    kind: Option<FailureKind>,
}

impl CommandRun {
    fn text(&self) -> &str {
        assert_eq!(self.kind, None, "{}", self.printed);
        &self.printed
    }

    fn json(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn exit_code(&self) -> u8 {
        self.kind.map_or(0, FailureKind::exit_code)
    }
}

/// A server as the coordinator sees it.
fn entry(name: &str, state: ServerState) -> ServerEntry {
    ServerEntry {
        name: ServerName::new(name).unwrap(),
        log: format!("{name}-01J9Z3ABCDEFGHJKMNPQRSTVWX").parse().unwrap(),
        state,
        heard_ms_ago: Some(1_500),
        capacity: 100,
        assigned_subjects: 7,
        load: ServerLoad::default(),
        version: "0.1.0".to_owned(),
    }
}

fn message(seq: u64, key: Option<&str>, value: &'static str) -> Message {
    Message {
        seq: Seq::new(seq),
        term: Term::new(1),
        rev: Rev::new(seq),
        key: key.map(str::to_owned),
        value: Some(Bytes::from_static(value.as_bytes())),
        headers: Headers::default(),
        timestamp: Timestamp::from_micros(0),
        size: value.len() as u64,
        value_omitted: false,
        expires_at: None,
    }
}

fn one(message: Option<Message>) -> Result<Bytes, ErrorReply> {
    Ok(bytes(&GetReply { position: POSITION, messages: message.into_iter().collect(), answered: 1 }))
}

/// `get` prints only the bytes of the value; with `--json` it prints text and base64.
#[tokio::test]
async fn get_prints_only_value_bytes() {
    let fleet = Fleet::scripted(|_, _| one(Some(message(3, Some("k"), "line\n\tend")))).await;
    assert_eq!(fleet.run("get app.s --key k").await.text(), "line\n\tend");
    let shown = fleet.run("get app.s --key k --json").await.json();
    assert_eq!(shown.len(), 1);
    assert_eq!(
        (&shown[0]["value_text"], &shown[0]["value_base64"]),
        (&json!("line\n\tend"), &json!("bGluZQoJZW5k"))
    );
}

/// The exit code matches the kind of failure of the command.
#[tokio::test]
async fn cli_exit_code_matches_failure() {
    let absent = Fleet::scripted(|_, _| one(None)).await;
    assert_eq!(absent.run("get app.s --key k").await.exit_code(), 3);

    let conflict = Fleet::scripted(|_, _| {
        let held = MessageId { term: Term::new(1), seq: Seq::new(1) };
        let refused = SetOutcome::Error(ErrorReply::key_exists(held));
        Ok(bytes(&SetReply { results: vec![refused] }))
    })
    .await;
    assert_eq!(conflict.run("set app.s v --key k --expect-absent").await.exit_code(), 4);

    let empty = Fleet::empty();
    assert_eq!(empty.run("get app.s --key k --deadline 50ms").await.exit_code(), 5);
    assert_eq!(empty.run("server ls --deadline 50ms").await.exit_code(), 5);

    let unknown = Fleet::scripted(|_, _| Err(ErrorReply::new(ErrorCode::Indeterminate, "lost"))).await;
    assert_eq!(unknown.run("set app.s v").await.exit_code(), 7);

    let broken = Fleet::scripted(|_, _| Err(ErrorReply::new(ErrorCode::Internal, "a bug"))).await;
    for (line, code) in
        [("get app.s --key k", 1), ("ls app.s", 1), ("keys app.s", 1), ("info app.s", 1), ("set app.s v", 7)]
    {
        assert_eq!(broken.run(line).await.exit_code(), code, "{line}");
    }

    let unsupported = Fleet::scripted(|_, _| Err(ErrorReply::unsupported("that"))).await;
    assert_eq!(unsupported.run("subject flush app.s").await.exit_code(), 1);
}

/// A denied publish or subscribe permission ends the command at once with exit code 6.
#[tokio::test]
async fn permission_denied_exits_6_at_once() {
    let fleet = Fleet::scripted(|_, _| one(None)).await;
    let deny = Permission { deny: vec![RoutePattern::new("persist.coord.>")], ..Permission::default() };
    let options = MemoryOptions { publish: deny, ..MemoryOptions::named("cli") };
    assert_eq!(fleet.run_as(options, "get app.s --key k").await.exit_code(), 6);
    let deny = Permission { deny: vec![RoutePattern::new("persist.events.>")], ..Permission::default() };
    let options = MemoryOptions { subscribe: deny, ..MemoryOptions::named("cli") };
    assert_eq!(fleet.run_as(options, "watch app.s").await.exit_code(), 6);
}

/// `set` sends the key, value, headers and expectation of the command line, and reads the value from a file.
#[tokio::test]
async fn set_sends_key_value_headers_and_expectation() {
    let fleet = Fleet::scripted(|op, payload| {
        let request: SetRequest = decode(payload).unwrap();
        let set = &request.sets[0];
        assert_eq!((op, request.sets.len()), (Op::Set, 1));
        // The seq of the reply shows the test how the request was decoded.
        let seq = match (set.key.as_deref(), set.value.as_deref(), set.headers.get("h"), set.expect) {
            (Some("k"), Some(b"v"), Some("x"), None) => 1,
            (None, None, None, None) => 2,
            (None, Some(b"file"), None, Some(dormouse_protocol::data::Expect::Last(None))) => 3,
            _ => 99,
        };
        let written = SetResult {
            seq: Seq::new(seq),
            term: Term::new(1),
            rev: Rev::new(7),
            timestamp: Timestamp::from_micros(5),
            duplicate: false,
        };
        Ok(bytes(&SetReply { results: vec![SetOutcome::Ok(written)] }))
    })
    .await;
    assert_eq!(fleet.run("set app.s v --key k --header h:x").await.text(), "seq 1  term 1  rev 7\n");
    assert_eq!(
        fleet.run("set app.s --null --json").await.json(),
        [json!({"subject": "app.s", "seq": 2, "term": 1, "rev": 7, "timestamp_us": 5, "duplicate": false})]
    );
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("value");
    std::fs::write(&file, "file").unwrap();
    let line = format!("set app.s --expect-absent --file {}", file.display());
    assert_eq!(fleet.run(&line).await.text(), "seq 3  term 1  rev 7\n");
    let missing = format!("set app.s --file {}", directory.path().join("missing").display());
    assert_eq!(fleet.run(&missing).await.exit_code(), 1);
}

/// `ls` and `keys` print one JSON document per line with `--json`.
#[tokio::test]
async fn list_commands_print_one_json_document_per_line() {
    let fleet = Fleet::scripted(|op, _| match op {
        Op::GetAll => Ok(bytes(&GetAllReply {
            position: POSITION,
            messages: vec![message(1, None, "a"), message(2, Some("k"), "b")],
            cursor: None,
        })),
        _ => Ok(bytes(&KeysReply {
            position: POSITION,
            keys: vec!["k1".to_owned(), "k2".to_owned()],
            cursor: None,
        })),
    })
    .await;
    let shown = fleet.run("ls app.s --json").await.json();
    assert_eq!(shown.iter().map(|line| line["seq"].clone()).collect::<Vec<_>>(), [json!(1), json!(2)]);
    let table = fleet.run("ls app.s").await;
    assert!(table.text().contains("SEQ") && table.text().contains("1970-01-01T00:00:00"), "{}", table.text());
    assert_eq!(fleet.run("keys app.s").await.text(), "k1\nk2\n");
    assert_eq!(fleet.run("keys app.s --json").await.json(), [json!({"key": "k1"}), json!({"key": "k2"})]);
}

/// `rm` reports the number of removed messages.
#[tokio::test]
async fn rm_reports_number_of_removed_messages() {
    let fleet = Fleet::scripted(|op, payload| {
        if op == Op::DeleteAll {
            return Ok(bytes(&DeleteAllReply { position: POSITION, count: 5, duplicate: false }));
        }
        let request: DeleteRequest = decode(payload).unwrap();
        // All or none: one request for all names.
        let seqs = match request.keys.len() {
            3 => vec![Seq::new(1), Seq::new(4)],
            _ => request.seqs,
        };
        Ok(bytes(&DeleteReply { position: POSITION, seqs, duplicate: false }))
    })
    .await;
    assert_eq!(fleet.run("rm app.s --key absent --key k --key l").await.text(), "2 removed\n");
    assert_eq!(fleet.run("rm app.s --seq 1 --seq 2 --seq 3").await.text(), "3 removed\n");
    for line in ["rm app.s --all --json", "rm app.s --up-to 7 --json", "rm app.s --keep-last 1 --json"] {
        assert_eq!(fleet.run(line).await.json(), [json!({"subject": "app.s", "removed": 5})], "{line}");
    }
}

/// `watch` ends after the requested number of changes.
#[tokio::test]
async fn watch_ends_after_requested_count() {
    let fleet = Fleet::scripted(|_, _| one(Some(message(3, Some("k"), "v")))).await;
    let subject = Subject::new("app.s").unwrap();
    let event = Event {
        v: ProtocolVersion::CURRENT,
        term: Term::new(1),
        term_base: Rev::new(0),
        rev: Rev::new(5),
        changes: (4..=5)
            .map(|seq| Change::Set(SetChange { message: message(seq, Some("k"), "v"), replaces: None }))
            .collect(),
    };
    let route = fleet.prefix.events(&subject);
    let watching = fleet.run("watch app.s --key k --count 2 --history --json");
    tokio::pin!(watching);
    // The test repeats the event until the watch has subscribed and received it.
    let ran = loop {
        tokio::select! {
            ran = &mut watching => break ran,
            () = tokio::time::sleep(Duration::from_millis(1)) => {
                fleet.bus.publish(Outgoing::new(route.clone(), bytes(&event))).await.unwrap();
            }
        }
    };
    let kinds: Vec<Value> = ran.json().into_iter().map(|line| line["type"].clone()).collect();
    assert_eq!(kinds, [json!("set"), json!("caught_up"), json!("set")]);
}

/// `server health` checks the coordinator and each live server, and the exit code reflects the worst status.
#[tokio::test]
async fn health_command_checks_live_servers_and_sets_exit_code() {
    let fleet = Fleet::empty();
    let servers = bytes(&ServersReply {
        incarnation: "01J9Z3ABCDEFGHJKMNPQRSTVWX".parse::<Incarnation>().unwrap(),
        servers: vec![entry("well", ServerState::Alive), entry("gone", ServerState::Dead)],
    });
    fleet
        .answer(fleet.prefix.admin_servers().into(), move |request| request.responder.ok(servers.clone()))
        .await;
    for (name, status) in [
        ("coordinator", HealthStatus::Ok),
        ("well", HealthStatus::Ok),
        ("ill", HealthStatus::Degraded),
        ("deaf", HealthStatus::NotServing),
    ] {
        let health = Health {
            kind: "server".to_owned(),
            name: name.to_owned(),
            id: name.to_owned(),
            version: "0.1.0".to_owned(),
            status,
            problems: Vec::new(),
            uptime_ms: 61_000,
            figures: std::collections::BTreeMap::new(),
        };
        let health = Bytes::from(serde_json::to_vec(&health).unwrap());
        fleet
            .answer(fleet.prefix.health_of(name).into(), move |request| request.responder.ok(health.clone()))
            .await;
    }
    let all = fleet.run("server health --json").await.json();
    let names: Vec<&Value> = all[0].as_array().unwrap().iter().map(|finding| &finding["name"]).collect();
    assert_eq!(names, ["coordinator", "well"]);
    let ill = fleet.run("server health ill").await;
    assert_eq!(ill.exit_code(), 1);
    assert!(ill.printed.contains("degraded") && ill.printed.contains("1m 1s"), "{}", ill.printed);
    assert_eq!(fleet.run("server health ill --accept degraded").await.exit_code(), 0);
    assert_eq!(fleet.run("server health deaf --accept degraded").await.exit_code(), 1);
    let silent = fleet.run("server health silent --json").await;
    assert_eq!(silent.exit_code(), 5);
    assert!(silent.printed.contains("\"error\""), "{}", silent.printed);

    let list = fleet.run("server ls").await;
    assert!(list.text().contains("1s ago") && list.text().contains("dead"), "{}", list.text());
    assert_eq!(fleet.run("server ls --json").await.json()[0]["servers"][0]["name"], "well");
    assert_eq!(fleet.run("subject locate app.s --deadline 50ms").await.exit_code(), 5);
}
