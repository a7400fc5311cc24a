//! Range reads of objects.

use std::ops::Range;

use bytes::Bytes;
use dormouse_format::keys::BucketKey;
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, GetOptions, GetRange, ObjectStoreExt};

use super::local::{LocalDirectory, RangeRead};
use super::store::{CALL_TIMEOUT, CallInfo, MAX_SMALL_OBJECT_BYTES, ObjectStoreBucket};
use super::{BucketError, BucketOperation};

/// Result of a range request to a store.
enum RangeResult {
    Part(Bytes),
    Absent,
    /// Refused: the object may be too short, the store may not support this kind of range, or the store failed.
    Refused(StoreError),
}

/// The bytes of `range`, all of them or an error.
pub(super) async fn read(
    bucket: &ObjectStoreBucket,
    key: &BucketKey,
    range: Range<u64>,
) -> Result<Option<Bytes>, BucketError> {
    let call = CallInfo { operation: BucketOperation::Get, name: key.as_str() };
    let path = bucket.locate(call)?;
    let wanted = range.end.saturating_sub(range.start);
    if wanted > MAX_SMALL_OBJECT_BYTES {
        let what = format!("a read of {wanted} bytes at once is above the limit of {MAX_SMALL_OBJECT_BYTES}");
        return Err(BucketError::Corrupt { object: key.to_string(), what });
    }
    if let Some(directory) = &bucket.directory {
        let (name, wanted) = (key.to_string(), range.clone());
        let read = move |directory: &LocalDirectory| directory.read_range(&name, &wanted);
        return match bucket.on_directory(directory, call, read).await? {
            Some(RangeRead::Bytes(bytes)) => Ok(Some(bytes.into())),
            Some(RangeRead::TooShort(size_bytes)) => Err(too_short(key, &range, size_bytes)),
            None => Ok(None),
        };
    }
    // No store supports a range request of zero bytes.
    if wanted == 0 {
        return match size(bucket, call, &path).await? {
            Some(size_bytes) if size_bytes < range.start => Err(too_short(key, &range, size_bytes)),
            found => Ok(found.map(|_| Bytes::new())),
        };
    }
    match ask(bucket, call, &path, GetRange::Bounded(range.clone())).await? {
        RangeResult::Part(bytes) if bytes.len() as u64 == wanted => Ok(Some(bytes)),
        RangeResult::Part(bytes) => Err(too_short(key, &range, range.start + bytes.len() as u64)),
        RangeResult::Absent => Ok(None),
        // Stores report a too short object in many ways. The object's size is unambiguous.
        RangeResult::Refused(error) => match size(bucket, call, &path).await {
            Ok(Some(size_bytes)) if size_bytes < range.end => Err(too_short(key, &range, size_bytes)),
            Ok(None) => Ok(None),
            Ok(Some(_)) | Err(_) => Err(call.failed(error)),
        },
    }
}

/// The last `count` bytes, or all if there are fewer.
pub(super) async fn read_tail(
    bucket: &ObjectStoreBucket,
    key: &BucketKey,
    count: u64,
) -> Result<Option<Bytes>, BucketError> {
    let call = CallInfo { operation: BucketOperation::Get, name: key.as_str() };
    let path = bucket.locate(call)?;
    if bucket.directory.is_none() && (1..=MAX_SMALL_OBJECT_BYTES).contains(&count) {
        match ask(bucket, call, &path, GetRange::Suffix(count)).await? {
            RangeResult::Part(bytes) => return Ok(Some(bytes)),
            RangeResult::Absent => return Ok(None),
            // Azure has no suffix ranges, and S3 refuses them for an empty object. A range by size works everywhere.
            RangeResult::Refused(_) => {}
        }
    }
    match size(bucket, call, &path).await? {
        Some(size_bytes) => read(bucket, key, size_bytes.saturating_sub(count)..size_bytes).await,
        None => Ok(None),
    }
}

async fn ask(
    bucket: &ObjectStoreBucket,
    call: CallInfo<'_>,
    path: &ObjectPath,
    range: GetRange,
) -> Result<RangeResult, BucketError> {
    let options = GetOptions { range: Some(range), ..GetOptions::default() };
    let answer = async { bucket.store().get_opts(path, options).await?.bytes().await };
    match call.within(CALL_TIMEOUT, answer).await? {
        Ok(bytes) => Ok(RangeResult::Part(bytes)),
        Err(StoreError::NotFound { .. }) => bucket.check_present(call).await.map(|()| RangeResult::Absent),
        Err(error) => Ok(RangeResult::Refused(error)),
    }
}

async fn size(
    bucket: &ObjectStoreBucket,
    call: CallInfo<'_>,
    path: &ObjectPath,
) -> Result<Option<u64>, BucketError> {
    if let Some(directory) = &bucket.directory {
        let name = call.name.to_owned();
        let open = move |directory: &LocalDirectory| directory.open_object(&name);
        return Ok(bucket.on_directory(directory, call, open).await?.map(|(_, size_bytes)| size_bytes));
    }
    match call.within(CALL_TIMEOUT, bucket.store().head(path)).await? {
        Ok(meta) => Ok(Some(meta.size)),
        Err(StoreError::NotFound { .. }) => bucket.check_present(call).await.map(|()| None),
        Err(error) => Err(call.failed(error)),
    }
}

fn too_short(key: &BucketKey, range: &Range<u64>, size_bytes: u64) -> BucketError {
    let what = format!("it has {size_bytes} bytes, but a read of {}..{} needs more", range.start, range.end);
    BucketError::Corrupt { object: key.to_string(), what }
}
