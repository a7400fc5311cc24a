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
use crate::pages::Pages;
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
    /// Sets `key` to `value`, regardless of its current entry.
    ///
    /// The set is queued before the call returns; await the [`AckFuture`] for its outcome. If the future is
    /// dropped, the key may or may not be set.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the
    /// errors of every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn put(&self, key: impl Into<String>, value: impl Into<Bytes>) -> AckFuture {
        self.put_with(key, NewMessage::new(value))
    }

    /// Sets `key` to a message with headers, timestamp or expectation, or to the null value.
    ///
    /// Queued like [`put`](Self::put). If the [`AckFuture`] is dropped, the key may or may not be set.
    ///
    /// # Errors
    /// [`Error::WrongLast`] and [`Error::KeyExists`] if the message's expectation does not hold;
    /// [`Error::TooLarge`]; [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the
    /// errors of every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn put_with(&self, key: impl Into<String>, message: NewMessage) -> AckFuture {
        self.handle.set(message.into_item(Some(key.into())))
    }

    /// Starts an atomic batch: either all of its keys are set, or none.
    pub fn batch(&self) -> KvBatch {
        KvBatch::new(self.handle.clone())
    }

    /// Sets many keys, each on its own, in order, in as few requests as possible. The results have the same
    /// order.
    ///
    /// If a set is rejected, the other sets are not affected. If a whole request fails, its sets share its
    /// error, and all later sets fail with [`Error::NotSent`]. The deadline applies to each request.
    ///
    /// If the call is cancelled, only the first sets are executed: those that had reached the servers.
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
    /// Queued like [`put`](Self::put). If the [`AckFuture`] is dropped, the key may or may not be created.
    ///
    /// # Errors
    /// [`Error::KeyExists`] with the current message; [`Error::TooLarge`]; [`Error::Indeterminate`] if the
    /// outcome of the request is unknown; otherwise the errors of every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn create(&self, key: impl Into<String>, value: impl Into<Bytes>) -> AckFuture {
        self.put_with(key, NewMessage::new(value).expect_key(None)).of_create()
    }

    /// Sets `key` only if its current message is `expected` (see [`Message::id`] and [`SetResult::id`]).
    ///
    /// Queued like [`put`](Self::put). If the [`AckFuture`] is dropped, the key may or may not be updated.
    ///
    /// # Errors
    /// [`Error::WrongLast`] with the current message; [`Error::TooLarge`]; [`Error::Indeterminate`] if the
    /// outcome of the request is unknown; otherwise the errors of every call.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn update(&self, key: impl Into<String>, value: impl Into<Bytes>, expected: MessageId) -> AckFuture {
        self.put_with(key, NewMessage::new(value).expect_key(Some(expected)))
    }

    /// The value of `key`. `None` if the key does not exist, and also if its value is null, which has no
    /// bytes to return; [`entry`](Self::entry) distinguishes the two. A value of more than
    /// [`MAX_VALUE_IN_MEMORY_BYTES`](crate::MAX_VALUE_IN_MEMORY_BYTES) fails with [`Error::TooLarge`]: read
    /// it with [`get_reader`](Self::get_reader).
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn get(&self, key: impl Into<String>) -> Result<Option<Bytes>, Error> {
        Ok(self.entry(key).await?.and_then(|entry| entry.value))
    }

    /// The entry of `key`: value, revision, timestamp, headers. The value is limited as in
    /// [`get`](Self::get).
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn entry(&self, key: impl Into<String>) -> Result<Option<Entry>, Error> {
        let found = self.handle.get(GetRequest::key(key)).await?;
        Ok(found.and_then(|message| Entry::new(self.subject(), message)))
    }

    /// The entry of `key` with this `revision`, if it is still current. Earlier entries are not kept.
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn entry_for_revision(
        &self,
        key: impl Into<String>,
        revision: MessageId,
    ) -> Result<Option<Entry>, Error> {
        Ok(self.entry(key).await?.filter(|entry| entry.revision == revision))
    }

    /// Sets `key` to a value of any size, read from `source`: anything that implements `AsyncRead`, or a
    /// [`ValueSource`]. The value is uploaded in chunks, in bounded memory, and a lost chunk is sent again.
    /// The deadline applies to each step; reading the source has no deadline.
    ///
    /// If the call is cancelled, the key keeps its entry, unless the whole value was read already: then the
    /// key may or may not be set.
    ///
    /// # Errors
    /// [`Error::Source`] if the source fails; [`Error::UploadLost`] if the source must be read again and
    /// cannot be. After both, nothing was executed. [`Error::Indeterminate`] if the outcome of the last
    /// request is unknown; otherwise the errors of every call.
    pub async fn put_reader<'a>(
        &self,
        key: impl Into<String>,
        source: impl Into<ValueSource<'a>>,
    ) -> Result<SetResult, Error> {
        self.put_reader_with(key, NewMessage::null(), source).await
    }

    /// Like [`put_reader`](Self::put_reader), with headers, timestamp or expectation; the value comes from
    /// the source. The expectation is checked after the value has arrived.
    ///
    /// If the call is cancelled, the key keeps its entry, unless the whole value was read already: then the
    /// key may or may not be set.
    ///
    /// # Errors
    /// Those of [`put_reader`](Self::put_reader), and [`Error::WrongLast`] and [`Error::KeyExists`] if the
    /// message's expectation does not hold.
    pub async fn put_reader_with<'a>(
        &self,
        key: impl Into<String>,
        message: NewMessage,
        source: impl Into<ValueSource<'a>>,
    ) -> Result<SetResult, Error> {
        self.handle.set_from(message.into_item(Some(key.into())), source.into()).await
    }

    /// A reader of the value of `key`, in chunks, for values of any size; `None` if the key does not exist. A
    /// null value has no bytes.
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn get_reader(&self, key: impl Into<String>) -> Result<Option<ValueReader>, Error> {
        self.handle.read(GetRequest::key(key)).await
    }

    /// The messages of those `keys` that exist, in the requested order. If the reply does not fit, the client
    /// sends several requests, and each reads the store at its own time. The deadline applies to each
    /// request. If no reply can carry a value, the value is omitted and its message has `value_omitted` set.
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn get_many(
        &self,
        keys: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<Message>, Error> {
        self.handle.get_many(keys.into_iter().map(Into::into).collect()).await
    }

    /// Removes `key`. Returns whether it existed.
    ///
    /// If the call is cancelled, the key may or may not be removed.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the errors of every call.
    pub async fn delete(&self, key: impl Into<String>) -> Result<bool, Error> {
        let reply = self.handle.delete(DeleteRequest { keys: vec![key.into()], ..DeleteRequest::default() });
        Ok(!reply.await?.seqs.is_empty())
    }

    /// Removes `keys` in one atomic change, at most [`MAX_ITEMS_PER_REQUEST`](crate::MAX_ITEMS_PER_REQUEST) of
    /// them. One request carries them all, so long keys lower this number. Together with 5 bytes for each key
    /// they may have at most 252 KiB, or `max_payload` of NATS less 4 KiB if that is less. Returns the seqs of the
    /// removed messages, ascending.
    ///
    /// If the call is cancelled, either all are removed or none.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the keys do not fit one request: nothing is sent then, and several calls can remove
    /// them. [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the errors of every call.
    pub async fn delete_many(
        &self,
        keys: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<Seq>, Error> {
        let keys = keys.into_iter().map(Into::into).collect();
        Ok(self.handle.delete(DeleteRequest { keys, ..DeleteRequest::default() }).await?.seqs)
    }

    /// Removes `key` only if its current message is `expected`.
    ///
    /// If the call is cancelled, the key may or may not be removed.
    ///
    /// # Errors
    /// [`Error::WrongLast`] with the current message; [`Error::Indeterminate`] if the outcome of the request
    /// is unknown; otherwise the errors of every call.
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

    /// The same as [`delete`](Self::delete), under the name that JetStream's key-value stores use. A store
    /// has no history that it could remove in addition.
    ///
    /// If the call is cancelled, the key may or may not be removed.
    ///
    /// # Errors
    /// Those of [`delete`](Self::delete).
    pub async fn purge(&self, key: impl Into<String>) -> Result<bool, Error> {
        self.delete(key).await
    }

    /// The same as [`info`](Self::info), under the name that JetStream's key-value stores use.
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn status(&self) -> Result<InfoReply, Error> {
        self.info().await
    }

    /// Removes every message. Returns how many there were.
    ///
    /// If the call is cancelled, the store may or may not be cleared.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the errors of every call.
    pub async fn clear(&self) -> Result<u64, Error> {
        self.handle.delete_all(DeleteAllRequest::default()).await
    }

    /// The keys that start with `prefix` (the empty prefix: all), in ascending order of their bytes. The
    /// first page is requested at once; the deadline applies to each page. See [`Pages`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn keys(&self, prefix: impl Into<String>) -> Pages<String> {
        self.handle.keys(Some(prefix.into()))
    }

    /// The messages whose keys start with `prefix` (the empty prefix: all), in order of seq, which is the
    /// order in which they were last set. The first page is requested at once; the deadline applies to each
    /// page. See [`Pages`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn entries(&self, prefix: impl Into<String>) -> Pages<Message> {
        self.entries_in(prefix, SeqRange::all())
    }

    /// The messages whose keys start with `prefix` (the empty prefix: all) and whose seqs are in `range`, in
    /// the direction of `range` and up to its limit. Otherwise like [`entries`](Self::entries).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn entries_in(&self, prefix: impl Into<String>, range: impl Into<SeqRange>) -> Pages<Message> {
        self.handle.messages(range.into(), Some(prefix.into()))
    }

    /// The changes of one key from now on: every change after the call has returned. See [`Feed`].
    ///
    /// If the call is cancelled, no feed remains.
    ///
    /// # Errors
    /// The errors of every call: it requests the subject's position, which opens the subject.
    pub async fn watch(&self, key: impl Into<String>) -> Result<Feed, Error> {
        self.feed(FeedKeys::One(key.into()), FeedFrom::Now).await
    }

    /// The message of a key, if it exists, and then its changes. There is no earlier history: the name is the
    /// one that JetStream's key-value stores use. See [`Feed`].
    ///
    /// If the call is cancelled, no feed remains.
    ///
    /// # Errors
    /// [`Error::Deadline`] if the messaging system is away; [`Error::PermissionDenied`]; [`Error::Closed`].
    pub async fn watch_with_history(&self, key: impl Into<String>) -> Result<Feed, Error> {
        self.feed(FeedKeys::One(key.into()), FeedFrom::Beginning).await
    }

    /// The changes of all keys that start with `prefix`, from now on. See [`watch`](Self::watch).
    ///
    /// If the call is cancelled, no feed remains.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn watch_prefix(&self, prefix: impl Into<String>) -> Result<Feed, Error> {
        self.feed(FeedKeys::Prefix(prefix.into()), FeedFrom::Now).await
    }

    /// All changes from now on, including changes of the configuration. See [`watch`](Self::watch).
    ///
    /// If the call is cancelled, no feed remains.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn watch_all(&self) -> Result<Feed, Error> {
        self.feed(FeedKeys::All, FeedFrom::Now).await
    }

    /// The changes of these keys, from the beginning, from now on, or from the position of an earlier feed.
    /// See [`Feed`].
    ///
    /// If the call is cancelled, no feed remains.
    ///
    /// # Errors
    /// From now on: the errors of every call. Otherwise only [`Error::Deadline`] if the messaging system
    /// is away, [`Error::PermissionDenied`] and [`Error::Closed`]; the feed itself reports all other errors.
    pub async fn feed(&self, keys: FeedKeys, from: FeedFrom) -> Result<Feed, Error> {
        Feed::start(self.handle.clone(), keys, from).await
    }
}

crate::common_calls::common_calls!(Kv);
