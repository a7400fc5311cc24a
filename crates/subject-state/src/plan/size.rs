//! Upper bounds of encoded sizes.

use bytes::Bytes;
use dormouse_format::entry::LogEntry;
use dormouse_format::record::{RecordOp, SetOperation};
use dormouse_protocol::data::SetItem;
use dormouse_protocol::message::{Removed, SubjectConfig};
use dormouse_protocol::{Change, ErrorReply, Headers, Message};

use crate::database::Slice;

/// Field names, numbers and MessagePack framing of a message, of a change around it, or of a removed message.
pub const FRAMING_BYTES: usize = 224;
/// Framing of a header, a key or an element of a list.
const ELEMENT_BYTES: usize = 10;
/// Field names and numbers of an error, without its texts.
const ERROR_BYTES: usize = 224;

/// The most bytes that the result of a set takes in a reply.
pub const SET_RESULT_BYTES: usize = 96;

/// The most bytes that a message with these parts takes when encoded.
#[must_use]
pub(crate) fn parts_bytes(key: Option<&str>, value: Option<&Bytes>, headers: &Headers) -> usize {
    message_bytes(key.map_or(0, str::len), value.map_or(0, Bytes::len), headers)
}

/// The most bytes that a message takes whose key and value have these lengths.
#[must_use]
pub fn message_bytes(key: usize, value: usize, headers: &Headers) -> usize {
    FRAMING_BYTES + key + value + headers.size_bytes() + headers.0.len() * ELEMENT_BYTES
}

/// The most bytes that a set takes in a request.
#[must_use]
pub(crate) fn of_item(item: &SetItem) -> usize {
    let msg_id = item.msg_id.as_ref().map_or(0, String::len);
    parts_bytes(item.key.as_deref(), item.value.as_ref(), &item.headers) + msg_id
}

/// Whether an entry is encoded, and joins the pending changes, within one slice.
#[must_use]
pub fn fits_slice(entry: &LogEntry) -> bool {
    let mut slice = Slice::new();
    let of_set = |set: &SetOperation| {
        set.key.as_ref().map_or(0, String::len)
            + set.value.as_ref().map_or(0, Bytes::len)
            + set.headers.size_bytes()
    };
    let mut take = |bytes: usize| {
        let fits = !slice.is_spent();
        slice.count(bytes);
        fits
    };
    entry.operations.iter().all(|operation| match operation {
        RecordOp::Set(set) => take(of_set(set)),
        RecordOp::Batch { sets } => sets.iter().all(|set| take(of_set(set))),
        RecordOp::Delete { removed, .. } => removed.iter().all(|removed| take(of_removed(removed))),
        RecordOp::DeleteAll { .. } | RecordOp::Configure { .. } => take(0),
    })
}

/// The most bytes that `message` takes when encoded.
#[must_use]
pub(crate) fn of_message(message: &Message) -> usize {
    parts_bytes(message.key.as_deref(), message.value.as_ref(), &message.headers)
}

/// The most bytes that a key takes on a page of keys.
#[must_use]
pub(crate) const fn of_key(key: &str) -> usize {
    key.len() + ELEMENT_BYTES
}

/// The most bytes that a removed message takes in a change.
#[must_use]
pub(crate) fn of_removed(removed: &Removed) -> usize {
    3 * ELEMENT_BYTES + removed.key.as_ref().map_or(0, String::len)
}

/// The most bytes that an error takes as the outcome of one set.
#[must_use]
pub(crate) fn of_error(error: &ErrorReply) -> usize {
    let texts = [Some(&error.message), error.limit.as_ref(), error.object.as_ref()];
    ERROR_BYTES + error.code.as_str().len() + texts.into_iter().flatten().map(String::len).sum::<usize>()
}

/// The most bytes that `count` seqs take in a reply.
#[must_use]
pub(crate) const fn of_seqs(count: usize) -> usize {
    count * ELEMENT_BYTES
}

/// The most bytes that `change` takes in an event.
#[must_use]
pub fn of_change(change: &Change) -> usize {
    FRAMING_BYTES
        + match change {
            Change::Set(set) => of_message(&set.message),
            Change::Delete(delete) => delete.removed.iter().map(of_removed).sum(),
            Change::DeleteAll(_) => 0,
            Change::Configure(configure) => of_config(&configure.config),
        }
}

fn of_config(config: &SubjectConfig) -> usize {
    config.metadata.iter().map(|(name, value)| name.len() + value.len() + 2 * ELEMENT_BYTES).sum()
}
