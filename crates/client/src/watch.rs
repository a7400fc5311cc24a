//! A live watch over a subject's events.

use std::pin::Pin;
use std::task::{Context, Poll};

use dormouse_bus::{BusEvent, Delivery, SubscribeOptions, Subscription};
use dormouse_protocol::data::GetRequest;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Change, Event, Message, Position, ProtocolVersion, RoutePattern, Seq, decode};
use tokio::sync::{broadcast, mpsc};

use crate::error::Error;
use crate::splice::{Hole, Splicer};
use crate::subject::Handle;

/// How many events wait for the watch's own task before the messaging system drops new ones, which is a gap.
const EVENT_BUFFER: usize = 4_096;

/// How many updates wait for the application.
const UPDATE_BUFFER: usize = 256;

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
        /// The last position that was seen in full; `None` before the first update.
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
/// Pub/sub may lose events. A watch notices and reports it as [`Update::Gap`], but does not yet fill the gap by
/// itself: complete feeds come later. It ends when the client is closed or the messaging system takes the
/// subscription back. Dropping it ends it.
///
/// A reader that is too slow loses nothing silently: beyond a bounded number of events waiting, new ones are dropped
/// and a gap is reported.
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
        let (sender, updates) = mpsc::channel(UPDATE_BUFFER);
        let tasks = handle.inner.tasks.clone();
        let watcher =
            Watcher { handle, filter, pattern, splicer: Splicer::default(), updates: sender.clone() };
        let stop = tasks.stop().clone();
        tasks.spawn("watch", async move {
            tokio::select! {
                () = watcher.run(events, connection) => {}
                () = sender.closed() => {}
                () = stop.given() => {}
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

/// The application has dropped the watch.
struct Dropped;

struct Watcher {
    handle: Handle,
    filter: Filter,
    pattern: RoutePattern,
    splicer: Splicer,
    updates: mpsc::Sender<Update>,
}

impl Watcher {
    async fn run(mut self, mut events: Subscription, mut connection: broadcast::Receiver<BusEvent>) {
        loop {
            let outcome = tokio::select! {
                // What waits was sent before the connection changed, so it belongs before the gap.
                biased;
                delivery = events.next() => match delivery {
                    Some(delivery) => self.deliver(&delivery).await,
                    None => return,
                },
                change = connection.recv() => match change {
                    Ok(change) if !self.is_loss(&change) => Ok(()),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => self.lost().await,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
            };
            if outcome.is_err() {
                return;
            }
        }
    }

    fn is_loss(&self, change: &BusEvent) -> bool {
        match change {
            BusEvent::Connected => true,
            BusEvent::SlowConsumer(pattern) => {
                pattern.as_ref().is_none_or(|pattern| *pattern == self.pattern)
            }
            _ => false,
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

    async fn deliver(&mut self, delivery: &Delivery) -> Result<(), Dropped> {
        let event = match decode::<Event>(&delivery.payload) {
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
