//! Small servers: an engine in its own runtime that the test can kill, an authority whose replies the test sets, and
//! the bad bucket and the bad disk of the testkit.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_bucket::{Bucket, ObjectStoreBucket, open_bucket};
use dormouse_engine::api::{
    Authority, EventSink, HandoverOutcome, LeaseGeneration, SubjectReply, SubjectRequest, Submission,
    TenantId,
};
use dormouse_engine::{Engine, EngineInstruments, EngineSettings, PreparedEngine, ShutdownReport};
use dormouse_format::delta;
use dormouse_format::record::RecordOp as Changed;
use dormouse_protocol::data::{
    ConfigureRequest, DestroyRequest, GetAllReply, GetAllRequest, GetRequest, InfoReply, SetItem, SetOutcome,
    SetRequest, SetResult,
};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorReply, Event, Level, LogId, Message, Position, Subject};
use dormouse_runtime::disk::LocalDisk;
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};
use dormouse_testkit::bucket::{FaultPlan, FaultyBucket, ObservedBucket, ReadCounter};
use dormouse_testkit::disk::FaultyDisk;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// The state that a coordinator would have: the logs that are declared dead.
#[derive(Default)]
pub struct Fleet {
    dead: Mutex<HashSet<LogId>>,
}

impl Fleet {
    pub fn declare_dead(&self, log: &LogId) {
        self.dead.lock().unwrap().insert(log.clone());
    }

    pub fn declare_alive(&self, log: &LogId) {
        self.dead.lock().unwrap().remove(log);
    }
}

pub struct TestAuthority {
    fleet: Arc<Fleet>,
    log: LogId,
    lease: Mutex<Option<LeaseGeneration>>,
    /// While a test holds this lock, decided replies to claim requests are delayed.
    pub reply_gate: tokio::sync::Mutex<()>,
    /// Claim requests decided so far.
    pub claim_requests: AtomicU64,
    pub released: Mutex<Vec<Subject>>,
}

impl TestAuthority {
    pub fn new(fleet: Arc<Fleet>, log: LogId) -> Self {
        Self {
            fleet,
            log,
            lease: Mutex::new(Some(LeaseGeneration(1))),
            reply_gate: tokio::sync::Mutex::default(),
            claim_requests: AtomicU64::new(0),
            released: Mutex::default(),
        }
    }

    pub fn set_lease(&self, generation: Option<u64>) {
        *self.lease.lock().unwrap() = generation.map(LeaseGeneration);
    }
}

#[async_trait]
impl Authority for TestAuthority {
    fn lease(&self) -> Option<LeaseGeneration> {
        *self.lease.lock().unwrap()
    }

    async fn may_claim(&self, _subject: &Subject, owner: Option<&LogId>) -> Result<(), ErrorReply> {
        let answer = match owner {
            Some(owner) if *owner != self.log && !self.fleet.dead.lock().unwrap().contains(owner) => {
                Err(ErrorReply::not_owner(Some(owner.server().clone())))
            }
            _ => Ok(()),
        };
        self.claim_requests.fetch_add(1, Ordering::SeqCst);
        let _answering = self.reply_gate.lock().await;
        answer
    }

    async fn released(&self, subject: &Subject) {
        self.released.lock().unwrap().push(subject.clone());
    }
}

#[derive(Default)]
pub struct Events(Mutex<Vec<(Subject, Event)>>);

impl EventSink for Events {
    fn publish(&self, subject: &Subject, event: Event) {
        self.0.lock().unwrap().push((subject.clone(), event));
    }
}

impl Events {
    pub fn of(&self, subject: &Subject) -> Vec<Event> {
        let events = self.0.lock().unwrap();
        events.iter().filter(|(of, _)| of == subject).map(|(_, event)| event.clone()).collect()
    }
}

/// The state that all servers of a test share, and the folder of their data directories.
pub struct World {
    /// Of all servers.
    pub instruments: EngineInstruments,
    pub folder: TempDir,
    pub bucket: Arc<FaultyBucket>,
    pub fleet: Arc<Fleet>,
    starts: AtomicU64,
    /// The clock of the next server at its start, in seconds, without the number of servers started before.
    pub wall_seconds: AtomicU64,
}

impl World {
    /// With a bucket in a directory.
    pub fn on_disk() -> Self {
        Self::on_disk_through(|bucket| bucket)
    }

    /// With a bucket in a directory whose reads are counted.
    pub fn on_disk_counted() -> (Self, Arc<ReadCounter>) {
        let counter = Arc::new(ReadCounter::default());
        let observer = Arc::clone(&counter);
        (Self::on_disk_through(|bucket| Arc::new(ObservedBucket::new(bucket, observer))), counter)
    }

    fn on_disk_through(wrap: impl FnOnce(Arc<dyn Bucket>) -> Arc<dyn Bucket>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("bucket");
        std::fs::create_dir(&directory).unwrap();
        let url = format!("file://{}", directory.display());
        let runtime = Builder::new_current_thread().build().unwrap();
        let bucket = runtime.block_on(open_bucket(&url, [], Env::system())).unwrap();
        Self::with(folder, wrap(Arc::new(bucket)))
    }

    /// With a bucket in memory.
    pub fn in_memory() -> Self {
        Self::with(tempfile::tempdir().unwrap(), Arc::new(ObjectStoreBucket::in_memory(Env::system())))
    }

    /// With bucket and local disks in memory, if the machine has a file system in memory: for tests of many subjects.
    pub fn all_in_memory() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self::with(folder, Arc::new(ObjectStoreBucket::in_memory(Env::system())))
    }

    fn with(folder: TempDir, inner: Arc<dyn Bucket>) -> Self {
        // Lost answers are errors at once, so that they take no time on the clocks of the servers.
        let plan = FaultPlan { timeout: Duration::ZERO, ..FaultPlan::none() };
        let bucket = Arc::new(FaultyBucket::new(inner, 0, plan, Env::system()));
        Self {
            instruments: EngineInstruments::default(),
            folder,
            bucket,
            fleet: Arc::default(),
            starts: AtomicU64::new(0),
            wall_seconds: AtomicU64::new(1_700_000_000),
        }
    }

    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files of a subject in a bucket on disk.
    pub fn objects(&self, subject: &Subject) -> Vec<PathBuf> {
        files_in(&self.folder.path().join("bucket/subjects").join(subject.escaped()))
    }

    /// The objects of a subject with this file name extension, in a bucket on disk.
    pub fn objects_with_extension(&self, subject: &Subject, extension: &str) -> Vec<PathBuf> {
        let mut objects = self.objects(subject);
        objects.retain(|path| path.extension().is_some_and(|found| found == extension));
        objects
    }

    /// The newest snapshot of a subject in a bucket on disk.
    pub fn snapshot(&self, subject: &Subject) -> PathBuf {
        self.objects_with_extension(subject, "sqlite3").pop().unwrap()
    }

    /// The slots of a log in a bucket on disk.
    pub fn slots(&self, log: &LogId) -> Vec<PathBuf> {
        let mut objects = files_in(&self.folder.path().join("bucket/logs").join(log.to_string()));
        objects.retain(|path| path.file_name().unwrap() != "index");
        objects
    }

    /// A server on its own clock, which advances only while the test waits for it.
    pub fn server(&self, name: &str) -> Server {
        self.server_with(name, |_| {})
    }

    pub fn server_with(&self, name: &str, change: impl FnOnce(&mut EngineSettings)) -> Server {
        self.start(name, None, ClockMode::Paused, change)
    }

    /// With a faulty disk.
    pub fn server_on(&self, disk: &FaultyDisk, name: &str) -> Server {
        self.start(name, Some(disk.clone()), ClockMode::Paused, |_| {})
    }

    /// A server on real time, concurrent with the test and other servers.
    pub fn running_server(&self, name: &str, change: impl FnOnce(&mut EngineSettings)) -> Server {
        self.start(name, None, ClockMode::Running, change)
    }

    /// A disk without faults; the test can add some.
    pub fn disk(&self, seed: u64) -> FaultyDisk {
        FaultyDisk::new(Arc::new(LocalDisk), seed)
    }

    pub fn start(
        &self,
        name: &str,
        disk: Option<FaultyDisk>,
        clockwork: ClockMode,
        change: impl FnOnce(&mut EngineSettings),
    ) -> Server {
        let mut settings = EngineSettings::new(self.data_dir(name), name.parse().unwrap());
        change(&mut settings);
        let number = self.starts.fetch_add(1, Ordering::SeqCst);
        let (runtime, env) = clockwork.start_runtime(number, self.wall_seconds.load(Ordering::SeqCst));
        let bucket = Arc::clone(&self.bucket) as Arc<dyn Bucket>;
        let prepared = runtime.block_on(Engine::prepare(settings, bucket, env.clone())).unwrap();
        if let Some(predecessor) = prepared.predecessor() {
            self.fleet.declare_dead(predecessor);
        }
        let prepared = prepared.measured_by(self.instruments.clone());
        let prepared = match disk {
            Some(disk) => prepared.on_disk(Arc::new(disk)),
            None => prepared,
        };
        let events = Arc::new(Events::default());
        let (engine, authority) = serve(&self.fleet, &runtime, prepared, &events);
        let fleet = Arc::clone(&self.fleet);
        Server { engine, authority, events, runtime, env, fleet, data_dir: self.data_dir(name) }
    }
}

fn serve(
    fleet: &Arc<Fleet>,
    runtime: &Runtime,
    prepared: PreparedEngine,
    events: &Arc<Events>,
) -> (Engine, Arc<TestAuthority>) {
    let authority = Arc::new(TestAuthority::new(Arc::clone(fleet), prepared.log().clone()));
    let port = Arc::clone(&authority) as Arc<dyn Authority>;
    let sink = Arc::clone(events) as Arc<dyn EventSink>;
    let engine = runtime.block_on(prepared.start(port, sink, Tasks::new())).unwrap();
    (engine, authority)
}

/// How a server's clock advances.
#[derive(Debug, Clone, Copy)]
pub enum ClockMode {
    /// Only while the test waits for the server, and then directly to the next timer.
    Paused,
    /// With real time.
    Running,
}

impl ClockMode {
    fn start_runtime(self, number: u64, wall: u64) -> (Runtime, Env) {
        if let Self::Running = self {
            let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            return (runtime, Env::system());
        }
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        // The clock of a server that starts later is ahead.
        let wall = Duration::from_secs(wall + number);
        let env = runtime.block_on(async {
            let clock = Arc::new(VirtualClock::starting_at(wall));
            Env::simulated(clock, Arc::new(SeededEntropy::new(number)))
        });
        (runtime, env)
    }
}

/// A running engine.
pub struct Server {
    pub engine: Engine,
    pub authority: Arc<TestAuthority>,
    pub events: Arc<Events>,
    pub runtime: Runtime,
    pub env: Env,
    fleet: Arc<Fleet>,
    data_dir: PathBuf,
}

/// A submitted request, with or without its reply.
pub struct PendingReply(mpsc::Receiver<Result<SubjectReply, ErrorReply>>);

impl PendingReply {
    /// Waits for the reply.
    pub fn wait(&self, server: &Server) -> Result<SubjectReply, ErrorReply> {
        let mut answer = None;
        server.until("the request gets its reply", || {
            answer = self.try_reply();
            answer.is_some()
        });
        answer.unwrap()
    }

    /// The reply, if it has arrived.
    pub fn try_reply(&self) -> Option<Result<SubjectReply, ErrorReply>> {
        self.0.try_recv().ok()
    }
}

impl Server {
    pub fn log(&self) -> LogId {
        self.engine.log().clone()
    }

    /// Kills the process: its data directory keeps exactly its present content.
    pub fn kill(self) -> LogId {
        let log = self.log();
        let Self { engine, runtime, data_dir, .. } = self;
        let left = data_dir.with_extension("left");
        copy_folder(&data_dir, &left);
        drop(engine);
        // Writes of the runtime during its shutdown are discarded.
        runtime.shutdown_timeout(Duration::from_secs(10));
        std::fs::remove_dir_all(&data_dir).unwrap();
        std::fs::rename(&left, &data_dir).unwrap();
        log
    }

    /// Kills the process and loses all unsynced writes: those of the write-ahead log, and SQLite's before its next
    /// checkpoint.
    pub fn lose_power(self, disk: &FaultyDisk) -> LogId {
        disk.power_loss().unwrap();
        let data_dir = self.data_dir.clone();
        let log = self.kill();
        for file in files_in(&data_dir.join("subjects")) {
            if file.to_string_lossy().ends_with("-wal") {
                std::fs::remove_file(file).unwrap();
            }
        }
        log
    }

    /// Kills the process and deletes its disk.
    pub fn lose_disk(self) -> LogId {
        let data_dir = self.data_dir.clone();
        let log = self.kill();
        std::fs::remove_dir_all(data_dir).unwrap();
        log
    }

    pub fn shutdown(self) -> ShutdownReport {
        let report = self.runtime.block_on(self.engine.shutdown(Duration::from_secs(20)));
        self.kill();
        report
    }

    /// Restarts with a new log, after another server sealed the old one.
    pub fn restart_after_takeover(self) -> Self {
        let Self { engine, events, runtime, env, fleet, data_dir, .. } = self;
        let prepared = runtime.block_on(engine.restart_after_takeover());
        let (engine, authority) = serve(&fleet, &runtime, prepared, &events);
        Self { engine, authority, events, runtime, env, fleet, data_dir }
    }

    /// Restarts with a new log, after a drain of the old one.
    pub fn restart_after_drain(self) -> Self {
        let Self { engine, events, runtime, env, fleet, data_dir, .. } = self;
        let prepared = runtime.block_on(engine.restart_after_drain());
        let (engine, authority) = serve(&fleet, &runtime, prepared, &events);
        Self { engine, authority, events, runtime, env, fleet, data_dir }
    }

    /// Executes a handover of the subject.
    pub fn hand_over(&self, subject: &Subject) -> Result<HandoverOutcome, ErrorReply> {
        self.runtime.block_on(self.engine.hand_over(subject))
    }

    /// Advances the server's clock.
    pub fn advance(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// Submits a request without waiting for its reply.
    pub fn submit(&self, subject: &Subject, request: SubjectRequest) -> PendingReply {
        self.submit_until(subject, Submission::NO_DEADLINE, request)
    }

    /// The same for a caller that waits until `deadline`, on the clock of the server.
    pub fn submit_until(
        &self,
        subject: &Subject,
        deadline: Duration,
        request: SubjectRequest,
    ) -> PendingReply {
        self.submit_as(TenantId::SHARED, subject, deadline, request)
    }

    /// The same for a caller of `tenant`.
    pub fn submit_as(
        &self,
        tenant: TenantId,
        subject: &Subject,
        deadline: Duration,
        request: SubjectRequest,
    ) -> PendingReply {
        let (sender, receiver) = mpsc::channel();
        // If the test has dropped the receiver, it needs no reply.
        let respond = Box::new(move |answer| drop(sender.send(answer)));
        let _guard = self.runtime.enter();
        self.engine.submit(
            subject,
            Submission {
                tenant,
                deadline,
                received: Duration::ZERO,
                request,
                max_reply_bytes: 1 << 20,
                respond,
            },
        );
        PendingReply(receiver)
    }

    /// Sets a key at the level of the request.
    pub fn set_at(
        &self,
        subject: &Subject,
        level: Level,
        key: &str,
        value: &str,
    ) -> Result<SetResult, ErrorReply> {
        set_result(self.run(subject, at_level(level, set_request(key, value))))
    }

    /// Configures the level of the subject.
    pub fn configure(&self, subject: &Subject, level: Level) {
        let config = SubjectConfig { level: Some(level), ..SubjectConfig::default() };
        let request = ConfigureRequest { config, ..ConfigureRequest::default() };
        self.run(subject, SubjectRequest::Configure(request)).unwrap();
    }

    pub fn run(&self, subject: &Subject, request: SubjectRequest) -> Result<SubjectReply, ErrorReply> {
        self.runtime.block_on(self.engine.execute(subject, request))
    }

    pub fn set(&self, subject: &Subject, key: &str, value: &str) -> Result<SetResult, ErrorReply> {
        set_result(self.run(subject, set_request(key, value)))
    }

    pub fn get(&self, subject: &Subject, key: &str) -> Result<Option<String>, ErrorReply> {
        match self.run(subject, SubjectRequest::Get(GetRequest::key(key)))? {
            SubjectReply::Get(mut reply) => Ok(reply.messages.pop().map(|message| text(&message))),
            other => panic!("{other:?}"),
        }
    }

    pub fn all(&self, subject: &Subject) -> Result<Vec<(String, String)>, ErrorReply> {
        match self.run(subject, SubjectRequest::GetAll(GetAllRequest::default()))? {
            SubjectReply::GetAll(GetAllReply { messages, cursor: None, .. }) => Ok(messages
                .iter()
                .map(|message| (message.key.clone().unwrap_or_default(), text(message)))
                .collect()),
            other => panic!("{other:?}"),
        }
    }

    pub fn info(&self, subject: &Subject) -> InfoReply {
        match self.run(subject, SubjectRequest::Info).unwrap() {
            SubjectReply::Info(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    pub fn flush(&self, subject: &Subject) -> Result<Position, ErrorReply> {
        match self.run(subject, SubjectRequest::Flush)? {
            SubjectReply::Flush(reply) => Ok(reply.position),
            other => panic!("{other:?}"),
        }
    }

    /// Compacts the subject, so that its base holds every change.
    pub fn compact(&self, subject: &Subject) -> Result<Position, ErrorReply> {
        match self.run(subject, SubjectRequest::Compact)? {
            SubjectReply::Flush(reply) => Ok(reply.position),
            other => panic!("{other:?}"),
        }
    }

    pub fn destroy(&self, subject: &Subject) -> Result<Position, ErrorReply> {
        match self.run(subject, SubjectRequest::Destroy(DestroyRequest::default()))? {
            SubjectReply::Destroy(reply) => Ok(reply.position),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until `condition` holds.
    pub fn until(&self, description: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..20_000 {
            if condition() {
                return;
            }
            self.advance(Duration::from_millis(5));
        }
        panic!("timed out waiting until {description}");
    }
}

/// The one result of a set of one message.
pub fn set_result(answer: Result<SubjectReply, ErrorReply>) -> Result<SetResult, ErrorReply> {
    match answer? {
        SubjectReply::Set(mut reply) => match reply.results.remove(0) {
            SetOutcome::Ok(result) => Ok(result),
            SetOutcome::Error(error) => Err(error),
        },
        other => panic!("{other:?}"),
    }
}

/// The set request with a level.
pub fn at_level(level: Level, request: SubjectRequest) -> SubjectRequest {
    match request {
        SubjectRequest::Set(set) => SubjectRequest::Set(SetRequest { level: Some(level), ..set }),
        other => panic!("{other:?}"),
    }
}

pub fn set_request(key: &str, value: &str) -> SubjectRequest {
    let item = SetItem {
        key: Some(key.to_owned()),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ..SetItem::default()
    };
    SubjectRequest::Set(SetRequest { sets: vec![item], ..SetRequest::default() })
}

pub fn subject(name: &str) -> Subject {
    name.parse().unwrap()
}

fn text(message: &Message) -> String {
    String::from_utf8(message.value.as_ref().unwrap().to_vec()).unwrap()
}

/// The messages in an SQLite file, read with plain SQL.
pub fn messages_in(path: &Path) -> Vec<(String, String)> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(path, flags).unwrap();
    let mut statement = connection.prepare("SELECT key, value FROM messages ORDER BY seq").unwrap();
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, String::from_utf8(row.get::<_, Vec<u8>>(1)?).unwrap())))
        .unwrap();
    rows.map(Result::unwrap).collect()
}

/// The files below `lost/` in a data directory.
pub fn lost_files(data_dir: &Path) -> Vec<PathBuf> {
    files_in(&data_dir.join("lost")).iter().flat_map(|folder| files_in(folder)).collect()
}

/// The content of a folder, sorted by name; empty if the folder does not exist.
pub fn files_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in files_in(from) {
        let target = to.join(file.file_name().unwrap());
        if file.is_dir() {
            copy_folder(&file, &target);
        } else {
            std::fs::copy(&file, &target).unwrap();
        }
    }
}

/// A value that is too large for a delta: its base is a snapshot.
pub fn large() -> String {
    "x".repeat(40_000)
}

pub fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The keys and values of the diverged writes in `lost/` of a data directory.
pub fn lost_changes(data_dir: &Path) -> Vec<(String, String)> {
    let mut lost = Vec::new();
    for file in lost_files(data_dir) {
        let (_, delta) = delta::read(&std::fs::read(file).unwrap()).unwrap();
        for operation in delta.entries.into_iter().flat_map(|entry| entry.operations) {
            let Changed::Set(set) = operation else { panic!("{operation:?}") };
            let value = String::from_utf8(set.value.unwrap().to_vec()).unwrap();
            lost.push((set.key.unwrap_or_default(), value));
        }
    }
    lost
}
