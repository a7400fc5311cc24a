//! The engine: takes requests for any subject, opens and closes subjects as needed.

mod end;

use std::fmt;
use std::sync::Arc;

use dormouse_protocol::{ErrorReply, LogId, Subject};
use dormouse_runtime::{Env, Stop, Tasks};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use crate::api::{Authority, EventSink, HandedOver, Reply, Request, Submission};
use crate::bucket::Bucket;
use crate::data_dir::{DataDir, DataDirError};
use crate::database::sqlite_is_safe;
use crate::directory::{Busy, Directory, Offered, shutting_down};
use crate::figures::{Counters, Figures};
use crate::housekeeping;
use crate::keys::Nonce;
use crate::log::{Log, LogEnd, SealedLog, SealedLogs, StartLogError};
use crate::mutations::{Mutation, is_there};
use crate::recovery::{RecoveryError, RecoverySettings, Surplus, recover};
use crate::settings::EngineSettings;
use crate::spool::{self, Spool, SpoolFiles, SpoolLimits};
use crate::subject::SubjectTask;
use crate::subject::garbage::{self, Garbage};
use crate::trust::Trust;
use crate::values::Traffic;
use crate::wal::{FileSystem, Wal, WalError, WalStorage, list_logs};

pub use end::ShutdownReport;

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
    /// The write-ahead log on the local disk cannot be read or made.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// What an earlier process accepted cannot be brought to the bucket.
    #[error("what was accepted before cannot be brought to the bucket")]
    Recovery(#[from] RecoveryError),
    /// The log cannot be begun.
    #[error("the log cannot be begun")]
    Log(#[from] StartLogError),
}

/// What every subject of an engine uses.
pub(crate) struct Shared {
    pub(crate) settings: EngineSettings,
    pub(crate) data: Arc<DataDir>,
    /// This process's own log.
    pub(crate) log: Log,
    /// Other logs, once they are sealed.
    pub(crate) sealed: SealedLogs,
    /// What earlier processes on this data directory accepted and nobody has taken over yet.
    pub(crate) surplus: Surplus,
    pub(crate) trust: Trust,
    pub(crate) bucket: Arc<dyn Bucket>,
    /// Where the write-ahead log lies.
    disk: Arc<dyn WalStorage>,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) env: Env,
    pub(crate) tasks: Tasks,
    /// Given when every subject is to be released.
    pub(crate) stop: Stop,
    /// Given when nothing of the log may be used any more.
    pub(crate) ended: Stop,
    pub(crate) directory: Directory,
    pub(crate) counters: Counters,
    /// To the collector.
    pub(crate) garbage: mpsc::Sender<Garbage>,
    /// Large values on their way to the bucket.
    pub(crate) uploads: Traffic,
    /// Large values on their way from the bucket.
    pub(crate) downloads: Traffic,
    /// Values on their way up, chunk by chunk.
    pub(crate) spool: Arc<Spool>,
    pub(crate) opening: Semaphore,
    pub(crate) publishing: Semaphore,
    /// Told when a dead log is noted.
    pub(crate) dead_log: Notify,
}

impl Shared {
    /// Seals the log of a process that is over, so that `subject` can be claimed from it, and sees to it that somebody
    /// empties it.
    ///
    /// The authority was asked before, lest the log of a living process be sealed, and is asked again once the seal is
    /// there. In between the process may have come back, with a lease that it trusts because it passed its barrier
    /// before the seal: it would go on answering reads, and nothing tells it of the claim. A process that counts as dead
    /// *after* the seal trusts no lease any more, and passes no barrier before it would trust the next.
    pub(crate) async fn seal(&self, subject: &Subject, log: &LogId) -> Result<Arc<SealedLog>, ErrorReply> {
        let sealed = self.sealed.seal(log).await?;
        // That it is noted says that it was allowed after the seal; what was true then stays true.
        if self.data.is_marked_dead(log) {
            return Ok(sealed);
        }
        if !is_there(Mutation::NoQuestionAfterSeal) {
            self.authority.may_claim(subject, Some(log)).await?;
        }
        let (data, dead) = (Arc::clone(&self.data), log.clone());
        match self.env.blocking(move || data.mark_dead(&dead)).await {
            Ok(()) => self.dead_log.notify_one(),
            // Its slots then stay until the next process of its own name, or the next claim from it.
            Err(error) => tracing::warn!(%log, %error, "a dead log cannot be noted"),
        }
        Ok(sealed)
    }

    /// Whether subjects are being released.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_given() || self.tasks.stop().is_given()
    }

    /// Whether nothing of the log may be used any more.
    pub(crate) fn has_log_ended(&self) -> bool {
        self.ended.is_given() || self.log.is_over()
    }

    /// Waits until subjects are to be released or the log has ended.
    pub(crate) async fn stopping(&self) {
        tokio::select! {
            biased;
            () = self.ended.given() => {}
            () = self.log.over() => {}
            () = self.stop.given() => {}
            () = self.tasks.stop().given() => {}
        }
    }

    /// The answer to whoever asks for something after the log has ended.
    pub(crate) fn log_ended_reply(&self) -> ErrorReply {
        match self.log.end_cause() {
            Some(LogEnd::Poisoned) => ErrorReply::unavailable(
                "the server cannot rely on its local disk any more and must be restarted",
            ),
            Some(LogEnd::Stopped) => shutting_down(),
            Some(LogEnd::Sealed) | None => ErrorReply::not_owner(None),
        }
    }

    /// Carries out a request of the engine's own, as a client's would be.
    pub(crate) fn submit(self: &Arc<Self>, subject: &Subject, submission: Submission) {
        self.counters.requests.add(1);
        let Some(submission) = spool::take(self, subject, submission) else { return };
        match self.directory.offer(subject, submission, self.env.boot()) {
            Offered::Queued => {}
            Offered::Start(seat) => {
                let task = SubjectTask::new(Arc::clone(self), subject.clone(), seat);
                self.tasks.spawn("subject", task.run());
            }
            Offered::Refused(submission, reply) => {
                self.counters.overloaded.add(1);
                (submission.respond)(Err(reply));
            }
        }
    }

    /// Hands a request to its subject and waits for the answer. Cancelling the call withdraws nothing.
    pub(crate) async fn execute(
        self: &Arc<Self>,
        subject: &Subject,
        request: Request,
    ) -> Result<Reply, ErrorReply> {
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
}

/// An engine that holds its data directory and has an identity, but does not serve yet: whoever wants to serve must
/// first be a member of the fleet, and is one under this identity.
pub struct Prepared {
    settings: EngineSettings,
    data: Arc<DataDir>,
    log: LogId,
    predecessor: Option<LogId>,
    bucket: Arc<dyn Bucket>,
    disk: Arc<dyn WalStorage>,
    spool: Arc<Spool>,
    env: Env,
}

impl Prepared {
    /// Puts the write-ahead log on another disk than the file system: one that lies.
    #[cfg(any(test, feature = "faults"))]
    #[must_use]
    pub fn on_disk(mut self, disk: Arc<dyn WalStorage>) -> Self {
        self.disk = disk;
        self
    }

    /// The log id of this process.
    #[must_use]
    pub const fn log(&self) -> &LogId {
        &self.log
    }

    /// The log that was written from the data directory before. Whoever wrote it has ended: this process holds the
    /// directory's lock.
    #[must_use]
    pub const fn predecessor(&self) -> Option<&LogId> {
        self.predecessor.as_ref()
    }

    /// Brings what earlier processes on this data directory accepted to the bucket, gives birth to the log, and begins
    /// to serve. Subjects run as tasks of `tasks`: end them by [`Engine::shutdown`]; their stop signal alone ends the log
    /// where it stands. Takes as long as there are unshipped changes, however many subjects there are.
    ///
    /// Cancelling the call before it returns serves nothing; what it has brought to the bucket stays there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn start(
        self,
        authority: Arc<dyn Authority>,
        events: Arc<dyn EventSink>,
        tasks: Tasks,
    ) -> Result<Engine, OpenError> {
        let Self { settings, data, log: id, predecessor: _, bucket, disk: storage, spool, env } = self;
        let sealed = SealedLogs::new(Arc::clone(&bucket), env.clone(), id.clone());
        let (directory, listed) = (Arc::clone(&data), Arc::clone(&storage));
        env.blocking(move || {
            let earlier = list_logs(listed.as_ref(), &directory.wal_dir())?;
            earlier.iter().try_for_each(|log| directory.mark_dead(log)).map_err(OpenError::from)
        })
        .await?;
        let recovery = RecoverySettings {
            storage: Arc::clone(&storage),
            wal: data.wal_dir(),
            lost: data.lost_dir(),
            bucket: Arc::clone(&bucket),
            env: env.clone(),
        };
        let surplus = recover(&recovery, &sealed).await?;
        let (recorded, directory, made) = (id.clone(), Arc::clone(&data), Arc::clone(&storage));
        let wal = env
            .blocking(move || {
                directory.record_log(&recorded)?;
                Ok::<_, OpenError>(Wal::create(&directory.wal_dir(), &recorded, made)?)
            })
            .await?;
        let log = Log::start(id, settings.log.clone(), Arc::clone(&bucket), wal, env.clone(), &tasks).await?;
        let (garbage, queue) = mpsc::channel(garbage::QUEUE);
        let stop = Stop::new();
        let stops = [stop.clone(), tasks.stop().clone()];
        tasks.spawn("garbage", garbage::collect(Arc::clone(&bucket), queue, stops));
        let shared = Arc::new(Shared {
            trust: Trust::new(Arc::clone(&authority), log.clone()),
            sealed,
            surplus,
            directory: Directory::new(settings.max_open_subjects, settings.open_subjects_limit),
            settings,
            data,
            log,
            bucket,
            disk: storage,
            authority,
            events,
            env,
            tasks,
            stop,
            ended: Stop::new(),
            counters: Counters::default(),
            garbage,
            uploads: Traffic::new(),
            downloads: Traffic::new(),
            spool,
            opening: Semaphore::new(OPENING),
            publishing: Semaphore::new(PUBLISHING),
            dead_log: Notify::new(),
        });
        housekeeping::start(&shared);
        Ok(Engine { shared })
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("log", &self.log).finish_non_exhaustive()
    }
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
        let path = settings.data_dir.clone();
        let limits = SpoolLimits { uploads: settings.max_uploads, bytes: settings.max_upload_bytes };
        let clock = env.clone();
        let open = move || {
            let data = DataDir::open(&path)?;
            data.set_aside_unsynced(clock.boot_id(), Nonce::new(clock.ulid()))?;
            let folder = data.uploads_dir();
            let spool = Spool::open(folder.clone(), limits, Arc::new(SpoolFiles), clock)
                .map_err(|source| DataDirError::File { path: folder, source })?;
            Ok::<_, DataDirError>((Arc::new(data), Arc::new(spool)))
        };
        let (data, spool) = env.blocking(open).await?;
        let log = LogId::new(settings.server.clone(), env.ulid());
        let predecessor = data.predecessor().cloned();
        Ok(Prepared { settings, data, log, predecessor, bucket, disk: Arc::new(FileSystem), spool, env })
    }

    /// The log id of this process.
    #[must_use]
    pub fn log(&self) -> &LogId {
        self.shared.log.id()
    }

    /// Hands a request to its subject, which is opened if need be. Never waits: the answer comes through
    /// [`Submission::respond`], at once where the request is turned away.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn submit(&self, subject: &Subject, submission: Submission) {
        self.shared.submit(subject, submission);
    }

    /// Hands a request to its subject and waits for the answer.
    ///
    /// Cancelling the call withdraws nothing: the request is carried out all the same.
    ///
    /// # Errors
    /// What the subject answers.
    pub async fn execute(&self, subject: &Subject, request: Request) -> Result<Reply, ErrorReply> {
        self.shared.execute(subject, request).await
    }

    /// Hands `subject` over while everything else is served: brings it to the bucket, releases it, and tells the
    /// authority. Where it sleeps here it is released, too; where it is not this process's, nothing is done but telling the
    /// authority. Requests on it that wait or come meanwhile are answered `not_owner` once it is somebody else's to
    /// serve; where it cannot be handed over they are served.
    ///
    /// Cancelling the call withdraws nothing.
    ///
    /// # Errors
    /// Why it could not be handed over this time. It is still this process's, or that will show.
    pub async fn hand_over(&self, subject: &Subject) -> Result<HandedOver, ErrorReply> {
        match self.shared.execute(subject, Request::HandOver).await? {
            Reply::HandOver(handed_over) => Ok(handed_over),
            _ => Err(ErrorReply::internal("a hand-over was answered with something else")),
        }
    }

    /// The subjects that are open, opening or closing.
    #[must_use]
    pub fn open_subjects(&self) -> Vec<Subject> {
        self.shared.directory.subjects()
    }

    /// At most `most` open subjects: those with the most to do, the busiest first.
    #[must_use]
    pub fn busiest(&self, most: usize) -> Vec<Busy> {
        self.shared.directory.busiest(most, self.shared.env.boot())
    }

    /// Waits until nothing of this engine's log may be used any more: somebody has taken it over, or the local disk
    /// cannot be relied on. From then on every request is turned away; see [`Engine::succeed`].
    ///
    /// Cancelling the call has no effect.
    pub async fn ended(&self) -> LogEnd {
        self.shared.log.ended().await
    }

    /// The engine's figures.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let (uploads, upload_bytes) = self.shared.spool.figures();
        let figures = self.shared.counters.figures(self.shared.directory.len(), self.shared.log.figures());
        Figures { uploads: uploads as u64, upload_bytes, ..figures }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("log", &self.shared.log).finish_non_exhaustive()
    }
}
