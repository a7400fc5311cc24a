//! The start, the coverage and the output of a feed.

use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Message, Position, Seq};

/// Where a [`Feed`](super::Feed) starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FeedFrom {
    /// With the current messages, as if each were set just now, in order of seq.
    Beginning,
    /// With the first change after the call that made the feed has returned.
    #[default]
    Now,
    /// With the first change after this position, which comes from an earlier feed
    /// ([`Feed::position`](super::Feed::position)) or from a read.
    After(Position),
}

/// The messages that a [`Feed`](super::Feed) covers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum FeedKeys {
    /// All messages, also those without a key.
    #[default]
    All,
    /// The message under this key.
    One(String),
    /// The messages whose keys start with this prefix. The empty prefix means all that have a key.
    Prefix(String),
}

impl FeedKeys {
    pub(super) fn wants(&self, key: Option<&str>) -> bool {
        match (self, key) {
            (Self::All, _) => true,
            (Self::One(wanted), Some(key)) => wanted == key,
            (Self::Prefix(prefix), Some(key)) => key.starts_with(prefix.as_str()),
            (Self::One(_) | Self::Prefix(_), None) => false,
        }
    }
}

/// One update of a [`Feed`](super::Feed).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Update {
    /// A message was appended, set under a key, or written in place of an earlier one. The messages that you
    /// hold at its seq and under its key are gone.
    Set {
        /// The message.
        ///
        /// The feed fetches a value that its event omits. If the message was replaced or removed by then, or
        /// one reply cannot carry the value, `value_omitted` stays set and the value is absent. In the first
        /// case the change that removed it follows; in the second case get the value by its seq.
        message: Message,
        /// The seq of the message that it replaces; its own seq if it was replaced in place. A feed from the
        /// beginning always sets it; other feeds may not set it if several changes were compacted into one.
        replaces: Option<Seq>,
    },
    /// A message was removed. The messages that you hold at this seq or, from an earlier time, under this key
    /// are gone.
    Removed {
        /// The seq it had.
        seq: Seq,
        /// The key it had.
        key: Option<String>,
    },
    /// All messages up to a seq were removed, with any key.
    Cleared {
        /// The last seq that was removed.
        end_seq: Seq,
    },
    /// The configuration was replaced. Only feeds of [`FeedKeys::All`] report it.
    Configured(SubjectConfig),
    /// You have everything up to this position: at first, and each time after the feed had to query missed
    /// changes.
    CaughtUp(Position),
    /// The feed cannot continue from its position: drop everything that you hold of the subject. The current
    /// messages follow, and then [`CaughtUp`](Self::CaughtUp). A feed from the beginning never reports it,
    /// since it keeps track of what you hold.
    Reset,
}
