//! Feeds: the messages of a subject and all later changes, without gaps.

mod gap;
mod known;
mod machine;
mod output;
mod receive_buffer;
mod task;

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Message, Position, Seq};
use tokio::sync::mpsc;

use crate::error::Error;
use output::FeedOutput;

/// Where a [`Feed`] starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FeedFrom {
    /// With the current messages, as if each were set just now, in order of seq.
    Beginning,
    /// With the first change after the call that made the feed has returned.
    #[default]
    Now,
    /// With the first change after this position, which comes from an earlier feed ([`Feed::position`]) or
    /// from a read.
    After(Position),
}

/// The messages that a [`Feed`] covers.
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
    fn wants(&self, key: Option<&str>) -> bool {
        match (self, key) {
            (Self::All, _) => true,
            (Self::One(wanted), Some(key)) => wanted == key,
            (Self::Prefix(prefix), Some(key)) => key.starts_with(prefix.as_str()),
            (Self::One(_) | Self::Prefix(_), None) => false,
        }
    }
}

/// One update of a [`Feed`].
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

/// The changes of a subject, in order, each once, even if events are lost.
///
/// The feed first subscribes to events and then queries the current state, so there is no gap between the
/// two. Then it emits each change when its event arrives. Events may be lost if the reader is too slow, or
/// with the connection, or with the server. The feed detects this by
///
/// - the revs of events,
/// - the beacons of servers for quiet subjects,
/// - the announcement that its server is gone,
/// - a reconnect,
/// - a query about once a minute (so a subject with a feed does not become dormant for long).
///
/// It then queries the missed changes and emits them. These are *compacted*: of several changes to a message,
/// only the last one is emitted. If an application applies the updates in order, it has the state of the
/// subject at each [`Update::CaughtUp`] and after each live change.
///
/// The feed reads everything if the history has diverged (changes of a level below `bucket` were lost with
/// their server), if the server no longer has the changes, or if the subject was destroyed. A feed from the
/// [beginning](FeedFrom::Beginning) then emits the differences from its earlier updates, as ordinary updates.
/// For this it keeps track of each current message that it has emitted: about a hundred bytes and the key for
/// each, without the value. Other feeds keep track of nothing and emit [`Update::Reset`].
///
/// The feed buffers a few updates for the reader, and at most 4,096 events of at most 64 MiB before them.
/// Events over these limits are dropped, and queried when the reader has caught up to them. So a slow reader
/// needs no more memory than that, and loses nothing.
///
/// An error that a repeated query cannot resolve ends the feed: it is reported once, and then nothing more.
/// Temporary failures, such as a server or a coordinator that does not reply, do not end it: the feed repeats
/// the query without limit, at growing intervals of up to ten seconds. It needs permission to subscribe to
/// the subject's events and for `changes`, `get`, `get_all` and `info`. It ends when its client is
/// [closed](crate::Client::close), and when it is dropped.
///
/// It is a [`futures::Stream`]; [`next`](Self::next) works without that trait.
#[derive(Debug)]
pub struct Feed {
    updates: mpsc::Receiver<Result<FeedOutput, Error>>,
    position: Option<Position>,
    ended: bool,
}

impl Feed {
    const fn new(updates: mpsc::Receiver<Result<FeedOutput, Error>>) -> Self {
        Self { updates, position: None, ended: false }
    }

    /// The next update; `None` when the feed has ended. Cancelling the wait loses no update.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`], also if a permission was revoked; [`Error::Closed`] if the client was
    /// closed; [`Error::Service`] with an error that a repeated query cannot resolve, such as `corrupt`;
    /// [`Error::Malformed`]. The feed ends with the error.
    pub async fn next(&mut self) -> Option<Result<Update, Error>> {
        std::future::poll_fn(|cx| self.poll_update(cx)).await
    }

    /// The position of the subject after the updates that were taken so far, if these lead exactly to a
    /// position. Another feed can continue [after](FeedFrom::After) it, also in another process. `None` until
    /// the feed has caught up, each time, and in the middle of a batch.
    #[must_use]
    pub const fn position(&self) -> Option<Position> {
        self.position
    }

    fn poll_update(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Update, Error>>> {
        while !self.ended {
            match ready!(self.updates.poll_recv(cx)) {
                Some(Ok(output)) => {
                    self.position = output.position;
                    if let Some(update) = output.update {
                        return Poll::Ready(Some(Ok(update)));
                    }
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                // The feed was stopped with its client: without an error, this would look like a quiet
                // subject.
                None => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(Error::Closed)));
                }
            }
        }
        Poll::Ready(None)
    }
}

impl futures::Stream for Feed {
    type Item = Result<Update, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_update(cx)
    }
}
