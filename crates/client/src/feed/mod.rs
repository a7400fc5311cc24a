//! Feeds: what is in a subject and what becomes of it, without gaps.

mod backlog;
mod machine;
mod memory;
mod shell;
mod splice;
mod tell;

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Message, Position, Seq};
use tokio::sync::mpsc;

use crate::error::Error;
use tell::Told;

/// Where a [`Feed`] begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FeedFrom {
    /// With the messages that are there, as if each were set just now, in order of seq.
    Beginning,
    /// With the first change after the call that made the feed returned.
    #[default]
    Now,
    /// With the first change after this position, where an earlier feed was ([`Feed::position`]) or a read.
    After(Position),
}

/// Which messages a [`Feed`] is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum FeedKeys {
    /// All, those without a key too.
    #[default]
    All,
    /// The one under this key.
    One(String),
    /// Those whose keys start with this. The empty prefix means all that have a key.
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

/// What a [`Feed`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Update {
    /// A message is there: appended, set under a key, or put in the place of an earlier one. Whatever you hold at its seq
    /// and whatever you hold under its key is gone.
    Set {
        /// The message.
        ///
        /// A value that does not travel with its event is fetched by the feed. If it has been replaced or removed by then,
        /// or is larger than one answer carries, `value_omitted` stays set and the value is absent: the change that
        /// removed it follows, or it can be got by its seq.
        message: Message,
        /// The seq of the message in whose place it is, its own if it was replaced where it stood. Always told by a feed
        /// from the beginning; by another one unless several changes have become one.
        replaces: Option<Seq>,
    },
    /// A message is gone. Whatever you hold at this seq or, from an earlier time, under this key is.
    Removed {
        /// The seq it had.
        seq: Seq,
        /// The key it had.
        key: Option<String>,
    },
    /// Every message up to a seq is gone, whatever its key.
    Cleared {
        /// The last seq that is gone.
        end_seq: Seq,
    },
    /// The configuration was replaced. Only told by feeds of [`FeedKeys::All`].
    Configured(SubjectConfig),
    /// You have everything up to this position: at first, and again each time the feed had to ask for what it had missed.
    CaughtUp(Position),
    /// No way leads on from where this feed was: let go of everything you hold of the subject. What is there follows, and
    /// then [`CaughtUp`](Self::CaughtUp). Never told by a feed from the beginning, which knows what you hold.
    Reset,
}

/// The changes of a subject, in order, each once, whatever gets lost on the way.
///
/// It listens first and then asks for what is there already, so that nothing falls in between. From then on it tells each
/// change as it is announced. Announcements may be lost: by a reader that is too slow, with the connection, or with the
/// server. The feed notices by the revs, by what servers say of a subject that has become quiet, by the news that its server
/// is gone, when the connection is back, and by asking about once a minute (so a subject that somebody watches does not
/// fall asleep for long). It then asks what has changed and tells that: *compacted*, which is to say that of several changes to a message
/// the last one is told. Whoever applies the updates in order has the state of the subject, each time that
/// [`Update::CaughtUp`] comes and after each live change.
///
/// Where the history itself has gone another way (changes of a level below `bucket` were lost with their server), or too much
/// was forgotten, or the subject was destroyed, it reads everything. A feed from the [beginning](FeedFrom::Beginning) then tells what
/// differs from what it told before, as ordinary updates. To be able to, it keeps track of each message that it has told and
/// that is there still: about a hundred bytes and the key for each, not the value. The others keep track of nothing and tell [`Update::Reset`].
///
/// Between a reader and the feed a few updates wait, and behind it at most 4,096 events of at most 64 MiB. What is beyond that is dropped
/// and asked for once the reader has come so far: a reader that is slow costs no more memory than that and loses nothing.
///
/// An error that asking again does not cure ends it: it is told once, and then nothing more. What does pass, such as a server or a
/// coordinator that does not answer, it sits out, for ever, asking at longer and longer intervals of up to ten seconds. It needs
/// permission to listen to the subject's events and for `changes`, `get`, `get_all` and `info`. It ends when its client is [closed](crate::Client::close), and when it is dropped.
///
/// It is a [`futures::Stream`]; [`next`](Self::next) does without that trait.
#[derive(Debug)]
pub struct Feed {
    told: mpsc::Receiver<Result<Told, Error>>,
    position: Option<Position>,
    ended: bool,
}

impl Feed {
    const fn new(told: mpsc::Receiver<Result<Told, Error>>) -> Self {
        Self { told, position: None, ended: false }
    }

    /// The next update; `None` when the feed has ended. Cancelling the wait loses no update.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`], also when a permission was taken back; [`Error::Closed`] when the client was closed; [`Error::Service`] with what
    /// asking again does not cure, such as `corrupt`; [`Error::Malformed`]. The feed ends with it.
    pub async fn next(&mut self) -> Option<Result<Update, Error>> {
        std::future::poll_fn(|cx| self.poll_update(cx)).await
    }

    /// Where the subject was, if the updates that were taken so far lead exactly there: another feed may go on
    /// [after](FeedFrom::After) it, also in another process. `None` before the feed has caught up, each time, and in the middle of
    /// a batch.
    #[must_use]
    pub const fn position(&self) -> Option<Position> {
        self.position
    }

    fn poll_update(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Update, Error>>> {
        while !self.ended {
            match ready!(self.told.poll_recv(cx)) {
                Some(Ok(told)) => {
                    self.position = told.position;
                    if let Some(update) = told.update {
                        return Poll::Ready(Some(Ok(update)));
                    }
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                // It was stopped with its client: silence would look like peace.
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
