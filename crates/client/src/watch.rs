//! A live watch over a subject's events.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{BusEvent, SubscribeOptions, Subscription};
use dormouse_protocol::data::GetRequest;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Change, Event, Message, Position, ProtocolVersion, RoutePattern, Seq, decode};
use tokio::sync::{broadcast, mpsc};

use crate::backlog::{Backlog, Heard};
use crate::error::Error;
use crate::splice::{Hole, Splicer};
use crate::subject::Handle;

/// How many events wait to be reported before new ones are dropped, which is a gap.
const EVENT_BUFFER: usize = 4_096;

/// How many bytes of events wait to be reported before new ones are dropped, which is a gap.
const EVENT_BUFFER_BYTES: usize = 64 * 1_024 * 1_024;

/// How many updates wait for the application. Few, since each may hold a value as large as a payload.
const UPDATE_BUFFER: usize = 16;

/// How long a new watch waits to be told where the subject is. Without that answer it can do its work, only less well:
/// not worth the whole deadline of a call.
const START_DEADLINE: Duration = Duration::from_secs(2);

/// What a watch reports.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Update {
    /// A message was written, or replaced the one under its key.
    ///
    /// A large value does not travel with its event and is fetched by the watch. If that does not succeed, because the
    /// message has been replaced or removed by now or because no server answers in time, `value_omitted` stays set and
    /// the value is absent.
    Set(Message),
    /// A message was removed.
    Removed {
        /// The seq it had.
        seq: Seq,
        /// The key it had.
        key: Option<String>,
    },
    /// Every message up to a seq was removed, whatever its key.
    Cleared {
        /// The last seq that is gone.
        end_seq: Seq,
    },
    /// The configuration was replaced.
    Configured(SubjectConfig),
    /// Updates are missing here: read what is there if you need to know. Later updates go on from `now`, and may
    /// repeat what that reading shows; (term, rev) of a message tells.
    Gap {
        /// The last position that was seen in full; `None` when the watch was not told where it began, and this is
        /// its first event.
        seen: Option<Position>,
        /// Where the subject is now, if that is known. It is not after a loss of the connection, when nobody knows
        /// whether anything was missed.
        now: Option<Position>,
    },
}

/// Which changes a watch reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    /// All.
    All,
    /// Those of one key.
    Key(String),
    /// Those of keys with a prefix.
    Prefix(String),
}

impl Filter {
    fn wants(&self, key: Option<&str>) -> bool {
        match (self, key) {
            (Self::All, _) => true,
            (Self::Key(wanted), Some(key)) => wanted == key,
            (Self::Prefix(prefix), Some(key)) => key.starts_with(prefix.as_str()),
            (Self::Key(_) | Self::Prefix(_), None) => false,
        }
    }
}

/// Live changes of a subject, from the moment the watch was made, in order, each at most once.
///
/// Where it begins is asked of the subject's server, which wakes the subject, so that even the loss of the very first
/// change is noticed. If the server does not tell within two seconds, or the caller may not ask it, the watch begins all
/// the same, and reports one gap before the first event it hears unless that is the first of the subject at all. A
/// change that nobody hears of and that nothing follows is then noticed by the next beacon of the server.
///
/// Pub/sub may lose events. A watch notices and reports it as [`Update::Gap`], but does not yet fill the gap by
/// itself: complete feeds come later. It ends when the client is closed or the messaging system takes the
/// subscription back. Dropping it ends it.
///
/// A reader that is too slow loses nothing silently: beyond 4,096 events or 64 MiB waiting, new ones are dropped and a
/// gap is reported.
///
/// It is a [`futures::Stream`]; [`next`](Self::next) does without that trait.
#[derive(Debug)]
pub struct Watch {
    updates: mpsc::Receiver<Update>,
}

impl Watch {
    pub(crate) async fn start(handle: Handle, filter: Filter) -> Result<Self, Error> {
        let pattern: RoutePattern = handle.inner.prefix.events(&handle.subject).into();
        // Before the subscription: what happens to it from its first moment on must be heard.
        let connection = handle.inner.bus.events();
        let options = SubscribeOptions { queue: None, capacity: EVENT_BUFFER };
        let events =
            handle.inner.bus.subscribe(pattern.clone(), options).await.map_err(Error::from_subscribe)?;
        // After the subscription: what comes later than the answer will be heard.
        let splicer = Splicer::starting_after(beginning(&handle).await?);
        let (sender, updates) = mpsc::channel(UPDATE_BUFFER);
        let tasks = handle.inner.tasks.clone();
        let watcher = Watcher { handle, filter, splicer, updates: sender.clone() };
        let stop = tasks.stop().clone();
        tasks.spawn("watch", async move {
            let backlog = Backlog::new(EVENT_BUFFER, EVENT_BUFFER_BYTES);
            tokio::select! {
                biased;
                () = stop.given() => {}
                () = sender.closed() => {}
                // Ends when the hearing has ended and all that was heard is reported.
                ((), ()) = async {
                    tokio::join!(hear(&backlog, &pattern, events, connection), watcher.report_all(&backlog))
                } => {}
            }
        });
        Ok(Self { updates })
    }

    /// The next update; `None` when the watch has ended. Cancelling the wait loses no update.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
}

impl futures::Stream for Watch {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        self.updates.poll_recv(cx)
    }
}

/// Where the subject is now; `None` when that is not to be had.
async fn beginning(handle: &Handle) -> Result<Option<Position>, Error> {
    let asker = Handle { deadline: handle.deadline.min(START_DEADLINE), ..handle.clone() };
    match asker.info().await {
        Ok(info) => Ok(Some(info.position)),
        Err(Error::Closed) => Err(Error::Closed),
        Err(error) => {
            tracing::info!(subject = %handle.subject, %error, "a watch does not know where it begins");
            Ok(None)
        }
    }
}

/// Takes what the messaging system has for the watch as fast as it comes, until there will be no more.
async fn hear(
    backlog: &Backlog,
    pattern: &RoutePattern,
    mut events: Subscription,
    mut connection: broadcast::Receiver<BusEvent>,
) {
    loop {
        tokio::select! {
            // What waits was sent before the connection changed, so it belongs before the gap.
            biased;
            delivery = events.next() => match delivery {
                Some(delivery) => backlog.event(delivery.payload),
                None => break,
            },
            change = connection.recv() => match change {
                Ok(change) if !is_loss(&change, pattern) => {}
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => backlog.loss(),
                Err(broadcast::error::RecvError::Closed) => break,
            },
        }
    }
    backlog.end();
}

fn is_loss(change: &BusEvent, pattern: &RoutePattern) -> bool {
    match change {
        BusEvent::Connected => true,
        BusEvent::SlowConsumer(slow) => slow.as_ref().is_none_or(|slow| slow == pattern),
        _ => false,
    }
}

/// The application has dropped the watch.
struct Dropped;

struct Watcher {
    handle: Handle,
    filter: Filter,
    splicer: Splicer,
    updates: mpsc::Sender<Update>,
}

impl Watcher {
    async fn report_all(mut self, backlog: &Backlog) {
        while let Some(heard) = backlog.next().await {
            let outcome = match heard {
                Heard::Event(payload) => self.deliver(&payload).await,
                Heard::Loss => self.lost().await,
            };
            if outcome.is_err() {
                return;
            }
        }
    }

    /// Something may be missing, and nobody can say how much.
    async fn lost(&mut self) -> Result<(), Dropped> {
        self.gap(Hole { seen: self.splicer.seen(), now: None }).await
    }

    async fn gap(&mut self, hole: Hole) -> Result<(), Dropped> {
        self.send(Update::Gap { seen: hole.seen, now: hole.now }).await
    }

    async fn send(&mut self, update: Update) -> Result<(), Dropped> {
        self.updates.send(update).await.map_err(|_| Dropped)
    }

    async fn deliver(&mut self, payload: &Bytes) -> Result<(), Dropped> {
        let event = match decode::<Event>(payload) {
            Ok(event) if event.v <= ProtocolVersion::CURRENT => event,
            Ok(event) => {
                tracing::warn!(subject = %self.handle.subject, version = event.v.get(), "an event is written in a newer protocol version");
                return self.lost().await;
            }
            Err(error) => {
                tracing::warn!(subject = %self.handle.subject, %error, "an event cannot be understood");
                return self.lost().await;
            }
        };
        let spliced = self.splicer.apply(event);
        if let Some(hole) = spliced.hole {
            self.gap(hole).await?;
        }
        for change in spliced.changes {
            self.report(change).await?;
        }
        Ok(())
    }

    async fn report(&mut self, change: Change) -> Result<(), Dropped> {
        match change {
            Change::Set(set) if self.filter.wants(set.message.key.as_deref()) => {
                let message = self.with_value(set.message).await;
                self.send(Update::Set(message)).await
            }
            Change::Delete(delete) => {
                for removed in delete.removed {
                    if self.filter.wants(removed.key.as_deref()) {
                        self.send(Update::Removed { seq: removed.seq, key: removed.key }).await?;
                    }
                }
                Ok(())
            }
            Change::DeleteAll(cleared) => self.send(Update::Cleared { end_seq: cleared.end_seq }).await,
            Change::Configure(configured) if self.filter == Filter::All => {
                self.send(Update::Configured(configured.config)).await
            }
            Change::Set(_) | Change::Configure(_) => Ok(()),
        }
    }

    async fn with_value(&self, message: Message) -> Message {
        if !message.value_omitted {
            return message;
        }
        match self.handle.get(GetRequest::seq(message.seq)).await {
            // Only the very message the event spoke of: what replaced it has an event of its own.
            Ok(Some(fetched)) if fetched.rev == message.rev && fetched.term == message.term => fetched,
            Ok(_) => message,
            Err(error) => {
                tracing::info!(subject = %self.handle.subject, seq = message.seq.get(), %error, "a value could not be fetched");
                message
            }
        }
    }
}
