//! A fleet in one process: servers with the real engine on a bucket in a temporary directory, an in-memory bus, and a
//! scripted coordinator.

#![allow(dead_code)] // Each test file uses a part.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bucket::open_bucket;
use dormouse_bus::memory::{MemoryBroker, MemoryOptions, Network};
use dormouse_bus::{
    AskError, Bus, Callers, InboxPrefixes, Incoming, Outgoing, Reply, ServeOptions, ask, serve,
};
use dormouse_engine::{Engine, EngineSettings, PreparedEngine};
use dormouse_persist_server::server::{ProcessExit, Server, ServerSettings, ServerSide, ServerSides};
use dormouse_protocol::admin::HandOverOrder;
use dormouse_protocol::data::{GetReply, GetRequest, SetItem, SetOutcome, SetReply, SetRequest, SetResult};
use dormouse_protocol::fleet::{
    Acknowledged, BusySubject, ClaimReply, ClaimRequest, HeartbeatRequest, JoinRequest, LeaseReply,
    LimitsReply, LimitsRequest,
};
use dormouse_protocol::health::Health;
use dormouse_protocol::route::FleetRoute;
use dormouse_protocol::tenant::{BusyTenant, LimitedTenant, LimitsRevision};
use dormouse_protocol::{
    ErrorCode, ErrorReply, Incarnation, LogId, Op, Prefix, ProtocolVersion, Route, ServerName, Subject,
    TenantRule, decode, encode,
};
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

/// TTL of the leases that the scripted coordinator grants.
pub const TTL: Duration = Duration::from_secs(3);
/// Longer than the server uses a lease.
pub const LAPSE: Duration = Duration::from_millis(2_200);

/// The refusal of a call, if the script has one.
pub type Say<T> = Arc<dyn Fn(&T) -> Option<ErrorReply> + Send + Sync>;

/// The script of the coordinator, and its record of calls.
pub struct Script {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Names of the servers that get no reply.
    pub silent_to: Vec<String>,
    /// Refusal of a join.
    pub refuse_join: Say<JoinRequest>,
    /// Refusal of a heartbeat.
    pub refuse_heartbeat: Say<HeartbeatRequest>,
    /// Refusal of a claim.
    pub refuse_claim: Say<ClaimRequest>,
    /// Names of the servers with a drain order.
    pub drained: Vec<String>,
    /// Number of the next releases that get no reply.
    pub releases_unanswered: usize,
    /// The busiest subjects of the last heartbeat.
    pub busiest: Vec<BusySubject>,
    /// The busiest tenants of the last heartbeat.
    pub tenants: Vec<BusyTenant>,
    /// The limits of tenants, in the order of the tenants. Each page has one.
    pub limits: Vec<LimitedTenant>,
    /// The received calls, one short text each.
    pub calls: Vec<String>,
}

/// A coordinator that follows its [`Script`].
#[derive(Clone)]
pub struct Coordinator {
    script: Arc<Mutex<Script>>,
}

impl Coordinator {
    pub fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// How often it has received this call.
    pub fn times(&self, call: &str) -> usize {
        self.script().calls.iter().filter(|received| *received == call).count()
    }

    pub fn received(&self, call: &str) -> bool {
        self.script().calls.iter().any(|received| received == call)
    }

    async fn start(bus: Arc<dyn Bus>, env: Env, tasks: &Tasks) -> Self {
        let script = Script {
            incarnation: Incarnation::new(env.ulid()),
            silent_to: Vec::new(),
            refuse_join: Arc::new(|_| None),
            refuse_heartbeat: Arc::new(|_| None),
            refuse_claim: Arc::new(|_| None),
            drained: Vec::new(),
            releases_unanswered: 0,
            busiest: Vec::new(),
            tenants: Vec::new(),
            limits: Vec::new(),
            calls: Vec::new(),
        };
        let coordinator = Self { script: Arc::new(Mutex::new(script)) };
        let pattern = Prefix::default().fleet_all();
        let mut requests = serve(&bus, &env, tasks, pattern, ServeOptions::default()).await.unwrap();
        let answering = coordinator.clone();
        tasks.spawn("coordinator", async move {
            while let Some(incoming) = requests.next().await {
                answering.answer(incoming);
            }
        });
        coordinator
    }

    fn answer(&self, incoming: Incoming) {
        let Incoming { route, payload, responder, .. } = incoming;
        let mut script = self.script();
        let incarnation = script.incarnation;
        let drained = script.drained.clone();
        let limits = script.limits.iter().map(|one| (&one.tenant, &one.limits));
        let revision = LimitsRevision::of(limits);
        let lease = move |log: &LogId| LeaseReply {
            incarnation,
            ttl_ms: u64::try_from(TTL.as_millis()).unwrap(),
            draining: drained.iter().any(|name| name == log.server().as_str()),
            limits: revision,
        };
        let (call, log, refusal, reply) = match Prefix::default().parse_fleet(route.as_str()).unwrap() {
            FleetRoute::Join => {
                let request: JoinRequest = decode(&payload).unwrap();
                let refusal = (script.refuse_join)(&request);
                let lease = encode(&lease(&request.log));
                ("join".to_owned(), request.log, refusal, lease)
            }
            FleetRoute::Heartbeat => {
                let request: HeartbeatRequest = decode(&payload).unwrap();
                let refusal = (script.refuse_heartbeat)(&request);
                let word = if request.draining { "draining" } else { "heartbeat" };
                let lease = encode(&lease(&request.log));
                script.busiest = request.busiest;
                script.tenants = request.tenants;
                (word.to_owned(), request.log, refusal, lease)
            }
            FleetRoute::Claim(subject) => {
                let request: ClaimRequest = decode(&payload).unwrap();
                let refusal = (script.refuse_claim)(&request);
                let reply = ClaimReply { incarnation: script.incarnation };
                (format!("claim {subject}"), request.claimant, refusal, encode(&reply))
            }
            FleetRoute::Release(subject) => {
                let request: dormouse_protocol::fleet::ReleaseRequest = decode(&payload).unwrap();
                (format!("release {subject}"), request.log, None, encode(&Acknowledged::default()))
            }
            FleetRoute::Limits => {
                let request: LimitsRequest = decode(&payload).unwrap();
                let mut left = script.limits.iter().filter(|one| Some(&one.tenant) > request.after.as_ref());
                let limits: Vec<LimitedTenant> = left.next().cloned().into_iter().collect();
                let cursor = limits.last().filter(|_| left.next().is_some()).map(|last| last.tenant.clone());
                return responder.ok(encode(&LimitsReply { revision, limits, cursor }).unwrap());
            }
            FleetRoute::Leave => {
                let request: dormouse_protocol::fleet::LeaveRequest = decode(&payload).unwrap();
                ("leave".to_owned(), request.log, None, encode(&Acknowledged::default()))
            }
        };
        if script.silent_to.iter().any(|name| name == log.server().as_str()) {
            return;
        }
        if call.starts_with("release") && script.releases_unanswered > 0 {
            script.releases_unanswered -= 1;
            return;
        }
        script.calls.push(format!("{}: {call}", log.server()));
        match refusal {
            Some(error) => responder.error(&error),
            None => responder.ok(reply.unwrap()),
        }
    }
}

/// A fleet without servers.
pub struct Fleet {
    pub broker: MemoryBroker,
    pub coordinator: Coordinator,
    pub env: Env,
    pub folder: TempDir,
    caller: Arc<dyn Bus>,
    buses: Mutex<BTreeMap<String, Arc<dyn Bus>>>,
    /// When the newest process of each server started.
    started: Mutex<BTreeMap<String, Duration>>,
    tasks: Tasks,
}

impl Fleet {
    pub async fn new() -> Self {
        Self::with_network(None).await
    }

    /// A fleet whose messages pass through `network`, if there is one.
    pub async fn with_network(network: Option<Arc<dyn Network>>) -> Self {
        let clock = VirtualClock::starting_at(Duration::from_secs(1_000_000));
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
        let tasks = Tasks::new();
        let broker = network.map_or_else(MemoryBroker::new, |network| {
            MemoryBroker::with_network(network, env.clone(), &tasks)
        });
        let bus: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("coordinator")));
        let coordinator = Coordinator::start(bus, env.clone(), &tasks).await;
        let caller = Arc::new(broker.connect(MemoryOptions::named("caller")));
        let folder = tempfile::tempdir().unwrap();
        let (buses, started) = (Mutex::default(), Mutex::default());
        Self { broker, coordinator, env, folder, caller, buses, started, tasks }
    }

    pub fn bus(&self) -> &Arc<dyn Bus> {
        &self.caller
    }

    /// The connection of the newest server called `name`.
    pub fn bus_of(&self, name: &str) -> Arc<dyn Bus> {
        Arc::clone(&self.buses.lock().unwrap()[name])
    }

    /// A started server, not yet ready.
    pub async fn start(&self, name: &str) -> Server {
        let prepared = prepare(self.folder.path(), name, &self.env).await;
        let bus: Arc<dyn Bus> = Arc::new(self.broker.connect(MemoryOptions::named(name)));
        self.buses.lock().unwrap().insert(name.to_owned(), Arc::clone(&bus));
        self.started.lock().unwrap().insert(name.to_owned(), self.env.boot());
        self.start_prepared(prepared, ServerSides::same(bus, self.env.clone())).await
    }

    /// A server that serves, with another connection for its control side.
    pub async fn serve_apart(&self, name: &str) -> Server {
        let prepared = prepare(self.folder.path(), name, &self.env).await;
        let [data, control] = [name.to_owned(), format!("{name} control")].map(|name| {
            let bus: Arc<dyn Bus> = Arc::new(self.broker.connect(MemoryOptions::named(name)));
            ServerSide { bus, env: self.env.clone() }
        });
        self.started.lock().unwrap().insert(name.to_owned(), self.env.boot());
        let mut server = self.start_prepared(prepared, ServerSides { data, control }).await;
        server.ready().await.unwrap();
        server
    }

    async fn start_prepared(&self, prepared: PreparedEngine, sides: ServerSides) -> Server {
        let settings = ServerSettings {
            prefix: Prefix::default(),
            capacity: 100,
            inbox_prefixes: InboxPrefixes::default(),
            callers: Callers::default(),
            tenant_rule: TenantRule::default(),
            started: self.started.lock().unwrap()[prepared.log().server().as_str()],
            exit: ProcessExit::new(|| panic!("a stalled data side ended its process")),
        };
        Server::start(prepared, settings, sides).await.unwrap()
    }

    /// A server that serves.
    pub async fn serve(&self, name: &str) -> Server {
        let mut server = self.start(name).await;
        server.ready().await.unwrap();
        server
    }

    /// The same process with a new log, on its existing connection.
    pub async fn serve_prepared(&self, name: &str, prepared: PreparedEngine) -> Server {
        let sides = ServerSides::same(self.bus_of(name), self.env.clone());
        let mut server = self.start_prepared(prepared, sides).await;
        server.ready().await.unwrap();
        server
    }

    /// Sends a request to a server.
    pub async fn ask<Req, Rep>(
        &self,
        server: &str,
        op: Op,
        name: &str,
        request: &Req,
    ) -> Result<Rep, ErrorReply>
    where
        Req: Serialize + Sync,
        Rep: DeserializeOwned,
    {
        let route = Prefix::default().server(&ServerName::new(server).unwrap(), op, &subject(name));
        match ask(&*self.caller, route, request, Duration::from_secs(30)).await {
            Ok(reply) => Ok(reply),
            Err(AskError::Service(error)) => Err(error),
            Err(error) => panic!("{op} of {name} at {server}: {error}"),
        }
    }

    /// Sends bytes and expects an error.
    pub async fn refusal(&self, route: &str, payload: impl Into<Bytes>) -> ErrorCode {
        let reply = self.raw(route, payload).await;
        dormouse_bus_error(&reply).unwrap_or_else(|| panic!("{route} must be refused")).code
    }

    pub async fn raw(&self, route: &str, payload: impl Into<Bytes>) -> Reply {
        let message = Outgoing::new(Route::new(route), payload.into());
        self.caller.request(message, Duration::from_secs(30)).await.unwrap()
    }

    pub async fn set(
        &self,
        server: &str,
        name: &str,
        key: &str,
        value: &str,
    ) -> Result<SetResult, ErrorReply> {
        let item = SetItem {
            key: Some(key.to_owned()),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            ..SetItem::default()
        };
        let request = SetRequest { sets: vec![item], ..SetRequest::default() };
        let reply: SetReply = self.ask(server, Op::Set, name, &request).await?;
        match reply.results.into_iter().next().unwrap() {
            SetOutcome::Ok(result) => Ok(result),
            SetOutcome::Error(error) => Err(error),
        }
    }

    pub async fn get(&self, server: &str, name: &str, key: &str) -> Result<Option<String>, ErrorReply> {
        let reply: GetReply = self.ask(server, Op::Get, name, &GetRequest::key(key)).await?;
        Ok(reply
            .messages
            .first()
            .map(|message| String::from_utf8(message.value.as_ref().unwrap().to_vec()).unwrap()))
    }

    /// Sends a handover order for a subject, as the coordinator does.
    pub async fn order(&self, log: &LogId, name: &str) {
        let order = HandOverOrder { v: ProtocolVersion::CURRENT, log: log.clone(), subject: subject(name) };
        let route = Prefix::default().order(log.server());
        self.caller.publish(Outgoing::new(route, encode(&order).unwrap())).await.unwrap();
    }

    /// Lets time pass until `condition` holds.
    pub async fn until(&self, goal: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..6_000 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("timed out: {goal}");
    }

    /// The health of a server after it has copied the figures of its data side, which it does once a second.
    pub async fn fresh_health(&self, name: &str) -> Health {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        self.health(name).await
    }

    pub async fn health(&self, name: &str) -> Health {
        let reply = self.raw(Prefix::default().health_of(name).as_str(), Bytes::new()).await;
        serde_json::from_slice(&reply.payload).unwrap()
    }
}

fn dormouse_bus_error(reply: &Reply) -> Option<ErrorReply> {
    reply.headers.get(ErrorReply::STATUS_HEADER)?;
    Some(decode(&reply.payload).unwrap())
}

/// An engine of server `name`, on the bucket that all servers under `folder` share.
pub async fn prepare(folder: &Path, name: &str, env: &Env) -> PreparedEngine {
    let bucket = folder.join("bucket");
    std::fs::create_dir_all(&bucket).unwrap();
    let url = format!("file://{}", bucket.display());
    let bucket = open_bucket(&url, [], env.clone()).await.unwrap();
    let settings = EngineSettings::new(folder.join(name), ServerName::new(name).unwrap());
    Engine::prepare(settings, Arc::new(bucket), env.clone()).await.unwrap()
}

pub fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

/// Refuses every claim and names `owner`.
pub fn owned_by(owner: &str) -> Say<ClaimRequest> {
    let owner = ServerName::new(owner).unwrap();
    Arc::new(move |_| Some(ErrorReply::not_owner(Some(owner.clone()))))
}

pub fn some_log(server: &str, env: &Env) -> LogId {
    LogId::new(ServerName::new(server).unwrap(), env.ulid())
}
