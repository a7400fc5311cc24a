//! Writes and reads the deltas of a subject, with one block in memory.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use dormouse_bucket::{Bucket, FileSummary, HeaderPatch, create_once};
use dormouse_format::checksum::{Crc64, Crc64Digest};
use dormouse_format::delta::{DeltaDecoder, DeltaEncoder};
use dormouse_format::entry::LogEntry;
use dormouse_format::frame;
use dormouse_format::keys::{BucketKey, Nonce, SubjectKeys};
use dormouse_format::manifest::DeltaRef;
use dormouse_protocol::{ErrorReply, Rev, Subject};
use dormouse_subject_state::database::remove_files;

use super::publish::CALL_TIMEOUT;
use super::restore::{RestoreError, differs};
use crate::engine::EngineShared;
use crate::ownership::CreateResult;

/// Largest delta that is created in one call. A larger one is uploaded from a file, which has no limit on its time.
const LARGEST_CREATE_BYTES: usize = 256 * 1_024;

/// Encoded bytes that are kept before they are written to the file.
const KEPT_BYTES: usize = 1_024 * 1_024;

/// Bytes that one call reads.
const PIECE_BYTES: u64 = 4 * 1_024 * 1_024;

/// Encodes a delta, and then uploads it. What does not fit one call goes to a local file first: its size has no limit.
pub(crate) struct DeltaWriter<'a> {
    shared: &'a EngineShared,
    subject: &'a Subject,
    encoder: DeltaEncoder,
    /// Encoded bytes that are not in the file.
    kept: Vec<u8>,
    file: Option<OutgoingFile>,
    /// Of the bytes that were given to the file. The local disk may return others.
    digest: Crc64Digest,
    size_bytes: u64,
    /// The rev of the last entry.
    reached: Option<Rev>,
}

/// The local file of a delta. A drop removes it.
struct OutgoingFile {
    path: PathBuf,
    file: Option<File>,
}

impl Drop for OutgoingFile {
    fn drop(&mut self) {
        // A file that is left is removed at the next start.
        let _ = remove_files(&self.path);
    }
}

impl<'a> DeltaWriter<'a> {
    /// Begins a delta of entries that follow `after`.
    pub(super) fn new(shared: &'a EngineShared, subject: &'a Subject, after: Rev) -> Self {
        let (encoder, head) = DeltaEncoder::new(subject, after);
        Self {
            shared,
            subject,
            encoder,
            kept: head.into(),
            file: None,
            digest: Crc64Digest::new(),
            size_bytes: 0,
            reached: None,
        }
    }

    /// The rev that the entries lead to; `None` without an entry.
    pub(super) const fn reached(&self) -> Option<Rev> {
        self.reached
    }

    /// Adds the next entries.
    ///
    /// Cancelling and errors as for [`push`](Self::push).
    pub(super) async fn push_all(&mut self, entries: &[LogEntry]) -> Result<(), ErrorReply> {
        for entry in entries {
            self.push(entry).await?;
        }
        Ok(())
    }

    /// Adds the next entry.
    ///
    /// If the call is cancelled, the delta is incomplete: only a drop may follow.
    ///
    /// # Errors
    /// The entry does not follow the one before, or the local disk does not take it.
    pub(super) async fn push(&mut self, entry: &LogEntry) -> Result<(), ErrorReply> {
        let frame = frame::encode(entry).map_err(ErrorReply::internal)?;
        if let Some(block) = self.encoder.push(entry, &frame).map_err(ErrorReply::internal)? {
            self.kept.extend_from_slice(&block);
        }
        self.reached = Some(entry.last_rev());
        if self.kept.len() >= KEPT_BYTES { self.write().await } else { Ok(()) }
    }

    /// Uploads the delta as `key`, to which no manifest refers yet.
    ///
    /// Cancelling the call leaves its outcome unknown.
    ///
    /// # Errors
    /// There is no entry, or the bucket or the local disk fails.
    pub(super) async fn put(mut self, key: &BucketKey) -> Result<FileSummary, ErrorReply> {
        let last = self.encoder.finish().map_err(ErrorReply::internal)?;
        self.kept.extend_from_slice(&last);
        if self.file.is_none() && self.kept.len() <= LARGEST_CREATE_BYTES {
            return self.create(key).await;
        }
        self.write().await?;
        let Some(outgoing) = self.file else { return Err(unwritten()) };
        let put = self.shared.bucket.put_file(key, &outgoing.path, HeaderPatch::None).await;
        // To remove a large file takes time.
        self.shared.env.blocking(move || drop(outgoing)).await;
        let uploaded = put.map_err(|error| ErrorReply::from(&error))?;
        check_uploaded(FileSummary { size_bytes: self.size_bytes, crc64: self.digest.finish() }, uploaded)
    }

    async fn create(self, key: &BucketKey) -> Result<FileSummary, ErrorReply> {
        let bytes = Bytes::from(self.kept);
        let summary = FileSummary { size_bytes: bytes.len() as u64, crc64: Crc64::of(&bytes) };
        let bucket = self.shared.bucket.as_ref();
        let created = create_once(bucket, key, bytes, tokio::time::sleep(CALL_TIMEOUT)).await;
        match CreateResult::of(created)? {
            CreateResult::Ours => Ok(summary),
            CreateResult::Foreign => {
                Err(ErrorReply::internal(format!("{key} existed before it was created")))
            }
            CreateResult::Unknown(reply) => Err(reply),
        }
    }

    /// Writes what is kept to the file.
    async fn write(&mut self) -> Result<(), ErrorReply> {
        let bytes = std::mem::take(&mut self.kept);
        self.digest.update(&bytes);
        self.size_bytes += bytes.len() as u64;
        let mut file = self.file.take();
        let path = self.shared.data.reclaim_file(self.subject, Nonce::new(self.shared.env.ulid()));
        let written = self.shared.env.blocking(move || {
            let outgoing = file.get_or_insert(OutgoingFile { path, file: None });
            let target = match &mut outgoing.file {
                Some(target) => target,
                none => none.insert(File::create_new(&outgoing.path)?),
            };
            target.write_all(&bytes)?;
            Ok::<_, std::io::Error>(file)
        });
        self.file = written.await.map_err(|error| {
            ErrorReply::unavailable(format!("the server cannot write a delta to its local disk: {error}"))
        })?;
        Ok(())
    }
}

/// Checks that the uploaded bytes are those that were written to the local file. Otherwise no manifest may refer to the
/// object.
fn check_uploaded(written: FileSummary, uploaded: FileSummary) -> Result<FileSummary, ErrorReply> {
    if uploaded == written {
        return Ok(uploaded);
    }
    let FileSummary { size_bytes, crc64 } = uploaded;
    let text = format!("the local disk changed a delta: {size_bytes} bytes with checksum {crc64} were read");
    let FileSummary { size_bytes, crc64 } = written;
    Err(ErrorReply::unavailable(format!("{text}, {size_bytes} bytes with checksum {crc64} were written")))
}

fn unwritten() -> ErrorReply {
    ErrorReply::internal("a delta without a file")
}

/// Reads the entries of a delta in pieces, and checks all bytes against the manifest.
pub(super) struct DeltaReader<'a> {
    bucket: &'a dyn Bucket,
    key: BucketKey,
    expected: DeltaRef,
    decoder: DeltaDecoder,
    read_bytes: u64,
    digest: Crc64Digest,
}

impl<'a> DeltaReader<'a> {
    /// Reads the delta that `expected` refers to.
    pub(super) fn new(bucket: &'a dyn Bucket, subject: &Subject, expected: &DeltaRef) -> Self {
        let key = SubjectKeys::new(subject).delta(&expected.name);
        let decoder = DeltaDecoder::expecting(subject, expected.rev());
        Self { bucket, key, expected: *expected, decoder, read_bytes: 0, digest: Crc64Digest::new() }
    }

    /// The rev before the first entry, after the first [`next`](Self::next).
    pub(super) fn after(&self) -> Option<Rev> {
        self.decoder.after()
    }

    /// The next entries, in order and without a gap; `None` after the last ones.
    ///
    /// # Errors
    /// The object is missing or damaged, or the bucket does not answer.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<LogEntry>>, RestoreError> {
        let size_bytes = self.expected.size_bytes;
        while self.read_bytes < size_bytes {
            let range = self.read_bytes..size_bytes.min(self.read_bytes + PIECE_BYTES);
            let found = self.bucket.get_range(&self.key, range.clone()).await;
            let Some(piece) = found.map_err(|error| ErrorReply::from(&error))? else {
                return Err(RestoreError::Missing(self.key.to_string()));
            };
            self.read_bytes = range.end;
            self.digest.update(&piece);
            if self.read_bytes == size_bytes {
                self.check_sum()?;
            }
            let entries = self.decoder.push(&piece).map_err(|fault| self.damaged(fault))?;
            if !entries.is_empty() {
                return Ok(Some(entries));
            }
        }
        let decoder = std::mem::replace(&mut self.decoder, DeltaDecoder::any());
        decoder.finish().map_err(|fault| self.damaged(fault))?;
        Ok(None)
    }

    fn check_sum(&self) -> Result<(), RestoreError> {
        let found = self.digest.finish();
        if found == self.expected.crc64 {
            return Ok(());
        }
        let what = differs(self.read_bytes, found, self.expected.size_bytes, self.expected.crc64);
        Err(ErrorReply::corrupt(self.key.to_string(), what).into())
    }

    fn damaged(&self, fault: dormouse_format::DecodeFault) -> RestoreError {
        RestoreError::Failed(fault.of(&self.key).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If the local disk returns other bytes of a delta than were written, the upload counts as failed.
    #[test]
    fn delta_changed_by_local_disk_is_refused() {
        let summary = |bytes: &[u8]| FileSummary { size_bytes: bytes.len() as u64, crc64: Crc64::of(bytes) };
        assert_eq!(check_uploaded(summary(b"entries"), summary(b"entries")), Ok(summary(b"entries")));
        for changed in [&b"entrief"[..], b"entrie", b""] {
            let error = check_uploaded(summary(b"entries"), summary(changed)).unwrap_err();
            assert!(error.message.starts_with("the local disk changed a delta"), "{error:?}");
        }
    }
}
