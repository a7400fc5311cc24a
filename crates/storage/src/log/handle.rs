//! The handle to a log: what the rest of the engine sees.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_protocol::{ErrorReply, LogId, Rev, Slot, Subject};
use dormouse_runtime::{Env, Stop, Tasks};
use tokio::sync::{Notify, oneshot};

use super::owner::OwnerInput;
use super::state::{Ending, State};
use super::watch::{Task, watched};
use super::{Append, LogEnd, LogFigures, LogSettings, StartLogError, Tail, Ticket, disk, look, ship, trim};
use crate::bucket::Bucket;
use crate::keys::LogKeys;
use crate::wal::{Lsn, Wal};

/// The log of this run of the engine. Cloning shares it.
#[derive(Clone)]
pub struct Log(pub(super) Arc<Shared>);

/// What the handle and the log's tasks have in common.
pub(super) struct Shared {
    pub(super) id: LogId,
    pub(super) keys: LogKeys,
    pub(super) settings: LogSettings,
    pub(super) bucket: Arc<dyn Bucket>,
    pub(super) env: Env,
    /// The process ends.
    pub(super) stop: Stop,
    /// Held for moments only, never across an await.
    state: Mutex<State>,
    pub(super) wakers: Wakers,
    /// Its end, from the moment that the books have it.
    ending: Arc<Ending>,
    /// Its end, once the last words are said.
    pub(super) ended: Arc<Ending>,
}

/// Wake the tasks. Each is woken by whoever gave it something to do.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    pub(super) disk: Notify,
    pub(super) ship: Notify,
    pub(super) look: Notify,
    pub(super) trim: Notify,
    /// Wakes all who wait until less is on its way.
    pub(super) progress: Notify,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in here is a defect that leaves the log's books in doubt: nothing may be acknowledged by them.
        match self.state.lock() {
            Ok(state) => state,
            Err(poisoned) => {
                let mut state = PoisonError::into_inner(poisoned);
                state.poison(&self.wakers);
                state
            }
        }
    }

    /// Waits for so long, or until there is something to do, or until the process is to end.
    pub(super) async fn rest(&self, waker: &Notify, pause: Option<Duration>) {
        let timer = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.stop.given() => {}
            () = waker.notified() => {}
            () = timer => {}
        }
    }

    /// Waits until no append up to this one is on its way any more.
    async fn settled_through(&self, last: Lsn) {
        loop {
            // Made before the look: what comes after the look is not missed.
            let progress = self.wakers.progress.notified();
            if self.lock().is_settled_through(last) {
                return;
            }
            progress.await;
        }
    }

    /// Resolves when the log's last words are on the local disk.
    pub(super) async fn ended(&self) -> LogEnd {
        self.ended.over().await;
        self.ended.cause().unwrap_or(LogEnd::Stopped)
    }
}

impl Log {
    /// Begins a log: creates its first slot and starts its tasks. Goes on trying while the bucket does not answer.
    ///
    /// Cancelling the call leaves an empty log behind, perhaps.
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
    ) -> Result<Self, StartLogError> {
        let checksum = ship::create_birth(&id, bucket.as_ref(), &env, tasks.stop()).await?;
        let ending = Ending::new();
        let shared = Arc::new(Shared {
            keys: LogKeys::new(&id),
            state: Mutex::new(State::new(&settings, Arc::clone(&ending))),
            ending,
            settings,
            bucket,
            env,
            stop: tasks.stop().clone(),
            wakers: Wakers::default(),
            ended: Ending::new(),
            id,
        });
        let there = || Arc::clone(&shared);
        tasks.spawn("log disk", watched(there(), Task::Disk, disk::run(there(), wal)));
        tasks.spawn("log ship", watched(there(), Task::Ship, ship::run(there(), checksum)));
        tasks.spawn("log look", watched(there(), Task::Look, look::run(there())));
        tasks.spawn("log trim", watched(there(), Task::Trim, trim::run(there())));
        Ok(Self(shared))
    }

    /// The log's id.
    #[must_use]
    pub fn id(&self) -> &LogId {
        &self.0.id
    }

    /// Takes entries into the log. Never waits. The appends of one subject come from one caller, in order, each
    /// [after](Append::first_after) the one before; where one failed, its successors are refused until one comes that
    /// takes its place.
    ///
    /// # Errors
    /// `overloaded` when too much waits to be shipped, `unavailable` when the local disk is full or failed or the log
    /// is being stopped, `not_owner` when somebody else has ended the log. Nothing was taken.
    pub fn append(&self, append: Append) -> Result<Arc<Ticket>, ErrorReply> {
        let now = self.0.env.boot();
        let ticket = self.0.lock().append(append, &self.0.settings, now)?;
        self.0.wakers.disk.notify_one();
        Ok(ticket)
    }

    /// A subject is opened, and nothing of an earlier life of it is on its way: its next append follows from what the
    /// bucket has, and not from what may have failed here before the subject was served elsewhere.
    pub fn opened(&self, subject: &Subject) {
        self.0.lock().opened(subject);
    }

    /// Whether writes of every level must wait for the bucket now, because some have waited too long to be shipped.
    #[must_use]
    pub fn holds_weaker(&self) -> bool {
        let now = self.0.env.boot();
        self.0.lock().unshipped_age(now) > self.0.settings.max_unshipped_age
    }

    /// What was appended so far is shipped as soon as possible.
    pub fn ship(&self) {
        self.0.lock().want_all();
        self.0.wakers.ship.notify_one();
    }

    /// The slot that is written next, or is in flight: nothing that is not shipped yet will be below it.
    #[must_use]
    pub fn next_slot(&self) -> Slot {
        self.0.lock().owner.next_slot()
    }

    /// Waits until it is proved that at the moment of the call nobody had taken this log over. One proof serves all who
    /// wait. While the bucket does not answer this waits; bound it from outside.
    ///
    /// Cancelling the call has no effect on others.
    ///
    /// # Errors
    /// `not_owner` when somebody has, `unavailable` when the log ends otherwise.
    pub async fn barrier(&self) -> Result<(), ErrorReply> {
        let proof = {
            let mut state = self.0.lock();
            state.refuse_if_ended()?;
            let (proven, proof) = oneshot::channel();
            // The machine may answer at once only by what began after this read.
            let effects = state.owner.apply(OwnerInput::Read);
            let number = state.owner.arrived();
            state.readers.push_back((number, proven));
            state.perform(effects, &self.0);
            proof
        };
        proof.await.unwrap_or_else(|_| Err(ErrorReply::unavailable("the log was stopped")))
    }

    /// Resolves when the log is at its end, and every write in it is acknowledged, failed, or kept on the local disk.
    ///
    /// Cancelling the call has no effect.
    pub async fn ended(&self) -> LogEnd {
        self.0.ended().await
    }

    /// Whether the log is at its end: from the very moment that it refuses what is new and fails what is not
    /// acknowledged, before [`Log::ended`] resolves. Cheap enough to ask before each answer.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.ending.cause().is_some()
    }

    /// The local disk has lost something: nothing more is acknowledged, as after a sync that failed.
    pub fn poison(&self) {
        self.0.lock().poison(&self.0.wakers);
    }

    /// Resolves as soon as [`Log::is_over`] is true.
    ///
    /// Cancelling the call has no effect.
    pub async fn over(&self) {
        self.0.ending.over().await;
    }

    /// How the log came to its end, if [`Log::is_over`].
    #[must_use]
    pub fn end_cause(&self) -> Option<LogEnd> {
        self.0.ending.cause()
    }

    /// How the log came to its end, once [`Log::ended`] has resolved.
    #[must_use]
    pub fn end(&self) -> Option<LogEnd> {
        self.0.ended.cause()
    }

    /// Waits until nothing of `subject` is on its way any more: it is shipped, failed, or left to the local disk by the
    /// end of the log. Meanwhile it is shipped without delay.
    ///
    /// Cancelling the call has no effect.
    pub async fn settled(&self, subject: &Subject) {
        loop {
            let Some(last) = self.0.lock().last_unshipped(subject) else { return };
            self.ship();
            self.0.settled_through(last).await;
        }
    }

    /// What is shipped of a subject and not covered by a verified manifest; `None` when there is nothing.
    #[must_use]
    pub fn tail(&self, subject: &Subject) -> Option<Tail> {
        self.0.lock().tails.tail(subject)
    }

    /// The slots that may hold entries of `subject` which a state at `rev` lacks, ascending: all of those, and more where
    /// the books are coarse.
    pub(super) fn slots_above(&self, subject: &Subject, rev: Rev) -> Vec<Slot> {
        self.0.lock().tails.slots_above(subject, rev)
    }

    /// A manifest of this log with base `base` and `first_slot` was seen to be the subject's newest, in a listing made
    /// after it was created. Only then may slots go.
    pub fn based(&self, subject: &Subject, base: Rev, first_slot: Slot) {
        let mut state = self.0.lock();
        state.tails.based(subject, base, first_slot);
        state.trim(&self.0);
    }

    /// At most `most` subjects with what is needed for them, beginning with the one that needs the lowest slot.
    #[must_use]
    pub fn oldest_tails(&self, most: usize) -> Vec<(Subject, Tail)> {
        self.0.lock().tails.oldest(most)
    }

    /// Takes nothing more, ships everything and ends the tasks. Waits as long as the bucket does not answer.
    ///
    /// Cancelling the call leaves the log stopping.
    pub async fn stop(&self) {
        self.0.lock().stop();
        self.0.wakers.disk.notify_one();
        self.0.wakers.ship.notify_one();
        self.ended().await;
    }

    /// The log in numbers.
    #[must_use]
    pub fn figures(&self) -> LogFigures {
        let now = self.0.env.boot();
        self.0.lock().figures(now)
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("id", &self.0.id).finish_non_exhaustive()
    }
}
