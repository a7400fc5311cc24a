//! Transfer of whole files between the local disk and the store, in pieces.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use dormouse_format::checksum::Crc64Digest;

use super::local::LocalDirectory;
use super::multipart::{PartUploader, put_whole};
use super::reader::ObjectReader;
use super::store::{CALL_TIMEOUT, CallInfo, ObjectStoreBucket};
use super::{BucketError, FileSummary, HeaderPatch};

/// Smallest part of a multipart upload (S3 requires at least 5 MiB), and largest file uploaded in one piece. In bytes.
const PART_BYTES: u64 = 8 * 1_024 * 1_024;

/// Maximum number of parts of an upload. S3 allows 10,000.
const MAX_PARTS: u64 = 9_000;

/// Bytes of a download that are buffered before a write.
const WRITE_BYTES: usize = 1_024 * 1_024;

/// The start of an SQLite file, and the position of its write and read versions.
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";
const SQLITE_VERSIONS: std::ops::Range<usize> = 18..20;
const SQLITE_ROLLBACK_JOURNAL: u8 = 1;

/// A local file during an upload.
struct UploadSource {
    file: File,
    path: PathBuf,
    part_bytes: u64,
    patch: HeaderPatch,
    crc: Crc64Digest,
    size_bytes: u64,
    /// Bytes of the file when it was opened.
    file_bytes: u64,
}

impl UploadSource {
    fn open(path: PathBuf, patch: HeaderPatch) -> Result<Self, BucketError> {
        let open = |path: &Path| {
            let file = File::open(path)?;
            let size_bytes = file.metadata()?.len();
            Ok((file, size_bytes))
        };
        match open(&path) {
            Ok((file, size_bytes)) => {
                let part_bytes = PART_BYTES.max(size_bytes.div_ceil(MAX_PARTS));
                let (crc, file_bytes) = (Crc64Digest::new(), size_bytes);
                Ok(Self { file, path, part_bytes, patch, crc, size_bytes: 0, file_bytes })
            }
            Err(source) => Err(BucketError::LocalFile { path, source }),
        }
    }

    /// The next part, in the memory of an earlier one. The last part is shorter than the others, or empty. Blocks.
    fn next_part(&mut self, mut part: BytesMut) -> Result<Bytes, BucketError> {
        let left = self.file_bytes.saturating_sub(self.size_bytes);
        part.clear();
        part.resize(usize::try_from(self.part_bytes.min(left)).unwrap_or(usize::MAX), 0);
        let mut filled = 0;
        while filled < part.len() {
            match self.file.read(&mut part[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(BucketError::LocalFile { path: self.path.clone(), source }),
            }
        }
        part.truncate(filled);
        if self.size_bytes == 0 && self.patch == HeaderPatch::RollbackJournal {
            if !part.starts_with(SQLITE_MAGIC) || part.len() < SQLITE_VERSIONS.end {
                let what = "not an SQLite file".to_owned();
                return Err(BucketError::Corrupt { object: self.path.display().to_string(), what });
            }
            part[SQLITE_VERSIONS].fill(SQLITE_ROLLBACK_JOURNAL);
        }
        self.crc.update(&part);
        self.size_bytes += part.len() as u64;
        Ok(part.freeze())
    }

    fn is_last(&self, part: &Bytes) -> bool {
        (part.len() as u64) < self.part_bytes
    }

    fn summary(&self) -> FileSummary {
        FileSummary { size_bytes: self.size_bytes, crc64: self.crc.finish() }
    }
}

/// Reads the next part on a blocking thread, and returns the source with it.
async fn read_part(
    bucket: &ObjectStoreBucket,
    mut source: UploadSource,
    memory: BytesMut,
) -> Result<(UploadSource, Bytes), BucketError> {
    bucket
        .env()
        .blocking(move || {
            let part = source.next_part(memory)?;
            Ok((source, part))
        })
        .await
}

pub(super) async fn upload(
    bucket: &ObjectStoreBucket,
    call: CallInfo<'_>,
    path: &Path,
    patch: HeaderPatch,
) -> Result<FileSummary, BucketError> {
    let to = bucket.locate(call)?;
    let path = path.to_owned();
    let (source, part) = bucket
        .env()
        .blocking(move || {
            let mut source = UploadSource::open(path, patch)?;
            let part = source.next_part(BytesMut::new())?;
            Ok((source, part))
        })
        .await?;
    if source.is_last(&part) {
        put_whole(bucket, call, &to, &part).await?;
        return Ok(source.summary());
    }
    let mut parts = PartUploader::begin(bucket, call, &to).await?;
    let end = upload_parts(bucket, &mut parts, source, part).await;
    if end.is_err() {
        parts.abort().await;
    }
    end
}

async fn upload_parts(
    bucket: &ObjectStoreBucket,
    parts: &mut PartUploader<'_>,
    mut source: UploadSource,
    mut part: Bytes,
) -> Result<FileSummary, BucketError> {
    loop {
        let last = source.is_last(&part);
        if !part.is_empty() {
            parts.put(&part).await?;
        }
        if last {
            let summary = source.summary();
            parts.complete(summary).await?;
            return Ok(summary);
        }
        // One buffer for all parts: new buffers from changing threads would accumulate in the allocator.
        let memory = part.try_into_mut().unwrap_or_default();
        (source, part) = read_part(bucket, source, memory).await?;
    }
}

/// Downloads from a local directory on one thread, without a thread switch between the pieces. Once the object is open,
/// there is no timeout.
pub(super) async fn copy(
    bucket: &ObjectStoreBucket,
    directory: &LocalDirectory,
    call: CallInfo<'_>,
    path: &Path,
) -> Result<Option<FileSummary>, BucketError> {
    let (directory, name, path) = (directory.clone(), call.name.to_owned(), path.to_owned());
    let is_open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&is_open);
    let mut copied = std::pin::pin!(bucket.env().blocking(move || {
        let Some((from, _)) = directory.open_object(&name)? else { return Ok(None) };
        opened.store(true, Ordering::Relaxed);
        Ok(Some(DownloadTarget::create(path.clone()).and_then(|target| {
            // The reported error is that of the transfer.
            target.copy_from(from).inspect_err(|_| drop(fs::remove_file(path)))
        })))
    }));
    let copied = match tokio::time::timeout(CALL_TIMEOUT, copied.as_mut()).await {
        Ok(copied) => copied,
        Err(_) if is_open.load(Ordering::Relaxed) => copied.await,
        Err(_) => return Err(call.timed_out()),
    };
    copied.map_err(|error| call.unread(error))?.transpose()
}

/// Downloads in ranges.
pub(super) async fn download(
    bucket: &ObjectStoreBucket,
    call: CallInfo<'_>,
    path: &Path,
) -> Result<Option<FileSummary>, BucketError> {
    let Some(reader) = ObjectReader::whole(bucket, call).await? else { return Ok(None) };
    let target = path.to_owned();
    let opened = bucket.env().blocking(move || DownloadTarget::create(target)).await?;
    match fill(bucket, reader, opened).await {
        Ok(summary) => Ok(Some(summary)),
        Err(error) => {
            let target = path.to_owned();
            // The reported error is that of the transfer.
            bucket.env().blocking(move || fs::remove_file(target)).await.ok();
            Err(error)
        }
    }
}

async fn fill(
    bucket: &ObjectStoreBucket,
    mut reader: ObjectReader<'_>,
    mut target: DownloadTarget,
) -> Result<FileSummary, BucketError> {
    let mut gathered = BytesMut::new();
    loop {
        let piece = reader.next().await?;
        let at_end = piece.is_none();
        gathered.extend_from_slice(&piece.unwrap_or_default());
        if at_end || gathered.len() >= WRITE_BYTES {
            let piece = gathered.split().freeze();
            target = bucket.env().blocking(move || target.write(&piece).map(|()| target)).await?;
        }
        if at_end {
            return Ok(target.summary());
        }
    }
}

/// Size and checksum of an object in the store, which is read in ranges; `None` if there is none, or if it has another
/// size.
pub(super) async fn read_back(
    bucket: &ObjectStoreBucket,
    call: CallInfo<'_>,
    size_bytes: u64,
) -> Result<Option<FileSummary>, BucketError> {
    let Some(mut reader) = ObjectReader::whole(bucket, call).await? else { return Ok(None) };
    if reader.size_bytes() != size_bytes {
        return Ok(Some(FileSummary { size_bytes: reader.size_bytes(), crc64: Crc64Digest::new().finish() }));
    }
    let mut crc = Crc64Digest::new();
    while let Some(piece) = reader.next().await? {
        crc.update(&piece);
    }
    Ok(Some(FileSummary { size_bytes, crc64: crc.finish() }))
}

/// A local file during a download.
struct DownloadTarget {
    file: File,
    path: PathBuf,
    crc: Crc64Digest,
    size_bytes: u64,
}

impl DownloadTarget {
    fn create(path: PathBuf) -> Result<Self, BucketError> {
        match File::create_new(&path) {
            Ok(file) => Ok(Self { file, path, crc: Crc64Digest::new(), size_bytes: 0 }),
            Err(source) => Err(BucketError::LocalFile { path, source }),
        }
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), BucketError> {
        self.crc.update(piece);
        self.size_bytes += piece.len() as u64;
        self.file
            .write_all(piece)
            .map_err(|source| BucketError::LocalFile { path: self.path.clone(), source })
    }

    fn copy_from(mut self, mut from: File) -> Result<FileSummary, BucketError> {
        let mut buffer = vec![0; 256 * 1_024];
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => return Ok(self.summary()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(BucketError::LocalFile { path: self.path, source }),
            };
            self.write(&buffer[..count])?;
        }
    }

    fn summary(&self) -> FileSummary {
        FileSummary { size_bytes: self.size_bytes, crc64: self.crc.finish() }
    }
}
