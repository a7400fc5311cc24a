//! The engine: takes requests for any subject, opens and closes subjects as needed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::{ErrorReply, Level, LogId, Subject};
use dormouse_runtime::{Env, Stop, Tasks};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::api::{Authority, EventSink, Reply, Request, Submission};
use crate::bucket::{Bucket, BucketKey};
use crate::data_dir::{DataDir, DataDirError};
use crate::database::sqlite_is_safe;
use crate::directory::{Directory, Offered};
use crate::figures::{Counters, Figures};
use crate::settings::EngineSettings;
use crate::subject::{SubjectTask, garbage};

/// Subjects that may be opening at the same time.
const OPENING: usize = 32;

/// Subjects that may be publishing at the same time.
const PUBLISHING: usize = 16;

/// The largest reply that [`Engine::execute`] asks for, in bytes: the default payload of a nats-server.
const EXECUTE_REPLY_BYTES: usize = 1_024 * 1_024;

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The SQLite in this binary has a bug that can lose data.
    #[error("this binary was built with a version of SQLite that can lose data (before 3.51.3)")]
    UnsafeSqlite,
    /// A durability level that this version does not have.
    #[error("the durability level `{0}` is not offered by this version: every write has the level `memory`")]
    Level(Level),
}

/// What every subject of an engine uses.
pub(crate) struct Shared {
    pub(crate) settings: EngineSettings,
    pub(crate) data: DataDir,
    pub(crate) log: LogId,
    pub(crate) bucket: Arc<dyn Bucket>,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) env: Env,
    pub(crate) tasks: Tasks,
    /// Given when every subject is to be released.
    pub(crate) stop: Stop,
    pub(crate) directory: Directory,
    pub(crate) counters: Counters,
    /// To the collector.
    pub(crate) garbage: mpsc::Sender<Vec<BucketKey>>,
    pub(crate) opening: Semaphore,
    pub(crate) publishing: Semaphore,
}

/// An engine that holds its data directory and has an identity, but does not serve yet: whoever wants to serve must
/// first be a member of the fleet, and is one under this identity.
pub struct Prepared {
    settings: EngineSettings,
    data: DataDir,
    log: LogId,
    bucket: Arc<dyn Bucket>,
    env: Env,
}

impl Prepared {
    /// The log id of this process.
    #[must_use]
    pub const fn log(&self) -> &LogId {
        &self.log
    }

    /// The process that used the data directory before, which has ended: this process holds the directory's lock.
    #[must_use]
    pub const fn predecessor(&self) -> Option<&LogId> {
        self.data.predecessor()
    }

    /// Begins to serve. Subjects run as tasks of `tasks`; their stop signal makes them release what they hold, as
    /// [`Engine::shutdown`] does.
    ///
    /// Cancelling the call before it returns starts nothing.
    ///
    /// # Errors
    /// [`OpenError::DataDir`] when this process cannot be recorded as the directory's user.
    pub async fn start(
        self,
        authority: Arc<dyn Authority>,
        events: Arc<dyn EventSink>,
        tasks: Tasks,
    ) -> Result<Engine, OpenError> {
        let Self { settings, data, log, bucket, env } = self;
        let recorded = log.clone();
        let data = env
            .blocking(move || {
                data.record_log(&recorded)?;
                Ok::<_, DataDirError>(data)
            })
            .await?;
        let directory = Directory::new(settings.max_open_subjects);
        let stop = Stop::new();
        let (garbage, queue) = mpsc::channel(garbage::QUEUE);
        let stops = [stop.clone(), tasks.stop().clone()];
        tasks.spawn("garbage", garbage::collect(Arc::clone(&bucket), queue, stops));
        let shared = Shared {
            settings,
            data,
            log,
            bucket,
            authority,
            events,
            env,
            tasks,
            stop,
            directory,
            counters: Counters::default(),
            garbage,
            opening: Semaphore::new(OPENING),
            publishing: Semaphore::new(PUBLISHING),
        };
        Ok(Engine { shared: Arc::new(shared) })
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("log", &self.log).finish_non_exhaustive()
    }
}

/// What a shutdown achieved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Subjects that were handed back: everything of them is in the bucket.
    pub released: u64,
    /// Subjects that were not, and why. Their files in the data directory hold everything; the next process on this
    /// directory goes on from them.
    pub unreleased: Vec<(Subject, String)>,
}

/// Serves subjects from a data directory and a bucket. Cloning shares the engine.
///
/// Dropping the last clone stops nothing: a running engine is ended by [`Engine::shutdown`], or with its process,
/// which loses nothing that was acknowledged as long as the machine lives.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// Takes the data directory and draws an identity. Nothing is scanned, so this takes the same time however many
    /// subjects there are. The bucket should have passed its probe.
    ///
    /// Cancelling the call gives the data directory back.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn prepare(
        settings: EngineSettings,
        bucket: Arc<dyn Bucket>,
        env: Env,
    ) -> Result<Prepared, OpenError> {
        if !sqlite_is_safe() {
            return Err(OpenError::UnsafeSqlite);
        }
        if settings.level != Level::Memory {
            return Err(OpenError::Level(settings.level));
        }
        let path = settings.data_dir.clone();
        let data = env.blocking(move || DataDir::open(&path)).await?;
        let log = LogId::new(settings.server.clone(), env.ulid());
        Ok(Prepared { settings, data, log, bucket, env })
    }

    /// The log id of this process.
    #[must_use]
    pub fn log(&self) -> &LogId {
        &self.shared.log
    }

    /// Hands a request to its subject, which is opened if need be. Never waits: the answer comes through
    /// [`Submission::respond`], at once where the request is turned away.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn submit(&self, subject: &Subject, submission: Submission) {
        let shared = &self.shared;
        shared.counters.requests.add(1);
        match shared.directory.offer(subject, submission, shared.env.boot()) {
            Offered::Queued => {}
            Offered::Start(seat) => {
                let task = SubjectTask::new(Arc::clone(shared), subject.clone(), seat);
                shared.tasks.spawn("subject", task.run());
            }
            Offered::Refused(submission, reply) => {
                shared.counters.overloaded.add(1);
                (submission.respond)(Err(reply));
            }
        }
    }

    /// Hands a request to its subject and waits for the answer.
    ///
    /// Cancelling the call withdraws nothing: the request is carried out all the same.
    ///
    /// # Errors
    /// What the subject answers.
    pub async fn execute(&self, subject: &Subject, request: Request) -> Result<Reply, ErrorReply> {
        let (sender, answer) = oneshot::channel();
        let respond = Box::new(move |reply| {
            // Nobody waits any more: the caller has cancelled.
            let _ = sender.send(reply);
        });
        self.submit(subject, Submission { request, max_reply_bytes: EXECUTE_REPLY_BYTES, respond });
        answer
            .await
            .unwrap_or_else(|_| Err(ErrorReply::internal("the subject's task ended without an answer")))
    }

    /// The engine's figures.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.shared.counters.figures(self.shared.directory.len())
    }

    /// Takes no more requests, brings every open subject to the bucket and hands it back. Afterwards the engine
    /// serves nothing.
    ///
    /// Cancelling the call, like `deadline` passing, lets the subjects go on releasing by themselves.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let directory = &self.shared.directory;
        directory.shut();
        self.shared.stop.give();
        // Who held it up is named below.
        let _ = tokio::time::timeout(deadline, directory.empty()).await;
        let (released, unreleased) = directory.releases();
        ShutdownReport { released, unreleased }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("log", &self.shared.log).finish_non_exhaustive()
    }
}
