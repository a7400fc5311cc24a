//! Atomic batches: all of it is written or nothing.

use std::future::Future;

use bytes::Bytes;
use dormouse_protocol::data::{SetItem, SetResult};
use dormouse_protocol::{MessageId, Position};

use crate::error::Error;
use crate::new_message::NewMessage;
use crate::sets::Company;
use crate::subject::Handle;

/// A batch that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The one revision that wrote all of it.
    pub position: Position,
    /// Each message, in the order of the batch.
    pub messages: Vec<SetResult>,
}

/// Entries of a key-value store that are written all together or not at all, under one revision and with one event. Made
/// by [`Kv::batch`](crate::Kv::batch).
///
/// What each expects is what there is before the batch, and no two may have the same key.
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

    /// Sets `key` to `value`, whatever was there.
    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.put_with(key, NewMessage::new(value))
    }

    /// Sets `key` to a message with headers, timestamp, expectation, or to the null value.
    pub fn put_with(mut self, key: impl Into<String>, message: NewMessage) -> Self {
        self.batch.sets.push(message.into_item(Some(key.into())));
        self
    }

    /// Sets `key` and has the batch fail if it is there already.
    pub fn create(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.put_with(key, NewMessage::new(value).expect_key(None))
    }

    /// Sets `key` and has the batch fail if anything but `expected` is under it.
    pub fn update(self, key: impl Into<String>, value: impl Into<Bytes>, expected: MessageId) -> Self {
        self.put_with(key, NewMessage::new(value).expect_key(Some(expected)))
    }

    /// Writes all of it. It is queued before the call returns, as [`Kv::put`](crate::Kv::put) is.
    ///
    /// Cancelling the call leaves all written or nothing.
    ///
    /// # Errors
    /// [`Error::KeyExists`] and [`Error::WrongLast`] when an expectation does not hold; [`Error::TooLarge`] when the batch
    /// does not fit in one request; [`Error::Service`] with `bad_request` when it is empty or names a key twice;
    /// [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
    pub fn commit(self) -> impl Future<Output = Result<Committed, Error>> + Send + use<> {
        self.batch.commit()
    }
}

/// Messages that are appended to a stream all together or not at all, under one revision and with one event. Made by
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

    /// Writes a message with headers, timestamp, seq, expectation, or with the null value.
    pub fn publish_with(mut self, message: NewMessage) -> Self {
        self.batch.sets.push(message.into_item(None));
        self
    }

    /// Writes all of it. It is queued before the call returns, as [`Stream::publish`](crate::Stream::publish) is.
    ///
    /// Cancelling the call leaves all written or nothing.
    ///
    /// # Errors
    /// [`Error::WrongLast`] when an expectation does not hold; [`Error::TooLarge`] when the batch does not fit in one
    /// request; [`Error::Service`] with `bad_request` when it is empty or names a seq twice; [`Error::Indeterminate`] when
    /// the fate of the request is unknown; else as every call.
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
        let written = self.handle.set_together(self.sets, Company::Atomic);
        async {
            // All are carried out, or the whole request was refused.
            let messages = written.await?.into_iter().collect::<Result<Vec<_>, _>>()?;
            let last = messages.last().ok_or(Error::NotSent)?;
            Ok(Committed { position: Position { term: last.term, rev: last.rev }, messages })
        }
    }
}
