//! Range reads of objects.

use std::ops::Range;

use bytes::Bytes;
use dormouse_format::keys::BucketKey;
use object_store::GetRange;

use super::local::{LocalDirectory, RangeRead};
use super::reader::{self, ObjectReader, ReadStart};
use super::store::{CallInfo, MAX_SMALL_OBJECT_BYTES, ObjectStoreBucket};
use super::{BucketError, BucketOperation};

/// The bytes of `range`, all of them or an error.
pub(super) async fn read(
    bucket: &ObjectStoreBucket,
    key: &BucketKey,
    range: Range<u64>,
) -> Result<Option<Bytes>, BucketError> {
    let call = CallInfo { operation: BucketOperation::Get, name: key.as_str() };
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
        return match reader::size(bucket, call).await? {
            Some(size_bytes) if size_bytes < range.start => Err(too_short(key, &range, size_bytes)),
            found => Ok(found.map(|_| Bytes::new())),
        };
    }
    match ObjectReader::begin(bucket, call, Some(GetRange::Bounded(range.clone()))).await? {
        ReadStart::Reader(reader) if *reader.left() == range => reader.collect().await.map(Some),
        ReadStart::Reader(reader) => Err(too_short(key, &range, reader.size_bytes())),
        ReadStart::Absent => Ok(None),
        // Stores report a too short object in many ways. The object's size is unambiguous.
        ReadStart::Refused(error) => match reader::size(bucket, call).await {
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
    if let Some(directory) = &bucket.directory {
        let name = key.to_string();
        let open = move |directory: &LocalDirectory| directory.open_object(&name);
        return match bucket.on_directory(directory, call, open).await? {
            Some((_, size_bytes)) => read(bucket, key, size_bytes.saturating_sub(count)..size_bytes).await,
            None => Ok(None),
        };
    }
    if (1..=MAX_SMALL_OBJECT_BYTES).contains(&count) {
        match ObjectReader::begin(bucket, call, Some(GetRange::Suffix(count))).await? {
            ReadStart::Reader(reader) => return reader.collect().await.map(Some),
            ReadStart::Absent => return Ok(None),
            // Azure has no suffix ranges, and S3 refuses them for an empty object. A range by size works everywhere.
            ReadStart::Refused(_) => {}
        }
    }
    match reader::size(bucket, call).await? {
        Some(size_bytes) => read(bucket, key, size_bytes.saturating_sub(count)..size_bytes).await,
        None => Ok(None),
    }
}

fn too_short(key: &BucketKey, range: &Range<u64>, size_bytes: u64) -> BucketError {
    let what = format!("it has {size_bytes} bytes, but a read of {}..{} needs more", range.start, range.end);
    BucketError::Corrupt { object: key.to_string(), what }
}
