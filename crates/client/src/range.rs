//! Which part of a stream to read.

use std::ops;

use dormouse_protocol::Seq;

/// A range of seqs, the direction in which it is read, and how many messages at most.
///
/// Rust's ranges become one: `..`, `5..`, `5..=10`, `5..10`.
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
    /// From the first message to the last.
    pub const fn all() -> Self {
        Self { start: None, end: None, reverse: false, limit: None }
    }

    /// Only messages from this seq on.
    pub const fn from_seq(mut self, seq: Seq) -> Self {
        self.start = Some(seq);
        self
    }

    /// Only messages up to and including this seq.
    pub const fn to_seq(mut self, seq: Seq) -> Self {
        self.end = Some(seq);
        self
    }

    /// From the highest seq to the lowest.
    pub const fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// At most so many messages.
    pub const fn limit(mut self, messages: u64) -> Self {
        self.limit = Some(messages);
        self
    }

    /// Whether no message can be in it.
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

    #[test]
    fn empty_ranges_are_known_without_asking() {
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
