//! Values of any size on their way up: begun, brought piece by piece, put in the bucket, committed by a set.

mod window;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{SetItem, SetResult};
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::transfer::{
    UploadBeginRequest, UploadCancelRequest, UploadChunkRequest, UploadFinishRequest, UploadPlace,
    UploadReply, UploadedValue,
};
use dormouse_protocol::{ErrorCode, Op, ProtocolVersion, UploadId};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use self::window::Window;
use crate::error::{Error, MalformedCause};
use crate::source::{Feed, ValueSource};
use crate::subject::{Handle, set_size};

/// The largest piece of a value that travels at once, in bytes; smaller where a message holds less.
pub(crate) const MAX_PIECE_BYTES: usize = 512 * 1_024;

/// While the source has nothing to give, the server hears of us this often: it abandons who is silent for 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(8);

/// How often an upload begins again before it is given up.
const MOST_ROUNDS: u32 = 16;

/// The pauses between questions whether the value is in the bucket yet.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Bytes a second that a bucket takes if it is slow.
const SLOW_BUCKET: u64 = 1_024 * 1_024;

/// How long it is tried to tell the server that an upload was given up; it finds out by itself.
const CANCEL_DEADLINE: Duration = Duration::from_secs(2);

const V: ProtocolVersion = ProtocolVersion::CURRENT;

/// What the answer to one piece is.
type Answer = (u64, Result<UploadReply, Error>);

impl Handle {
    /// How many bytes of a value travel in one message at this moment. A reconnect may change it.
    pub(crate) fn piece_bytes(&self) -> usize {
        self.inner.bus.max_payload().saturating_sub(2 * ENVELOPE_BYTES).clamp(1, MAX_PIECE_BYTES)
    }

    /// Whether the set fits one message, and its message one answer.
    pub(crate) fn fits(&self, item: &SetItem) -> bool {
        set_size(item) + 2 * ENVELOPE_BYTES <= self.inner.bus.max_payload()
    }

    /// Writes a message whose value comes from `source`.
    pub(crate) async fn set_from(
        &self,
        mut item: SetItem,
        source: ValueSource<'_>,
    ) -> Result<SetResult, Error> {
        let mut feed = Feed::new(source).await.map_err(unreadable)?;
        // What fits a message needs no upload.
        let room = self.inner.bus.max_payload().saturating_sub(2 * ENVELOPE_BYTES + set_size(&item));
        feed.fill(room.saturating_add(1).min(MAX_PIECE_BYTES)).await.map_err(unreadable)?;
        if feed.is_within(room) {
            let value = feed.take(room).await.map_err(unreadable)?;
            let size = value.len() as u64;
            item.value = Some(value);
            let result = self.set_one(item).await?;
            feed.tell(size);
            return Ok(result);
        }
        let place = UploadPlace { key: item.key.clone(), seq: item.seq };
        let mut upload = Upload {
            place,
            guard: Guard { handle: self, id: UploadId::new(self.inner.env.ulid()), begun: false },
            feed,
            window: Window::default(),
            in_flight: FuturesUnordered::new(),
            rounds: 0,
        };
        let result = upload.run(item).await?;
        upload.guard.begun = false;
        Ok(result)
    }
}

/// An upload that is given up is said to be, where that is possible.
struct Guard<'h> {
    handle: &'h Handle,
    id: UploadId,
    /// The server may have something of it.
    begun: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.begun || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let handle = Handle { deadline: CANCEL_DEADLINE, ..self.handle.clone() };
        let request = UploadCancelRequest { v: V, upload: self.id };
        let tasks = handle.inner.tasks.clone();
        tasks.spawn("cancel an upload", async move {
            // The server finds out by itself.
            let _ = handle.call::<UploadReply>(Op::UploadCancel, &request).await;
        });
    }
}

struct Upload<'h, 's> {
    /// The message that the value will be in.
    place: UploadPlace,
    guard: Guard<'h>,
    feed: Feed<'s>,
    window: Window,
    in_flight: FuturesUnordered<BoxFuture<'static, Answer>>,
    rounds: u32,
}

impl Upload<'_, '_> {
    async fn run(&mut self, mut item: SetItem) -> Result<SetResult, Error> {
        let handle = self.guard.handle;
        let mut request = handle.set_request(Vec::new());
        loop {
            self.transfer().await?;
            let Some(value) = self.finish().await? else { continue };
            item.uploaded = Some(value);
            request.sets = vec![item.clone()];
            match handle.commit(&request).await {
                Err(error) if is_unknown(&error) => {}
                end => return end,
            }
        }
    }

    /// Brings everything that the server does not have.
    async fn transfer(&mut self) -> Result<(), Error> {
        self.resume().await?;
        loop {
            while let Some((offset, bytes)) = self.window.next() {
                self.in_flight.push(self.send(offset, bytes));
            }
            if self.window.is_empty() && self.feed.is_over() {
                return Ok(());
            }
            let size = self.guard.handle.piece_bytes();
            let wanted = self.window.has_room() && !self.feed.is_over();
            let answer = tokio::select! {
                biased;
                Some(answer) = self.in_flight.next(), if !self.in_flight.is_empty() => answer,
                piece = self.feed.take(size), if wanted => {
                    self.window.push(piece.map_err(unreadable)?);
                    continue;
                }
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    let reply = self.begin().await?;
                    if reply.received < self.window.received() {
                        self.go_on_from(reply).await?;
                    }
                    continue;
                }
            };
            self.answered(answer).await?;
        }
    }

    fn send(&self, offset: u64, bytes: Bytes) -> BoxFuture<'static, Answer> {
        let (handle, upload) = (self.guard.handle.clone(), self.guard.id);
        Box::pin(async move {
            let request = UploadChunkRequest { v: V, upload, offset, bytes };
            (offset, handle.call(Op::UploadChunk, &request).await)
        })
    }

    async fn answered(&mut self, (offset, answer): Answer) -> Result<(), Error> {
        match answer {
            Ok(reply) => {
                if !self.window.answered(offset, reply.received) {
                    return Err(Error::Malformed { cause: MalformedCause::StuckCursor });
                }
                self.feed.tell(self.window.received());
                Ok(())
            }
            Err(error) if is_unknown(&error) => self.resume().await,
            // A message holds less than it did when the piece was cut.
            Err(error @ Error::TooLarge { .. }) => {
                let most = self.guard.handle.piece_bytes();
                if self.window.split(offset, most) { Ok(()) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// Asks how far the upload is and goes on from there, be it at the source's first byte.
    async fn resume(&mut self) -> Result<(), Error> {
        let reply = self.begin().await?;
        self.go_on_from(reply).await
    }

    async fn go_on_from(&mut self, reply: UploadReply) -> Result<(), Error> {
        self.in_flight.clear();
        self.rounds += 1;
        if self.window.resume(reply.received) {
            return Ok(());
        }
        if self.rounds > MOST_ROUNDS || !self.feed.rewind().await.map_err(unreadable)? {
            return Err(Error::UploadLost);
        }
        tracing::info!(received = reply.received, "an upload begins again");
        self.window.restart(reply.received);
        self.feed.tell(reply.received);
        Ok(())
    }

    async fn begin(&mut self) -> Result<UploadReply, Error> {
        let (size, place) = (self.feed.size(), Some(self.place.clone()));
        let request = UploadBeginRequest { v: V, upload: self.guard.id, size, place };
        self.guard.begun = true;
        self.guard.handle.call(Op::UploadBegin, &request).await
    }

    /// Has the value put in the bucket. `None`: the server lacks some of it. Takes no longer than a call may, and as long as
    /// a slow bucket takes for so many bytes: each question is answered at once, also while the bucket takes nothing.
    async fn finish(&mut self) -> Result<Option<UploadedValue>, Error> {
        let (upload, size, digest) = (self.guard.id, self.window.read(), self.feed.digest());
        let request = UploadFinishRequest { v: V, upload, size, digest };
        let mut pause = FIRST_PAUSE;
        let env = &self.guard.handle.inner.env;
        let deadline = self.guard.handle.deadline.saturating_add(Duration::from_secs(size / SLOW_BUCKET));
        let until = env.boot().saturating_add(deadline);
        loop {
            match self.guard.handle.call::<UploadReply>(Op::UploadFinish, &request).await {
                Ok(reply) if reply.stored => return Ok(Some(UploadedValue { upload, size, digest })),
                Ok(reply) if reply.received < size => return Ok(None),
                Ok(_) => {}
                Err(error) if is_unknown(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
            if env.boot() >= until {
                return Err(Error::Deadline { deadline, last: None });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::Service(reply) if reply.code == ErrorCode::UnknownUpload)
}

fn unreadable(error: io::Error) -> Error {
    Error::Source { cause: Arc::new(error) }
}
