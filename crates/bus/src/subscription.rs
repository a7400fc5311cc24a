//! Subscriptions.

use std::fmt;

use crate::mailbox::MailboxReceiver;
use crate::messages::Delivery;

/// Options of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// The queue group: each message goes to only one of its members.
    pub queue: Option<String>,
    /// Maximum number of queued messages. Above it, new messages are dropped (with
    /// [`BusEvent::SlowConsumer`](crate::BusEvent::SlowConsumer)). They are also dropped above 128 MiB of queued messages.
    pub capacity: usize,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { queue: None, capacity: 65_536 }
    }
}

/// A subscription. A drop ends it.
///
/// It also ends if the messaging system denies it after a reconnect, or if a denial arrives only after the `subscribe`
/// call (with [`BusEvent::SubscribeDenied`](crate::BusEvent::SubscribeDenied)).
pub struct Subscription {
    deliveries: MailboxReceiver,
    // A drop makes the adapter unsubscribe.
    guard: Option<Box<dyn Send + Sync>>,
}

impl Subscription {
    /// A subscription of an adapter's delivery queue and a guard whose drop ends the subscription.
    pub(crate) fn new(deliveries: MailboxReceiver, guard: Box<dyn Send + Sync>) -> Self {
        Self { deliveries, guard: Some(guard) }
    }

    /// The next message; `None` if the bus is closed. Cancelling the wait loses no message.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.next().await
    }

    /// Moves the queued messages into `buffer`, at most `limit`, and waits for the first. Returns their number; 0 if
    /// the bus is closed. One task wake-up handles a whole burst. Cancelling the wait loses no message.
    pub async fn next_many(&mut self, buffer: &mut Vec<Delivery>, limit: usize) -> usize {
        self.deliveries.next_many(buffer, limit).await
    }

    /// The number of messages that were dropped because the queue was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.deliveries.dropped()
    }

    /// Unsubscribes. Messages that were sent before can still be taken; after them the subscription acts as if the bus
    /// were closed. On NATS the subscription ends after 100 ms without a message, after 2 s at the latest: messages
    /// sent at that moment are lost.
    pub fn unsubscribe(&mut self) {
        self.guard = None;
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("waiting", &self.deliveries.waiting()).finish_non_exhaustive()
    }
}
