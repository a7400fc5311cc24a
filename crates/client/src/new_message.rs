//! A message to be written.

use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{Expect, SetItem};
use dormouse_protocol::{Headers, MessageId, Seq, Timestamp};

/// A message to be written, with all its optional properties.
///
/// ```
/// use dormouse_client::NewMessage;
///
/// let message = NewMessage::new("21.5").header("unit", "°C").expect_last(None);
/// # let _ = message;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct NewMessage {
    value: Option<Bytes>,
    headers: Headers,
    timestamp: Option<Timestamp>,
    seq: Option<Seq>,
    ttl: Option<Duration>,
    expect: Option<Expect>,
}

impl NewMessage {
    /// A message with this value.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// A message with the null value, which differs from the empty value.
    pub fn null() -> Self {
        Self::default()
    }

    /// Adds a header. A name may occur more than once; the order is kept.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.0.push((name.into(), value.into()));
        self
    }

    /// Replaces all headers.
    pub fn headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// The application's own timestamp, instead of the time at which the server accepts the message. The
    /// server stores it as data and makes no decision with it.
    pub const fn timestamp(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// The seq of the message; default: the next seq. If the seq exists, the message there is replaced in
    /// place (its key must be the same). If it is the next seq or higher, a gap may remain before it. Any
    /// other seq is rejected.
    pub const fn seq(mut self, seq: Seq) -> Self {
        self.seq = Some(seq);
        self
    }

    /// The time to live, from the time at which the server accepts the message. It is rounded up to whole
    /// milliseconds and replaces the subject's `default_ttl_ms`. Then the message is deleted, and feeds
    /// report the removal. A time to live of zero is rejected.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Writes the message only if this is the newest message of the subject, deleted or not (`None`: there
    /// has never been one). Otherwise the call fails with [`WrongLast`](crate::Error::WrongLast).
    pub const fn expect_last(mut self, last: Option<MessageId>) -> Self {
        self.expect = Some(Expect::Last(last));
        self
    }

    /// Writes the message only if this is the current message of its key (`None`: the key does not exist).
    /// Otherwise the call fails with [`WrongLast`](crate::Error::WrongLast) or
    /// [`KeyExists`](crate::Error::KeyExists).
    pub const fn expect_key(mut self, current: Option<MessageId>) -> Self {
        self.expect = Some(Expect::Key(current));
        self
    }

    pub(crate) fn into_item(self, key: Option<String>) -> SetItem {
        SetItem {
            seq: self.seq,
            key,
            value: self.value,
            headers: self.headers,
            timestamp: self.timestamp,
            ttl_ms: self.ttl.map(whole_millis),
            expect: self.expect,
            ..SetItem::default()
        }
    }
}

/// Rounds up, so that the result is never shorter than `ttl`.
fn whole_millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

impl<V: Into<Bytes>> From<V> for NewMessage {
    fn from(value: V) -> Self {
        Self::new(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A time to live is rounded up to whole milliseconds and saturates at the maximum.
    #[test]
    fn message_ttl_rounds_up_to_milliseconds() {
        let ttl_ms = |ttl| NewMessage::null().ttl(ttl).into_item(None).ttl_ms;
        assert_eq!(ttl_ms(Duration::from_micros(1)), Some(1));
        assert_eq!(ttl_ms(Duration::from_micros(1_001)), Some(2));
        assert_eq!(ttl_ms(Duration::from_secs(1)), Some(1_000));
        assert_eq!(ttl_ms(Duration::MAX), Some(u64::MAX));
        assert_eq!(ttl_ms(Duration::ZERO), Some(0));
        assert_eq!(NewMessage::null().into_item(None).ttl_ms, None);
    }
}
