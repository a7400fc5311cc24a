//! The entry of a key.

use bytes::Bytes;
use dormouse_protocol::{Headers, Message, MessageId, Rev, Subject, Timestamp};

/// The entry of a key, with the field names of async-nats' `kv::Entry` and some more. A store has no history,
/// so every entry is the newest of its key: there is no `delta`. There is no `operation` either, since a
/// deleted entry does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The subject of the store.
    pub bucket: Subject,
    /// The key.
    pub key: String,
    /// The value; `None` is the null value, which differs from the empty value.
    pub value: Option<Bytes>,
    /// The permanent id of this entry, compared by [`Kv::update`](crate::Kv::update) and
    /// [`Kv::delete_expect_revision`](crate::Kv::delete_expect_revision). It has two numbers: if a server
    /// fails at a level below `bucket`, a seq alone could be assigned twice.
    pub revision: MessageId,
    /// When it was written: the caller's timestamp, or the server's time if the caller set none.
    pub created: Timestamp,
    /// The headers.
    pub headers: Headers,
    /// The revision of the whole store that wrote it.
    pub rev: Rev,
    /// When it expires; `None` if it does not.
    pub expires_at: Option<Timestamp>,
    size: u64,
}

impl Entry {
    /// `None` for a message without a key, which a store does not have.
    pub(crate) fn new(bucket: &Subject, message: Message) -> Option<Self> {
        let revision = message.id();
        Some(Self {
            bucket: bucket.clone(),
            key: message.key?,
            value: message.value,
            revision,
            created: message.timestamp,
            headers: message.headers,
            rev: message.rev,
            expires_at: message.expires_at,
            size: message.size,
        })
    }
}

impl From<Entry> for Message {
    fn from(entry: Entry) -> Self {
        Self {
            seq: entry.revision.seq,
            term: entry.revision.term,
            rev: entry.rev,
            key: Some(entry.key),
            value: entry.value,
            headers: entry.headers,
            timestamp: entry.created,
            size: entry.size,
            value_omitted: false,
            expires_at: entry.expires_at,
        }
    }
}
