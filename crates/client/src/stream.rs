//! Streams.

use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{DeleteAllRequest, DeleteRequest, GetRequest, InfoReply, SetResult};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, Message, Position, Seq, Subject};

use crate::batch::StreamBatch;
use crate::download::ValueReader;
use crate::error::Error;
use crate::feed::{Feed, FeedFrom, FeedKeys};
use crate::new_message::NewMessage;
use crate::pages::Pages;
use crate::purge::Purge;
use crate::range::SeqRange;
use crate::sets::AckFuture;
use crate::source::ValueSource;
use crate::subject::Handle;

/// A stream: a subject whose messages are told apart by their seq. Made by [`Client::stream`](crate::Client::stream);
/// cloning is cheap.
///
#[doc = include_str!("calls.md")]
#[derive(Debug, Clone)]
pub struct Stream {
    pub(crate) handle: Handle,
}

impl Stream {
    /// Appends a message with this value.
    ///
    /// The set is queued before the call returns; await the [`AckFuture`] to learn what became of it. Dropping that leaves
    /// the message written or not.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn publish(&self, value: impl Into<Bytes>) -> AckFuture {
        self.publish_with(NewMessage::new(value))
    }

    /// Writes a message with headers, timestamp, seq, expectation, or with the null value.
    ///
    /// Queued as by [`publish`](Self::publish). Dropping the [`AckFuture`] leaves the message written or not.
    ///
    /// # Errors
    /// [`Error::WrongLast`] when the message's expectation does not hold; [`Error::Service`] with `bad_request` when its
    /// seq is neither present nor at or beyond the next; [`Error::TooLarge`]; [`Error::Indeterminate`] when the fate of
    /// the request is unknown; else as every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn publish_with(&self, message: NewMessage) -> AckFuture {
        self.handle.set(message.into_item(None))
    }

    /// Begins an atomic batch: all of its messages are written, or none.
    pub fn batch(&self) -> StreamBatch {
        StreamBatch::new(self.handle.clone())
    }

    /// Writes many messages, each on its own, in order, in as few requests as they fit in. The results are in the same
    /// order.
    ///
    /// One that is refused leaves the others alone. When a whole request fails, those in it share its error and what
    /// came after them is [`Error::NotSent`]. The deadline holds for each request.
    ///
    /// Cancelling the call leaves the first ones written, as many as the servers carried out by then.
    pub async fn publish_batch(
        &self,
        messages: impl IntoIterator<Item = impl Into<NewMessage>>,
    ) -> Vec<Result<SetResult, Error>> {
        let items = messages.into_iter().map(|message| message.into().into_item(None)).collect();
        self.handle.set_all(items).await
    }

    /// Appends a message whose value is read from `source` and may have any size: anything that implements `AsyncRead`, or
    /// a [`ValueSource`]. It is brought piece by piece, in memory that is bounded, and a piece that is lost is sent again.
    /// The deadline holds for each step; there is none for the source.
    ///
    /// Cancelling the call leaves nothing, unless all was read already: then the message is written or not.
    ///
    /// # Errors
    /// [`Error::Source`] when the source fails; [`Error::UploadLost`] when it would have to be read again and cannot; after
    /// both nothing has happened. [`Error::Indeterminate`] when the fate of the last request is unknown; else as every
    /// call.
    pub async fn append_reader<'a>(&self, source: impl Into<ValueSource<'a>>) -> Result<SetResult, Error> {
        self.append_reader_with(NewMessage::null(), source).await
    }

    /// As [`append_reader`](Self::append_reader), with headers, timestamp, seq or expectation; the value is the source's.
    ///
    /// Cancelling the call leaves nothing, unless all was read already: then the message is written or not.
    ///
    /// # Errors
    /// As [`append_reader`](Self::append_reader) and [`publish_with`](Self::publish_with).
    pub async fn append_reader_with<'a>(
        &self,
        message: NewMessage,
        source: impl Into<ValueSource<'a>>,
    ) -> Result<SetResult, Error> {
        self.handle.set_from(message.into_item(None), source.into()).await
    }

    /// The value of the message at `seq`, to be read piece by piece however large it is; `None` when there is no such
    /// message. A null value has no bytes.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_reader(&self, seq: Seq) -> Result<Option<ValueReader>, Error> {
        self.handle.read(GetRequest::seq(seq)).await
    }

    /// The message at `seq`, if there is one. A value of more than
    /// [`MAX_VALUE_IN_MEMORY_BYTES`](crate::MAX_VALUE_IN_MEMORY_BYTES) is [`Error::TooLarge`] here: read it through
    /// [`get_reader`](Self::get_reader).
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// As every call.
    pub async fn get(&self, seq: Seq) -> Result<Option<Message>, Error> {
        self.handle.get(GetRequest::seq(seq)).await
    }

    /// The same as [`get`](Self::get), under the name that users of JetStream's streams look for.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_raw_message(&self, seq: Seq) -> Result<Option<Message>, Error> {
        self.get(seq).await
    }

    /// The message with the highest seq, if there is one. The value is limited as in [`get`](Self::get).
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_last(&self) -> Result<Option<Message>, Error> {
        match self.get_all(SeqRange::all().reverse().limit(1)).next().await.transpose()? {
            Some(message) if message.value_omitted => self.get(message.seq).await,
            last => Ok(last),
        }
    }

    /// The messages in a range, in order: `stream.get_all(..)`, `stream.get_all(5..=10)`, or a [`SeqRange`] with a
    /// direction and a limit. The first page is asked for at once; the deadline holds for each page. See [`Pages`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn get_all(&self, range: impl Into<SeqRange>) -> Pages<Message> {
        self.handle.messages(range.into(), None)
    }

    /// Removes the messages at `seqs`, at most [`MAX_ITEMS_PER_REQUEST`](crate::MAX_ITEMS_PER_REQUEST) of them. Returns
    /// the seqs that were really removed, ascending.
    ///
    /// Cancelling the call leaves them all removed or none.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    pub async fn delete(&self, seqs: impl IntoIterator<Item = Seq>) -> Result<Vec<Seq>, Error> {
        let request = DeleteRequest { seqs: seqs.into_iter().collect(), ..DeleteRequest::default() };
        Ok(self.handle.delete(request).await?.seqs)
    }

    /// Removes the message at `seq`. Returns whether there was one.
    ///
    /// Cancelling the call leaves it removed or not.
    ///
    /// # Errors
    /// As [`delete`](Self::delete).
    pub async fn delete_message(&self, seq: Seq) -> Result<bool, Error> {
        Ok(!self.delete([seq]).await?.is_empty())
    }

    /// Removes every message, unless the [`Purge`] is told what to keep; carried out when it is awaited. Returns how many
    /// were removed.
    ///
    /// Cancelling the wait leaves them all removed or none.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    pub fn purge(&self) -> Purge {
        Purge::new(self.handle.clone())
    }

    /// Removes every message up to and including `seq`. Returns how many there were.
    ///
    /// Cancelling the call leaves them all removed or none.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    pub async fn delete_up_to(&self, seq: Seq) -> Result<u64, Error> {
        self.handle.delete_all(DeleteAllRequest { end_seq: Some(seq), ..DeleteAllRequest::default() }).await
    }

    /// Removes all but the newest `messages`. Returns how many were removed.
    ///
    /// Cancelling the call leaves them all removed or none.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    pub async fn keep_last(&self, messages: u64) -> Result<u64, Error> {
        let request = DeleteAllRequest { keep_last: Some(messages), ..DeleteAllRequest::default() };
        self.handle.delete_all(request).await
    }

    /// The messages that are there and what becomes of them, what happens from now on, or what has happened since an earlier
    /// feed: `stream.feed(FeedFrom::Beginning)` and its like. From now on means that every change after the call has returned is told. See
    /// [`Feed`].
    ///
    /// Cancelling the call leaves no feed.
    ///
    /// # Errors
    /// From now on: as every call, since it asks where the subject is. Else only [`Error::PermissionDenied`] and
    /// [`Error::Closed`]; what else is to be said the feed says.
    pub async fn feed(&self, from: FeedFrom) -> Result<Feed, Error> {
        Feed::start(self.handle.clone(), FeedKeys::All, from).await
    }
}

crate::subject::care!(Stream);
