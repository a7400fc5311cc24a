//! The handle to a log: its interface for the rest of the engine.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dormouse_bucket::Bucket;
use dormouse_format::keys::LogKeys;
use dormouse_protocol::{ErrorReply, LogId, Rev, Slot, Subject};
use dormouse_runtime::{Env, Stop, Tasks};
use tokio::sync::{Notify, oneshot};

use super::owner::OwnerInput;
use super::state::{EndSignal, LogState};
use super::watch::{LogTask, guarded};
use super::{
    Append, AppendProgress, LogEnd, LogInstruments, LogMetrics, LogSettings, StartLogError, SubjectTail,
    disk, probe, ship, trim,
};
use crate::wal::{Lsn, Wal};

/// The log of this run of the engine. Clones share it.
#[derive(Clone)]
pub struct Log(pub(super) Arc<LogShared>);

/// State shared by the handle and the log's tasks.
pub(super) struct LogShared {
    pub(super) id: LogId,
    pub(super) keys: LogKeys,
    pub(super) settings: LogSettings,
    pub(super) instruments: LogInstruments,
    pub(super) bucket: Arc<dyn Bucket>,
    pub(super) env: Env,
    /// The process's stop signal.
    pub(super) stop: Stop,
    /// Held briefly, never across an await.
    state: Mutex<LogState>,
    pub(super) wakers: Wakers,
    pub(super) wal_work: WalWork,
    /// The log's end, from the moment that the state records it.
    ending: Arc<EndSignal>,
    /// The log's end, after the disk task has recorded the failed writes.
    pub(super) ended: Arc<EndSignal>,
}

/// Notifications for the tasks: each is notified when it has work.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    pub(super) disk: Notify,
    pub(super) ship: Notify,
    pub(super) probe: Notify,
    pub(super) trim: Notify,
    /// Notifies all waiters when writes are shipped or failed.
    pub(super) progress: Notify,
}

/// The running work on the WAL, readable without a lock: a hanging disk must not block its readers.
#[derive(Debug, Default)]
pub(super) struct WalWork {
    /// Microseconds on the clock of [`Env::boot`]; 0: no work runs.
    since_micros: AtomicU64,
}

impl WalWork {
    pub(super) fn begin(&self, now: Duration) {
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        self.since_micros.store(micros.max(1), Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.since_micros.store(0, Ordering::Relaxed);
    }

    fn since(&self) -> Option<Duration> {
        Some(self.since_micros.load(Ordering::Relaxed))
            .filter(|micros| *micros > 0)
            .map(Duration::from_micros)
    }
}

impl LogShared {
    pub(super) fn lock(&self) -> MutexGuard<'_, LogState> {
        // A panic under this lock is a defect: the state of the log may be inconsistent, so nothing may be acknowledged
        // from it.
        match self.state.lock() {
            Ok(state) => state,
            Err(poisoned) => {
                let mut state = poisoned.into_inner();
                state.poison(&self.wakers);
                state
            }
        }
    }

    /// Waits for `pause`, for a notification, or for the stop signal.
    pub(super) async fn wait_for_work(&self, waker: &Notify, pause: Option<Duration>) {
        let timer = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.stop.requested() => {}
            () = waker.notified() => {}
            () = timer => {}
        }
    }

    /// Waits until no append up to this one is unshipped.
    async fn wait_resolved_through(&self, last: Lsn) {
        loop {
            // Created before the check: later notifications are not missed.
            let progress = self.wakers.progress.notified();
            if self.lock().is_resolved_through(last) {
                return;
            }
            progress.await;
        }
    }

    /// Resolves when the log's failed writes are recorded in the WAL.
    pub(super) async fn ended(&self) -> LogEnd {
        self.ended.wait().await;
        self.ended.cause().unwrap_or(LogEnd::Stopped)
    }
}

impl Log {
    /// Starts a log: creates its first slot and spawns its tasks. Retries while the bucket does not answer.
    ///
    /// Cancelling the call may leave an empty log behind.
    ///
    /// # Errors
    /// [`StartLogError`]; then `id` must not be used again.
    pub async fn start(
        id: LogId,
        settings: LogSettings,
        bucket: Arc<dyn Bucket>,
        wal: Wal,
        env: Env,
        tasks: &Tasks,
        instruments: LogInstruments,
    ) -> Result<Self, StartLogError> {
        let first = ship::create_first_slot(&id, bucket.as_ref(), &env, tasks.stop()).await?;
        let ending = EndSignal::new();
        let shared = Arc::new(LogShared {
            keys: LogKeys::new(&id),
            state: Mutex::new(LogState::new(&settings, Arc::clone(&ending))),
            ending,
            settings,
            instruments,
            bucket,
            env,
            stop: tasks.stop().clone(),
            wakers: Wakers::default(),
            wal_work: WalWork::default(),
            ended: EndSignal::new(),
            id,
        });
        shared.lock().slot_sizes.created(Slot::new(0), first.size_bytes);
        let clone = || Arc::clone(&shared);
        tasks.spawn("log disk", guarded(clone(), LogTask::Disk, disk::run(clone(), wal)));
        tasks.spawn("log ship", guarded(clone(), LogTask::Ship, ship::run(clone(), first.checksum)));
        tasks.spawn("log probe", guarded(clone(), LogTask::Probe, probe::run(clone())));
        tasks.spawn("log trim", guarded(clone(), LogTask::Trim, trim::run(clone())));
        Ok(Self(shared))
    }

    /// When the running write or sync of the WAL began, on the clock of [`Env::boot`]. `None`: none runs. Takes no lock.
    #[must_use]
    pub fn wal_busy_since(&self) -> Option<Duration> {
        self.0.wal_work.since()
    }

    /// The log's id.
    #[must_use]
    pub fn id(&self) -> &LogId {
        &self.0.id
    }

    /// Appends entries to the log. Never waits. The appends of one subject come from one caller, in order, each
    /// [after](Append::first_after) the previous one. If one fails, the log rejects its successors until an append
    /// replaces it.
    ///
    /// # Errors
    /// `overloaded` when too many bytes are unshipped, `unavailable` when the local disk is full or failed or the log
    /// is being stopped, `not_owner` when another process has sealed the log. No entry was appended.
    pub fn append(&self, append: Append) -> Result<Arc<AppendProgress>, ErrorReply> {
        let now = self.0.env.boot();
        let progress = self.0.lock().append(append, &self.0.settings, now)?;
        self.0.wakers.disk.notify_one();
        Ok(progress)
    }

    /// Call this when a subject is opened and has no unshipped appends. Its next append follows from the state in the
    /// bucket, and is independent of appends that failed here before another server served the subject.
    pub fn opened(&self, subject: &Subject) {
        self.0.lock().opened(subject);
    }

    /// Whether there is a write stall: all levels must wait for the bucket, because a write has been unshipped for too
    /// long.
    #[must_use]
    pub fn is_write_stalled(&self) -> bool {
        let now = self.0.env.boot();
        self.0.lock().unshipped_age(now) > self.0.settings.max_unshipped_age
    }

    /// Ships everything appended so far as soon as possible.
    pub fn ship(&self) {
        self.0.lock().request_ship_all();
        self.0.wakers.ship.notify_one();
    }

    /// The next slot to write, or the slot in flight: unshipped entries are never below it.
    #[must_use]
    pub fn next_slot(&self) -> Slot {
        self.0.lock().owner.next_slot()
    }

    /// Waits for proof that at the moment of the call no other process had taken over this log. One proof serves all
    /// waiters. Waits as long as the bucket does not answer; the caller sets the time limit.
    ///
    /// Cancelling the call has no effect on others.
    ///
    /// # Errors
    /// `not_owner` when another process has sealed the log, `unavailable` when the log ends otherwise.
    pub async fn barrier(&self) -> Result<(), ErrorReply> {
        let proof = {
            let mut state = self.0.lock();
            state.refuse_if_ended()?;
            let (proven, proof) = oneshot::channel();
            // Only an operation that begins after this read may confirm it at once.
            let effects = state.owner.apply(OwnerInput::Read);
            let number = state.owner.arrived();
            state.readers.push_back((number, proven));
            state.perform(effects, &self.0);
            proof
        };
        proof.await.unwrap_or_else(|_| Err(ErrorReply::unavailable("log stopped")))
    }

    /// Resolves when the log has ended and each of its writes is acknowledged, failed, or kept in the WAL.
    ///
    /// Cancelling the call has no effect.
    pub async fn ended(&self) -> LogEnd {
        self.0.ended().await
    }

    /// Whether the log is closed: from the moment that it rejects new writes and fails unacknowledged ones, before
    /// [`Log::ended`] resolves. Cheap enough to call before each reply.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.ending.cause().is_some()
    }

    /// The local disk has lost data: nothing more is acknowledged, as after a failed sync.
    pub fn poison(&self) {
        self.0.lock().poison(&self.0.wakers);
    }

    /// Resolves as soon as [`Log::is_closed`] is true.
    ///
    /// Cancelling the call has no effect.
    pub async fn closed(&self) {
        self.0.ending.wait().await;
    }

    /// Why the log ended, if [`Log::is_closed`].
    #[must_use]
    pub fn end_cause(&self) -> Option<LogEnd> {
        self.0.ending.cause()
    }

    /// Why the log ended, once [`Log::ended`] has resolved.
    #[must_use]
    pub fn end(&self) -> Option<LogEnd> {
        self.0.ended.cause()
    }

    /// Waits until `subject` has no unshipped append: each is shipped, failed, or left in the WAL by the end of the
    /// log. Meanwhile they are shipped without delay.
    ///
    /// Cancelling the call has no effect.
    pub async fn wait_resolved(&self, subject: &Subject) {
        loop {
            let Some(last) = self.0.lock().last_unshipped(subject) else { return };
            self.ship();
            self.0.wait_resolved_through(last).await;
        }
    }

    /// The subject's shipped entries that no verified manifest covers; `None` if there are none.
    #[must_use]
    pub fn tail(&self, subject: &Subject) -> Option<SubjectTail> {
        self.0.lock().tails.tail(subject)
    }

    /// The rev after the last shipped entry of `subject` that no verified manifest covers; `None` if there is none.
    #[must_use]
    pub fn last_shipped_rev(&self, subject: &Subject) -> Option<Rev> {
        self.0.lock().tails.last_rev(subject)
    }

    /// The slots that hold entries of `subject` which a state at `rev` lacks, ascending. The result contains all such
    /// slots, and more where slots are merged to runs.
    pub(super) fn slots_above(&self, subject: &Subject, rev: Rev) -> Vec<Slot> {
        self.0.lock().tails.slots_above(subject, rev)
    }

    /// As [`Log::slots_above`], for a local file at `rev` that this process has served under the current term.
    pub(super) fn slots_above_file(&self, subject: &Subject, rev: Rev) -> Vec<Slot> {
        self.0.lock().tails.slots_above_file(subject, rev)
    }

    /// The subject is being closed: it has no unshipped append, and its local file holds every entry of it. The next open
    /// by this process reads only later slots, if it finds the file.
    pub fn file_complete(&self, subject: &Subject) {
        let mut state = self.0.lock();
        let next = state.owner.next_slot();
        state.tails.file_complete(subject, next);
    }

    /// A listing made after the manifest's creation shows it as the subject's newest: a manifest of this log with base
    /// `base` and `first_slot`. Only then may slots be deleted.
    pub fn base_published(&self, subject: &Subject, base: Rev, first_slot: Slot) {
        let mut state = self.0.lock();
        state.tails.base_published(subject, base, first_slot);
        state.trim(&self.0);
    }

    /// At most `most` subjects with their tails, from the one that needs the lowest slot.
    #[must_use]
    pub fn oldest_tails(&self, most: usize) -> Vec<(Subject, SubjectTail)> {
        self.0.lock().tails.oldest(most)
    }

    /// If the slots have nearly [`LogSettings::max_log_bytes`], the lowest slot that may stay: subjects that need a lower
    /// one are due for compaction.
    #[must_use]
    pub fn lowest_slot_within_limit(&self) -> Option<Slot> {
        self.0.lock().slot_sizes.cut(self.0.settings.max_log_bytes)
    }

    /// Rejects new appends, ships everything and ends the tasks. Waits as long as the bucket does not answer.
    ///
    /// Cancelling the call leaves the log stopping.
    pub async fn stop(&self) {
        self.0.lock().stop();
        self.0.wakers.disk.notify_one();
        self.0.wakers.ship.notify_one();
        self.ended().await;
    }

    /// Metrics of the log.
    #[must_use]
    pub fn metrics(&self) -> LogMetrics {
        let now = self.0.env.boot();
        self.0.lock().metrics(now)
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("id", &self.0.id).finish_non_exhaustive()
    }
}
