//! The engine: accepts requests for any subject, and opens and closes subjects as needed.

mod end;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dormouse_bucket::Bucket;
use dormouse_commit_log::log::{Log, LogEnd, SealedLog, SealedLogs, StartLogError};
use dormouse_commit_log::recovery::{RecoveryError, RecoverySettings, StrandedWrites, recover};
use dormouse_commit_log::wal::{Wal, WalError, list_logs};
use dormouse_format::keys::Nonce;
use dormouse_metrics::{StepKind, StepTimer};
use dormouse_protocol::deadline::time_ran_out;
use dormouse_protocol::tenant::TenantLimits;
use dormouse_protocol::{ErrorReply, LogId, Subject};
use dormouse_runtime::disk::{Disk, LocalDisk};
use dormouse_runtime::injected_bug;
use dormouse_runtime::pool::Pool;
use dormouse_runtime::{Env, Stop, Tasks};
use dormouse_subject_state::database::sqlite_is_safe;
use dormouse_subject_state::plan;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use crate::api::{Authority, EventSink, HandoverOutcome, SubjectReply, SubjectRequest, Submission, TenantId};
use crate::data_dir::{DataDir, DataDirError};
use crate::housekeeping;
use crate::instruments::EngineInstruments;
use crate::metrics::{Counters, EngineMetrics};
use crate::open_permits::OpenPermits;
use crate::read_lease::ReadLease;
use crate::settings::EngineSettings;
use crate::spool::{self, Spool, SpoolFiles, SpoolLimits};
use crate::subject::SubjectTask;
use crate::subject::garbage::{self, Garbage};
use crate::subject::page_room::PageRoom;
use crate::subject_table::{SubjectLoad, SubjectTable, SubmitOutcome, shutting_down};
use crate::tenant_usage::{TenantFigures, TenantUsage};
use crate::values::TransferLimiter;

pub use end::ShutdownReport;

/// Subjects that may be publishing at the same time.
const PUBLISHING: usize = 16;

/// The largest reply that [`Engine::execute`] asks for, in bytes: the default payload of a nats-server.
const EXECUTE_REPLY_BYTES: usize = 1_024 * 1_024;

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineOpenError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The SQLite in this binary has a bug that can lose data.
    #[error("this binary was built with a version of SQLite that can lose data (before 3.51.3)")]
    UnsafeSqlite,
    /// The local write-ahead log cannot be read or created.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The unshipped writes of an earlier process cannot be recovered into the bucket.
    #[error("unshipped writes of an earlier process cannot be recovered")]
    Recovery(#[from] RecoveryError),
    /// The log cannot be started.
    #[error("the log cannot be started")]
    Log(#[from] StartLogError),
    /// The threads for the files of subjects cannot be created.
    #[error("the threads for local files cannot be created")]
    Pool(#[source] std::io::Error),
}

/// State that all subjects of an engine share.
pub(crate) struct EngineShared {
    pub(crate) settings: EngineSettings,
    pub(crate) data: Arc<DataDir>,
    /// This process's own log.
    pub(crate) log: Log,
    /// Other logs, once they are sealed.
    pub(crate) sealed: SealedLogs,
    /// Stranded writes of earlier processes on this data directory that no claim has resolved yet.
    pub(crate) stranded: StrandedWrites,
    pub(crate) read_lease: ReadLease,
    pub(crate) bucket: Arc<dyn Bucket>,
    /// The disk of the write-ahead log.
    disk: Arc<dyn Disk>,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) env: Env,
    pub(crate) tasks: Tasks,
    /// Given when every subject must be released.
    pub(crate) stop: Stop,
    /// Given when the log must no longer be used.
    pub(crate) ended: Stop,
    pub(crate) subject_table: SubjectTable,
    pub(crate) counters: Counters,
    pub(crate) instruments: EngineInstruments,
    /// To the collector.
    pub(crate) garbage: mpsc::Sender<Garbage>,
    /// Limits uploads of blobs.
    pub(crate) uploads: TransferLimiter,
    /// Limits downloads of blobs.
    pub(crate) downloads: TransferLimiter,
    /// Chunked uploads.
    pub(crate) spool: Arc<Spool>,
    pub(crate) opening: OpenPermits,
    pub(crate) tenants: TenantUsage,
    /// Runs work on the files of subjects.
    pub(crate) pool: Pool,
    /// Bytes that pages may hold while they are read.
    pub(crate) page_room: PageRoom,
    pub(crate) publishing: Semaphore,
    /// Notified when a log is marked as orphaned.
    pub(crate) orphaned_log_marked: Notify,
}

impl EngineShared {
    /// Seals an orphaned log, so that `subject` can be claimed from it, and marks the log for reclamation.
    ///
    /// The authority was asked before the seal, so that no log of a live process is sealed, and is asked again after
    /// it. In between the process may have renewed its lease. If it passed a read barrier before the seal, that lease
    /// is confirmed: the process would continue to answer reads without learning of the claim. A process whose lease
    /// has expired *after* the seal has no confirmed lease, and no barrier can pass to confirm its next one.
    pub(crate) async fn seal(&self, subject: &Subject, log: &LogId) -> Result<Arc<SealedLog>, ErrorReply> {
        let sealed = self.sealed.seal(log).await?;
        // The mark proves that the authority permitted the claim after the seal. That permission stays valid.
        if self.data.is_marked_orphaned(log) {
            return Ok(sealed);
        }
        if !injected_bug!(NoRecheckAfterSeal) {
            self.authority.may_claim(subject, Some(log)).await?;
        }
        let (data, orphaned) = (Arc::clone(&self.data), log.clone());
        match self.env.blocking(move || data.mark_orphaned(&orphaned)).await {
            Ok(()) => {
                self.instruments.seals.inc();
                self.orphaned_log_marked.notify_one();
            }
            Err(error) => tracing::warn!(
                %log,
                %error,
                impact = "its slots stay until the next process of its server name, or the next claim from it",
                "orphaned log not marked"
            ),
        }
        Ok(sealed)
    }

    /// Measures a step from now until the timer is dropped.
    pub(crate) fn step(&self, kind: StepKind) -> StepTimer<'_> {
        self.instruments.steps().start(&self.env, kind)
    }

    /// Whether subjects are being released.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_requested() || self.tasks.stop().is_requested()
    }

    /// Whether the log must no longer be used.
    pub(crate) fn has_log_ended(&self) -> bool {
        self.ended.is_requested() || self.log.is_closed()
    }

    /// Waits until subjects must be released or the log has ended.
    pub(crate) async fn stopping(&self) {
        tokio::select! {
            biased;
            () = self.ended.requested() => {}
            () = self.log.closed() => {}
            () = self.stop.requested() => {}
            () = self.tasks.stop().requested() => {}
        }
    }

    /// The reply to requests after the log has ended.
    pub(crate) fn log_ended_reply(&self) -> ErrorReply {
        match self.log.end_cause() {
            Some(LogEnd::Poisoned) => {
                ErrorReply::unavailable("the local write-ahead log failed: the server must be restarted")
            }
            Some(LogEnd::Stopped) => shutting_down(),
            Some(LogEnd::Sealed) | None => ErrorReply::not_owner(None),
        }
    }

    /// Submits a request, from a client or from the engine itself.
    pub(crate) fn submit(self: &Arc<Self>, subject: &Subject, submission: Submission) {
        self.counters.requests.add(1);
        let now = self.env.boot();
        if submission.is_expired(now) && plan::request_id(&submission.request).is_none() {
            return self.refuse_expired(submission);
        }
        let Some(submission) = spool::take(self, subject, submission) else { return };
        match self.subject_table.submit(subject, submission, now, &self.tenants) {
            SubmitOutcome::Queued => {}
            SubmitOutcome::Expired(submission) => self.refuse_expired(*submission),
            SubmitOutcome::Start(args) => {
                let task = SubjectTask::new(Arc::clone(self), subject.clone(), args);
                self.tasks.spawn("subject", task.run());
            }
            SubmitOutcome::Refused(submission, reply) => {
                self.counters.overloaded.add(1);
                (submission.respond)(Err(reply));
            }
        }
    }

    /// Refuses a request whose caller no longer waits. No copy of it is queued or planned here.
    pub(crate) fn refuse_expired(&self, submission: Submission) {
        self.counters.expired.add(1);
        (submission.respond)(Err(time_ran_out()));
    }

    /// Submits a request to its subject and waits for the reply. Cancelling the call does not cancel the request.
    pub(crate) async fn execute(
        self: &Arc<Self>,
        subject: &Subject,
        request: SubjectRequest,
    ) -> Result<SubjectReply, ErrorReply> {
        let (sender, answer) = oneshot::channel();
        let respond = Box::new(move |reply| {
            // Fails if the caller has cancelled.
            let _ = sender.send(reply);
        });
        self.submit(
            subject,
            Submission {
                tenant: TenantId::SHARED,
                deadline: Submission::NO_DEADLINE,
                received: self.env.boot(),
                request,
                max_reply_bytes: EXECUTE_REPLY_BYTES,
                respond,
            },
        );
        answer.await.unwrap_or_else(|_| Err(ErrorReply::internal("the subject's task ended without a reply")))
    }
}

/// An engine that holds its data directory and has a log id, but does not serve yet. A server must first join the fleet
/// under this log id.
pub struct PreparedEngine {
    settings: EngineSettings,
    data: Arc<DataDir>,
    log: LogId,
    predecessor: Option<LogId>,
    bucket: Arc<dyn Bucket>,
    disk: Arc<dyn Disk>,
    spool: Arc<Spool>,
    env: Env,
    instruments: EngineInstruments,
}

impl PreparedEngine {
    /// Measures with these instruments. So does each engine that replaces this one in its process.
    #[must_use]
    pub fn measured_by(mut self, instruments: EngineInstruments) -> Self {
        self.instruments = instruments;
        self
    }

    /// Puts the write-ahead log on this disk. The default is the file system.
    #[must_use]
    pub fn on_disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// The log id of this process.
    #[must_use]
    pub const fn log(&self) -> &LogId {
        &self.log
    }

    /// The log of the process that used the data directory before. That process has ended, because this one holds the
    /// directory's lock.
    #[must_use]
    pub const fn predecessor(&self) -> Option<&LogId> {
        self.predecessor.as_ref()
    }

    /// Recovers the unshipped writes of earlier processes on this data directory into the bucket, creates the log, and
    /// starts to serve. Subjects run as tasks of `tasks`. End them with [`Engine::shutdown`]: their stop signal alone
    /// ends the log without shipping. The time depends on the number of unshipped changes, not on the number of
    /// subjects.
    ///
    /// If the call is cancelled, no engine serves; recovered writes stay in the bucket.
    ///
    /// # Errors
    /// [`EngineOpenError`].
    pub async fn start(
        self,
        authority: Arc<dyn Authority>,
        events: Arc<dyn EventSink>,
        tasks: Tasks,
    ) -> Result<Engine, EngineOpenError> {
        let Self { settings, data, log: id, predecessor: _, bucket, disk, spool, env, instruments } = self;
        let sealed = SealedLogs::new(Arc::clone(&bucket), env.clone(), id.clone());
        let (directory, listed) = (Arc::clone(&data), Arc::clone(&disk));
        env.blocking(move || {
            let earlier = list_logs(listed.as_ref(), &directory.wal_dir())?;
            earlier.iter().try_for_each(|log| directory.mark_orphaned(log)).map_err(EngineOpenError::from)
        })
        .await?;
        let recovery = RecoverySettings {
            disk: Arc::clone(&disk),
            wal: data.wal_dir(),
            lost: data.lost_dir(),
            bucket: Arc::clone(&bucket),
            env: env.clone(),
        };
        let stranded = recover(&recovery, &sealed).await?;
        let (recorded, directory, made) = (id.clone(), Arc::clone(&data), Arc::clone(&disk));
        let wal = env
            .blocking(move || {
                directory.record_log(&recorded)?;
                Ok::<_, EngineOpenError>(Wal::create(&directory.wal_dir(), &recorded, made)?)
            })
            .await?;
        let log = Log::start(
            id,
            settings.log.clone(),
            Arc::clone(&bucket),
            wal,
            env.clone(),
            &tasks,
            instruments.log.clone(),
        )
        .await?;
        let pool = Pool::start(&env, "sqlite").map_err(EngineOpenError::Pool)?;
        let (garbage, queue) = mpsc::channel(garbage::QUEUE);
        let stop = Stop::new();
        let stops = [stop.clone(), tasks.stop().clone()];
        tasks.spawn(
            "garbage",
            garbage::collect(Arc::clone(&bucket), queue, stops, instruments.collected.clone()),
        );
        let shared = Arc::new(EngineShared {
            read_lease: ReadLease::new(Arc::clone(&authority), log.clone()),
            sealed,
            stranded,
            subject_table: SubjectTable::new(settings.max_open_subjects, settings.open_subjects_limit),
            settings,
            data,
            log,
            bucket,
            disk,
            authority,
            events,
            env,
            tasks,
            stop,
            ended: Stop::new(),
            counters: Counters::default(),
            instruments,
            garbage,
            uploads: TransferLimiter::new(),
            downloads: TransferLimiter::new(),
            spool,
            opening: OpenPermits::new(),
            tenants: TenantUsage::default(),
            pool,
            page_room: PageRoom::default(),
            publishing: Semaphore::new(PUBLISHING),
            orphaned_log_marked: Notify::new(),
        });
        housekeeping::start(&shared);
        Ok(Engine { shared })
    }
}

impl fmt::Debug for PreparedEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedEngine").field("log", &self.log).finish_non_exhaustive()
    }
}

/// Serves subjects from a data directory and a bucket. Cloning shares the engine.
///
/// Dropping the last clone stops nothing. [`Engine::shutdown`] ends a running engine, and so does the end of its
/// process. The end of the process loses no acknowledged write while the machine keeps running.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<EngineShared>,
}

impl Engine {
    /// Locks the data directory and generates a log id. Scans nothing, so the time does not depend on the number of
    /// subjects. The bucket should have passed its conformance check.
    ///
    /// Cancelling the call unlocks the data directory.
    ///
    /// # Errors
    /// [`EngineOpenError`].
    pub async fn prepare(
        settings: EngineSettings,
        bucket: Arc<dyn Bucket>,
        env: Env,
    ) -> Result<PreparedEngine, EngineOpenError> {
        if !sqlite_is_safe() {
            return Err(EngineOpenError::UnsafeSqlite);
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
        Ok(PreparedEngine {
            settings,
            data,
            log,
            predecessor,
            bucket,
            disk: Arc::new(LocalDisk),
            spool,
            env,
            instruments: EngineInstruments::default(),
        })
    }

    /// The log id of this process.
    #[must_use]
    pub fn log(&self) -> &LogId {
        self.shared.log.id()
    }

    /// Submits a request to its subject, which opens if necessary. Never waits: [`Submission::respond`] delivers the
    /// reply, at once if the request is refused.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn submit(&self, subject: &Subject, submission: Submission) {
        self.shared.submit(subject, submission);
    }

    /// Submits a request to its subject and waits for the reply.
    ///
    /// Cancelling the call does not cancel the request.
    ///
    /// # Errors
    /// The subject's error reply.
    pub async fn execute(
        &self,
        subject: &Subject,
        request: SubjectRequest,
    ) -> Result<SubjectReply, ErrorReply> {
        self.shared.execute(subject, request).await
    }

    /// Hands `subject` over while all other subjects are served: flushes it, releases it, and reports the release to
    /// the authority. A dormant subject of this process is released too. If this process does not own the subject, it
    /// only reports that to the authority. Requests for the subject that arrive meanwhile get `not_owner` once it is
    /// released. If the handover fails, they are served.
    ///
    /// Cancelling the call does not cancel the handover.
    ///
    /// # Errors
    /// The reason why this handover failed. This process still owns the subject, or a later request finds that it does
    /// not.
    pub async fn hand_over(&self, subject: &Subject) -> Result<HandoverOutcome, ErrorReply> {
        match self.shared.execute(subject, SubjectRequest::HandOver).await? {
            SubjectReply::HandOver(handed_over) => Ok(handed_over),
            _ => Err(ErrorReply::internal("unexpected reply to a handover")),
        }
    }

    /// The subjects that are open, opening or closing.
    #[must_use]
    pub fn open_subjects(&self) -> Vec<Subject> {
        self.shared.subject_table.subjects()
    }

    /// What each tenant uses. A subject belongs to the tenant whose request opened it.
    #[must_use]
    pub fn tenant_figures(&self) -> BTreeMap<TenantId, TenantFigures> {
        let mut figures = self.shared.tenants.figures(self.shared.env.boot());
        for (tenant, open) in self.shared.subject_table.open_by_tenant() {
            figures.entry(tenant).or_default().open_subjects = open as u64;
        }
        for (tenant, uploads) in self.shared.spool.by_tenant() {
            figures.entry(tenant).or_default().uploads = uploads;
        }
        figures
    }

    /// Replaces the limits that an operator has set for a tenant.
    pub fn set_tenant_limits(&self, tenant: TenantId, limits: TenantLimits) {
        self.shared.tenants.set_limits(tenant, limits);
    }

    /// At most `most` open subjects, the busiest first.
    #[must_use]
    pub fn busiest(&self, most: usize) -> Vec<SubjectLoad> {
        self.shared.subject_table.busiest(most, self.shared.env.boot())
    }

    /// Waits until this engine's log must no longer be used: another process has sealed it, or the WAL has failed. From
    /// then on the engine refuses every request; see [`Engine::restart_after_takeover`].
    ///
    /// Cancelling the call has no effect.
    pub async fn ended(&self) -> LogEnd {
        self.shared.log.ended().await
    }

    /// When the running write or sync of the WAL began, on the clock of [`Env::boot`]. `None`: none runs. Takes no lock,
    /// so a hanging disk does not block the caller.
    #[must_use]
    pub fn wal_busy_since(&self) -> Option<Duration> {
        self.shared.log.wal_busy_since()
    }

    /// The instruments of this engine.
    #[must_use]
    pub fn instruments(&self) -> &EngineInstruments {
        &self.shared.instruments
    }

    /// The engine's metrics.
    #[must_use]
    pub fn metrics(&self) -> EngineMetrics {
        let (uploads, upload_bytes) = self.shared.spool.usage();
        let metrics =
            self.shared.counters.snapshot(self.shared.subject_table.len(), self.shared.log.metrics());
        EngineMetrics { uploads: uploads as u64, upload_bytes, ..metrics }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("log", &self.shared.log).finish_non_exhaustive()
    }
}
