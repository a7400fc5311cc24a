//! The queue between an adapter and a subscriber. Number and bytes of messages are bounded: large messages that arrive
//! faster than the subscriber takes them must not fill the memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::messages::Delivery;

/// Maximum bytes of queued messages of one subscriber. Above it, new messages are dropped. It is twice the limit at
/// which a nats-server closes a connection. One message alone always fits.
pub(crate) const MAX_QUEUED_BYTES: usize = 128 * 1024 * 1024;

/// A queue for at most `capacity` messages.
pub(crate) fn mailbox(capacity: usize) -> (MailboxSender, MailboxReceiver) {
    let (deliveries, arrived) = mpsc::channel(capacity.max(1));
    let (queued_bytes, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let sender =
        MailboxSender { deliveries, queued_bytes: Arc::clone(&queued_bytes), dropped: Arc::clone(&dropped) };
    (sender, MailboxReceiver { arrived, queued_bytes, dropped })
}

/// The adapter's end of the queue.
#[derive(Debug)]
pub(crate) struct MailboxSender {
    deliveries: mpsc::Sender<Delivery>,
    queued_bytes: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

/// The subscriber's end of the queue.
#[derive(Debug)]
pub(crate) struct MailboxReceiver {
    arrived: mpsc::Receiver<Delivery>,
    queued_bytes: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

fn size_bytes(delivery: &Delivery) -> usize {
    delivery.payload.len() + delivery.headers.size_bytes() + delivery.route.as_str().len()
}

impl MailboxSender {
    /// Queues a message, or drops it if the queue is full. Returns false for a full queue; a message to a closed
    /// subscription does not count as dropped.
    pub(crate) fn put(&self, delivery: Delivery) -> bool {
        let size_bytes = size_bytes(&delivery);
        let before = self.queued_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        let room = before == 0 || before.saturating_add(size_bytes) <= MAX_QUEUED_BYTES;
        if room {
            match self.deliveries.try_send(delivery) {
                Ok(()) | Err(TrySendError::Closed(_)) => return true,
                Err(TrySendError::Full(_)) => {}
            }
        }
        self.queued_bytes.fetch_sub(size_bytes, Ordering::Relaxed);
        self.dropped.fetch_add(1, Ordering::Relaxed);
        false
    }
}

impl MailboxReceiver {
    pub(crate) async fn next(&mut self) -> Option<Delivery> {
        let delivery = self.arrived.recv().await?;
        self.queued_bytes.fetch_sub(size_bytes(&delivery), Ordering::Relaxed);
        Some(delivery)
    }

    pub(crate) async fn next_many(&mut self, buffer: &mut Vec<Delivery>, limit: usize) -> usize {
        let held = buffer.len();
        let number = self.arrived.recv_many(buffer, limit).await;
        let taken = buffer[held..].iter().map(size_bytes).sum();
        self.queued_bytes.fetch_sub(taken, Ordering::Relaxed);
        number
    }

    /// Messages dropped because the queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.arrived.len()
    }
}
