//! Single slots and blocks, by range reads.

use bytes::Bytes;
use dormouse_bucket::{Bucket, BucketError};
use dormouse_format::entry::LogEntry;
use dormouse_format::keys::LogKeys;
use dormouse_format::segment::{self, Footer, IndexLine, MAX_HEADER_BYTES, SlotHeader};
use dormouse_format::{FormatError, frame};
use dormouse_protocol::{ErrorReply, LogId, Rev, Slot, Subject};
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::log::Log;

/// Longest id of a log, in bytes, that [`MAX_HEADER_BYTES`] leaves room for.
const MAX_LOG_ID_BYTES: usize = 255;

/// Bytes read first from the end of a slot: they include the index of most segments, and all of many small segments.
const TAIL_BYTES: u64 = 64 * 1_024;

/// Concurrent requests to the bucket.
pub(super) const CONCURRENT_READS: usize = 16;

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

/// The entries of a subject above `base` that this process has shipped into its own log, from `first_slot` on, in order
/// and without a gap. Entries in flight are not included.
///
/// Cancelling the call has no effect.
///
/// # Errors
/// [`TailError::Missing`] when a slot was trimmed meanwhile.
pub async fn read_own_tail(
    log: &Log,
    bucket: &dyn Bucket,
    subject: &Subject,
    first_slot: Slot,
    base: Rev,
) -> Result<Vec<LogEntry>, TailError> {
    let slots = log.slots_above(subject, base).into_iter().filter(|slot| *slot >= first_slot);
    read_slots(bucket, log.id(), slots, subject, base).await
}

/// As [`read_own_tail`], for a local file at `file_rev` that this process has served under the current term: the entries
/// that the file may lack. If the file holds every shipped entry, nothing is read.
///
/// Cancelling the call has no effect.
///
/// # Errors
/// [`TailError::Missing`] when a slot was trimmed meanwhile.
pub async fn read_own_tail_above_file(
    log: &Log,
    bucket: &dyn Bucket,
    subject: &Subject,
    first_slot: Slot,
    file_rev: Rev,
) -> Result<Vec<LogEntry>, TailError> {
    let slots = log.slots_above_file(subject, file_rev).into_iter().filter(|slot| *slot >= first_slot);
    read_slots(bucket, log.id(), slots, subject, file_rev).await
}

/// As [`read_own_tail`], for a log that may have a running owner, as of some moment during the call. Changes nothing.
///
/// Cancelling the call has no effect.
///
/// # Errors
/// [`TailError::Missing`] when a slot was trimmed meanwhile.
pub async fn read_tail(
    bucket: &dyn Bucket,
    log: &LogId,
    subject: &Subject,
    first_slot: Slot,
    base: Rev,
) -> Result<Vec<LogEntry>, TailError> {
    let keys = LogKeys::new(log);
    let slots = keys.read_listing(&bucket.list(keys.folder()).await?);
    let slots = slots.into_iter().filter(|slot| *slot >= first_slot);
    read_slots(bucket, log, slots, subject, base).await
}

async fn read_slots(
    bucket: &dyn Bucket,
    log: &LogId,
    slots: impl Iterator<Item = Slot> + Send,
    subject: &Subject,
    base: Rev,
) -> Result<Vec<LogEntry>, TailError> {
    let lines: Vec<Vec<LogEntry>> = stream::iter(slots)
        .map(|slot| entries_in(bucket, log, slot, subject))
        .buffered(CONCURRENT_READS)
        .try_collect()
        .await?;
    entries_above(log, lines.concat(), base)
}

/// The entries above `base` in these blocks of one subject.
pub(super) async fn read_blocks(
    bucket: &dyn Bucket,
    log: &LogId,
    lines: Vec<(Slot, IndexLine)>,
    base: Rev,
) -> Result<Vec<LogEntry>, TailError> {
    let read = |(slot, line): (Slot, IndexLine)| async move {
        match bucket.get_range(&LogKeys::new(log).slot(slot), line.range()).await? {
            Some(block) => Ok::<_, TailError>(segment::decode_block(log, slot, &line, &block)?),
            // The slot could hold only dedup records, and was released because no manifest needs it.
            None if line.last_rev <= base => Ok(Vec::new()),
            None => Err(missing(log, slot)),
        }
    };
    let entries: Vec<Vec<LogEntry>> =
        stream::iter(lines).map(read).buffered(CONCURRENT_READS).try_collect().await?;
    entries_above(log, entries.concat(), base)
}

/// Drops the entries below `base`. The first of the others must join `base`; otherwise entries between are missing.
fn entries_above(log: &LogId, mut entries: Vec<LogEntry>, base: Rev) -> Result<Vec<LogEntry>, TailError> {
    entries.retain(|entry| entry.is_above(base));
    let joins = entries.first().is_none_or(|first| first.after <= base);
    if joins && frame::check_run(&entries).is_ok() {
        Ok(entries)
    } else {
        Err(TailError::Missing { object: format!("a slot of log {log}") })
    }
}

/// The entries of a subject in one slot, without an index of the log.
async fn entries_in(
    bucket: &dyn Bucket,
    log: &LogId,
    slot: Slot,
    subject: &Subject,
) -> Result<Vec<LogEntry>, TailError> {
    let Some(read) = read_index(bucket, log, slot).await? else { return Err(missing(log, slot)) };
    let line = read.lines.iter().find(|line| line.subject == *subject);
    let Some(line) = line else { return Ok(Vec::new()) };
    let block = match read.part(line.range()) {
        Some(block) => block,
        None => {
            let block = bucket.get_range(&LogKeys::new(log).slot(slot), line.range()).await?;
            block.ok_or_else(|| missing(log, slot))?
        }
    };
    Ok(segment::decode_block(log, slot, line, &block)?)
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
