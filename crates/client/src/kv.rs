//! Key-value stores.

use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{DeleteAllRequest, DeleteRequest, Expect, GetRequest, InfoReply, SetResult};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, Message, MessageId, Position, Seq, Subject};

use crate::batch::KvBatch;
use crate::download::ValueReader;
use crate::entry::Entry;
use crate::error::Error;
use crate::feed::{Feed, FeedFrom, FeedKeys};
use crate::new_message::NewMessage;
use crate::pages::{KeyPages, Pages};
use crate::range::SeqRange;
use crate::sets::AckFuture;
use crate::source::ValueSource;
use crate::subject::Handle;

/// A key-value store: a subject whose messages have keys. Made by [`Client::kv`](crate::Client::kv); cloning is cheap.
///
/// Setting a key replaces the message under it; there is no history. The empty key is a key like any other.
///
#[doc = include_str!("calls.md")]
#[derive(Debug, Clone)]
pub struct Kv {
    pub(crate) handle: Handle,
}

impl Kv {
    /// Sets `key` to `value`, whatever was there.
    ///
    /// The set is queued before the call returns; await the [`AckFuture`] to learn what became of it. Dropping that leaves
    /// the key set or not.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn put(&self, key: impl Into<String>, value: impl Into<Bytes>) -> AckFuture {
        self.put_with(key, NewMessage::new(value))
    }

    /// Sets `key` to a message with headers, timestamp, expectation, or to the null value.
    ///
    /// Queued as by [`put`](Self::put). Dropping the [`AckFuture`] leaves the key set or not.
    ///
    /// # Errors
    /// [`Error::WrongLast`] and [`Error::KeyExists`] when the message's expectation does not hold;
    /// [`Error::TooLarge`]; [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn put_with(&self, key: impl Into<String>, message: NewMessage) -> AckFuture {
        self.handle.set(message.into_item(Some(key.into())))
    }

    /// Begins an atomic batch: all of its keys are set, or none.
    pub fn batch(&self) -> KvBatch {
        KvBatch::new(self.handle.clone())
    }

    /// Sets many keys, each on its own, in order, in as few requests as they fit in. The results are in the same order.
    ///
    /// One that is refused leaves the others alone. When a whole request fails, those in it share its error and what
    /// came after them is [`Error::NotSent`]. The deadline holds for each request.
    ///
    /// Cancelling the call leaves the first ones set, as many as the servers carried out by then.
    pub async fn put_many<K, M>(
        &self,
        entries: impl IntoIterator<Item = (K, M)>,
    ) -> Vec<Result<SetResult, Error>>
    where
        K: Into<String>,
        M: Into<NewMessage>,
    {
        let items =
            entries.into_iter().map(|(key, message)| message.into().into_item(Some(key.into()))).collect();
        self.handle.set_all(items).await
    }

    /// Sets `key` only if it is absent.
    ///
    /// Queued as by [`put`](Self::put). Dropping the [`AckFuture`] leaves the key created or not.
    ///
    /// # Errors
    /// [`Error::KeyExists`] with what is there; [`Error::TooLarge`]; [`Error::Indeterminate`] when the fate of the
    /// request is unknown; else as every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn create(&self, key: impl Into<String>, value: impl Into<Bytes>) -> AckFuture {
        self.put_with(key, NewMessage::new(value).expect_key(None)).of_create()
    }

    /// Sets `key` only if the message under it is `expected` (see [`Message::id`] and [`SetResult::id`]).
    ///
    /// Queued as by [`put`](Self::put). Dropping the [`AckFuture`] leaves the key updated or not.
    ///
    /// # Errors
    /// [`Error::WrongLast`] with what is there; [`Error::TooLarge`]; [`Error::Indeterminate`] when the fate of the
    /// request is unknown; else as every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn update(&self, key: impl Into<String>, value: impl Into<Bytes>, expected: MessageId) -> AckFuture {
        self.put_with(key, NewMessage::new(value).expect_key(Some(expected)))
    }

    /// The value under `key`. `None` when there is nothing under the key, and also when the value is null, which has no
    /// bytes to return; [`entry`](Self::entry) tells the two apart. A value of more than
    /// [`MAX_VALUE_IN_MEMORY_BYTES`](crate::MAX_VALUE_IN_MEMORY_BYTES) is [`Error::TooLarge`] here: read it through
    /// [`get_reader`](Self::get_reader).
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// As every call.
    pub async fn get(&self, key: impl Into<String>) -> Result<Option<Bytes>, Error> {
        Ok(self.entry(key).await?.and_then(|entry| entry.value))
    }

    /// What stands under `key`: value, revision, timestamp, headers. The value is limited as in [`get`](Self::get).
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// As every call.
    pub async fn entry(&self, key: impl Into<String>) -> Result<Option<Entry>, Error> {
        let found = self.handle.get(GetRequest::key(key)).await?;
        Ok(found.and_then(|message| Entry::new(self.subject(), message)))
    }

    /// The entry of `key` that `revision` names, if it is still there: of earlier entries nothing is kept.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// As every call.
    pub async fn entry_for_revision(
        &self,
        key: impl Into<String>,
        revision: MessageId,
    ) -> Result<Option<Entry>, Error> {
        Ok(self.entry(key).await?.filter(|entry| entry.revision == revision))
    }

    /// Sets `key` to a value that is read from `source` and may have any size: anything that implements `AsyncRead`, or a
    /// [`ValueSource`]. It is brought piece by piece, in memory that is bounded, and a piece that is lost is sent again. The
    /// deadline holds for each step; there is none for the source.
    ///
    /// Cancelling the call leaves the key as it was, unless all was read already: then set or not.
    ///
    /// # Errors
    /// [`Error::Source`] when the source fails; [`Error::UploadLost`] when it would have to be read again and cannot; after
    /// both nothing has happened. [`Error::Indeterminate`] when the fate of the last request is unknown; else as every
    /// call.
    pub async fn put_reader<'a>(
        &self,
        key: impl Into<String>,
        source: impl Into<ValueSource<'a>>,
    ) -> Result<SetResult, Error> {
        self.put_reader_with(key, NewMessage::null(), source).await
    }

    /// As [`put_reader`](Self::put_reader), with headers, timestamp or expectation; the value is the source's. The
    /// expectation is looked at when the value has arrived.
    ///
    /// Cancelling the call leaves the key as it was, unless all was read already: then set or not.
    ///
    /// # Errors
    /// As [`put_reader`](Self::put_reader), and [`Error::WrongLast`] and [`Error::KeyExists`] when the message's
    /// expectation does not hold.
    pub async fn put_reader_with<'a>(
        &self,
        key: impl Into<String>,
        message: NewMessage,
        source: impl Into<ValueSource<'a>>,
    ) -> Result<SetResult, Error> {
        self.handle.set_from(message.into_item(Some(key.into())), source.into()).await
    }

    /// The value under `key`, to be read piece by piece however large it is; `None` when there is nothing under the key.
    /// A null value has no bytes.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_reader(&self, key: impl Into<String>) -> Result<Option<ValueReader>, Error> {
        self.handle.read(GetRequest::key(key)).await
    }

    /// The messages under `keys`, as far as they exist, in the order asked for. Several requests when the answer does
    /// not fit in one; each shows the store as it was then. The deadline holds for each request. A value that no answer
    /// carries stays away, and its message has `value_omitted` set.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_many(
        &self,
        keys: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<Message>, Error> {
        self.handle.get_many(keys.into_iter().map(Into::into).collect()).await
    }

    /// Removes `key`. Returns whether something was there.
    ///
    /// Cancelling the call leaves the key removed or not.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    pub async fn delete(&self, key: impl Into<String>) -> Result<bool, Error> {
        let reply = self.handle.delete(DeleteRequest { keys: vec![key.into()], ..DeleteRequest::default() });
        Ok(!reply.await?.seqs.is_empty())
    }

    /// Removes `keys`, at most [`MAX_ITEMS_PER_REQUEST`](crate::MAX_ITEMS_PER_REQUEST) of them. Returns the seqs of the
    /// messages that were really removed, ascending.
    ///
    /// Cancelling the call leaves them all removed or none.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    pub async fn delete_many(
        &self,
        keys: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<Seq>, Error> {
        let keys = keys.into_iter().map(Into::into).collect();
        Ok(self.handle.delete(DeleteRequest { keys, ..DeleteRequest::default() }).await?.seqs)
    }

    /// Removes `key` only if the message under it is `expected`.
    ///
    /// Cancelling the call leaves the key removed or not.
    ///
    /// # Errors
    /// [`Error::WrongLast`] with what is there; [`Error::Indeterminate`] when the fate of the request is unknown; else
    /// as every call.
    pub async fn delete_expect_revision(
        &self,
        key: impl Into<String>,
        expected: MessageId,
    ) -> Result<(), Error> {
        let expect = Some(Expect::Key(Some(expected)));
        self.handle
            .delete(DeleteRequest { keys: vec![key.into()], expect, ..DeleteRequest::default() })
            .await?;
        Ok(())
    }

    /// The same as [`delete`](Self::delete), under the name that users of JetStream's key-value stores look for: there is
    /// no history that it could remove on top.
    ///
    /// Cancelling the call leaves the key removed or not.
    ///
    /// # Errors
    /// As [`delete`](Self::delete).
    pub async fn purge(&self, key: impl Into<String>) -> Result<bool, Error> {
        self.delete(key).await
    }

    /// The same as [`info`](Self::info), under the name that users of JetStream's key-value stores look for.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// As every call.
    pub async fn status(&self) -> Result<InfoReply, Error> {
        self.info().await
    }

    /// Removes every message. Returns how many there were.
    ///
    /// Cancelling the call leaves the store cleared or not.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    pub async fn clear(&self) -> Result<u64, Error> {
        self.handle.delete_all(DeleteAllRequest::default()).await
    }

    /// The keys that start with `prefix` (all for the empty one), in ascending order of their bytes. The first page is
    /// asked for at once; the deadline holds for each page. See [`Pages`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn keys(&self, prefix: impl Into<String>) -> Pages<String> {
        let source = KeyPages { handle: self.handle.clone(), prefix: Some(prefix.into()), cursor: None };
        Pages::read(&self.handle.inner.tasks, source)
    }

    /// The messages whose keys start with `prefix` (all for the empty one), in order of seq, which is the order in which
    /// they were last set. The first page is asked for at once; the deadline holds for each page. See [`Pages`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn entries(&self, prefix: impl Into<String>) -> Pages<Message> {
        self.entries_in(prefix, SeqRange::all())
    }

    /// The messages whose keys start with `prefix` (all for the empty one) and whose seqs are in `range`, in its
    /// direction and at most as many as it allows. Otherwise as [`entries`](Self::entries).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn entries_in(&self, prefix: impl Into<String>, range: impl Into<SeqRange>) -> Pages<Message> {
        self.handle.messages(range.into(), Some(prefix.into()))
    }

    /// The changes of one key from now on. Once the call has returned, every later change is told. See [`Feed`].
    ///
    /// Cancelling the call leaves no feed.
    ///
    /// # Errors
    /// As every call: it asks where the subject is, which wakes it.
    pub async fn watch(&self, key: impl Into<String>) -> Result<Feed, Error> {
        self.feed(FeedKeys::One(key.into()), FeedFrom::Now).await
    }

    /// The message under a key, if there is one, and then its changes. There is no history beyond that: the name is the one
    /// that users of JetStream's key-value stores look for. See [`Feed`].
    ///
    /// Cancelling the call leaves no feed.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`]; [`Error::Closed`].
    pub async fn watch_with_history(&self, key: impl Into<String>) -> Result<Feed, Error> {
        self.feed(FeedKeys::One(key.into()), FeedFrom::Beginning).await
    }

    /// The changes of all keys that start with `prefix`, from now on. See [`watch`](Self::watch).
    ///
    /// Cancelling the call leaves no feed.
    ///
    /// # Errors
    /// As every call.
    pub async fn watch_prefix(&self, prefix: impl Into<String>) -> Result<Feed, Error> {
        self.feed(FeedKeys::Prefix(prefix.into()), FeedFrom::Now).await
    }

    /// All changes from now on, also those of the configuration. See [`watch`](Self::watch).
    ///
    /// Cancelling the call leaves no feed.
    ///
    /// # Errors
    /// As every call.
    pub async fn watch_all(&self) -> Result<Feed, Error> {
        self.feed(FeedKeys::All, FeedFrom::Now).await
    }

    /// What becomes of these keys, from the beginning, from now on or from where an earlier feed was. See [`Feed`].
    ///
    /// Cancelling the call leaves no feed.
    ///
    /// # Errors
    /// From now on: as every call. Else only [`Error::PermissionDenied`] and [`Error::Closed`]; what else is to be said the feed
    /// says.
    pub async fn feed(&self, keys: FeedKeys, from: FeedFrom) -> Result<Feed, Error> {
        Feed::start(self.handle.clone(), keys, from).await
    }
}

crate::subject::care!(Kv);
