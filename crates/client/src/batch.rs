//! Atomic batches: either all changes of a batch are written, or none.

use std::future::Future;

use bytes::Bytes;
use dormouse_protocol::data::{SetItem, SetResult};
use dormouse_protocol::{MessageId, Position};

use crate::error::Error;
use crate::new_message::NewMessage;
use crate::sets::Batching;
use crate::subject::Handle;

/// The result of a committed batch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The one revision that wrote the batch.
    pub position: Position,
    /// Each message, in the order of the batch.
    pub messages: Vec<SetResult>,
}

/// A batch of key-value entries, written atomically, under one revision and with one event. Made by
/// [`Kv::batch`](crate::Kv::batch).
///
/// Each expectation refers to the state before the batch. No two entries may have the same key.
///
/// ```no_run
/// # async fn example(accounts: dormouse_client::Kv) -> Result<(), Box<dyn std::error::Error>> {
/// let (alice, bob) = (accounts.entry("alice").await?.ok_or("?")?, accounts.entry("bob").await?.ok_or("?")?);
/// accounts
///     .batch()
///     .update("alice", "90", alice.revision)
///     .update("bob", "110", bob.revision)
///     .create("transfer.17", "10 from alice to bob")
///     .commit()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a batch is written by `commit`"]
pub struct KvBatch {
    batch: Batch,
}

impl KvBatch {
    pub(crate) const fn new(handle: Handle) -> Self {
        Self { batch: Batch::new(handle) }
    }

    /// Sets `key` to `value`, regardless of its current entry.
    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.put_with(key, NewMessage::new(value))
    }

    /// Sets `key` to a message with headers, timestamp or expectation, or to the null value.
    pub fn put_with(mut self, key: impl Into<String>, message: NewMessage) -> Self {
        self.batch.sets.push(message.into_item(Some(key.into())));
        self
    }

    /// Sets `key`; if the key exists, the batch fails.
    pub fn create(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.put_with(key, NewMessage::new(value).expect_key(None))
    }

    /// Sets `key`; if its current message is not `expected`, the batch fails.
    pub fn update(self, key: impl Into<String>, value: impl Into<Bytes>, expected: MessageId) -> Self {
        self.put_with(key, NewMessage::new(value).expect_key(Some(expected)))
    }

    /// Writes the batch. It is queued before the call returns, like [`Kv::put`](crate::Kv::put).
    ///
    /// If the call is cancelled, either the whole batch is written or nothing.
    ///
    /// # Errors
    /// [`Error::KeyExists`] and [`Error::WrongLast`] if an expectation does not hold; [`Error::TooLarge`] if
    /// the batch does not fit in one request; [`Error::Service`] with `bad_request` if it is empty or has a
    /// key twice; [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the errors of
    /// every call.
    pub fn commit(self) -> impl Future<Output = Result<Committed, Error>> + Send + use<> {
        self.batch.commit()
    }
}

/// A batch of messages, appended to a stream atomically, under one revision and with one event. Made by
/// [`Stream::batch`](crate::Stream::batch).
#[derive(Debug)]
#[must_use = "a batch is written by `commit`"]
pub struct StreamBatch {
    batch: Batch,
}

impl StreamBatch {
    pub(crate) const fn new(handle: Handle) -> Self {
        Self { batch: Batch::new(handle) }
    }

    /// Appends a message with this value.
    pub fn publish(self, value: impl Into<Bytes>) -> Self {
        self.publish_with(NewMessage::new(value))
    }

    /// Writes a message with headers, timestamp, seq or expectation, or with the null value.
    pub fn publish_with(mut self, message: NewMessage) -> Self {
        self.batch.sets.push(message.into_item(None));
        self
    }

    /// Writes the batch. It is queued before the call returns, like
    /// [`Stream::publish`](crate::Stream::publish).
    ///
    /// If the call is cancelled, either the whole batch is written or nothing.
    ///
    /// # Errors
    /// [`Error::WrongLast`] if an expectation does not hold; [`Error::TooLarge`] if the batch does not fit in
    /// one request; [`Error::Service`] with `bad_request` if it is empty or has a seq twice;
    /// [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the errors of every call.
    pub fn commit(self) -> impl Future<Output = Result<Committed, Error>> + Send + use<> {
        self.batch.commit()
    }
}

#[derive(Debug)]
struct Batch {
    handle: Handle,
    sets: Vec<SetItem>,
}

impl Batch {
    const fn new(handle: Handle) -> Self {
        Self { handle, sets: Vec::new() }
    }

    fn commit(self) -> impl Future<Output = Result<Committed, Error>> + Send + use<> {
        let written = self.handle.set_together(self.sets, Batching::Atomic);
        async {
            // Either all sets are executed, or the whole request was rejected.
            let messages = written.await?.into_iter().collect::<Result<Vec<_>, _>>()?;
            let last = messages.last().ok_or(Error::NotSent)?;
            Ok(Committed { position: Position { term: last.term, rev: last.rev }, messages })
        }
    }
}
