//! Reading logs: those that have ended, and one's own.
//!
//! A log that ended is sealed once for all of its subjects, and indexed once: whoever sealed it writes an index object,
//! so that one subject's entries cost a few range reads, however long the log is.

mod build;
mod read;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_protocol::{ErrorReply, LogId, Rev, Slot, Subject};
use dormouse_runtime::Env;
use tokio::sync::OnceCell;
use tokio::time::sleep;

use super::seal::{Looked, Seal, SealEffect, SealInput};
use crate::bucket::{Bucket, BucketError, CreateOutcome, create_once};
use crate::entry::Entry;
use crate::format::index::LogIndex;
use crate::format::segment::{self, IndexLine, NO_PREVIOUS, SlotHeader, SlotKind};
use crate::keys::{LogKeys, Nonce};
use crate::ownership::garbage::Held;
use crate::recovery::SealLog;

pub(super) use read::read_header;
pub use read::{TailError, read_own_tail, read_tail};

/// How long an attempt to create a seal may go without a definite answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a log may turn out to have gone on while it is being sealed. An owner that is alive loses the race sooner
/// or later, because it waits for each of its slots.
const MOST_STEPS: usize = 1_000;

/// How many sealed logs are remembered.
pub(super) const MOST_REMEMBERED: usize = 16;

/// The logs that have ended, as far as somebody has asked for them.
pub struct SealedLogs {
    bucket: Arc<dyn Bucket>,
    env: Env,
    own: LogId,
    pub(super) known: Mutex<BTreeMap<LogId, Arc<OnceCell<Arc<SealedLog>>>>>,
}

/// A log that has ended.
pub struct SealedLog {
    log: LogId,
    seal: Slot,
    slots: Vec<Slot>,
    index: LogIndex,
    bucket: Arc<dyn Bucket>,
}

/// Where a log was sealed, and what was below at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fence {
    seal: Slot,
    slots: Vec<Slot>,
}

/// How an attempt to see a log sealed ended.
enum Outcome {
    Sealed(Fence),
    NotSealed,
    Absent,
}

impl SealedLogs {
    /// Knows none yet. `own` is the log of this process, which is never sealed by itself.
    #[must_use]
    pub fn new(bucket: Arc<dyn Bucket>, env: Env, own: LogId) -> Self {
        Self { bucket, env, own, known: Mutex::default() }
    }

    /// Sees to it that a log is sealed, by whomever, and indexed. The work is done once, however many ask.
    ///
    /// Only for a log whose process is known to be over: this ends it.
    ///
    /// Cancelling the call leaves open whether the log is sealed.
    ///
    /// # Errors
    /// `corrupt` when the log has no slot at all or holds something unreadable, `unavailable` when the bucket does not
    /// answer.
    pub async fn seal(&self, log: &LogId) -> Result<Arc<SealedLog>, ErrorReply> {
        let cell = self.cell(log);
        let sealed = cell
            .get_or_try_init(|| async {
                let fence = self.fence(log, true).await?;
                let Outcome::Sealed(fence) = fence else { return Err(absent(log)) };
                build::open(Arc::clone(&self.bucket), &self.env, log, fence, true).await.map(Arc::new)
            })
            .await?;
        Ok(Arc::clone(sealed))
    }

    /// Sees to it that a log is sealed, by whomever, and no more. `false`: there is no slot of it, it was never born.
    ///
    /// Cancelling the call leaves open whether the log is sealed.
    ///
    /// # Errors
    /// As [`SealedLogs::seal`].
    pub async fn seal_only(&self, log: &LogId) -> Result<bool, ErrorReply> {
        Ok(matches!(self.fence(log, true).await?, Outcome::Sealed(_)))
    }

    /// Whether a log is sealed. Changes nothing.
    ///
    /// # Errors
    /// As [`SealedLogs::seal`].
    pub async fn is_sealed(&self, log: &LogId) -> Result<bool, ErrorReply> {
        Ok(matches!(self.fence(log, false).await?, Outcome::Sealed(_)))
    }

    /// A log that is sealed already; `None` when it is not. Changes nothing.
    ///
    /// # Errors
    /// As [`SealedLogs::seal`].
    pub async fn read(&self, log: &LogId) -> Result<Option<SealedLog>, ErrorReply> {
        let Outcome::Sealed(fence) = self.fence(log, false).await? else { return Ok(None) };
        build::open(Arc::clone(&self.bucket), &self.env, log, fence, false).await.map(Some)
    }

    /// Forgets a log: its objects are gone, or are read anew the next time.
    pub fn forget(&self, log: &LogId) {
        self.lock().remove(log);
    }

    /// Drives the sealing machine; `write` says whether it may create a seal.
    async fn fence(&self, log: &LogId, write: bool) -> Result<Outcome, ErrorReply> {
        if *log == self.own {
            return Err(ErrorReply::internal(format!("{log} was to seal itself")));
        }
        let (mut machine, mut effect) = Seal::begin();
        let mut slots = Vec::new();
        for _ in 0..MOST_STEPS {
            let input = match effect {
                SealEffect::List => {
                    slots = list_slots(self.bucket.as_ref(), log).await?;
                    SealInput::Listed(slots.last().copied())
                }
                SealEffect::Look(slot) => SealInput::Looked(self.look(log, slot).await?),
                SealEffect::Create(_) if !write => return Ok(Outcome::NotSealed),
                SealEffect::Create(slot) => SealInput::Created { ours: self.create_seal(log, slot).await? },
                SealEffect::Sealed(seal) => {
                    slots.retain(|slot| *slot < seal);
                    return Ok(Outcome::Sealed(Fence { seal, slots }));
                }
                SealEffect::Absent => return Ok(Outcome::Absent),
            };
            let next = machine.apply(input);
            effect = next.ok_or_else(|| ErrorReply::internal("a seal was driven out of step"))?;
        }
        Err(ErrorReply::unavailable(format!("the log {log} goes on faster than it can be sealed")))
    }

    async fn look(&self, log: &LogId, slot: Slot) -> Result<Looked, ErrorReply> {
        match read_header(self.bucket.as_ref(), log, slot).await.map_err(reply)? {
            None => Ok(Looked::Gone),
            Some(Ok(header)) if header.kind == SlotKind::Seal => Ok(Looked::Seal),
            Some(Ok(_)) => Ok(Looked::Other),
            Some(Err(error)) => Err(error.into()),
        }
    }

    async fn create_seal(&self, log: &LogId, slot: Slot) -> Result<bool, ErrorReply> {
        let nonce = Nonce::new(self.env.ulid());
        let header =
            SlotHeader { kind: SlotKind::Seal, log: log.clone(), slot, nonce, previous: NO_PREVIOUS };
        let seal = segment::encode(&header, Vec::new()).bytes;
        let key = LogKeys::new(log).slot(slot);
        match create_once(self.bucket.as_ref(), &key, seal, sleep(PATIENCE)).await {
            Ok(CreateOutcome::Ours) => {
                tracing::info!(%log, %slot, "put a seal on the log of a process that is over");
                Ok(true)
            }
            Ok(CreateOutcome::Anothers) => Ok(false),
            // It may lie there, or land later: then the next attempt finds it.
            Ok(CreateOutcome::Unknown(error)) | Err(error) => Err(reply(error)),
        }
    }

    fn cell(&self, log: &LogId) -> Arc<OnceCell<Arc<SealedLog>>> {
        let mut known = self.lock();
        if known.len() >= MOST_REMEMBERED && !known.contains_key(log) {
            // Any will do that nobody is at work on, also one whose sealing failed: there are few at a time, and one
            // that is missed is read again.
            let idle = known.iter().find(|(_, cell)| cell.initialized() || Arc::strong_count(cell) == 1);
            if let Some(idle) = idle.map(|(log, _)| log.clone()) {
                known.remove(&idle);
            }
        }
        Arc::clone(known.entry(log.clone()).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LogId, Arc<OnceCell<Arc<SealedLog>>>>> {
        // Each change of the map is one call.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl SealLog for SealedLogs {
    async fn seal(&self, log: &LogId) -> Result<(), ErrorReply> {
        self.seal_only(log).await.map(drop)
    }
}

impl std::fmt::Debug for SealedLogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedLogs").field("own", &self.own).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SealedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedLog").field("log", &self.log).field("seal", &self.seal).finish_non_exhaustive()
    }
}

impl SealedLog {
    /// The log's id.
    #[must_use]
    pub const fn log(&self) -> &LogId {
        &self.log
    }

    /// The slot of the seal that ends it.
    #[must_use]
    pub const fn seal(&self) -> Slot {
        self.seal
    }

    /// The slots that existed below the seal when it was seen to be sealed, ascending.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The slots that exist now: those below the seal, and the seal.
    ///
    /// # Errors
    /// What the bucket said.
    pub async fn list(&self) -> Result<Vec<Slot>, ErrorReply> {
        list_slots(self.bucket.as_ref(), &self.log).await
    }

    /// How many subjects have entries in it.
    #[must_use]
    pub const fn subjects(&self) -> usize {
        self.index.len()
    }

    /// The first subject after `after`, by name, that has entries in it, and the slots that hold them.
    #[must_use]
    pub fn next_subject(&self, after: Option<&Subject>) -> Option<(Subject, Vec<Slot>)> {
        let subject = self.index.subject_after(after)?;
        let slots = self.index.lines_of(&subject).into_iter().map(|(slot, _)| slot).collect();
        Some((subject, slots))
    }

    /// The first subject after `after`, by name, that has entries in it, and what each slot holds of it.
    #[must_use]
    pub fn next_held(&self, after: Option<&Subject>) -> Option<(Subject, Vec<Held>)> {
        let subject = self.index.subject_after(after)?;
        let held = |(slot, line): (Slot, IndexLine)| Held { slot, last_rev: line.last_rev };
        let held = self.index.lines_of(&subject).into_iter().map(held).collect();
        Some((subject, held))
    }

    /// The entries of a subject above `base`, from `first_slot` on, in order and without a hole.
    ///
    /// Cancelling the call has no effect.
    ///
    /// # Errors
    /// [`TailError::Missing`] when something that the index knows is gone: then a newer manifest needs it no more.
    pub async fn tail(
        &self,
        subject: &Subject,
        first_slot: Slot,
        base: Rev,
    ) -> Result<Vec<Entry>, TailError> {
        let lines = self.index.lines_of(subject).into_iter();
        let needed = lines.filter(|(slot, line)| *slot >= first_slot && line.last_rev >= base).collect();
        read::blocks(self.bucket.as_ref(), &self.log, needed, base).await
    }

    /// Deletes a slot that no manifest needs any more. The seal, and what may lie above it, is never deleted.
    ///
    /// Cancelling the call leaves open whether it is deleted.
    ///
    /// # Errors
    /// What the bucket said; `internal` for the seal.
    pub async fn delete_slot(&self, slot: Slot) -> Result<(), ErrorReply> {
        if slot >= self.seal {
            return Err(ErrorReply::internal(format!("the seal of {} was to be deleted", self.log)));
        }
        self.bucket.delete(&LogKeys::new(&self.log).slot(slot)).await.map_err(reply)
    }

    /// Deletes the index, once no manifest needs any slot.
    ///
    /// Cancelling the call leaves open whether it is deleted.
    ///
    /// # Errors
    /// What the bucket said.
    pub async fn delete_index(&self) -> Result<(), ErrorReply> {
        self.bucket.delete(&LogKeys::new(&self.log).index()).await.map_err(reply)
    }
}

async fn list_slots(bucket: &dyn Bucket, log: &LogId) -> Result<Vec<Slot>, ErrorReply> {
    let keys = LogKeys::new(log);
    let listed = bucket.list(keys.folder()).await.map_err(reply)?;
    Ok(keys.read_listing(&listed))
}

#[expect(clippy::needless_pass_by_value)] // Shorter where it is used, as what errors are mapped with.
fn reply(error: BucketError) -> ErrorReply {
    ErrorReply::from(&error)
}

/// A manifest names a log, so the log was born, and its seal stays for ever.
fn absent(log: &LogId) -> ErrorReply {
    ErrorReply::corrupt(LogKeys::new(log).folder().to_string(), "the log has no slot, not even a seal")
}
