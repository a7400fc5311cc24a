//! Ranges of a stream.

use std::ops;

use dormouse_protocol::Seq;

/// A range of seqs, with a direction and a limit on the number of messages.
///
/// Rust's ranges convert into it: `..`, `5..`, `5..=10`, `5..10`.
///
/// ```
/// use dormouse_client::{Seq, SeqRange};
///
/// let newest_ten = SeqRange::all().reverse().limit(10);
/// assert_eq!(SeqRange::from(5..10), SeqRange::all().from_seq(Seq::new(5)).to_seq(Seq::new(9)));
/// # let _ = newest_ten;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct SeqRange {
    pub(crate) start: Option<Seq>,
    pub(crate) end: Option<Seq>,
    pub(crate) reverse: bool,
    pub(crate) limit: Option<u64>,
}

impl SeqRange {
    /// From the first message to the last, in ascending order, without a limit.
    pub const fn all() -> Self {
        Self { start: None, end: None, reverse: false, limit: None }
    }

    /// Only messages with this seq or a higher one.
    pub const fn from_seq(mut self, seq: Seq) -> Self {
        self.start = Some(seq);
        self
    }

    /// Only messages with this seq or a lower one.
    pub const fn to_seq(mut self, seq: Seq) -> Self {
        self.end = Some(seq);
        self
    }

    /// In descending order of seq.
    pub const fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// At most this many messages.
    pub const fn limit(mut self, messages: u64) -> Self {
        self.limit = Some(messages);
        self
    }

    /// Whether the range can contain no message.
    pub(crate) fn is_empty(&self) -> bool {
        let nothing_below = self.end == Some(Seq::new(0));
        let ends_before_start = matches!((self.start, self.end), (Some(start), Some(end)) if end < start);
        nothing_below || ends_before_start || self.limit == Some(0)
    }
}

impl From<ops::RangeFull> for SeqRange {
    fn from(_: ops::RangeFull) -> Self {
        Self::all()
    }
}

impl From<ops::RangeFrom<u64>> for SeqRange {
    fn from(range: ops::RangeFrom<u64>) -> Self {
        Self::all().from_seq(Seq::new(range.start))
    }
}

impl From<ops::RangeInclusive<u64>> for SeqRange {
    fn from(range: ops::RangeInclusive<u64>) -> Self {
        Self::all().from_seq(Seq::new(*range.start())).to_seq(Seq::new(*range.end()))
    }
}

impl From<ops::RangeToInclusive<u64>> for SeqRange {
    fn from(range: ops::RangeToInclusive<u64>) -> Self {
        Self::all().to_seq(Seq::new(range.end))
    }
}

impl From<ops::RangeTo<u64>> for SeqRange {
    fn from(range: ops::RangeTo<u64>) -> Self {
        // Seq 0 is before the first message, so this is empty for `..0` and `..1`.
        Self::all().to_seq(Seq::new(range.end.saturating_sub(1)))
    }
}

impl From<ops::Range<u64>> for SeqRange {
    fn from(range: ops::Range<u64>) -> Self {
        Self::from(..range.end).from_seq(Seq::new(range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seq range knows without a request whether it is empty.
    #[test]
    fn seq_range_detects_empty_range_without_request() {
        for empty in [
            SeqRange::from(..0),
            (..1).into(),
            (0..0).into(),
            (5..5).into(),
            SeqRange::all().from_seq(Seq::new(5)).to_seq(Seq::new(4)),
            SeqRange::all().limit(0),
        ] {
            assert!(empty.is_empty(), "{empty:?}");
        }
        for full in [SeqRange::from(..), (..2).into(), (0..).into(), (5..6).into(), (5..=5).into()] {
            assert!(!full.is_empty(), "{full:?}");
        }
    }
}
