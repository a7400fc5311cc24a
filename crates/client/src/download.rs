//! Downloads of values of any size: pulled in chunks, some ahead of the reader, and verified against the
//! digest.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use dormouse_protocol::data::GetRequest;
use dormouse_protocol::transfer::{GetChunkReply, GetChunkRequest};
use dormouse_protocol::{ErrorCode, ErrorReply, Message, Op, ProtocolVersion, ValueDigest};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use tokio::io::{AsyncRead, ReadBuf};

use crate::error::{Error, MalformedCause};
use crate::subject::{Handle, REPLACEMENTS_FOLLOWED};

/// The largest value that a call returns in memory, in bytes: 64 MiB. A call for a larger value fails with
/// `too_large`; read such a value with a [`ValueReader`].
pub const MAX_VALUE_IN_MEMORY_BYTES: u64 = 64 * 1_024 * 1_024;

/// Chunks that are requested ahead of the reader.
const CHUNKS_AHEAD: usize = 8;

/// A reader of a value of any size, in chunks and in bounded memory. Made by
/// [`Kv::get_reader`](crate::Kv::get_reader) and [`Stream::get_reader`](crate::Stream::get_reader).
///
/// It ends without an error only if the whole value was read and its digest matches the written value. If the
/// message is replaced or removed meanwhile, reading fails with [`Error::WrongLast`] inside the `io::Error`.
/// The handle's deadline applies to each chunk.
///
/// Dropping it ends the transfer.
pub struct ValueReader {
    message: Message,
    value: ValueInfo,
    /// Bytes that were requested, from the first on.
    requested: u64,
    /// Bytes that were received, from the first on.
    received: u64,
    digest: Digest,
    current: Bytes,
    chunks: FuturesOrdered<BoxFuture<'static, Result<Bytes, Error>>>,
    handle: Handle,
    failed: Option<Error>,
}

/// The properties of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ValueInfo {
    size: u64,
    digest: Option<ValueDigest>,
}

impl ValueReader {
    /// The message, without its value.
    #[must_use]
    pub const fn message(&self) -> &Message {
        &self.message
    }

    /// The size of the value in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.value.size
    }

    /// The next bytes; `None` after the whole value was received and its digest matches. Cancelling the call
    /// loses no bytes.
    ///
    /// # Errors
    /// The errors of every call; [`Error::WrongLast`] if the message was replaced meanwhile;
    /// [`Error::Service`] with `corrupt` if the value is missing or damaged.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(error.clone()));
        }
        if !self.current.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.current))));
        }
        if self.received == self.value.size {
            return Poll::Ready(self.check().map(|()| None));
        }
        while self.chunks.len() < CHUNKS_AHEAD && self.requested < self.value.size {
            self.ask();
        }
        // There is a chunk: fewer bytes than the size were received, and all requested ones are received or
        // in flight.
        let chunk = ready!(self.chunks.poll_next_unpin(context)).unwrap_or(Ok(Bytes::new()));
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                self.failed = Some(error.clone());
                return Poll::Ready(Err(error));
            }
        };
        self.received += chunk.len() as u64;
        self.digest.update(&chunk);
        Poll::Ready(Ok(Some(chunk)))
    }

    fn ask(&mut self) {
        let left = self.value.size - self.requested;
        let length = left.min(self.handle.chunk_bytes() as u64);
        let request = self.handle.chunk_request(&self.message, self.requested, length);
        let (handle, value) = (self.handle.clone(), self.value);
        self.chunks.push_back(Box::pin(async move { handle.read_range(request, value).await }));
        self.requested += length;
    }

    fn check(&mut self) -> Result<(), Error> {
        let received = ValueDigest::new(self.digest.finalize());
        match self.value.digest {
            Some(digest) if digest != received => {
                let what = format!("digest is {received}, expected {digest}");
                let object = format!("value of {}", self.message.seq);
                let error = Error::from_reply(ErrorReply::corrupt(object, what));
                self.failed = Some(error.clone());
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

impl AsyncRead for ValueReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(mut bytes) = ready!(this.poll_next(context)).map_err(as_io)? {
            let count = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..count]);
            bytes.advance(count);
            this.current = bytes;
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for ValueReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueReader")
            .field("seq", &self.message.seq)
            .field("size", &self.value.size)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

/// Converts the error into an `io::Error` that contains it.
fn as_io(error: Error) -> io::Error {
    let kind = match &error {
        Error::Service(reply) if reply.code == ErrorCode::Corrupt => io::ErrorKind::InvalidData,
        Error::PermissionDenied { .. } => io::ErrorKind::PermissionDenied,
        Error::Deadline { .. } => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl Handle {
    /// Opens the value of the message that `request` names, one message by its seq or key.
    pub(crate) async fn read(&self, request: GetRequest) -> Result<Option<ValueReader>, Error> {
        let mut replaced = 0;
        loop {
            let Some(message) = self.fetch(&request).await? else { return Ok(None) };
            match self.open(message).await {
                Err(Error::WrongLast { .. }) if replaced < REPLACEMENTS_FOLLOWED => replaced += 1,
                opened => return opened.map(Some),
            }
        }
    }

    /// The message with its value, which the reply omitted.
    pub(crate) async fn whole(&self, message: Message) -> Result<Message, Error> {
        if message.size > MAX_VALUE_IN_MEMORY_BYTES {
            let text = format!(
                "value has {} bytes, and at most {MAX_VALUE_IN_MEMORY_BYTES} are returned in memory: read it with a \
                 reader",
                message.size
            );
            return Err(Error::TooLarge { limit: "max_value_in_memory_bytes".to_owned(), text });
        }
        let mut reader = self.open(message).await?;
        let mut value = BytesMut::with_capacity(usize::try_from(reader.size()).unwrap_or(0));
        while let Some(bytes) = reader.next().await? {
            value.extend_from_slice(&bytes);
        }
        Ok(Message { value: Some(value.freeze()), value_omitted: false, ..reader.message })
    }

    async fn open(&self, mut message: Message) -> Result<ValueReader, Error> {
        let (value, first) = if message.value_omitted {
            let length = message.size.min(self.chunk_bytes() as u64);
            let reply: GetChunkReply =
                self.call(Op::GetChunk, &self.chunk_request(&message, 0, length)).await?;
            if reply.size != message.size {
                // After a failover, the new owner has given the seq and rev to another message.
                return Err(Error::WrongLast { actual: None });
            }
            if reply.size > 0 && reply.bytes.is_empty() {
                return Err(no_progress());
            }
            (ValueInfo { size: reply.size, digest: Some(reply.digest) }, reply.bytes)
        } else {
            let value = message.value.take().unwrap_or_default();
            (ValueInfo { size: value.len() as u64, digest: None }, value)
        };
        let received = first.len() as u64;
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        digest.update(&first);
        Ok(ValueReader {
            message,
            value,
            requested: received,
            received,
            digest,
            current: first,
            chunks: FuturesOrdered::new(),
            handle: self.clone(),
            failed: None,
        })
    }

    fn chunk_request(&self, message: &Message, offset: u64, length: u64) -> GetChunkRequest {
        GetChunkRequest { v: ProtocolVersion::CURRENT, seq: message.seq, rev: message.rev, offset, length }
    }

    /// All bytes of the range in `request`, in as many replies as needed.
    async fn read_range(&self, mut request: GetChunkRequest, value: ValueInfo) -> Result<Bytes, Error> {
        let mut parts: VecDeque<Bytes> = VecDeque::new();
        while request.length > 0 {
            let reply: GetChunkReply = self.call(Op::GetChunk, &request).await?;
            let count = reply.bytes.len() as u64;
            let same = ValueInfo { size: reply.size, digest: Some(reply.digest) } == value;
            if count == 0 || count > request.length || !same {
                return Err(no_progress());
            }
            request.offset += count;
            request.length -= count;
            parts.push_back(reply.bytes);
        }
        if parts.len() == 1 {
            return Ok(parts.pop_front().unwrap_or_default());
        }
        Ok(parts.iter().flatten().copied().collect())
    }
}

fn no_progress() -> Error {
    Error::Malformed { cause: MalformedCause::StuckCursor }
}
