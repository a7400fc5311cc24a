//! Values of any size on their way down: pulled piece by piece, some ahead of the reader, and held against their digest.

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

/// The largest value that a call brings into memory in one piece, in bytes: 64 MiB. A larger one is `too_large` there and
/// is to be read through a [`ValueReader`].
pub const MAX_VALUE_IN_MEMORY_BYTES: u64 = 64 * 1_024 * 1_024;

/// Pieces that are asked for ahead of the reader.
const PIECES_AHEAD: usize = 8;

/// A value that is read piece by piece, in memory that is bounded however large it is. Made by
/// [`Kv::get_reader`](crate::Kv::get_reader) and [`Stream::get_reader`](crate::Stream::get_reader).
///
/// It ends well only if all of it was read and its digest is that of the value that was written: otherwise reading ends in
/// an error. When the message is replaced or removed meanwhile, reading fails with [`Error::WrongLast`] inside the
/// `io::Error`. The handle's deadline holds for each piece.
///
/// Dropping it ends the transfer.
pub struct ValueReader {
    message: Message,
    value: Whole,
    /// Bytes that were asked for, from the first on.
    asked: u64,
    /// Bytes that came, from the first on.
    came: u64,
    digest: Digest,
    current: Bytes,
    pieces: FuturesOrdered<BoxFuture<'static, Result<Bytes, Error>>>,
    handle: Handle,
    failed: Option<Error>,
}

/// What is known of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Whole {
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

    /// The next bytes; `None` once all have come and are the right ones. Cancelling the call loses nothing.
    ///
    /// # Errors
    /// As every call; [`Error::WrongLast`] when the message was replaced meanwhile; [`Error::Service`] with `corrupt` when
    /// the value is missing or damaged.
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
        if self.came == self.value.size {
            return Poll::Ready(self.check().map(|()| None));
        }
        while self.pieces.len() < PIECES_AHEAD && self.asked < self.value.size {
            self.ask();
        }
        // There is one: what came is less than the size, and all that was asked for and did not come is on its way.
        let piece = ready!(self.pieces.poll_next_unpin(context)).unwrap_or(Ok(Bytes::new()));
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                self.failed = Some(error.clone());
                return Poll::Ready(Err(error));
            }
        };
        self.came += piece.len() as u64;
        self.digest.update(&piece);
        Poll::Ready(Ok(Some(piece)))
    }

    fn ask(&mut self) {
        let left = self.value.size - self.asked;
        let length = left.min(self.handle.piece_bytes() as u64);
        let request = self.handle.piece(&self.message, self.asked, length);
        let (handle, value) = (self.handle.clone(), self.value);
        self.pieces.push_back(Box::pin(async move { handle.bring(request, value).await }));
        self.asked += length;
    }

    fn check(&mut self) -> Result<(), Error> {
        let came = ValueDigest::new(self.digest.finalize());
        match self.value.digest {
            Some(digest) if digest != came => {
                let what = format!("its digest is {came}, where the message says {digest}");
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
            .field("came", &self.came)
            .finish_non_exhaustive()
    }
}

/// The error as readers have it; ours is inside.
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
    /// Opens the value of the message that `request` asks for, one message by its seq or key.
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

    /// The message with its value, which an answer did not hold.
    pub(crate) async fn whole(&self, message: Message) -> Result<Message, Error> {
        if message.size > MAX_VALUE_IN_MEMORY_BYTES {
            let text = format!(
                "the value has {} bytes, and at most {MAX_VALUE_IN_MEMORY_BYTES} are brought into memory at once: read \
                 it through a reader",
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
            let length = message.size.min(self.piece_bytes() as u64);
            let reply: GetChunkReply = self.call(Op::GetChunk, &self.piece(&message, 0, length)).await?;
            if reply.size != message.size {
                // A successor of its server has given seq and rev to another message.
                return Err(Error::WrongLast { actual: None });
            }
            if reply.size > 0 && reply.bytes.is_empty() {
                return Err(stuck());
            }
            (Whole { size: reply.size, digest: Some(reply.digest) }, reply.bytes)
        } else {
            let value = message.value.take().unwrap_or_default();
            (Whole { size: value.len() as u64, digest: None }, value)
        };
        let came = first.len() as u64;
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        digest.update(&first);
        Ok(ValueReader {
            message,
            value,
            asked: came,
            came,
            digest,
            current: first,
            pieces: FuturesOrdered::new(),
            handle: self.clone(),
            failed: None,
        })
    }

    fn piece(&self, message: &Message, offset: u64, length: u64) -> GetChunkRequest {
        GetChunkRequest { v: ProtocolVersion::CURRENT, seq: message.seq, rev: message.rev, offset, length }
    }

    /// All bytes that `request` asks for, in as many answers as it takes.
    async fn bring(&self, mut request: GetChunkRequest, value: Whole) -> Result<Bytes, Error> {
        let mut parts: VecDeque<Bytes> = VecDeque::new();
        while request.length > 0 {
            let reply: GetChunkReply = self.call(Op::GetChunk, &request).await?;
            let count = reply.bytes.len() as u64;
            let same = Whole { size: reply.size, digest: Some(reply.digest) } == value;
            if count == 0 || count > request.length || !same {
                return Err(stuck());
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

fn stuck() -> Error {
    Error::Malformed { cause: MalformedCause::StuckCursor }
}
