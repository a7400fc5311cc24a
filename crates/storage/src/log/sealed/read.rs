//! Single slots and blocks, by range reads.

use bytes::Bytes;
use dormouse_protocol::{ErrorReply, LogId, Rev, Slot, Subject};
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::bucket::{Bucket, BucketError};
use crate::entry::Entry;
use crate::format::segment::{self, Footer, IndexLine, MAX_HEADER_BYTES, SlotHeader};
use crate::format::{FormatError, frame};
use crate::keys::LogKeys;
use crate::log::Log;

/// Longest id of a log, in bytes, that [`MAX_HEADER_BYTES`] leaves room for.
const MAX_LOG_ID_BYTES: usize = 255;

/// What is read of a slot first: the index of most segments is in it, and many a small segment as a whole.
const TAIL_BYTES: u64 = 64 * 1_024;

/// Requests to the bucket at once.
pub(super) const AT_ONCE: usize = 16;

/// Why a subject's entries cannot be read from a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TailError {
    /// Something is gone that was there. Slots go only when the newest manifest needs them no more: look for that one.
    #[error("{object} is gone: the subject has a newer manifest")]
    Missing {
        /// What is gone.
        object: String,
    },
    /// The bucket failed, or an object is not what it should be.
    #[error("the entries of the subject cannot be read: {}", .0.message)]
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

/// The entries of a subject above `base` that this process has shipped into its own log, from `first_slot` on, in
/// order and without a hole. What is in flight is not among them.
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
) -> Result<Vec<Entry>, TailError> {
    let slots = log.slots_above(subject, base).into_iter().filter(|slot| *slot >= first_slot);
    read_slots(bucket, log.id(), slots, subject, base).await
}

/// As [`read_own_tail`], of a log that may have a living owner, as of some moment during the call. Changes nothing.
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
) -> Result<Vec<Entry>, TailError> {
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
) -> Result<Vec<Entry>, TailError> {
    let lines: Vec<Vec<Entry>> = stream::iter(slots)
        .map(|slot| entries_in(bucket, log, slot, subject))
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    run_above(log, lines.concat(), base)
}

/// The entries above `base` in these blocks of one subject.
pub(super) async fn blocks(
    bucket: &dyn Bucket,
    log: &LogId,
    lines: Vec<(Slot, IndexLine)>,
    base: Rev,
) -> Result<Vec<Entry>, TailError> {
    let read = |(slot, line): (Slot, IndexLine)| async move {
        match bucket.get_range(&LogKeys::new(log).slot(slot), line.range()).await? {
            Some(block) => Ok::<_, TailError>(segment::decode_block(log, slot, &line, &block)?),
            // It could have held no more than memories of answers, and was given up as needed by nobody.
            None if line.last_rev <= base => Ok(Vec::new()),
            None => Err(missing(log, slot)),
        }
    };
    let entries: Vec<Vec<Entry>> = stream::iter(lines).map(read).buffered(AT_ONCE).try_collect().await?;
    run_above(log, entries.concat(), base)
}

/// What stands below `base` goes; the rest must join it, or something between is gone.
fn run_above(log: &LogId, mut entries: Vec<Entry>, base: Rev) -> Result<Vec<Entry>, TailError> {
    entries.retain(|entry| entry.is_above(base));
    let joins = entries.first().is_none_or(|first| first.after <= base);
    if joins && frame::check_run(&entries).is_ok() {
        Ok(entries)
    } else {
        Err(TailError::Missing { object: format!("a slot of the log {log}") })
    }
}

/// The entries of a subject in one slot, without an index of the log.
async fn entries_in(
    bucket: &dyn Bucket,
    log: &LogId,
    slot: Slot,
    subject: &Subject,
) -> Result<Vec<Entry>, TailError> {
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
    /// A part of the object, if it was read along with the end.
    fn part(&self, range: std::ops::Range<u64>) -> Option<Bytes> {
        let from = self.object_bytes.checked_sub(self.tail.len() as u64)?;
        let start = usize::try_from(range.start.checked_sub(from)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(from)?).ok()?;
        (end <= self.tail.len()).then(|| self.tail.slice(start..end))
    }
}

/// Where each subject's entries are in a slot; `None` when there is no object.
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

/// Reads whose object lies in a slot and what it is; `None` when there is none.
pub(in crate::log) async fn read_header(
    bucket: &dyn Bucket,
    log: &LogId,
    slot: Slot,
) -> Result<Option<Result<SlotHeader, FormatError>>, BucketError> {
    // Every object of this log has a header of this length, and more behind it.
    let length = MAX_HEADER_BYTES - MAX_LOG_ID_BYTES + log.to_string().len();
    let front = bucket.get_range(&LogKeys::new(log).slot(slot), 0..length as u64).await?;
    Ok(front.map(|front| segment::decode_header(log, slot, &front)))
}

fn missing(log: &LogId, slot: Slot) -> TailError {
    TailError::Missing { object: LogKeys::new(log).slot(slot).to_string() }
}
