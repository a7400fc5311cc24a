use bytes::Bytes;
use dormouse_bus::Outgoing;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_protocol::fleet::{HeartbeatRequest, LeaveRequest, LocateRequest, ServerLoad};
use dormouse_protocol::{LogId, ProtocolVersion, Route, Subject, encode};
use futures::future::BoxFuture;
use futures::poll;
use ulid::Ulid;

use super::super::locates::{LOCATE_BATCH, LOCATE_INTAKE};
use super::*;

const NOW: Duration = Duration::from_secs(1_000);

/// A sender of requests to an inbox. When [`Sender::send`] returns, the request has arrived.
struct Sender {
    bus: Arc<dyn Bus>,
    waiting: Vec<BoxFuture<'static, ()>>,
}

impl Sender {
    async fn send(&mut self, route: Route, payload: Bytes) {
        let bus = Arc::clone(&self.bus);
        let request = async move {
            let _ = bus.request(Outgoing::new(route, payload), Duration::from_secs(60)).await;
        };
        // Without `unconstrained`, tokio's budget would let only about a hundred requests pass at the first poll.
        let mut request: BoxFuture<'static, ()> = Box::pin(tokio::task::unconstrained(request));
        assert!(poll!(&mut request).is_pending());
        self.waiting.push(request);
    }

    async fn beat(&mut self, name: &str) {
        let request = HeartbeatRequest {
            v: ProtocolVersion::CURRENT,
            log: log(name),
            load: ServerLoad::default(),
            draining: false,
            busiest: Vec::new(),
            tenants: Vec::new(),
        };
        self.send(Prefix::default().heartbeat(), encode(&request).unwrap()).await;
    }

    async fn locate(&mut self, name: &str) {
        let route = Prefix::default().locate(&Subject::new(name).unwrap());
        self.send(route, encode(&LocateRequest::default()).unwrap()).await;
    }
}

async fn open() -> (RequestInbox, Sender) {
    let broker = MemoryBroker::new();
    let bus: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("coordinator")));
    let on = ListenContext {
        bus: &bus,
        env: &Env::system(),
        tasks: &Tasks::new(),
        prefix: &Prefix::default(),
        inbox_prefixes: &InboxPrefixes::default(),
        callers: Callers::default(),
        tenant_rule: TenantRule::default(),
    };
    let inbox = RequestInbox::open(on).await.unwrap();
    let bus = Arc::new(broker.connect(MemoryOptions::named("asker")));
    (inbox, Sender { bus, waiting: Vec::new() })
}

fn log(name: &str) -> LogId {
    LogId::new(ServerName::new(name).unwrap(), Ulid::from_parts(1, 1))
}

fn beats(heartbeats: &[MachineRequest]) -> Vec<String> {
    let name = |asked: &MachineRequest| match &asked.input {
        CoordinatorInput::Heartbeat(request) => request.log.server().to_string(),
        other => panic!("{other:?}"),
    };
    heartbeats.iter().map(name).collect()
}

/// The inbox returns a heartbeat at once, and no batch has more than a bounded number of look-ups.
#[tokio::test(start_paused = true)]
async fn inbox_finds_heartbeat_behind_request_flood() {
    let (mut inbox, mut sender) = open().await;
    let prefix = Prefix::default();
    for _ in 0..2 * LOCATE_BATCH {
        sender.locate("a").await;
    }
    sender.beat("one").await;
    for (expected, locates) in [(&["one"][..], LOCATE_BATCH), (&[], LOCATE_BATCH), (&[], 0)] {
        let heartbeats = inbox.heartbeats(&prefix, &HashSet::new());
        assert_eq!(beats(&heartbeats.arrived), expected);
        assert!(heartbeats.complete, "other waiting requests do not matter");
        assert_eq!(inbox.take(&prefix, NOW).asked.len(), locates);
    }
}

/// A batch takes in a bounded number of look-ups, and a polite tenant's look-up is decided in the batch that takes it in.
#[tokio::test(start_paused = true)]
async fn locate_of_polite_tenant_is_in_next_batch() {
    let (mut inbox, mut sender) = open().await;
    for n in 0..LOCATE_INTAKE {
        sender.locate(&format!("greedy.{n}")).await;
    }
    sender.locate("polite.a").await;
    let prefix = Prefix::default();
    let mut located = || -> Vec<String> {
        let asked = inbox.take(&prefix, NOW).asked.into_iter();
        asked
            .map(|asked| match asked.input {
                CoordinatorInput::Locate(subject) => subject.to_string(),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let first = located();
    assert!(first.len() == LOCATE_BATCH && first.iter().all(|name| name.starts_with("greedy.")));
    let second = located();
    assert!(second.len() == LOCATE_BATCH && second[..2].contains(&"polite.a".to_owned()), "{second:?}");
}

/// If more heartbeats wait than one batch holds, the inbox reports that it did not read all of them.
#[tokio::test(start_paused = true)]
async fn inbox_reports_heartbeats_beyond_one_batch() {
    let (mut inbox, mut sender) = open().await;
    for _ in 0..BATCH {
        sender.beat("one").await;
    }
    sender.beat("two").await;
    let heartbeats = inbox.heartbeats(&Prefix::default(), &HashSet::new());
    assert!(!heartbeats.complete && heartbeats.arrived.len() == BATCH);
    let heartbeats = inbox.heartbeats(&Prefix::default(), &HashSet::new());
    assert!(heartbeats.complete && beats(&heartbeats.arrived) == ["two"]);
}

/// The inbox defers heartbeats of servers with unflushed changes and keeps them in order with the other requests.
#[tokio::test(start_paused = true)]
async fn inbox_keeps_order_of_deferred_requests() {
    let (mut inbox, mut sender) = open().await;
    let prefix = Prefix::default();
    let leave = LeaveRequest { v: ProtocolVersion::CURRENT, log: log("two") };
    sender.beat("two").await;
    sender.send(prefix.leave(), encode(&leave).unwrap()).await;
    sender.beat("one").await;
    let unflushed = HashSet::from([ServerName::new("two").unwrap()]);
    assert!(inbox.fleet_arrival().await);
    assert_eq!(beats(&inbox.heartbeats(&prefix, &unflushed).arrived), ["one"]);
    assert!(inbox.arrival().await, "a request has already arrived");
    let asked: Vec<CoordinatorInput> =
        inbox.take(&prefix, NOW).asked.into_iter().map(|asked| asked.input).collect();
    assert!(
        matches!(asked.as_slice(), [CoordinatorInput::Heartbeat(_), CoordinatorInput::Leave(_)]),
        "{asked:?}"
    );
}
