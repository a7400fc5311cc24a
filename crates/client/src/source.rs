//! Sources of values.

use std::fmt;
use std::io::{self, SeekFrom};

use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use dormouse_protocol::ValueDigest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt};

/// A reader that can be read again.
trait ReadSeek: AsyncRead + AsyncSeek + Send + Unpin {}

impl<R: AsyncRead + AsyncSeek + Send + Unpin> ReadSeek for R {}

enum SourceReader<'a> {
    Once(Box<dyn AsyncRead + Send + Unpin + 'a>),
    Again { reader: Box<dyn ReadSeek + 'a>, start: u64 },
}

/// The source of a value's bytes, with an optional callback for the progress.
///
/// Anything that implements `AsyncRead` is one. An upload must restart if another server takes the subject
/// over, or if the server loses its disk. A source that can [seek](Self::seekable) is then read again; with
/// any other source the call fails, and nothing is executed.
///
/// ```no_run
/// # async fn example(kv: dormouse_client::Kv) -> Result<(), Box<dyn std::error::Error>> {
/// use dormouse_client::ValueSource;
///
/// let film = tokio::fs::File::open("film.mkv").await?;
/// let source = ValueSource::seekable(film).on_progress(|bytes| println!("{bytes} bytes received"));
/// kv.put_reader("film", source).await?;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct ValueSource<'a> {
    reader: SourceReader<'a>,
    size: Option<u64>,
    progress: Option<Box<dyn FnMut(u64) + Send + 'a>>,
}

impl<'a> ValueSource<'a> {
    /// A source that can be read once.
    pub fn once(reader: impl AsyncRead + Send + Unpin + 'a) -> Self {
        Self { reader: SourceReader::Once(Box::new(reader)), size: None, progress: None }
    }

    /// A source that can be read again: from its current position to its end.
    pub fn seekable(reader: impl AsyncRead + AsyncSeek + Send + Unpin + 'a) -> Self {
        Self {
            reader: SourceReader::Again { reader: Box::new(reader), start: 0 },
            size: None,
            progress: None,
        }
    }

    /// Bytes in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::seekable(io::Cursor::new(bytes.into()))
    }

    /// Declares the number of bytes, so that a server that cannot take so many rejects them at once. The
    /// declared size is not checked against the source. A source that can seek declares its size by itself.
    pub const fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// `callback` is called with the number of bytes that the server has received, each time the number
    /// changes. The number decreases if the upload must restart.
    pub fn on_progress(mut self, callback: impl FnMut(u64) + Send + 'a) -> Self {
        self.progress = Some(Box::new(callback));
        self
    }
}

impl<'a, R: AsyncRead + Send + Unpin + 'a> From<R> for ValueSource<'a> {
    fn from(reader: R) -> Self {
        Self::once(reader)
    }
}

impl fmt::Debug for ValueSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueSource").field("size", &self.size).finish_non_exhaustive()
    }
}

/// A source that is being read.
pub(crate) struct ValueInput<'a> {
    source: ValueSource<'a>,
    buffer: BytesMut,
    digest: Digest,
    ended: bool,
    reported: u64,
}

impl<'a> ValueInput<'a> {
    /// Starts to read.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub(crate) async fn new(mut source: ValueSource<'a>) -> io::Result<Self> {
        if let SourceReader::Again { reader, start } = &mut source.reader {
            *start = reader.stream_position().await?;
            let end = reader.seek(SeekFrom::End(0)).await?;
            reader.seek(SeekFrom::Start(*start)).await?;
            source.size = Some(end.saturating_sub(*start));
        }
        Ok(Self { source, buffer: BytesMut::new(), digest: fresh(), ended: false, reported: 0 })
    }

    /// How many bytes the source has, if known.
    pub(crate) const fn size(&self) -> Option<u64> {
        self.source.size
    }

    /// Whether everything was taken.
    pub(crate) fn is_at_end(&self) -> bool {
        self.ended && self.buffer.is_empty()
    }

    /// Whether the whole source is buffered and has at most so many bytes.
    pub(crate) fn fits_in(&self, bytes: usize) -> bool {
        self.ended && self.buffer.len() <= bytes
    }

    /// The digest of all bytes that were taken so far.
    pub(crate) fn digest(&self) -> ValueDigest {
        ValueDigest::new(self.digest.finalize())
    }

    /// Reads until `bytes` bytes are buffered or the source ends. Cancelling the call loses nothing.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub(crate) async fn fill(&mut self, bytes: usize) -> io::Result<()> {
        while !self.ended && self.buffer.len() < bytes {
            let more = bytes - self.buffer.len();
            self.buffer.reserve(more);
            let mut room = bytes::BufMut::limit(&mut self.buffer, more);
            let count = match &mut self.source.reader {
                SourceReader::Once(reader) => reader.read_buf(&mut room).await?,
                SourceReader::Again { reader, .. } => reader.read_buf(&mut room).await?,
            };
            self.ended = count == 0;
        }
        Ok(())
    }

    /// Like [`fill`](Self::fill), and takes the buffered bytes, at most `bytes`. Cancelling the call loses
    /// nothing.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub(crate) async fn take(&mut self, bytes: usize) -> io::Result<Bytes> {
        self.fill(bytes).await?;
        let taken = self.buffer.split_to(bytes.min(self.buffer.len())).freeze();
        self.digest.update(&taken);
        Ok(taken)
    }

    /// Restarts at the first byte. Returns `false` if the source cannot seek.
    ///
    /// # Errors
    /// If the source can seek and the seek fails.
    pub(crate) async fn rewind(&mut self) -> io::Result<bool> {
        let SourceReader::Again { reader, start } = &mut self.source.reader else { return Ok(false) };
        reader.seek(SeekFrom::Start(*start)).await?;
        self.buffer.clear();
        self.digest = fresh();
        self.ended = false;
        Ok(true)
    }

    /// The server has received so many bytes.
    pub(crate) fn report_progress(&mut self, bytes: u64) {
        if let Some(progress) = &mut self.source.progress
            && bytes != self.reported
        {
            self.reported = bytes;
            progress(bytes);
        }
    }
}

fn fresh() -> Digest {
    Digest::new(CrcAlgorithm::Crc64Nvme)
}
