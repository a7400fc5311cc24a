//! Reading logs: sealed ones, and the own log.
//!
//! A log of an ended process is sealed once for all its subjects, and indexed once. The sealer writes an index object,
//! so one subject's entries cost a few range reads, however long the log is.

mod build;
mod read;

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_bucket::{Bucket, BucketError, CreateOutcome, create_once};
use dormouse_format::index::LogIndex;
use dormouse_format::keys::{LogKeys, Nonce};
use dormouse_format::segment::{self, IndexLine, NO_PREVIOUS, SlotHeader, SlotKind};
use dormouse_protocol::{ErrorReply, LogId, Rev, Slot, Subject};
use dormouse_runtime::{Env, Lock};
use tokio::sync::OnceCell;
use tokio::time::sleep;

use super::seal::{SealEffect, SealInput, SealMachine, SealedSlotRead};
use crate::recovery::SealLog;

pub(super) use read::read_header;
pub use read::{TailError, TailReader, read_own_tail, read_own_tail_above_file, read_tail};

/// Time limit for a definite result of a seal create.
const CREATE_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum steps of an attempt: the owner may write more slots meanwhile. A running owner loses the race eventually,
/// because it waits for each of its slots.
const MAX_SEAL_STEPS: usize = 1_000;

/// Maximum number of cached sealed logs.
pub(super) const MAX_CACHED_LOGS: usize = 16;

/// The sealed logs that were requested so far.
pub struct SealedLogs {
    bucket: Arc<dyn Bucket>,
    env: Env,
    own: LogId,
    pub(super) known: Lock<BTreeMap<LogId, Arc<OnceCell<Arc<SealedLog>>>>>,
}

/// A sealed log.
pub struct SealedLog {
    log: LogId,
    seal: Slot,
    slots: Vec<Slot>,
    size_bytes: u64,
    index: LogIndex,
    bucket: Arc<dyn Bucket>,
}

/// The entries of one subject in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotUse {
    /// The slot.
    pub slot: Slot,
    /// The rev of the subject's last entry in it.
    pub last_rev: Rev,
}

/// The slot of a log's seal, and the existing slots below it at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SealPoint {
    seal: Slot,
    slots: Vec<Slot>,
    /// Bytes of these slots.
    size_bytes: u64,
}

/// Result of an attempt to confirm that a log is sealed.
enum SealOutcome {
    Sealed(SealPoint),
    NotSealed,
    Absent,
}

impl SealedLogs {
    /// Starts with an empty cache. `own` is the log of this process, which it never seals.
    #[must_use]
    pub fn new(bucket: Arc<dyn Bucket>, env: Env, own: LogId) -> Self {
        Self { bucket, env, own, known: Lock::default() }
    }

    /// Ensures that a log is sealed, by any process, and indexed. Concurrent calls share the work.
    ///
    /// Call this only if the log's process is known to have ended: this fences it.
    ///
    /// If the call is cancelled, the log may or may not be sealed.
    ///
    /// # Errors
    /// `corrupt` when the log has no slot at all or holds an unreadable object, `unavailable` when the bucket does not
    /// answer.
    pub async fn seal(&self, log: &LogId) -> Result<Arc<SealedLog>, ErrorReply> {
        let cell = self.cell(log);
        let sealed = cell
            .get_or_try_init(|| async {
                let point = self.run_seal(log, true).await?;
                let SealOutcome::Sealed(point) = point else { return Err(absent(log)) };
                build::open(Arc::clone(&self.bucket), &self.env, log, point, true).await.map(Arc::new)
            })
            .await?;
        Ok(Arc::clone(sealed))
    }

    /// Ensures that a log is sealed, by any process, without an index. `false`: the log has no slot, it never existed.
    ///
    /// If the call is cancelled, the log may or may not be sealed.
    ///
    /// # Errors
    /// As [`SealedLogs::seal`].
    pub async fn seal_only(&self, log: &LogId) -> Result<bool, ErrorReply> {
        Ok(matches!(self.run_seal(log, true).await?, SealOutcome::Sealed(_)))
    }

    /// Whether a log is sealed. Changes nothing.
    ///
    /// # Errors
    /// As [`SealedLogs::seal`].
    pub async fn is_sealed(&self, log: &LogId) -> Result<bool, ErrorReply> {
        Ok(matches!(self.run_seal(log, false).await?, SealOutcome::Sealed(_)))
    }

    /// Reads a log that is sealed already; `None` if it is not. Changes nothing.
    ///
    /// # Errors
    /// As [`SealedLogs::seal`].
    pub async fn read(&self, log: &LogId) -> Result<Option<SealedLog>, ErrorReply> {
        let SealOutcome::Sealed(point) = self.run_seal(log, false).await? else { return Ok(None) };
        build::open(Arc::clone(&self.bucket), &self.env, log, point, false).await.map(Some)
    }

    /// Removes a log from the cache: its objects are deleted, or must be read again.
    pub fn evict(&self, log: &LogId) {
        self.lock().remove(log);
    }

    /// Drives the seal machine; `write` says whether it may create a seal.
    async fn run_seal(&self, log: &LogId, write: bool) -> Result<SealOutcome, ErrorReply> {
        if *log == self.own {
            return Err(ErrorReply::internal(format!("log {log} cannot seal itself")));
        }
        let (mut machine, mut effect) = SealMachine::begin();
        let mut slots = Vec::new();
        for _ in 0..MAX_SEAL_STEPS {
            let input = match effect {
                SealEffect::List => {
                    slots = list_sizes(self.bucket.as_ref(), log).await?;
                    SealInput::Listed(slots.last().map(|(slot, _)| *slot))
                }
                SealEffect::ReadSlot(slot) => SealInput::SlotRead(self.read_slot_kind(log, slot).await?),
                SealEffect::Create(_) if !write => return Ok(SealOutcome::NotSealed),
                SealEffect::Create(slot) => SealInput::Created { ours: self.create_seal(log, slot).await? },
                SealEffect::Sealed(seal) => {
                    slots.retain(|(slot, _)| *slot < seal);
                    let size_bytes = slots.iter().map(|(_, bytes)| bytes).sum();
                    let slots = slots.into_iter().map(|(slot, _)| slot).collect();
                    return Ok(SealOutcome::Sealed(SealPoint { seal, slots, size_bytes }));
                }
                SealEffect::Absent => return Ok(SealOutcome::Absent),
            };
            let next = machine.apply(input);
            effect = next.ok_or_else(|| ErrorReply::internal("unexpected input to the seal machine"))?;
        }
        Err(ErrorReply::unavailable(format!("log {log} grows faster than it can be sealed")))
    }

    async fn read_slot_kind(&self, log: &LogId, slot: Slot) -> Result<SealedSlotRead, ErrorReply> {
        match read_header(self.bucket.as_ref(), log, slot).await.map_err(reply)? {
            None => Ok(SealedSlotRead::Gone),
            Some(Ok(header)) if header.kind == SlotKind::Seal => Ok(SealedSlotRead::Seal),
            Some(Ok(_)) => Ok(SealedSlotRead::Other),
            Some(Err(error)) => Err(error.into()),
        }
    }

    async fn create_seal(&self, log: &LogId, slot: Slot) -> Result<bool, ErrorReply> {
        let nonce = Nonce::new(self.env.ulid());
        let header =
            SlotHeader { kind: SlotKind::Seal, log: log.clone(), slot, nonce, previous: NO_PREVIOUS };
        let seal = segment::encode(&header, Vec::new()).bytes;
        let key = LogKeys::new(log).slot(slot);
        match create_once(self.bucket.as_ref(), &key, seal, sleep(CREATE_TIMEOUT)).await {
            Ok(CreateOutcome::Ours) => {
                tracing::info!(%log, %slot, "orphaned log sealed");
                Ok(true)
            }
            Ok(CreateOutcome::Foreign) => Ok(false),
            // The seal may exist now or appear later: the next attempt then finds it.
            Ok(CreateOutcome::Unknown(error)) | Err(error) => Err(reply(error)),
        }
    }

    fn cell(&self, log: &LogId) -> Arc<OnceCell<Arc<SealedLog>>> {
        let mut known = self.lock();
        if known.len() >= MAX_CACHED_LOGS && !known.contains_key(log) {
            // Evicts any idle entry, including one whose sealing failed: a process uses few sealed logs at a time, and
            // an evicted one is read again.
            let idle = known.iter().find(|(_, cell)| cell.initialized() || Arc::strong_count(cell) == 1);
            if let Some(idle) = idle.map(|(log, _)| log.clone()) {
                known.remove(&idle);
            }
        }
        Arc::clone(known.entry(log.clone()).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LogId, Arc<OnceCell<Arc<SealedLog>>>>> {
        // Each change of the map is one call.
        self.known.lock()
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

    /// The slot of its seal.
    #[must_use]
    pub const fn seal(&self) -> Slot {
        self.seal
    }

    /// The existing slots below the seal when the log was confirmed as sealed, ascending.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Bytes of [`SealedLog::slots`], as listed.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The slots that exist now: those below the seal, and the seal.
    ///
    /// # Errors
    /// The bucket's error.
    pub async fn list(&self) -> Result<Vec<Slot>, ErrorReply> {
        let sizes = list_sizes(self.bucket.as_ref(), &self.log).await?;
        Ok(sizes.into_iter().map(|(slot, _)| slot).collect())
    }

    /// Number of subjects with entries in the log.
    #[must_use]
    pub const fn subjects(&self) -> usize {
        self.index.len()
    }

    /// The first subject after `after`, by name, that has entries in the log, and the slots that hold them.
    #[must_use]
    pub fn next_subject(&self, after: Option<&Subject>) -> Option<(Subject, Vec<Slot>)> {
        let subject = self.index.subject_after(after)?;
        let slots = self.index.lines_of(&subject).into_iter().map(|(slot, _)| slot).collect();
        Some((subject, slots))
    }

    /// The first subject after `after`, by name, that has entries in the log, and its last rev in each slot.
    #[must_use]
    pub fn next_subject_uses(&self, after: Option<&Subject>) -> Option<(Subject, Vec<SlotUse>)> {
        let subject = self.index.subject_after(after)?;
        let held = |(slot, line): (Slot, IndexLine)| SlotUse { slot, last_rev: line.last_rev };
        let held = self.index.lines_of(&subject).into_iter().map(held).collect();
        Some((subject, held))
    }

    /// Reads the entries of a subject above `base`, from `first_slot` on. If an object that the index names is missing, a
    /// newer manifest no longer needs it.
    #[must_use]
    pub fn tail(&self, subject: &Subject, first_slot: Slot, base: Rev) -> TailReader<'_> {
        let lines = self.index.lines_of(subject).into_iter();
        let needed = lines.filter(|(slot, line)| *slot >= first_slot && line.last_rev >= base).collect();
        TailReader::of_lines(self.bucket.as_ref(), self.log.clone(), needed, base)
    }

    /// Deletes a slot that no manifest needs. It never deletes the seal or a slot above it.
    ///
    /// If the call is cancelled, the slot may or may not be deleted.
    ///
    /// # Errors
    /// The bucket's error; `internal` for the seal.
    pub async fn delete_slot(&self, slot: Slot) -> Result<(), ErrorReply> {
        if slot >= self.seal {
            return Err(ErrorReply::internal(format!("seal of log {} cannot be deleted", self.log)));
        }
        self.bucket.delete(&LogKeys::new(&self.log).slot(slot)).await.map_err(reply)
    }

    /// Deletes the index, once no manifest needs any slot.
    ///
    /// If the call is cancelled, the index may or may not be deleted.
    ///
    /// # Errors
    /// The bucket's error.
    pub async fn delete_index(&self) -> Result<(), ErrorReply> {
        self.bucket.delete(&LogKeys::new(&self.log).index()).await.map_err(reply)
    }
}

async fn list_sizes(bucket: &dyn Bucket, log: &LogId) -> Result<Vec<(Slot, u64)>, ErrorReply> {
    let keys = LogKeys::new(log);
    let listed = bucket.list(keys.folder()).await.map_err(reply)?;
    Ok(keys.read_sizes(&listed))
}

#[expect(clippy::needless_pass_by_value)] // Shorter at its call sites, which pass it to `map_err`.
fn reply(error: BucketError) -> ErrorReply {
    ErrorReply::from(&error)
}

/// A manifest names the log, so the log was started, and its seal is never deleted.
fn absent(log: &LogId) -> ErrorReply {
    ErrorReply::corrupt(LogKeys::new(log).folder().to_string(), "log has no slot")
}
