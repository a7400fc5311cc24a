mod admin;
mod floods;
mod presence;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{AskError, Callers, InboxPrefixes, RequestError, SubscribeOptions, Subscription, ask};
use dormouse_protocol::fleet::{
    ClaimReply, ClaimRequest, HeartbeatRequest, JoinRequest, LeaseReply, LeaveRequest, LocateReply,
    LocateRequest, ReleaseRequest, ServerLoad, ServerState, ServersReply, ServersRequest,
};
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_protocol::{ErrorCode, LogId, Route, TenantRule, decode};
use dormouse_runtime::{SeededEntropy, VirtualClock};
use serde::de::DeserializeOwned;
use ulid::Ulid;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Outgoing};
use dormouse_protocol::fleet::{Acknowledged, GoneAnnouncement};
use dormouse_protocol::{ErrorReply, ProtocolVersion, ServerName, Subject, encode};
use serde::Serialize;

use super::*;
use crate::store::StoreChange;
use crate::store::memory::{MemoryDisk, MemoryStore};
use crate::store::{AssignmentCounts, StoreError, StoredState};

const TTL: Duration = Duration::from_secs(3);
const SECOND: Duration = Duration::from_secs(1);

/// A coordinator and a client, in one process.
struct World {
    broker: MemoryBroker,
    env: Env,
    disk: MemoryDisk,
    asker: Arc<dyn Bus>,
    prefix: Prefix,
    running: Option<(Coordinator, Tasks)>,
}

impl World {
    async fn started() -> Self {
        let disk = MemoryDisk::new();
        let store = Arc::new(MemoryStore::open(&disk));
        Self::started_with(disk, store).await
    }

    async fn started_with(disk: MemoryDisk, store: Arc<dyn Store>) -> Self {
        let clock = VirtualClock::starting_at(Duration::from_secs(1_700_000_000));
        Self::started_in(Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(7))), disk, store).await
    }

    async fn started_in(env: Env, disk: MemoryDisk, store: Arc<dyn Store>) -> Self {
        let broker = MemoryBroker::new();
        let asker = Arc::new(broker.connect(MemoryOptions::named("asker")));
        let mut world = Self { broker, env, disk, asker, prefix: Prefix::default(), running: None };
        world.start(store).await;
        world
    }

    async fn start(&mut self, store: Arc<dyn Store>) {
        let tasks = Tasks::new();
        let options = CoordinatorOptions {
            prefix: self.prefix.clone(),
            lease_ttl: TTL,
            inbox_prefixes: InboxPrefixes::default(),
            callers: Callers::default(),
            tenant_rule: TenantRule::default(),
        };
        let bus = Arc::new(self.broker.connect(MemoryOptions::named("coordinator")));
        let coordinator = Coordinator::start(options, store, bus, self.env.clone(), &tasks).await.unwrap();
        self.running = Some((coordinator, tasks));
    }

    /// Stops the coordinator and starts another one with the flushed state.
    async fn restart(&mut self) {
        let (mut coordinator, tasks) = self.running.take().unwrap();
        tasks.finish(SECOND).await.unwrap();
        coordinator.ended().await.unwrap();
        self.start(Arc::new(MemoryStore::open(&self.disk))).await;
    }

    async fn ask<T: DeserializeOwned>(&self, route: Route, request: &impl Writable) -> Result<T, ErrorCode> {
        match ask(&*self.asker, route, request, SECOND).await {
            Ok(reply) => Ok(reply),
            Err(AskError::Service(error)) => Err(error.code),
            Err(error) => panic!("{error}"),
        }
    }

    async fn join(&self, log: &LogId) -> Result<LeaseReply, ErrorCode> {
        let request = JoinRequest {
            v: ProtocolVersion::CURRENT,
            log: log.clone(),
            predecessor: None,
            capacity: 100,
            version: "0.1.0".into(),
        };
        self.ask(self.prefix.join(), &request).await
    }

    async fn heartbeat(&self, log: &LogId) -> Result<LeaseReply, ErrorCode> {
        let request = HeartbeatRequest {
            v: ProtocolVersion::CURRENT,
            log: log.clone(),
            load: ServerLoad::default(),
            draining: false,
            busiest: Vec::new(),
            tenants: Vec::new(),
        };
        self.ask(self.prefix.heartbeat(), &request).await
    }

    async fn locate(&self, name: &str) -> Result<String, ErrorCode> {
        let route = self.prefix.locate(&subject(name));
        let reply: LocateReply = self.ask(route, &LocateRequest::default()).await?;
        Ok(reply.server.to_string())
    }

    async fn claim(&self, name: &str, claimant: &LogId) -> Result<ClaimReply, ErrorCode> {
        let request = ClaimRequest { v: ProtocolVersion::CURRENT, claimant: claimant.clone(), owner: None };
        self.ask(self.prefix.claim(&subject(name)), &request).await
    }

    async fn servers(&self) -> ServersReply {
        self.ask(self.prefix.admin_servers(), &ServersRequest::default()).await.unwrap()
    }

    async fn health(&self) -> Health {
        let message = Outgoing::new(self.prefix.health_of(ServerName::COORDINATOR), Bytes::new());
        let reply = self.asker.request(message, SECOND).await.unwrap();
        serde_json::from_slice(&reply.payload).unwrap()
    }

    async fn listen(&self) -> Subscription {
        self.asker.subscribe(self.prefix.gone().into(), SubscribeOptions::default()).await.unwrap()
    }
}

trait Writable: Serialize + Sync {}
impl<T: Serialize + Sync> Writable for T {}

async fn gone(announcements: &mut Subscription) -> LogId {
    let wait = tokio::time::timeout(SECOND * 120, announcements.next());
    let delivery = wait.await.expect("an announcement").unwrap();
    decode::<GoneAnnouncement>(&delivery.payload).unwrap().log
}

fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

fn log(name: &str, process: u128) -> LogId {
    LogId::new(ServerName::new(name).unwrap(), Ulid::from_parts(1, process))
}

/// The coordinator serves join, heartbeat, locate, claim, release and leave over the bus, and its health follows.
#[tokio::test(start_paused = true)]
async fn coordinator_serves_join_claim_release_and_leave() {
    let world = World::started().await;
    let one = log("one", 1);
    assert_eq!(world.locate("a").await, Err(ErrorCode::Unavailable));
    assert_eq!(world.health().await.status, HealthStatus::Degraded);
    let lease = world.join(&one).await.unwrap();
    assert_eq!(lease.ttl_ms, 3_000);
    assert_eq!(world.heartbeat(&one).await, Ok(lease));
    assert_eq!(world.locate("a").await, Ok("one".into()));
    assert_eq!(world.claim("a", &one).await.unwrap().incarnation, lease.incarnation);
    let health = world.health().await;
    assert_eq!((health.status, health.figures["assigned_subjects"]), (HealthStatus::Ok, 1));
    assert_eq!(health.id, lease.incarnation.to_string());
    let entry = world.servers().await.servers.remove(0);
    assert_eq!((entry.log, entry.state, entry.assigned_subjects), (one.clone(), ServerState::Alive, 1));
    let request = ReleaseRequest { v: ProtocolVersion::CURRENT, log: one.clone() };
    world.ask::<Acknowledged>(world.prefix.release(&subject("a")), &request).await.unwrap();
    assert_eq!(world.servers().await.servers[0].assigned_subjects, 0);
    let mut announcements = world.listen().await;
    let request = LeaveRequest { v: ProtocolVersion::CURRENT, log: one.clone() };
    world.ask::<Acknowledged>(world.prefix.leave(), &request).await.unwrap();
    assert_eq!(gone(&mut announcements).await, one);
    assert_eq!(world.locate("a").await, Err(ErrorCode::Unavailable));
}

/// When a lease expires, the coordinator announces the server as gone and assigns its subjects to another server.
#[tokio::test(start_paused = true)]
async fn lease_expiry_announces_gone_server_and_moves_subjects() {
    let world = World::started().await;
    let (one, two) = (log("one", 1), log("two", 2));
    world.join(&one).await.unwrap();
    world.claim("a", &one).await.unwrap();
    world.join(&two).await.unwrap();
    let mut announcements = world.listen().await;
    for _ in 0..5 {
        tokio::time::sleep(SECOND).await;
        world.heartbeat(&two).await.unwrap();
    }
    assert_eq!(gone(&mut announcements).await, one);
    assert_eq!(world.locate("a").await, Ok("two".into()));
    assert_eq!(world.heartbeat(&one).await, Err(ErrorCode::UnknownServer));
}

/// A second server with the name of a member gets `name_in_use`.
#[tokio::test(start_paused = true)]
async fn server_with_name_of_member_gets_name_in_use() {
    let world = World::started().await;
    world.join(&log("one", 1)).await.unwrap();
    assert_eq!(world.join(&log("one", 2)).await, Err(ErrorCode::NameInUse));
}

/// A restarted coordinator answers stored assignments at once and assigns new subjects after the first heartbeat.
#[tokio::test(start_paused = true)]
async fn coordinator_restart_continues_with_stored_state() {
    let mut world = World::started().await;
    let one = log("one", 1);
    let before = world.join(&one).await.unwrap();
    world.claim("a", &one).await.unwrap();
    world.restart().await;
    assert_eq!(world.locate("a").await, Ok("one".into()));
    assert_eq!(world.locate("new").await, Err(ErrorCode::Unavailable), "one has sent no heartbeat yet");
    let after = world.heartbeat(&one).await.unwrap();
    assert_ne!(after.incarnation, before.incarnation);
    assert_eq!(world.locate("new").await, Ok("one".into()));
}

/// The coordinator rejects malformed payloads, newer versions, unknown routes and invalid joins with an error code and
/// continues to serve.
#[tokio::test(start_paused = true)]
async fn coordinator_rejects_malformed_requests_with_code() {
    #[derive(Serialize)]
    struct Future {
        v: u32,
    }
    let world = World::started().await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    let prefix = &world.prefix;
    let garbage = async |route: Route, payload: &[u8]| {
        let message = Outgoing::new(route, Bytes::copy_from_slice(payload));
        let reply = world.asker.request(message, SECOND).await.unwrap();
        assert!(reply.headers.get(ErrorReply::STATUS_HEADER).is_some());
        decode::<ErrorReply>(&reply.payload).unwrap().code
    };
    for route in [
        prefix.locate(&subject("a")),
        prefix.join(),
        prefix.heartbeat(),
        prefix.leave(),
        prefix.claim(&subject("a")),
        prefix.release(&subject("a")),
        prefix.admin_servers(),
        prefix.admin_subjects(),
        prefix.admin_drain(one.server()),
        prefix.admin_undrain(one.server()),
        prefix.admin_move(&subject("a")),
        prefix.admin_rebalance(),
        prefix.admin_moves(),
        prefix.limits(),
        prefix.admin_tenants(),
        prefix.admin_tenant_limit(),
    ] {
        for payload in [&b""[..], b"\xc1\xff", b"\x81\xa1v", b"hello"] {
            assert_eq!(garbage(route.clone(), payload).await, ErrorCode::BadRequest, "{route} {payload:?}");
        }
        let newer = world.ask::<Acknowledged>(route.clone(), &Future { v: 2 }).await;
        assert_eq!(newer, Err(ErrorCode::UnsupportedVersion), "{route}");
    }
    let long = format!("persist.coord.locate.{}", "s".repeat(600));
    for route in [
        "persist.admin.frob",
        "persist.admin.drain.coordinator",
        "persist.fleet.frob",
        "persist.fleet.frob.a",
        "persist.fleet.claim",
        &long,
    ] {
        assert_eq!(garbage(Route::new(route), b"\x80").await, ErrorCode::BadRequest, "{route}");
    }
    let foreign = JoinRequest {
        v: ProtocolVersion::CURRENT,
        log: log("two", 2),
        predecessor: Some(one.clone()),
        capacity: 100,
        version: String::new(),
    };
    assert_eq!(world.ask::<LeaseReply>(prefix.join(), &foreign).await, Err(ErrorCode::BadRequest));
    let oversized = JoinRequest { predecessor: None, version: "v".repeat(1_000), ..foreign };
    assert_eq!(world.ask::<LeaseReply>(prefix.join(), &oversized).await, Err(ErrorCode::TooLarge));
    // The coordinator still serves.
    assert_eq!(world.locate("a").await, Ok("one".into()));
    assert_eq!(world.servers().await.servers.len(), 1);
}

/// After it reconnects, the coordinator waits a full lease time before it declares a server dead.
#[tokio::test(start_paused = true)]
async fn coordinator_reconnect_declares_no_server_dead_at_once() {
    let world = World::started().await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    let mut announcements = world.listen().await;
    world.broker.disconnect("coordinator");
    tokio::time::sleep(TTL * 10).await;
    world.broker.reconnect("coordinator");
    tokio::time::sleep(SECOND).await;
    world.heartbeat(&one).await.unwrap();
    // The lease still expires if no further heartbeat arrives.
    assert_eq!(gone(&mut announcements).await, one);
    assert!(world.env.boot() >= Duration::from_secs(31) + crate::lease::dead_after(TTL));
}

/// The coordinator answers NATS service ping, info and stats requests.
#[tokio::test(start_paused = true)]
async fn coordinator_answers_nats_service_discovery() {
    let world = World::started().await;
    world.locate("a").await.unwrap_err();
    let ask = async |route: &str| -> serde_json::Value {
        let reply =
            world.asker.request(Outgoing::new(Route::new(route), Bytes::new()), SECOND).await.unwrap();
        serde_json::from_slice(&reply.payload).unwrap()
    };
    assert_eq!(ask("$SRV.PING").await["name"], "dormouse-coordinator");
    let info = ask("$SRV.INFO.dormouse-coordinator").await;
    assert_eq!(info["endpoints"].as_array().unwrap().len(), 3);
    let stats = ask("$SRV.STATS").await;
    let locate = stats["endpoints"].as_array().unwrap().iter().find(|endpoint| endpoint["name"] == "locate");
    assert_eq!(locate.unwrap()["num_errors"], 1);
}

/// A store that counts its calls, and whose flushes can fail or wait.
struct WatchedStore {
    store: MemoryStore,
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    fails: AtomicBool,
    gate: Mutex<Option<Gate>>,
    /// While locked, page reads wait.
    pages: Mutex<()>,
}

/// Blocks one flush: it reports its start, and waits until it may continue.
struct Gate {
    begun: oneshot::Sender<()>,
    open: oneshot::Receiver<()>,
}

impl WatchedStore {
    fn on(disk: &MemoryDisk) -> Arc<Self> {
        let store = MemoryStore::open(disk);
        Arc::new(Self {
            store,
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            fails: AtomicBool::new(false),
            gate: Mutex::default(),
            pages: Mutex::default(),
        })
    }

    /// Makes the next flush wait. The receiver reports that it has begun; the sender lets it continue.
    fn hold_next_flush(&self) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((begun, has_begun), (go_on, open)) = (oneshot::channel(), oneshot::channel());
        *self.gate.lock().unwrap() = Some(Gate { begun, open });
        (has_begun, go_on)
    }
}

impl Store for WatchedStore {
    fn load_state(&self) -> Result<StoredState, StoreError> {
        self.store.load_state()
    }

    fn assignments(&self, subjects: &[Subject]) -> Result<Vec<Option<ServerName>>, StoreError> {
        self.reads.fetch_add(1, Relaxed);
        self.store.assignments(subjects)
    }

    fn assigned_after(
        &self,
        prefix: &str,
        after: Option<&Subject>,
        rows: usize,
    ) -> Result<Vec<(Subject, ServerName)>, StoreError> {
        let _guard = self.pages.lock().unwrap();
        self.store.assigned_after(prefix, after, rows)
    }

    fn counts(&self) -> AssignmentCounts {
        self.store.counts()
    }

    fn write(&self, changes: &[StoreChange]) -> Result<(), StoreError> {
        self.writes.fetch_add(1, Relaxed);
        self.store.write(changes)
    }

    fn flush(&self) -> Result<(), StoreError> {
        if self.fails.load(Relaxed) {
            return Err(StoreError::Failed { what: "flush changes", source: "the disk is gone".into() });
        }
        if let Some(Gate { begun, open }) = self.gate.lock().unwrap().take() {
            begun.send(()).unwrap();
            open.blocking_recv().unwrap();
        }
        self.flushes.fetch_add(1, Relaxed);
        self.store.flush()
    }
}

/// If the flush of a change fails, the coordinator sends no reply and ends with the store error.
#[tokio::test(start_paused = true)]
async fn coordinator_replies_only_after_store_flush() {
    let disk = MemoryDisk::new();
    let store = WatchedStore::on(&disk);
    let mut world = World::started_with(disk, Arc::clone(&store) as Arc<dyn Store>).await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    store.fails.store(true, Relaxed);
    assert_eq!(world.locate("new").await, Ok("one".into()), "nothing to flush");
    let request = ClaimRequest { v: ProtocolVersion::CURRENT, claimant: one, owner: None };
    let message = Outgoing::new(world.prefix.claim(&subject("new")), encode(&request).unwrap());
    let error = world.asker.request(message, SECOND).await.unwrap_err();
    assert!(matches!(error, RequestError::Deadline { .. }), "{error}");
    let (coordinator, _) = world.running.as_mut().unwrap();
    let error = coordinator.ended().await.unwrap_err();
    assert!(matches!(error, RunError::Store(StoreError::Failed { .. })), "{error}");
}

/// At most 20 flushes store the assignments of 1,000 concurrent requests.
#[tokio::test(start_paused = true)]
async fn store_flush_is_shared_by_many_requests() {
    let disk = MemoryDisk::new();
    let store = WatchedStore::on(&disk);
    let world = World::started_with(disk, Arc::clone(&store) as Arc<dyn Store>).await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    let before = store.flushes.load(Relaxed);
    let names: Vec<_> = (0..1_000).map(|n| format!("s.{n}")).collect();
    let claimed = futures::future::join_all(names.iter().map(|name| world.claim(name, &one))).await;
    assert!(claimed.iter().all(Result::is_ok));
    let flushes = store.flushes.load(Relaxed) - before;
    assert!(flushes <= 20, "{flushes} flushes for 1,000 changes");
    assert_eq!(world.servers().await.servers[0].assigned_subjects, 1_000);
}

/// A request sees the changes of earlier requests in the same batch, so one subject is assigned once.
#[tokio::test(start_paused = true)]
async fn request_sees_earlier_changes_of_its_batch() {
    let world = World::started().await;
    let logs = [log("one", 1), log("two", 2)];
    for log in &logs {
        world.join(log).await.unwrap();
    }
    let claims = (0..100).map(|n| world.claim("same", &logs[n % 2]));
    let claimed = futures::future::join_all(claims).await;
    assert_eq!(claimed.iter().filter(|claimed| claimed.is_ok()).count(), 50, "one of the two servers has it");
    assert_eq!(world.servers().await.servers.iter().map(|entry| entry.assigned_subjects).sum::<u64>(), 1);
}

/// 10,000 look-ups of subjects that are never written cost no write and no flush, and leave no assignment.
#[tokio::test(start_paused = true)]
async fn locate_of_unwritten_subjects_writes_nothing() {
    let disk = MemoryDisk::new();
    let store = WatchedStore::on(&disk);
    let world = World::started_with(disk, Arc::clone(&store) as Arc<dyn Store>).await;
    world.join(&log("one", 1)).await.unwrap();
    let count = || (store.writes.load(Relaxed), store.flushes.load(Relaxed));
    let before = count();
    for hundred in 0..100 {
        let names: Vec<_> = (0..100).map(|n| format!("never.{hundred}.{n}")).collect();
        let located = futures::future::join_all(names.iter().map(|name| world.locate(name))).await;
        assert!(located.iter().all(|server| *server == Ok("one".into())));
    }
    assert_eq!(count(), before);
    assert_eq!(world.servers().await.servers[0].assigned_subjects, 0);
    assert_eq!(world.health().await.figures["assigned_subjects"], 0);
}

/// The coordinator answers a heartbeat while the flush for another request runs.
#[tokio::test]
async fn heartbeat_does_not_wait_for_store_flush() {
    let disk = MemoryDisk::new();
    let store = WatchedStore::on(&disk);
    let world = World::started_in(Env::system(), disk, Arc::clone(&store) as Arc<dyn Store>).await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    let (begun, go_on) = store.hold_next_flush();
    let beats = async {
        begun.await.unwrap();
        let flushes = store.flushes.load(Relaxed);
        for _ in 0..3 {
            world.heartbeat(&one).await.unwrap();
        }
        assert_eq!(store.flushes.load(Relaxed), flushes, "the flush still runs");
        go_on.send(()).unwrap();
    };
    let (claimed, ()) = tokio::join!(world.claim("new", &one), beats);
    claimed.unwrap();
}

/// If a heartbeat or claim depends on a running flush, the coordinator decides it after the flush.
#[tokio::test]
async fn requests_during_store_flush_are_decided_after_it() {
    let disk = MemoryDisk::new();
    let store = WatchedStore::on(&disk);
    let world = World::started_in(Env::system(), disk, Arc::clone(&store) as Arc<dyn Store>).await;
    let (one, two) = (log("one", 1), log("two", 2));
    world.join(&one).await.unwrap();
    let (begun, go_on) = store.hold_next_flush();
    let during = async {
        begun.await.unwrap();
        let last = async {
            // The heartbeat of `two` waits: its join is being flushed.
            world.heartbeat(&one).await.unwrap();
            go_on.send(()).unwrap();
        };
        let (of_two, claimed, ()) = tokio::join!(world.heartbeat(&two), world.claim("a", &one), last);
        of_two.unwrap();
        claimed.unwrap();
    };
    let (joined, ()) = tokio::join!(world.join(&two), during);
    joined.unwrap();
}

/// Heartbeats and ticks read no assignments from the store.
#[tokio::test(start_paused = true)]
async fn heartbeats_and_ticks_read_no_assignments() {
    let disk = MemoryDisk::new();
    let store = WatchedStore::on(&disk);
    let world = World::started_with(disk, Arc::clone(&store) as Arc<dyn Store>).await;
    let one = log("one", 1);
    world.join(&one).await.unwrap();
    for _ in 0..10 {
        tokio::time::sleep(SECOND).await;
        world.heartbeat(&one).await.unwrap();
    }
    assert_eq!(store.reads.load(Relaxed), 0);
    world.locate("a").await.unwrap();
    assert_eq!(store.reads.load(Relaxed), 1);
}
