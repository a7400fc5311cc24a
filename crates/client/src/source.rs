//! Where the bytes of a value come from.

use std::fmt;
use std::io::{self, SeekFrom};

use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use dormouse_protocol::ValueDigest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt};

/// What can be read, and read again.
trait ReadSeek: AsyncRead + AsyncSeek + Send + Unpin {}

impl<R: AsyncRead + AsyncSeek + Send + Unpin> ReadSeek for R {}

enum Reader<'a> {
    Once(Box<dyn AsyncRead + Send + Unpin + 'a>),
    Again { reader: Box<dyn ReadSeek + 'a>, start: u64 },
}

/// Where the bytes of a value come from, and who is told how far they are.
///
/// Anything that implements `AsyncRead` is one. Some things may happen to an upload after which it has to begin again:
/// another server takes the subject over, or the server loses its disk. A source that can [seek](Self::seekable) is then
/// read again; with any other the call fails, and nothing has happened.
///
/// ```no_run
/// # async fn example(kv: dormouse_client::Kv) -> Result<(), Box<dyn std::error::Error>> {
/// use dormouse_client::ValueSource;
///
/// let film = tokio::fs::File::open("film.mkv").await?;
/// let source = ValueSource::seekable(film).on_progress(|bytes| println!("{bytes} bytes have arrived"));
/// kv.put_reader("film", source).await?;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct ValueSource<'a> {
    reader: Reader<'a>,
    size: Option<u64>,
    progress: Option<Box<dyn FnMut(u64) + Send + 'a>>,
}

impl<'a> ValueSource<'a> {
    /// A source that can be read once.
    pub fn once(reader: impl AsyncRead + Send + Unpin + 'a) -> Self {
        Self { reader: Reader::Once(Box::new(reader)), size: None, progress: None }
    }

    /// A source that can be read again: from where it stands now to its end.
    pub fn seekable(reader: impl AsyncRead + AsyncSeek + Send + Unpin + 'a) -> Self {
        Self { reader: Reader::Again { reader: Box::new(reader), start: 0 }, size: None, progress: None }
    }

    /// Bytes that are in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::seekable(io::Cursor::new(bytes.into()))
    }

    /// Says how many bytes will come, so that a server that cannot take so many refuses them at once. It is not held
    /// against the source. Known by itself where the source can seek.
    pub const fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// `told` is called with the number of bytes that have arrived, each time it changes; it becomes smaller when the upload
    /// has to begin again.
    pub fn on_progress(mut self, told: impl FnMut(u64) + Send + 'a) -> Self {
        self.progress = Some(Box::new(told));
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

/// A source while it is read.
pub(crate) struct Feed<'a> {
    source: ValueSource<'a>,
    buffer: BytesMut,
    digest: Digest,
    ended: bool,
    told: u64,
}

impl<'a> Feed<'a> {
    /// Begins to read.
    ///
    /// # Errors
    /// That the source cannot be read.
    pub(crate) async fn new(mut source: ValueSource<'a>) -> io::Result<Self> {
        if let Reader::Again { reader, start } = &mut source.reader {
            *start = reader.stream_position().await?;
            let end = reader.seek(SeekFrom::End(0)).await?;
            reader.seek(SeekFrom::Start(*start)).await?;
            source.size = Some(end.saturating_sub(*start));
        }
        Ok(Self { source, buffer: BytesMut::new(), digest: fresh(), ended: false, told: 0 })
    }

    /// How many bytes will come, where that is known.
    pub(crate) const fn size(&self) -> Option<u64> {
        self.source.size
    }

    /// Whether everything was read.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && self.buffer.is_empty()
    }

    /// Whether everything is here, and is no more than so many bytes.
    pub(crate) fn is_within(&self, bytes: usize) -> bool {
        self.ended && self.buffer.len() <= bytes
    }

    /// The digest of all that was taken so far.
    pub(crate) fn digest(&self) -> ValueDigest {
        ValueDigest::new(self.digest.finalize())
    }

    /// Reads until `bytes` bytes are here or the source is over. Cancelling the call loses nothing.
    ///
    /// # Errors
    /// That the source cannot be read.
    pub(crate) async fn fill(&mut self, bytes: usize) -> io::Result<()> {
        while !self.ended && self.buffer.len() < bytes {
            let more = bytes - self.buffer.len();
            self.buffer.reserve(more);
            let mut room = bytes::BufMut::limit(&mut self.buffer, more);
            let count = match &mut self.source.reader {
                Reader::Once(reader) => reader.read_buf(&mut room).await?,
                Reader::Again { reader, .. } => reader.read_buf(&mut room).await?,
            };
            self.ended = count == 0;
        }
        Ok(())
    }

    /// As [`fill`](Self::fill), and takes what is here then. Cancelling the call loses nothing.
    ///
    /// # Errors
    /// That the source cannot be read.
    pub(crate) async fn take(&mut self, bytes: usize) -> io::Result<Bytes> {
        self.fill(bytes).await?;
        let taken = self.buffer.split_to(bytes.min(self.buffer.len())).freeze();
        self.digest.update(&taken);
        Ok(taken)
    }

    /// Begins again at the first byte. `false`: the source cannot.
    ///
    /// # Errors
    /// That it should be able to and fails.
    pub(crate) async fn rewind(&mut self) -> io::Result<bool> {
        let Reader::Again { reader, start } = &mut self.source.reader else { return Ok(false) };
        reader.seek(SeekFrom::Start(*start)).await?;
        self.buffer.clear();
        self.digest = fresh();
        self.ended = false;
        Ok(true)
    }

    /// So many bytes have arrived.
    pub(crate) fn tell(&mut self, bytes: u64) {
        if let Some(progress) = &mut self.source.progress
            && bytes != self.told
        {
            self.told = bytes;
            progress(bytes);
        }
    }
}

fn fresh() -> Digest {
    Digest::new(CrcAlgorithm::Crc64Nvme)
}
