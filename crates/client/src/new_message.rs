//! A message on its way to a subject.

use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{Expect, SetItem};
use dormouse_protocol::{Headers, MessageId, Seq, Timestamp};

/// A message to write, with everything that can be said about it.
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

    /// A message with the null value, which is not the empty one.
    pub fn null() -> Self {
        Self::default()
    }

    /// Adds a header. A name may stand more than once; the order is kept.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.0.push((name.into(), value.into()));
        self
    }

    /// Replaces all headers.
    pub fn headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// The application's own timestamp, in place of the time at which the server accepts the message. It is data:
    /// nothing is decided by it.
    pub const fn timestamp(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// The seq the message shall have. Where one is present, it is replaced in place (its key must be the same); at or
    /// beyond the next seq a hole may be left before it; any other is refused. Unless set, the next seq.
    pub const fn seq(mut self, seq: Seq) -> Self {
        self.seq = Some(seq);
        self
    }

    /// How long the message lives from when the server accepts it, in whole milliseconds, rounded up; in place of the
    /// subject's `default_ttl_ms`. Then it is deleted, and watchers hear of that. A time to live of nothing is refused.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Only if this is the newest message of the subject, deleted or not (`None`: there has never been one). Otherwise
    /// [`WrongLast`](crate::Error::WrongLast).
    pub const fn expect_last(mut self, last: Option<MessageId>) -> Self {
        self.expect = Some(Expect::Last(last));
        self
    }

    /// Only if this is the message under the key that is being set (`None`: there is none). Otherwise
    /// [`WrongLast`](crate::Error::WrongLast) or [`KeyExists`](crate::Error::KeyExists).
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

/// Never less than asked for.
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

    #[test]
    fn a_time_to_live_is_never_shorter_than_asked_for() {
        let ttl_ms = |ttl| NewMessage::null().ttl(ttl).into_item(None).ttl_ms;
        assert_eq!(ttl_ms(Duration::from_micros(1)), Some(1));
        assert_eq!(ttl_ms(Duration::from_micros(1_001)), Some(2));
        assert_eq!(ttl_ms(Duration::from_secs(1)), Some(1_000));
        assert_eq!(ttl_ms(Duration::MAX), Some(u64::MAX));
        assert_eq!(ttl_ms(Duration::ZERO), Some(0));
        assert_eq!(NewMessage::null().into_item(None).ttl_ms, None);
    }
}
