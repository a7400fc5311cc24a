//! How large things become on the wire. Upper bounds, so that what is said to fit does fit.

use bytes::Bytes;
use dormouse_protocol::message::Removed;
use dormouse_protocol::{Change, Headers, Message};

/// Field names, numbers and MessagePack framing of a message, of a change around it, or of a removed message.
const FRAMING_BYTES: usize = 224;
/// Framing of a header, a key or an element of a list.
const ELEMENT_BYTES: usize = 10;

/// The most bytes that a message with these parts takes when encoded.
#[must_use]
pub fn parts_bytes(key: Option<&str>, value: Option<&Bytes>, headers: &Headers) -> usize {
    message_bytes(key.map_or(0, str::len), value.map_or(0, Bytes::len), headers)
}

/// The most bytes that a message takes whose key and value have these lengths.
#[must_use]
pub fn message_bytes(key: usize, value: usize, headers: &Headers) -> usize {
    FRAMING_BYTES + key + value + headers.size_bytes() + headers.0.len() * ELEMENT_BYTES
}

/// The most bytes that `message` takes when encoded.
#[must_use]
pub fn of_message(message: &Message) -> usize {
    parts_bytes(message.key.as_deref(), message.value.as_ref(), &message.headers)
}

/// The most bytes that a key takes on a page of keys.
#[must_use]
pub const fn of_key(key: &str) -> usize {
    key.len() + ELEMENT_BYTES
}

/// The most bytes that a removed message takes in a change.
#[must_use]
pub fn of_removed(removed: &Removed) -> usize {
    3 * ELEMENT_BYTES + removed.key.as_ref().map_or(0, String::len)
}

/// The most bytes that `change` takes in an event.
#[must_use]
pub fn of_change(change: &Change) -> usize {
    FRAMING_BYTES
        + match change {
            Change::Set(set) => of_message(&set.message),
            Change::Delete(delete) => delete.removed.iter().map(of_removed).sum(),
            Change::DeleteAll(_) => 0,
            Change::Configure(configure) => {
                configure.config.metadata.iter().map(|(k, v)| k.len() + v.len() + 2 * ELEMENT_BYTES).sum()
            }
        }
}
