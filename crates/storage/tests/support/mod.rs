//! Servers in miniature: an engine in a runtime of its own that can be killed, an authority that believes what the
//! test says, a bucket that can go away.

#![allow(dead_code, missing_docs, reason = "each test binary uses a part of it")]

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_protocol::data::{
    GetAllReply, GetAllRequest, GetRequest, InfoReply, SetItem, SetOutcome, SetRequest, SetResult,
};
use dormouse_protocol::{ErrorReply, Event, LogId, Message, Position, Subject};
use dormouse_runtime::{Env, Tasks};
use dormouse_storage::api::{Authority, EventSink, LeaseGeneration, Reply, Request};
use dormouse_storage::bucket::{
    Bucket, BucketEntry, BucketError, BucketKey, BucketPrefix, Created, FileSummary, HeaderPatch,
    ObjectStoreBucket, Operation, open_bucket,
};
use dormouse_storage::{Engine, EngineSettings, ShutdownReport};
use tempfile::TempDir;
use tokio::runtime::Runtime;

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

/// A bucket that a test can take away.
pub struct Unreliable {
    inner: ObjectStoreBucket,
    pub gone: AtomicBool,
    /// Objects are created and read, and the answers are lost.
    pub creates_unanswered: AtomicBool,
    /// Whoever holds it holds up uploads.
    pub uploading: tokio::sync::Mutex<()>,
    /// Uploads begun.
    pub uploads: AtomicU64,
}

impl Unreliable {
    pub fn new(inner: ObjectStoreBucket) -> Self {
        Self {
            inner,
            gone: AtomicBool::new(false),
            creates_unanswered: AtomicBool::new(false),
            uploading: tokio::sync::Mutex::default(),
            uploads: AtomicU64::new(0),
        }
    }

    pub fn in_memory(env: Env) -> Self {
        Self::new(ObjectStoreBucket::in_memory(env))
    }

    fn answered(&self, operation: Operation, name: &str) -> Result<(), BucketError> {
        if self.creates_unanswered.load(Ordering::SeqCst) {
            let timeout = Duration::from_secs(1);
            return Err(BucketError::Timeout { operation, name: name.to_owned(), timeout });
        }
        Ok(())
    }

    fn check(&self, operation: Operation, name: &str) -> Result<(), BucketError> {
        if self.gone.load(Ordering::SeqCst) {
            return Err(BucketError::Unreachable {
                operation,
                name: name.to_owned(),
                source: "it is gone".into(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Bucket for Unreliable {
    async fn create(&self, key: &BucketKey, bytes: Bytes) -> Result<Created, BucketError> {
        self.check(Operation::Create, key.as_str())?;
        let created = self.inner.create(key, bytes).await;
        self.answered(Operation::Create, key.as_str())?;
        created
    }
    async fn get(&self, key: &BucketKey) -> Result<Option<Bytes>, BucketError> {
        self.check(Operation::Get, key.as_str())?;
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
        self.uploads.fetch_add(1, Ordering::SeqCst);
        let _uploading = self.uploading.lock().await;
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
        self.inner.delete(key).await
    }
}

/// What all servers of a test share, and where their data directories are.
pub struct World {
    pub folder: TempDir,
    pub bucket: Arc<Unreliable>,
    pub fleet: Arc<Fleet>,
}

impl World {
    /// With a bucket in a directory.
    pub fn on_disk() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("bucket");
        std::fs::create_dir(&directory).unwrap();
        let url = format!("file://{}", directory.display());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bucket = runtime.block_on(open_bucket(&url, [], Env::system())).unwrap();
        Self::with(folder, bucket)
    }

    /// With a bucket in memory.
    pub fn in_memory() -> Self {
        Self::with(tempfile::tempdir().unwrap(), ObjectStoreBucket::in_memory(Env::system()))
    }

    fn with(folder: TempDir, inner: ObjectStoreBucket) -> Self {
        let bucket = Arc::new(Unreliable::new(inner));
        Self { folder, bucket, fleet: Arc::default() }
    }

    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files of a subject in a bucket on disk.
    pub fn objects(&self, subject: &Subject) -> Vec<PathBuf> {
        let folder = self.folder.path().join("bucket/subjects").join(subject.escaped());
        let mut files: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// The newest snapshot of a subject in a bucket on disk.
    pub fn snapshot(&self, subject: &Subject) -> PathBuf {
        let mut objects = self.objects(subject);
        objects.retain(|path| path.extension().is_some_and(|extension| extension == "sqlite3"));
        objects.pop().unwrap()
    }

    /// A server whose clockwork does nothing by itself within a test.
    pub fn server(&self, name: &str) -> Server {
        self.server_with(name, |_| {})
    }

    pub fn server_with(&self, name: &str, change: impl FnOnce(&mut EngineSettings)) -> Server {
        let mut settings = EngineSettings::new(self.data_dir(name), name.parse().unwrap());
        change(&mut settings);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let bucket = Arc::clone(&self.bucket) as Arc<dyn Bucket>;
        let events = Arc::new(Events::default());
        let (engine, authority) = runtime.block_on(async {
            let prepared = Engine::prepare(settings, bucket, Env::system()).await.unwrap();
            if let Some(predecessor) = prepared.predecessor() {
                self.fleet.declare_dead(predecessor);
            }
            let authority = Arc::new(TestAuthority::new(Arc::clone(&self.fleet), prepared.log().clone()));
            let sink = Arc::clone(&events) as Arc<dyn EventSink>;
            let engine = prepared
                .start(Arc::clone(&authority) as Arc<dyn Authority>, sink, Tasks::new())
                .await
                .unwrap();
            (engine, authority)
        });
        Server { engine, authority, events, runtime }
    }
}

/// A running engine.
pub struct Server {
    pub engine: Engine,
    pub authority: Arc<TestAuthority>,
    pub events: Arc<Events>,
    pub runtime: Runtime,
}

impl Server {
    pub fn log(&self) -> LogId {
        self.engine.log().clone()
    }

    /// Ends it where it stands.
    pub fn kill(self) -> LogId {
        let log = self.log();
        let Self { engine, runtime, .. } = self;
        drop(engine);
        runtime.shutdown_timeout(Duration::from_secs(10));
        log
    }

    pub fn shutdown(self) -> ShutdownReport {
        let report = self.runtime.block_on(self.engine.shutdown(Duration::from_secs(20)));
        self.kill();
        report
    }

    pub fn run(&self, subject: &Subject, request: Request) -> Result<Reply, ErrorReply> {
        self.runtime.block_on(self.engine.execute(subject, request))
    }

    pub fn set(&self, subject: &Subject, key: &str, value: &str) -> Result<SetResult, ErrorReply> {
        match self.run(subject, set_request(key, value))? {
            Reply::Set(mut reply) => match reply.results.remove(0) {
                SetOutcome::Ok(result) => Ok(result),
                SetOutcome::Error(error) => Err(error),
            },
            other => panic!("{other:?}"),
        }
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

    pub fn destroy(&self, subject: &Subject) -> Result<Position, ErrorReply> {
        match self.run(subject, Request::Destroy)? {
            Reply::Destroy(reply) => Ok(reply.position),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until `condition` holds.
    pub fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..10_000 {
            if condition() {
                return;
            }
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(2)).await });
        }
        panic!("never: {what}");
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
    let mut files = Vec::new();
    for folder in std::fs::read_dir(data_dir.join("lost")).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            files.push(file.unwrap().path());
        }
    }
    files
}

pub fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
