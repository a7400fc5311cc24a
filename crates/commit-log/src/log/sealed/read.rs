//! Single slots and blocks, by range reads.

use std::sync::Arc;

use bytes::Bytes;
use dormouse_bucket::{Bucket, BucketError};
use dormouse_format::entry::LogEntry;
use dormouse_format::keys::LogKeys;
use dormouse_format::segment::{self, Footer, IndexLine, MAX_HEADER_BYTES, SlotHeader};
use dormouse_format::{FormatError, frame};
use dormouse_protocol::{ErrorReply, LogId, Rev, Slot, Subject};
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::log::Log;

/// Longest id of a log, in bytes, that [`MAX_HEADER_BYTES`] leaves room for.
const MAX_LOG_ID_BYTES: usize = 255;

/// Bytes read first from the end of a slot: they include the index of most segments, and all of many small segments.
const TAIL_BYTES: u64 = 64 * 1_024;

/// Concurrent requests to the bucket.
pub(super) const CONCURRENT_READS: usize = 16;

/// Bytes of blocks that are read before they are needed, in KiB.
const READ_AHEAD_KIB: u32 = 16 * 1_024;

/// Why a subject's entries cannot be read from a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TailError {
    /// An object was deleted meanwhile. Slots are deleted only when the newest manifest no longer needs them: read that
    /// manifest.
    #[error("{object} is missing: the subject has a newer manifest")]
    Missing {
        /// The missing object.
        object: String,
    },
    /// The bucket failed, or an object is invalid.
    #[error("subject entries unreadable: {}", .0.message)]
    Failed(ErrorReply),
}

impl From<BucketError> for TailError {
    fn from(error: BucketError) -> Self {
        Self::Failed(ErrorReply::from(&error))
    }
}

impl From<FormatError> for TailError {
    fn from(error: FormatError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<TailError> for ErrorReply {
    fn from(error: TailError) -> Self {
        match error {
            TailError::Missing { .. } => Self::unavailable(error.to_string()),
            TailError::Failed(reply) => reply,
        }
    }
}

/// The entries of a subject above `base` that this process has shipped into its own log, from `first_slot` on. Entries in
/// flight are not included.
pub fn read_own_tail<'a>(
    log: &'a Log,
    bucket: &'a dyn Bucket,
    subject: &'a Subject,
    first_slot: Slot,
    base: Rev,
) -> TailReader<'a> {
    let slots = log.slots_above(subject, base).into_iter().filter(move |slot| *slot >= first_slot);
    TailReader::of_slots(bucket, log.id().clone(), slots, subject, base)
}

/// As [`read_own_tail`], for a local file at `file_rev` that this process has served under the current term: the entries
/// that the file may lack. If the file holds every shipped entry, nothing is read.
pub fn read_own_tail_above_file<'a>(
    log: &'a Log,
    bucket: &'a dyn Bucket,
    subject: &'a Subject,
    first_slot: Slot,
    file_rev: Rev,
) -> TailReader<'a> {
    let slots = log.slots_above_file(subject, file_rev).into_iter().filter(move |slot| *slot >= first_slot);
    TailReader::of_slots(bucket, log.id().clone(), slots, subject, file_rev)
}

/// As [`read_own_tail`], for a log that may have a running owner, as of some moment during the call. Changes nothing.
///
/// Cancelling the call has no effect.
///
/// # Errors
/// The bucket's error.
pub async fn read_tail<'a>(
    bucket: &'a dyn Bucket,
    log: &LogId,
    subject: &'a Subject,
    first_slot: Slot,
    base: Rev,
) -> Result<TailReader<'a>, TailError> {
    let keys = LogKeys::new(log);
    let slots = keys.read_listing(&bucket.list(keys.folder()).await?);
    let slots = slots.into_iter().filter(move |slot| *slot >= first_slot);
    Ok(TailReader::of_slots(bucket, log.clone(), slots, subject, base))
}

/// Entries that were read, and the share of the read-ahead that they occupy.
type ReadBlock = (Vec<LogEntry>, OwnedSemaphorePermit);

/// Reads the entries of one subject above a base from a log, in order and without a gap, block by block.
///
/// A block holds the subject's entries in one slot. Besides the block that the caller has, at most 16 MiB of blocks are
/// in memory, or one larger block; so a tail may have any length.
pub struct TailReader<'a> {
    log: LogId,
    base: Rev,
    blocks: BoxStream<'a, Result<ReadBlock, TailError>>,
    /// Entries that follow those of the log.
    local: Vec<LogEntry>,
    /// The next entries, if they were read already.
    ahead: Option<Vec<LogEntry>>,
    /// The highest rev that the entries lead to, if it is known without reading them.
    highest: Option<Rev>,
    /// The bytes of the blocks, if they are known without reading them.
    size_bytes: Option<u64>,
    /// The rev of the last entry so far.
    reached: Option<Rev>,
}

impl<'a> TailReader<'a> {
    fn of_slots(
        bucket: &'a dyn Bucket,
        log: LogId,
        slots: impl Iterator<Item = Slot> + Send + 'a,
        subject: &'a Subject,
        base: Rev,
    ) -> Self {
        let mut slots = slots.peekable();
        let size_bytes = slots.peek().is_none().then_some(0);
        let find = {
            let log = log.clone();
            move |slot| {
                let log = log.clone();
                async move { find_block(bucket, &log, slot, subject).await }
            }
        };
        let blocks = stream::iter(slots)
            .map(find)
            .buffered(CONCURRENT_READS)
            .try_filter_map(|block| std::future::ready(Ok(block)));
        Self { size_bytes, ..Self::of_blocks(bucket, log, blocks, base) }
    }

    /// The blocks that an index names.
    pub(super) fn of_lines(
        bucket: &'a dyn Bucket,
        log: LogId,
        lines: Vec<(Slot, IndexLine)>,
        base: Rev,
    ) -> Self {
        let highest = lines.last().map(|(_, line)| line.last_rev);
        let size_bytes = Some(lines.iter().map(|(_, line)| line.length).sum());
        let blocks = lines.into_iter().map(|(slot, line)| Ok(BlockPlace { slot, line, bytes: None }));
        Self { highest, size_bytes, ..Self::of_blocks(bucket, log, stream::iter(blocks), base) }
    }

    fn of_blocks(
        bucket: &'a dyn Bucket,
        log: LogId,
        blocks: impl Stream<Item = Result<BlockPlace, TailError>> + Send + 'a,
        base: Rev,
    ) -> Self {
        let room = Arc::new(Semaphore::new(READ_AHEAD_KIB as usize));
        let read = {
            let log = log.clone();
            move |block: Result<BlockPlace, TailError>| {
                let (log, room) = (log.clone(), Arc::clone(&room));
                async move {
                    let block = block?;
                    // Permits are granted in the order of the blocks, so the first one never waits for a later one.
                    let kib = block.line.length.div_ceil(1_024).clamp(1, u64::from(READ_AHEAD_KIB));
                    let permit = room.acquire_many_owned(u32::try_from(kib).unwrap_or(READ_AHEAD_KIB)).await;
                    let permit = permit.map_err(|error| TailError::Failed(ErrorReply::internal(error)))?;
                    Ok((read_block(bucket, &log, block, base).await?, permit))
                }
            }
        };
        let blocks = blocks.map(read).buffered(CONCURRENT_READS).boxed();
        Self {
            log,
            base,
            blocks,
            local: Vec::new(),
            ahead: None,
            highest: None,
            size_bytes: None,
            reached: None,
        }
    }

    /// Adds entries that may follow those of the log, in order. Those that the log holds are ignored.
    #[must_use]
    pub fn followed_by(self, local: Vec<LogEntry>) -> Self {
        let highest = self.highest.max(local.last().map(LogEntry::last_rev));
        Self { local, highest, ..self }
    }

    /// The highest rev that the entries lead to. `None`: there are none, or it is known only at their end.
    #[must_use]
    pub const fn highest(&self) -> Option<Rev> {
        self.highest
    }

    /// The size of what is read from the log, in bytes. `None`: it is known only at the end.
    #[must_use]
    pub const fn size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }

    /// Whether there is no entry (any more). It reads the next block.
    ///
    /// If the call is cancelled, a block may be lost: only a drop may follow.
    ///
    /// # Errors
    /// As [`TailReader::next`].
    pub async fn is_at_end(&mut self) -> Result<bool, TailError> {
        if self.ahead.is_none() {
            self.ahead = self.read_next().await?;
        }
        Ok(self.ahead.is_none())
    }

    /// The entries of the next block; `None` after the last one.
    ///
    /// If the call is cancelled, a block may be lost: only a drop may follow.
    ///
    /// # Errors
    /// [`TailError::Missing`] if an object is missing that the log had, or an entry is. `corrupt` for a damaged block.
    pub async fn next(&mut self) -> Result<Option<Vec<LogEntry>>, TailError> {
        match self.ahead.take() {
            Some(entries) => Ok(Some(entries)),
            None => self.read_next().await,
        }
    }

    async fn read_next(&mut self) -> Result<Option<Vec<LogEntry>>, TailError> {
        while let Some(block) = self.blocks.next().await {
            let (entries, _permit) = block?;
            if let Some(entries) = self.check(entries, self.base)? {
                return Ok(Some(entries));
            }
        }
        let local = std::mem::take(&mut self.local);
        self.check(local, self.reached.unwrap_or(self.base))
    }

    /// Drops the entries below `base`. The first of the others must join the last one before, or the base.
    fn check(&mut self, mut entries: Vec<LogEntry>, base: Rev) -> Result<Option<Vec<LogEntry>>, TailError> {
        entries.retain(|entry| entry.is_above(base));
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(None) };
        let joins = self.reached.map_or(first.after <= self.base, |reached| first.after == reached);
        if !joins || frame::check_run(&entries).is_err() {
            return Err(TailError::Missing { object: format!("a slot of log {}", self.log) });
        }
        self.reached = Some(last.last_rev());
        Ok(Some(entries))
    }
}

impl std::fmt::Debug for TailReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TailReader").field("log", &self.log).field("base", &self.base).finish_non_exhaustive()
    }
}

/// Where the entries of a subject in one slot are.
struct BlockPlace {
    slot: Slot,
    line: IndexLine,
    /// The block, if it was read together with the index.
    bytes: Option<Bytes>,
}

/// Finds a subject's block in a slot, without an index of the log; `None` if the slot has none.
async fn find_block(
    bucket: &dyn Bucket,
    log: &LogId,
    slot: Slot,
    subject: &Subject,
) -> Result<Option<BlockPlace>, TailError> {
    let Some(read) = read_index(bucket, log, slot).await? else { return Err(missing(log, slot)) };
    let Some(line) = read.lines.iter().find(|line| line.subject == *subject) else { return Ok(None) };
    Ok(Some(BlockPlace { slot, line: line.clone(), bytes: read.part(line.range()) }))
}

async fn read_block(
    bucket: &dyn Bucket,
    log: &LogId,
    BlockPlace { slot, line, bytes }: BlockPlace,
    base: Rev,
) -> Result<Vec<LogEntry>, TailError> {
    let block = match bytes {
        Some(bytes) => Some(bytes),
        None => bucket.get_range(&LogKeys::new(log).slot(slot), line.range()).await?,
    };
    match block {
        Some(block) => Ok(segment::decode_block(log, slot, &line, &block)?),
        // The slot could hold only dedup records, and was released because no manifest needs it.
        None if line.last_rev <= base => Ok(Vec::new()),
        None => Err(missing(log, slot)),
    }
}

/// The end of a slot object, with its index.
pub(super) struct SlotEnd {
    pub(super) lines: Vec<IndexLine>,
    tail: Bytes,
    object_bytes: u64,
}

impl SlotEnd {
    /// A part of the object, if it was read together with the end.
    fn part(&self, range: std::ops::Range<u64>) -> Option<Bytes> {
        let from = self.object_bytes.checked_sub(self.tail.len() as u64)?;
        let start = usize::try_from(range.start.checked_sub(from)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(from)?).ok()?;
        (end <= self.tail.len()).then(|| self.tail.slice(start..end))
    }
}

/// The position of each subject's entries in a slot; `None` if there is no object.
pub(super) async fn read_index(
    bucket: &dyn Bucket,
    log: &LogId,
    slot: Slot,
) -> Result<Option<SlotEnd>, TailError> {
    let key = LogKeys::new(log).slot(slot);
    let Some(tail) = bucket.get_tail(&key, TAIL_BYTES).await? else { return Ok(None) };
    let footer = Footer::decode(log, slot, &tail)?;
    let mut end = SlotEnd { lines: Vec::new(), tail, object_bytes: footer.object_bytes() };
    let index = match end.part(footer.index.clone()) {
        Some(index) => index,
        None => match bucket.get_range(&key, footer.index.clone()).await? {
            Some(index) => index,
            None => return Ok(None),
        },
    };
    end.lines = footer.decode_index(log, slot, &index)?;
    Ok(Some(end))
}

/// Reads the header of a slot's object: its author and its kind; `None` if there is no object.
pub(in crate::log) async fn read_header(
    bucket: &dyn Bucket,
    log: &LogId,
    slot: Slot,
) -> Result<Option<Result<SlotHeader, FormatError>>, BucketError> {
    // Every object of this log has a header of this length, followed by more bytes.
    let length = MAX_HEADER_BYTES - MAX_LOG_ID_BYTES + log.to_string().len();
    let front = bucket.get_range(&LogKeys::new(log).slot(slot), 0..length as u64).await?;
    Ok(front.map(|front| segment::decode_header(log, slot, &front)))
}

fn missing(log: &LogId, slot: Slot) -> TailError {
    TailError::Missing { object: LogKeys::new(log).slot(slot).to_string() }
}
