//! Servers in miniature: an engine in a runtime of its own that can be killed, an authority that believes what the
//! test says, a bucket that can go away.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_protocol::data::{
    ConfigureRequest, DestroyRequest, GetAllReply, GetAllRequest, GetRequest, InfoReply, SetItem, SetOutcome,
    SetRequest, SetResult,
};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorReply, Event, Level, LogId, Message, Position, Subject};
use dormouse_runtime::{Env, SeededEntropy, Tasks, VirtualClock};
use dormouse_storage::api::{Authority, EventSink, HandedOver, LeaseGeneration, Reply, Request, Submission};
use dormouse_storage::bucket::{
    Bucket, BucketEntry, BucketError, BucketKey, BucketPrefix, Created, FileSummary, HeaderPatch,
    ObjectStoreBucket, Operation, open_bucket,
};
use dormouse_storage::format::delta;
use dormouse_storage::plan::Operation as Changed;
use dormouse_storage::wal::FileSystem;
use dormouse_storage::wal::faults::FaultyStorage;
use dormouse_storage::{Engine, EngineSettings, Prepared, ShutdownReport};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

/// What the coordinator would know.
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
    /// Whoever holds it delays the answers to questions that are decided already.
    pub answering: tokio::sync::Mutex<()>,
    /// Questions decided so far.
    pub asked: AtomicU64,
    pub released: Mutex<Vec<Subject>>,
}

impl TestAuthority {
    pub fn new(fleet: Arc<Fleet>, log: LogId) -> Self {
        Self {
            fleet,
            log,
            lease: Mutex::new(Some(LeaseGeneration(1))),
            answering: tokio::sync::Mutex::default(),
            asked: AtomicU64::new(0),
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
        self.asked.fetch_add(1, Ordering::SeqCst);
        let _answering = self.answering.lock().await;
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

/// Calls of one kind that a test holds up. They go on when the semaphore is closed.
#[derive(Clone)]
struct Hold {
    operation: Operation,
    part: &'static str,
    /// They have taken effect, and their answers are held up.
    after: bool,
    gate: Arc<Semaphore>,
    reached: Arc<AtomicU64>,
}

/// Holds up calls until it is dropped.
pub struct Held {
    gate: Arc<Semaphore>,
    reached: Arc<AtomicU64>,
}

impl Held {
    /// How many calls were held up so far.
    pub fn reached(&self) -> u64 {
        self.reached.load(Ordering::SeqCst)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gate.close();
    }
}

/// A bucket that a test can take away, and that remembers what it was asked.
pub struct Unreliable {
    inner: Arc<dyn Bucket>,
    holds: Mutex<Vec<Hold>>,
    pub gone: AtomicBool,
    /// Objects are created and read, and the answers are lost.
    pub creates_unanswered: AtomicBool,
    /// Whoever holds it holds up uploads.
    pub uploading: tokio::sync::Mutex<()>,
    calls: Mutex<Vec<(Operation, String)>>,
}

impl Unreliable {
    pub fn over(inner: Arc<dyn Bucket>) -> Self {
        Self {
            inner,
            holds: Mutex::default(),
            gone: AtomicBool::new(false),
            creates_unanswered: AtomicBool::new(false),
            uploading: tokio::sync::Mutex::default(),
            calls: Mutex::default(),
        }
    }

    pub fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::SeqCst);
    }

    /// What it was asked since the last look.
    pub fn take_calls(&self) -> Vec<(Operation, String)> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// How often it was asked for this since the last [`Unreliable::take_calls`].
    pub fn calls(&self, operation: Operation) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| call.0 == operation).count()
    }

    /// Holds up calls on objects whose names contain `part`, before or after they take effect.
    pub fn hold(&self, operation: Operation, part: &'static str, after: bool) -> Held {
        let (gate, reached) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(0)));
        let held = Held { gate: Arc::clone(&gate), reached: Arc::clone(&reached) };
        self.holds.lock().unwrap().push(Hold { operation, part, after, gate, reached });
        held
    }

    async fn held(&self, operation: Operation, name: &str, after: bool) {
        let holds = self.holds.lock().unwrap().clone();
        for hold in holds {
            if (hold.operation, hold.after) == (operation, after)
                && name.contains(hold.part)
                && !hold.gate.is_closed()
            {
                hold.reached.fetch_add(1, Ordering::SeqCst);
                let _ = hold.gate.acquire().await;
            }
        }
    }

    fn answered(&self, operation: Operation, name: &str) -> Result<(), BucketError> {
        if self.creates_unanswered.load(Ordering::SeqCst) {
            let timeout = Duration::from_secs(1);
            return Err(BucketError::Timeout { operation, name: name.to_owned(), timeout });
        }
        Ok(())
    }

    fn check(&self, operation: Operation, name: &str) -> Result<(), BucketError> {
        self.calls.lock().unwrap().push((operation, name.to_owned()));
        if self.gone.load(Ordering::SeqCst) {
            let (name, source) = (name.to_owned(), "it is gone".into());
            return Err(BucketError::Unreachable { operation, name, source });
        }
        Ok(())
    }
}

#[async_trait]
impl Bucket for Unreliable {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        self.check(Operation::Create, key.as_str())?;
        self.held(Operation::Create, key.as_str(), false).await;
        let created = self.inner.create(key, bytes).await;
        self.held(Operation::Create, key.as_str(), true).await;
        self.answered(Operation::Create, key.as_str())?;
        created
    }
    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        self.check(Operation::Get, key.as_str())?;
        self.held(Operation::Get, key.as_str(), false).await;
        let found = self.inner.get(key).await;
        self.answered(Operation::Get, key.as_str())?;
        found
    }
    async fn get_range(&self, key: &BucketKey, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        self.check(Operation::Get, key.as_str())?;
        let found = self.inner.get_range(key, range).await;
        self.answered(Operation::Get, key.as_str())?;
        found
    }
    async fn get_tail(&self, key: &BucketKey, count: u64) -> Result<Option<Bytes>, BucketError> {
        self.check(Operation::Get, key.as_str())?;
        let found = self.inner.get_tail(key, count).await;
        self.answered(Operation::Get, key.as_str())?;
        found
    }
    async fn put_file(
        &self,
        key: &BucketKey,
        path: &Path,
        patch: HeaderPatch,
    ) -> Result<FileSummary, BucketError> {
        self.check(Operation::PutFile, key.as_str())?;
        let _uploading = self.uploading.lock().await;
        self.held(Operation::PutFile, key.as_str(), false).await;
        self.inner.put_file(key, path, patch).await
    }
    async fn get_file(&self, key: &BucketKey, path: &Path) -> Result<Option<FileSummary>, BucketError> {
        self.check(Operation::GetFile, key.as_str())?;
        self.inner.get_file(key, path).await
    }
    async fn list(&self, prefix: &BucketPrefix) -> Result<Vec<BucketEntry>, BucketError> {
        self.check(Operation::List, prefix.as_str())?;
        self.inner.list(prefix).await
    }
    async fn delete(&self, key: &BucketKey) -> Result<(), BucketError> {
        self.check(Operation::Delete, key.as_str())?;
        self.held(Operation::Delete, key.as_str(), false).await;
        self.inner.delete(key).await
    }
}

/// What all servers of a test share, and where their data directories are.
pub struct World {
    pub folder: TempDir,
    pub bucket: Arc<Unreliable>,
    pub fleet: Arc<Fleet>,
    starts: AtomicU64,
    /// What the clock of the next server says when it starts, in seconds, beside how many were started before.
    pub wall: AtomicU64,
}

impl World {
    /// With a bucket in a directory.
    pub fn on_disk() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("bucket");
        std::fs::create_dir(&directory).unwrap();
        let url = format!("file://{}", directory.display());
        let runtime = Builder::new_current_thread().build().unwrap();
        let bucket = runtime.block_on(open_bucket(&url, [], Env::system())).unwrap();
        Self::with(folder, Arc::new(bucket))
    }

    /// With a bucket in memory.
    pub fn in_memory() -> Self {
        Self::over(Arc::new(ObjectStoreBucket::in_memory(Env::system())))
    }

    /// With this bucket.
    pub fn over(inner: Arc<dyn Bucket>) -> Self {
        Self::with(tempfile::tempdir().unwrap(), inner)
    }

    /// With a bucket in memory, and local disks there too, where the machine has such: for tests of many subjects.
    pub fn all_in_memory() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self::with(folder, Arc::new(ObjectStoreBucket::in_memory(Env::system())))
    }

    fn with(folder: TempDir, inner: Arc<dyn Bucket>) -> Self {
        let bucket = Arc::new(Unreliable::over(inner));
        Self {
            folder,
            bucket,
            fleet: Arc::default(),
            starts: AtomicU64::new(0),
            wall: AtomicU64::new(1_700_000_000),
        }
    }

    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files of a subject in a bucket on disk.
    pub fn objects(&self, subject: &Subject) -> Vec<PathBuf> {
        files_in(&self.folder.path().join("bucket/subjects").join(subject.escaped()))
    }

    /// The objects of a subject in a bucket on disk whose names end so.
    pub fn objects_like(&self, subject: &Subject, extension: &str) -> Vec<PathBuf> {
        let mut objects = self.objects(subject);
        objects.retain(|path| path.extension().is_some_and(|found| found == extension));
        objects
    }

    /// The newest snapshot of a subject in a bucket on disk.
    pub fn snapshot(&self, subject: &Subject) -> PathBuf {
        self.objects_like(subject, "sqlite3").pop().unwrap()
    }

    /// The slots of a log in a bucket on disk.
    pub fn slots(&self, log: &LogId) -> Vec<PathBuf> {
        let mut objects = files_in(&self.folder.path().join("bucket/logs").join(log.to_string()));
        objects.retain(|path| path.file_name().unwrap() != "index");
        objects
    }

    /// A server on a clock of its own, which runs only while the test waits for it.
    pub fn server(&self, name: &str) -> Server {
        self.server_with(name, |_| {})
    }

    pub fn server_with(&self, name: &str, change: impl FnOnce(&mut EngineSettings)) -> Server {
        self.start(name, None, Clockwork::Held, change)
    }

    /// With a disk that lies.
    pub fn server_on(&self, disk: &FaultyStorage, name: &str) -> Server {
        self.start(name, Some(disk.clone()), Clockwork::Held, |_| {})
    }

    /// A server that runs by itself, beside the test and other servers.
    pub fn running_server(&self, name: &str, change: impl FnOnce(&mut EngineSettings)) -> Server {
        self.start(name, None, Clockwork::Running, change)
    }

    /// A disk without faults so far.
    pub fn disk(&self, seed: u64) -> FaultyStorage {
        FaultyStorage::new(Arc::new(FileSystem), seed)
    }

    pub fn start(
        &self,
        name: &str,
        disk: Option<FaultyStorage>,
        clockwork: Clockwork,
        change: impl FnOnce(&mut EngineSettings),
    ) -> Server {
        let mut settings = EngineSettings::new(self.data_dir(name), name.parse().unwrap());
        change(&mut settings);
        let number = self.starts.fetch_add(1, Ordering::SeqCst);
        let (runtime, env) = clockwork.begin(number, self.wall.load(Ordering::SeqCst));
        let bucket = Arc::clone(&self.bucket) as Arc<dyn Bucket>;
        let prepared = runtime.block_on(Engine::prepare(settings, bucket, env.clone())).unwrap();
        if let Some(predecessor) = prepared.predecessor() {
            self.fleet.declare_dead(predecessor);
        }
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
    prepared: Prepared,
    events: &Arc<Events>,
) -> (Engine, Arc<TestAuthority>) {
    let authority = Arc::new(TestAuthority::new(Arc::clone(fleet), prepared.log().clone()));
    let port = Arc::clone(&authority) as Arc<dyn Authority>;
    let sink = Arc::clone(events) as Arc<dyn EventSink>;
    let engine = runtime.block_on(prepared.start(port, sink, Tasks::new())).unwrap();
    (engine, authority)
}

/// How a server's time passes.
#[derive(Debug, Clone, Copy)]
pub enum Clockwork {
    /// Only while the test waits for the server, and then as fast as nothing happens.
    Held,
    /// As outside.
    Running,
}

impl Clockwork {
    fn begin(self, number: u64, wall: u64) -> (Runtime, Env) {
        if let Self::Running = self {
            let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            return (runtime, Env::system());
        }
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        // A server that is started later was born later.
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

/// What a request has come to so far.
pub struct Asked(mpsc::Receiver<Result<Reply, ErrorReply>>);

impl Asked {
    /// Waits for the answer.
    pub fn wait(&self, server: &Server) -> Result<Reply, ErrorReply> {
        let mut answer = None;
        server.until("it is answered", || {
            answer = self.answer();
            answer.is_some()
        });
        answer.unwrap()
    }

    /// The answer, if there is one by now.
    pub fn answer(&self) -> Option<Result<Reply, ErrorReply>> {
        self.0.try_recv().ok()
    }
}

impl Server {
    pub fn log(&self) -> LogId {
        self.engine.log().clone()
    }

    /// Ends it where it stands: what lies in its data directory at this moment is what is left.
    pub fn kill(self) -> LogId {
        let log = self.log();
        let Self { engine, runtime, data_dir, .. } = self;
        let left = data_dir.with_extension("left");
        copy_folder(&data_dir, &left);
        drop(engine);
        // What it still writes on its way out counts no more.
        runtime.shutdown_timeout(Duration::from_secs(10));
        std::fs::remove_dir_all(&data_dir).unwrap();
        std::fs::rename(&left, &data_dir).unwrap();
        log
    }

    /// Ends it, and with it whatever was not synced: what the write-ahead log had not, and all of SQLite's that waits for a
    /// checkpoint.
    pub fn lose_power(self, disk: &FaultyStorage) -> LogId {
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

    /// Ends it together with its disk.
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

    /// Goes on with a fresh log, after the one it had has ended.
    pub fn succeed(self) -> Self {
        let Self { engine, events, runtime, env, fleet, data_dir, .. } = self;
        let prepared = runtime.block_on(engine.succeed());
        let (engine, authority) = serve(&fleet, &runtime, prepared, &events);
        Self { engine, authority, events, runtime, env, fleet, data_dir }
    }

    /// Goes on with a fresh log, having brought the one it had to a good end.
    pub fn begin_anew(self) -> Self {
        let Self { engine, events, runtime, env, fleet, data_dir, .. } = self;
        let prepared = runtime.block_on(engine.begin_anew());
        let (engine, authority) = serve(&fleet, &runtime, prepared, &events);
        Self { engine, authority, events, runtime, env, fleet, data_dir }
    }

    /// Hands a subject over.
    pub fn hand_over(&self, subject: &Subject) -> Result<HandedOver, ErrorReply> {
        self.runtime.block_on(self.engine.hand_over(subject))
    }

    /// Lets its time pass.
    pub fn pass(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// Asks without waiting for the answer.
    pub fn ask(&self, subject: &Subject, request: Request) -> Asked {
        let (sender, receiver) = mpsc::channel();
        // Whoever has gone away needs no answer.
        let respond = Box::new(move |answer| drop(sender.send(answer)));
        let _guard = self.runtime.enter();
        self.engine.submit(subject, Submission { request, max_reply_bytes: 1 << 20, respond });
        Asked(receiver)
    }

    /// Sets at a level of the request's own.
    pub fn set_at(
        &self,
        subject: &Subject,
        level: Level,
        key: &str,
        value: &str,
    ) -> Result<SetResult, ErrorReply> {
        set_result(self.run(subject, at_level(level, set_request(key, value))))
    }

    /// Has the subject be of this level.
    pub fn configure(&self, subject: &Subject, level: Level) {
        let config = SubjectConfig { level: Some(level), ..SubjectConfig::default() };
        let request = ConfigureRequest { config, ..ConfigureRequest::default() };
        self.run(subject, Request::Configure(request)).unwrap();
    }

    pub fn run(&self, subject: &Subject, request: Request) -> Result<Reply, ErrorReply> {
        self.runtime.block_on(self.engine.execute(subject, request))
    }

    pub fn set(&self, subject: &Subject, key: &str, value: &str) -> Result<SetResult, ErrorReply> {
        set_result(self.run(subject, set_request(key, value)))
    }

    pub fn get(&self, subject: &Subject, key: &str) -> Result<Option<String>, ErrorReply> {
        match self.run(subject, Request::Get(GetRequest::key(key)))? {
            Reply::Get(mut reply) => Ok(reply.messages.pop().map(|message| text(&message))),
            other => panic!("{other:?}"),
        }
    }

    pub fn all(&self, subject: &Subject) -> Result<Vec<(String, String)>, ErrorReply> {
        match self.run(subject, Request::GetAll(GetAllRequest::default()))? {
            Reply::GetAll(GetAllReply { messages, cursor: None, .. }) => Ok(messages
                .iter()
                .map(|message| (message.key.clone().unwrap_or_default(), text(message)))
                .collect()),
            other => panic!("{other:?}"),
        }
    }

    pub fn info(&self, subject: &Subject) -> InfoReply {
        match self.run(subject, Request::Info).unwrap() {
            Reply::Info(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    pub fn flush(&self, subject: &Subject) -> Result<Position, ErrorReply> {
        match self.run(subject, Request::Flush)? {
            Reply::Flush(reply) => Ok(reply.position),
            other => panic!("{other:?}"),
        }
    }

    /// Has the subject's objects hold everything.
    pub fn compact(&self, subject: &Subject) -> Result<Position, ErrorReply> {
        match self.run(subject, Request::Compact)? {
            Reply::Flush(reply) => Ok(reply.position),
            other => panic!("{other:?}"),
        }
    }

    pub fn destroy(&self, subject: &Subject) -> Result<Position, ErrorReply> {
        match self.run(subject, Request::Destroy(DestroyRequest::default()))? {
            Reply::Destroy(reply) => Ok(reply.position),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until `condition` holds.
    pub fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..20_000 {
            if condition() {
                return;
            }
            self.pass(Duration::from_millis(5));
        }
        panic!("never: {what}");
    }
}

/// The one result of a set of one message.
pub fn set_result(answer: Result<Reply, ErrorReply>) -> Result<SetResult, ErrorReply> {
    match answer? {
        Reply::Set(mut reply) => match reply.results.remove(0) {
            SetOutcome::Ok(result) => Ok(result),
            SetOutcome::Error(error) => Err(error),
        },
        other => panic!("{other:?}"),
    }
}

/// A set with a level of its own.
pub fn at_level(level: Level, request: Request) -> Request {
    match request {
        Request::Set(set) => Request::Set(SetRequest { level: Some(level), ..set }),
        other => panic!("{other:?}"),
    }
}

pub fn set_request(key: &str, value: &str) -> Request {
    let item = SetItem {
        key: Some(key.to_owned()),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ..SetItem::default()
    };
    Request::Set(SetRequest { sets: vec![item], ..SetRequest::default() })
}

pub fn subject(name: &str) -> Subject {
    name.parse().unwrap()
}

fn text(message: &Message) -> String {
    String::from_utf8(message.value.as_ref().unwrap().to_vec()).unwrap()
}

/// The messages in an SQLite file, read as any program would.
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

/// What lies in a folder, by name; nothing if there is none.
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

/// A value that is too large for a delta: a base that holds it is a snapshot.
pub fn large() -> String {
    "x".repeat(40_000)
}

pub fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The keys and values of the changes that were put into `lost/` in a data directory.
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
