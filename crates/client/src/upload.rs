//! Uploads of values of any size: started, sent in chunks, stored in the bucket, committed by a set.

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

use self::window::UploadWindow;
use crate::error::{Error, MalformedCause};
use crate::request_ids::IdUse;
use crate::sizes::set_size;
use crate::source::{ValueInput, ValueSource};
use crate::subject::Handle;

/// The largest chunk of a value in one message, in bytes; smaller if the message limit is smaller.
pub(crate) const MAX_CHUNK_BYTES: usize = 512 * 1_024;

/// While the source provides no data, the client contacts the server at this interval: the server abandons an
/// upload after 30 s of silence.
const KEEP_ALIVE: Duration = Duration::from_secs(8);

/// The most restarts of an upload before it fails.
const MAX_ROUNDS: u32 = 16;

/// The first and the longest pause between polls for whether the value is in the bucket.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The upload rate of a slow bucket, in bytes per second.
const SLOW_BUCKET_RATE: u64 = 1_024 * 1_024;

/// How long the client tries to cancel an abandoned upload at the server; the server also detects it by
/// itself.
const CANCEL_DEADLINE: Duration = Duration::from_secs(2);

const V: ProtocolVersion = ProtocolVersion::CURRENT;

/// The offset of one chunk and the reply to it.
type UploadStep = (u64, Result<UploadReply, Error>);

impl Handle {
    /// How many bytes of a value fit in one message now. A reconnect may change it.
    pub(crate) fn chunk_bytes(&self) -> usize {
        self.inner.bus.max_payload().saturating_sub(2 * ENVELOPE_BYTES).clamp(1, MAX_CHUNK_BYTES)
    }

    /// Whether the set fits in one message, and its message in one reply.
    pub(crate) fn fits(&self, item: &SetItem) -> bool {
        set_size(item) + 2 * ENVELOPE_BYTES <= self.inner.bus.max_payload()
    }

    /// Writes a message whose value comes from `source`.
    pub(crate) async fn set_from(
        &self,
        mut item: SetItem,
        source: ValueSource<'_>,
    ) -> Result<SetResult, Error> {
        let mut input = ValueInput::new(source).await.map_err(unreadable)?;
        // A value that fits in a message needs no upload.
        let room = self.inner.bus.max_payload().saturating_sub(2 * ENVELOPE_BYTES + set_size(&item));
        input.fill(room.saturating_add(1).min(MAX_CHUNK_BYTES)).await.map_err(unreadable)?;
        if input.fits_in(room) {
            let value = input.take(room).await.map_err(unreadable)?;
            let size = value.len() as u64;
            item.value = Some(value);
            let result = self.set_one(item).await?;
            input.report_progress(size);
            return Ok(result);
        }
        let place = UploadPlace { key: item.key.clone(), seq: item.seq };
        let mut upload = Upload {
            place,
            guard: UploadGuard { handle: self, id: UploadId::new(self.inner.env.ulid()), begun: false },
            input,
            window: UploadWindow::default(),
            in_flight: FuturesUnordered::new(),
            rounds: 0,
        };
        let result = upload.run(item).await?;
        upload.guard.begun = false;
        Ok(result)
    }
}

/// Cancels an abandoned upload at the server, if that is possible.
struct UploadGuard<'h> {
    handle: &'h Handle,
    id: UploadId,
    /// The server may have a part of it.
    begun: bool,
}

impl Drop for UploadGuard<'_> {
    fn drop(&mut self) {
        if !self.begun || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let handle = Handle { deadline: CANCEL_DEADLINE, ..self.handle.clone() };
        let request = UploadCancelRequest { v: V, upload: self.id };
        let tasks = handle.inner.tasks.clone();
        tasks.spawn("cancel an upload", async move {
            // The server also detects it by itself.
            let _ = handle.call::<UploadReply>(Op::UploadCancel, &request).await;
        });
    }
}

struct Upload<'h, 's> {
    /// The key and seq of the message that will have the value.
    place: UploadPlace,
    guard: UploadGuard<'h>,
    input: ValueInput<'s>,
    window: UploadWindow,
    in_flight: FuturesUnordered<BoxFuture<'static, UploadStep>>,
    rounds: u32,
}

impl Upload<'_, '_> {
    async fn run(&mut self, mut item: SetItem) -> Result<SetResult, Error> {
        let handle = self.guard.handle;
        // From the first commit on: an upload may take long, and later changes must not wait for its id.
        let mut id = None;
        loop {
            self.transfer().await?;
            let Some(value) = self.finish().await? else { continue };
            item.uploaded = Some(value);
            let id = match &id {
                Some(id) => id,
                None => &*id.insert(handle.next_id(IdUse::Shared).await?.0),
            };
            match handle.commit(item.clone(), id).await {
                Err(error) if is_unknown(&error) => {}
                end => return end,
            }
        }
    }

    /// Sends all chunks that the server does not have.
    async fn transfer(&mut self) -> Result<(), Error> {
        self.resume().await?;
        loop {
            while let Some((offset, bytes)) = self.window.next() {
                self.in_flight.push(self.send(offset, bytes));
            }
            if self.window.is_empty() && self.input.is_at_end() {
                return Ok(());
            }
            let size = self.guard.handle.chunk_bytes();
            let wanted = self.window.has_room() && !self.input.is_at_end();
            let answer = tokio::select! {
                biased;
                Some(answer) = self.in_flight.next(), if !self.in_flight.is_empty() => answer,
                chunk = self.input.take(size), if wanted => {
                    self.window.push(chunk.map_err(unreadable)?);
                    continue;
                }
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    let reply = self.begin().await?;
                    if reply.received < self.window.received() {
                        self.resume_from(reply).await?;
                    }
                    continue;
                }
            };
            self.answered(answer).await?;
        }
    }

    fn send(&self, offset: u64, bytes: Bytes) -> BoxFuture<'static, UploadStep> {
        let (handle, upload) = (self.guard.handle.clone(), self.guard.id);
        Box::pin(async move {
            let request = UploadChunkRequest { v: V, upload, offset, bytes };
            (offset, handle.call(Op::UploadChunk, &request).await)
        })
    }

    async fn answered(&mut self, (offset, answer): UploadStep) -> Result<(), Error> {
        match answer {
            Ok(reply) => {
                if !self.window.answered(offset, reply.received) {
                    return Err(Error::Malformed { cause: MalformedCause::StuckCursor });
                }
                self.input.report_progress(self.window.received());
                Ok(())
            }
            Err(error) if is_unknown(&error) => self.resume().await,
            // The message limit became smaller after the chunk was cut.
            Err(error @ Error::TooLarge { .. }) => {
                let most = self.guard.handle.chunk_bytes();
                if self.window.split(offset, most) { Ok(()) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// Asks the server for its progress and continues from there, or from the source's first byte.
    async fn resume(&mut self) -> Result<(), Error> {
        let reply = self.begin().await?;
        self.resume_from(reply).await
    }

    async fn resume_from(&mut self, reply: UploadReply) -> Result<(), Error> {
        self.in_flight.clear();
        self.rounds += 1;
        if self.window.resume(reply.received) {
            return Ok(());
        }
        if self.rounds > MAX_ROUNDS || !self.input.rewind().await.map_err(unreadable)? {
            return Err(Error::UploadLost);
        }
        tracing::info!(received = reply.received, "upload restarted");
        self.window.restart(reply.received);
        self.input.report_progress(reply.received);
        Ok(())
    }

    async fn begin(&mut self) -> Result<UploadReply, Error> {
        let (size, place) = (self.input.size(), Some(self.place.clone()));
        let request = UploadBeginRequest { v: V, upload: self.guard.id, size, place };
        self.guard.begun = true;
        self.guard.handle.call(Op::UploadBegin, &request).await
    }

    /// Stores the value in the bucket. `None`: the server lacks a part of it. The time limit is the call's
    /// deadline plus the time that a slow bucket takes for so many bytes: each poll is answered at once, also
    /// while the bucket is unavailable.
    async fn finish(&mut self) -> Result<Option<UploadedValue>, Error> {
        let (upload, size, digest) = (self.guard.id, self.window.read(), self.input.digest());
        let request = UploadFinishRequest { v: V, upload, size, digest };
        let mut pause = FIRST_PAUSE;
        let env = &self.guard.handle.inner.env;
        let deadline =
            self.guard.handle.deadline.saturating_add(Duration::from_secs(size / SLOW_BUCKET_RATE));
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
