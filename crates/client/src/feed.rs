//! Feeds: the messages of a subject and all later changes, without gaps.

mod gap;
mod known;
mod machine;
mod output;
mod receive_buffer;
mod task;
mod update;

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use dormouse_protocol::Position;
use tokio::sync::mpsc;

use crate::error::Error;
use output::FeedOutput;
pub use update::{FeedFrom, FeedKeys, Update};

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
