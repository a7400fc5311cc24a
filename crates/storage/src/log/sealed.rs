//! Reading logs: those that have ended, and one's own.

use dormouse_protocol::{LogId, Slot};

use crate::bucket::{Bucket, BucketError};
use crate::format::FormatError;
use crate::format::segment::{self, MAX_HEADER_BYTES, SlotHeader};
use crate::keys::LogKeys;

/// Longest id of a log, in bytes, that [`MAX_HEADER_BYTES`] leaves room for.
const MAX_LOG_ID_BYTES: usize = 255;

/// Reads whose object lies in a slot and what it is; `None` when there is none.
pub(super) async fn read_header(
    bucket: &dyn Bucket,
    log: &LogId,
    slot: Slot,
) -> Result<Option<Result<SlotHeader, FormatError>>, BucketError> {
    // Every object of this log has a header of this length, and more behind it.
    let length = MAX_HEADER_BYTES - MAX_LOG_ID_BYTES + log.to_string().len();
    let front = bucket.get_range(&LogKeys::new(log).slot(slot), 0..length as u64).await?;
    Ok(front.map(|front| segment::decode_header(log, slot, &front)))
}
