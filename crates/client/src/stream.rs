//! Streams.

use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{DeleteAllRequest, DeleteRequest, GetRequest, InfoReply, SetResult};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, Message, Position, Seq, Subject};

use crate::download::ValueReader;
use crate::error::Error;
use crate::new_message::NewMessage;
use crate::pages::Pages;
use crate::range::SeqRange;
use crate::source::ValueSource;
use crate::subject::Handle;
use crate::watch::{Filter, Watch};

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
    /// Cancelling the call leaves the message written or not.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    pub async fn publish(&self, value: impl Into<Bytes>) -> Result<SetResult, Error> {
        self.publish_with(NewMessage::new(value)).await
    }

    /// Writes a message with headers, timestamp, seq, expectation, or with the null value.
    ///
    /// Cancelling the call leaves the message written or not.
    ///
    /// # Errors
    /// [`Error::WrongLast`] when the message's expectation does not hold; [`Error::Service`] with `bad_request` when its
    /// seq is neither present nor at or beyond the next; [`Error::TooLarge`]; [`Error::Indeterminate`] when the fate of
    /// the request is unknown; else as every call.
    pub async fn publish_with(&self, message: NewMessage) -> Result<SetResult, Error> {
        self.handle.set(message.into_item(None)).await
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

    /// All changes from now on. Once the call has returned, every later change is reported or is a
    /// [`Gap`](crate::Update::Gap). Asks where the subject is, which wakes it; see [`Watch`].
    ///
    /// Cancelling the call leaves no watch.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`]; [`Error::Closed`].
    pub async fn watch(&self) -> Result<Watch, Error> {
        self.handle.watch(Filter::All).await
    }
}

crate::subject::care!(Stream);
