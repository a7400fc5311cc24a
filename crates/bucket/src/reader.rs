//! Reads of objects in ranges. There is no time limit on a whole read, only one on its progress: after silence, or if a
//! connection breaks, the read continues where it stopped.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, GetOptions, GetRange, ObjectStoreExt, Result as StoreResult};

use super::BucketError;
use super::backoff::Backoff;
use super::store::{CALL_TIMEOUT, CallInfo, ObjectStoreBucket};

/// Bytes that one request of a long read asks for.
const RANGE_BYTES: u64 = 8 * 1_024 * 1_024;

/// The answer to the first request of a read.
pub(super) enum ReadStart<'a> {
    Reader(ObjectReader<'a>),
    Absent,
    /// Refused: the object may be too short, the store may not support this kind of range, or the store failed.
    Refused(StoreError),
}

/// A read of an object, or of a range of it, in pieces.
pub(super) struct ObjectReader<'a> {
    bucket: &'a ObjectStoreBucket,
    call: CallInfo<'a>,
    path: ObjectPath,
    /// Size of the whole object, in bytes.
    size_bytes: u64,
    /// Distinguishes the object from a later one under the same key, if the store supports this.
    e_tag: Option<String>,
    /// The bytes that are still to be read.
    left: Range<u64>,
    /// The answer to the last request, and where it ends.
    answer: Option<(BoxStream<'static, StoreResult<Bytes>>, u64)>,
    /// Since the last piece, if requests have failed since.
    backoff: Option<Backoff>,
}

impl<'a> ObjectReader<'a> {
    /// Asks for `range` of an object, or for all of it. The reader covers what the store answers with.
    ///
    /// # Errors
    /// [`BucketError::Timeout`], and errors of the name. All other errors are [`ReadStart::Refused`].
    pub(super) async fn begin(
        bucket: &'a ObjectStoreBucket,
        call: CallInfo<'a>,
        range: Option<GetRange>,
    ) -> Result<ReadStart<'a>, BucketError> {
        let path = bucket.locate(call)?;
        let options = GetOptions { range, ..GetOptions::default() };
        let found = match call.within(CALL_TIMEOUT, bucket.store().get_opts(&path, options)).await? {
            Ok(found) => found,
            Err(StoreError::NotFound { .. }) => return Ok(ReadStart::Absent),
            Err(error) => return Ok(ReadStart::Refused(error)),
        };
        let (size_bytes, e_tag, left) = (found.meta.size, found.meta.e_tag.clone(), found.range.clone());
        let answer = Some((found.into_stream(), left.end));
        Ok(ReadStart::Reader(Self { bucket, call, path, size_bytes, e_tag, left, answer, backoff: None }))
    }

    /// Reads a whole object in ranges; `None` if there is none.
    ///
    /// # Errors
    /// [`BucketError`].
    pub(super) async fn whole(
        bucket: &'a ObjectStoreBucket,
        call: CallInfo<'a>,
    ) -> Result<Option<Self>, BucketError> {
        match Self::begin(bucket, call, Some(GetRange::Bounded(0..RANGE_BYTES))).await? {
            ReadStart::Reader(mut reader) => {
                reader.left.end = reader.size_bytes;
                Ok(Some(reader))
            }
            ReadStart::Absent => Ok(None),
            // No store has a range of an empty object.
            ReadStart::Refused(error) => match size(bucket, call).await {
                Ok(Some(0)) => {
                    let (path, left) = (bucket.locate(call)?, 0..0);
                    let (e_tag, answer, backoff) = (None, None, None);
                    Ok(Some(Self { bucket, call, path, size_bytes: 0, e_tag, left, answer, backoff }))
                }
                Ok(None) => Ok(None),
                Ok(Some(_)) | Err(_) => Err(call.failed(error)),
            },
        }
    }

    /// Size of the whole object, in bytes.
    pub(super) const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The bytes that are still to be read.
    pub(super) const fn left(&self) -> &Range<u64> {
        &self.left
    }

    /// The next piece, never empty; `None` at the end. Repeats requests that fail after others have succeeded.
    ///
    /// # Errors
    /// [`BucketError`] if no byte came for the whole retry time, or if the object is no longer the same.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, BucketError> {
        while !self.left.is_empty() {
            match self.next_of_answer().await {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => {
                    self.left.start += piece.len() as u64;
                    self.backoff = None;
                    return Ok(Some(piece));
                }
                Err(error) => {
                    self.answer = None;
                    let now = self.bucket.env().boot();
                    let pause = self.backoff.get_or_insert(Backoff::from(now)).pause(now);
                    let Some(pause) = pause.filter(|_| error.is_unknown()) else { return Err(error) };
                    let (object, position) = (self.call.name, self.left.start);
                    tracing::debug!(object, position, %error, ?pause, "read interrupted, resuming");
                    tokio::time::sleep(pause).await;
                }
            }
        }
        Ok(None)
    }

    async fn next_of_answer(&mut self) -> Result<Bytes, BucketError> {
        if self.answer.is_none() {
            self.answer = Some(self.ask().await?);
        }
        let Some((stream, end)) = &mut self.answer else { return Ok(Bytes::new()) };
        let end = *end;
        let piece = self.call.complete(stream.try_next()).await?;
        let Some(piece) = piece.filter(|piece| self.left.start + piece.len() as u64 <= end) else {
            return Err(self.call.unreachable("the answer has another length than its range"));
        };
        if self.left.start + piece.len() as u64 == end {
            self.answer = None;
        }
        Ok(piece)
    }

    /// Asks for the next range.
    // Not `&self`: a stream cannot be shared between threads.
    async fn ask(&mut self) -> Result<(BoxStream<'static, StoreResult<Bytes>>, u64), BucketError> {
        let range = self.left.start..self.left.end.min(self.left.start + RANGE_BYTES);
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let found = self.call.complete(self.bucket.store().get_opts(&self.path, options)).await?;
        if found.meta.e_tag != self.e_tag || found.meta.size != self.size_bytes || found.range != range {
            let what = "the object changed while it was read".to_owned();
            return Err(BucketError::Corrupt { object: self.call.name.to_owned(), what });
        }
        Ok((found.into_stream(), range.end))
    }

    /// All bytes that are left, in memory. The caller has limited them.
    ///
    /// # Errors
    /// As for [`next`](Self::next).
    pub(super) async fn collect(mut self) -> Result<Bytes, BucketError> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        if self.left.is_empty() {
            return Ok(first);
        }
        let left = usize::try_from(self.left.end - self.left.start).unwrap_or(0);
        let mut all = BytesMut::with_capacity(first.len() + left);
        all.extend_from_slice(&first);
        while let Some(piece) = self.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }
}

/// Size of an object in bytes, `None` if there is none.
///
/// # Errors
/// [`BucketError`].
pub(super) async fn size(bucket: &ObjectStoreBucket, call: CallInfo<'_>) -> Result<Option<u64>, BucketError> {
    let path = bucket.locate(call)?;
    match call.within(CALL_TIMEOUT, bucket.store().head(&path)).await? {
        Ok(meta) => Ok(Some(meta.size)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(call.failed(error)),
    }
}

#[cfg(test)]
mod tests;
