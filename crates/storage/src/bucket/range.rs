//! Reading a part of an object.

use std::ops::Range;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, GetOptions, GetRange, ObjectStoreExt};

use super::store::{CALL_TIMEOUT, Call, MAX_SMALL_OBJECT_BYTES, ObjectStoreBucket};
use super::{BucketError, BucketKey, Operation};

/// What came of asking a store for a part of an object.
enum Answer {
    Part(Bytes),
    Absent,
    /// Refused: the object may be too short, the kind of range may be unknown here, or the store may fail.
    Refused(StoreError),
}

/// The bytes of `range`, all of them or an error.
pub(super) async fn read(
    bucket: &ObjectStoreBucket,
    key: &BucketKey,
    range: Range<u64>,
) -> Result<Option<Bytes>, BucketError> {
    let call = Call { operation: Operation::Get, name: key.as_str() };
    let path = bucket.locate(call)?;
    let wanted = range.end.saturating_sub(range.start);
    if wanted > MAX_SMALL_OBJECT_BYTES {
        let what =
            format!("{wanted} bytes of it are to be read at once; at most {MAX_SMALL_OBJECT_BYTES} can be");
        return Err(BucketError::Corrupt { object: key.to_string(), what });
    }
    // No store has a way to ask for nothing.
    if wanted == 0 {
        return match size(bucket, call, &path).await? {
            Some(size_bytes) if size_bytes < range.start => Err(too_short(key, &range, size_bytes)),
            found => Ok(found.map(|_| Bytes::new())),
        };
    }
    match ask(bucket, call, &path, GetRange::Bounded(range.clone())).await? {
        Answer::Part(bytes) if bytes.len() as u64 == wanted => Ok(Some(bytes)),
        Answer::Part(bytes) => Err(too_short(key, &range, range.start + bytes.len() as u64)),
        Answer::Absent => Ok(None),
        // Stores say in many ways that an object is too short. Its size says it in one.
        Answer::Refused(error) => match size(bucket, call, &path).await {
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
    let call = Call { operation: Operation::Get, name: key.as_str() };
    let path = bucket.locate(call)?;
    if (1..=MAX_SMALL_OBJECT_BYTES).contains(&count) {
        match ask(bucket, call, &path, GetRange::Suffix(count)).await? {
            Answer::Part(bytes) => return Ok(Some(bytes)),
            Answer::Absent => return Ok(None),
            // Azure knows no such range, and S3 refuses it for an empty object: by size it goes everywhere.
            Answer::Refused(_) => {}
        }
    }
    match size(bucket, call, &path).await? {
        Some(size_bytes) => read(bucket, key, size_bytes.saturating_sub(count)..size_bytes).await,
        None => Ok(None),
    }
}

async fn ask(
    bucket: &ObjectStoreBucket,
    call: Call<'_>,
    path: &ObjectPath,
    range: GetRange,
) -> Result<Answer, BucketError> {
    let options = GetOptions { range: Some(range), ..GetOptions::default() };
    let answer = async { bucket.store().get_opts(path, options).await?.bytes().await };
    match call.within(CALL_TIMEOUT, answer).await? {
        Ok(bytes) => Ok(Answer::Part(bytes)),
        Err(StoreError::NotFound { .. }) => bucket.check_present(call).await.map(|()| Answer::Absent),
        Err(error) => Ok(Answer::Refused(error)),
    }
}

async fn size(
    bucket: &ObjectStoreBucket,
    call: Call<'_>,
    path: &ObjectPath,
) -> Result<Option<u64>, BucketError> {
    match call.within(CALL_TIMEOUT, bucket.store().head(path)).await? {
        Ok(meta) => Ok(Some(meta.size)),
        Err(StoreError::NotFound { .. }) => bucket.check_present(call).await.map(|()| None),
        Err(error) => Err(call.failed(error)),
    }
}

fn too_short(key: &BucketKey, range: &Range<u64>, size_bytes: u64) -> BucketError {
    let what = format!("it has {size_bytes} bytes, where {}..{} should be", range.start, range.end);
    BucketError::Corrupt { object: key.to_string(), what }
}
