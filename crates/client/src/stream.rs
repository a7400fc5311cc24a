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

/// A stream: a subject whose messages are identified by their seq. Made by
/// [`Client::stream`](crate::Client::stream); cloning is cheap.
///
#[doc = include_str!("calls.md")]
#[derive(Debug, Clone)]
pub struct Stream {
    pub(crate) handle: Handle,
}

impl Stream {
    /// Appends a message with this value.
    ///
    /// The set is queued before the call returns; await the [`AckFuture`] for its outcome. If the future is
    /// dropped, the message may or may not be written.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the
    /// errors of every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn publish(&self, value: impl Into<Bytes>) -> AckFuture {
        self.publish_with(NewMessage::new(value))
    }

    /// Writes a message with headers, timestamp, seq or expectation, or with the null value.
    ///
    /// Queued like [`publish`](Self::publish). If the [`AckFuture`] is dropped, the message may or may not be
    /// written.
    ///
    /// # Errors
    /// [`Error::WrongLast`] if the message's expectation does not hold; [`Error::Service`] with `bad_request`
    /// if its seq neither exists nor is the next seq or higher; [`Error::TooLarge`]; [`Error::Indeterminate`]
    /// if the outcome of the request is unknown; otherwise the errors of every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn publish_with(&self, message: NewMessage) -> AckFuture {
        self.handle.set(message.into_item(None))
    }

    /// Starts an atomic batch: either all of its messages are written, or none.
    pub fn batch(&self) -> StreamBatch {
        StreamBatch::new(self.handle.clone())
    }

    /// Writes many messages, each on its own, in order, in as few requests as possible. The results have the
    /// same order.
    ///
    /// If a message is rejected, the other messages are not affected. If a whole request fails, its messages
    /// share its error, and all later messages fail with [`Error::NotSent`]. The deadline applies to each
    /// request.
    ///
    /// If the call is cancelled, only the first messages are written: those that had reached the servers.
    pub async fn publish_batch(
        &self,
        messages: impl IntoIterator<Item = impl Into<NewMessage>>,
    ) -> Vec<Result<SetResult, Error>> {
        let items = messages.into_iter().map(|message| message.into().into_item(None)).collect();
        self.handle.set_all(items).await
    }

    /// Appends a message with a value of any size, read from `source`: anything that implements `AsyncRead`,
    /// or a [`ValueSource`]. The value is uploaded in chunks, in bounded memory, and a lost chunk is sent
    /// again. The deadline applies to each step; reading the source has no deadline.
    ///
    /// If the call is cancelled, nothing is written, unless the whole value was read already: then the
    /// message may or may not be written.
    ///
    /// # Errors
    /// [`Error::Source`] if the source fails; [`Error::UploadLost`] if the source must be read again and
    /// cannot be. After both, nothing was executed. [`Error::Indeterminate`] if the outcome of the last
    /// request is unknown; otherwise the errors of every call.
    pub async fn append_reader<'a>(&self, source: impl Into<ValueSource<'a>>) -> Result<SetResult, Error> {
        self.append_reader_with(NewMessage::null(), source).await
    }

    /// Like [`append_reader`](Self::append_reader), with headers, timestamp, seq or expectation; the value
    /// comes from the source.
    ///
    /// If the call is cancelled, nothing is written, unless the whole value was read already: then the
    /// message may or may not be written.
    ///
    /// # Errors
    /// Those of [`append_reader`](Self::append_reader) and [`publish_with`](Self::publish_with).
    pub async fn append_reader_with<'a>(
        &self,
        message: NewMessage,
        source: impl Into<ValueSource<'a>>,
    ) -> Result<SetResult, Error> {
        self.handle.set_from(message.into_item(None), source.into()).await
    }

    /// A reader of the value of the message at `seq`, in chunks, for values of any size; `None` if there is
    /// no such message. A null value has no bytes.
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn get_reader(&self, seq: Seq) -> Result<Option<ValueReader>, Error> {
        self.handle.read(GetRequest::seq(seq)).await
    }

    /// The message at `seq`, if it exists. A value of more than
    /// [`MAX_VALUE_IN_MEMORY_BYTES`](crate::MAX_VALUE_IN_MEMORY_BYTES) fails with [`Error::TooLarge`]: read
    /// it with [`get_reader`](Self::get_reader).
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn get(&self, seq: Seq) -> Result<Option<Message>, Error> {
        self.handle.get(GetRequest::seq(seq)).await
    }

    /// The same as [`get`](Self::get), under the name that JetStream's streams use.
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn get_raw_message(&self, seq: Seq) -> Result<Option<Message>, Error> {
        self.get(seq).await
    }

    /// The message with the highest seq, if there is one. The value is limited as in [`get`](Self::get).
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn get_last(&self) -> Result<Option<Message>, Error> {
        match self.get_all(SeqRange::all().reverse().limit(1)).next().await.transpose()? {
            Some(message) if message.value_omitted => self.get(message.seq).await,
            last => Ok(last),
        }
    }

    /// The messages in a range, in order: `stream.get_all(..)`, `stream.get_all(5..=10)`, or a [`SeqRange`]
    /// with a direction and a limit. The first page is requested at once; the deadline applies to each page.
    /// See [`Pages`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn get_all(&self, range: impl Into<SeqRange>) -> Pages<Message> {
        self.handle.messages(range.into(), None)
    }

    /// Removes the messages at `seqs`, at most [`MAX_ITEMS_PER_REQUEST`](crate::MAX_ITEMS_PER_REQUEST) of
    /// them. Returns the seqs of the removed messages, ascending.
    ///
    /// If the call is cancelled, either all are removed or none.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the errors of every call.
    pub async fn delete(&self, seqs: impl IntoIterator<Item = Seq>) -> Result<Vec<Seq>, Error> {
        let request = DeleteRequest { seqs: seqs.into_iter().collect(), ..DeleteRequest::default() };
        Ok(self.handle.delete(request).await?.seqs)
    }

    /// Removes the message at `seq`. Returns whether it existed.
    ///
    /// If the call is cancelled, the message may or may not be removed.
    ///
    /// # Errors
    /// Those of [`delete`](Self::delete).
    pub async fn delete_message(&self, seq: Seq) -> Result<bool, Error> {
        Ok(!self.delete([seq]).await?.is_empty())
    }

    /// Removes every message, unless the [`Purge`] is limited; executed when it is awaited. Returns how many
    /// messages were removed.
    ///
    /// If the wait is cancelled, either all are removed or none.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the errors of every call.
    pub fn purge(&self) -> Purge {
        Purge::new(self.handle.clone())
    }

    /// Removes every message up to and including `seq`. Returns how many messages were removed.
    ///
    /// If the call is cancelled, either all are removed or none.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the errors of every call.
    pub async fn delete_up_to(&self, seq: Seq) -> Result<u64, Error> {
        self.handle.delete_all(DeleteAllRequest { end_seq: Some(seq), ..DeleteAllRequest::default() }).await
    }

    /// Removes all but the newest `messages`. Returns how many messages were removed.
    ///
    /// If the call is cancelled, either all are removed or none.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the errors of every call.
    pub async fn keep_last(&self, messages: u64) -> Result<u64, Error> {
        let request = DeleteAllRequest { keep_last: Some(messages), ..DeleteAllRequest::default() };
        self.handle.delete_all(request).await
    }

    /// A feed of the subject from `from` on: the current messages and then all changes, only the changes from
    /// now on, or the changes since the position of an earlier feed. For instance
    /// `stream.feed(FeedFrom::Beginning)`. A feed from now on delivers every change after the call has
    /// returned. See [`Feed`].
    ///
    /// If the call is cancelled, no feed remains.
    ///
    /// # Errors
    /// From now on: the errors of every call, since it requests the subject's position. Otherwise only
    /// [`Error::PermissionDenied`], [`Error::Closed`] and [`Error::Deadline`]; the feed itself reports all other errors.
    pub async fn feed(&self, from: FeedFrom) -> Result<Feed, Error> {
        Feed::start(self.handle.clone(), FeedKeys::All, from).await
    }
}

crate::common_calls::common_calls!(Stream);
