//! The queue between an adapter and a subscriber, bounded by the number of messages and by their bytes: whoever sends large messages
//! faster than they are taken must not fill the memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::Delivery;

/// How many bytes of messages wait for one subscriber before new ones are dropped: twice what a nats-server keeps for a connection
/// before it cuts it off. One message alone may always wait.
pub(crate) const MOST_WAITING_BYTES: usize = 128 * 1024 * 1024;

/// A queue for at most `capacity` messages.
pub(crate) fn mailbox(capacity: usize) -> (Slot, Mailbox) {
    let (deliveries, arrived) = mpsc::channel(capacity.max(1));
    let waiting_bytes = Arc::new(AtomicUsize::new(0));
    let slot = Slot { deliveries, waiting_bytes: Arc::clone(&waiting_bytes) };
    (slot, Mailbox { arrived, waiting_bytes })
}

/// Where an adapter puts messages.
#[derive(Debug)]
pub(crate) struct Slot {
    deliveries: mpsc::Sender<Delivery>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// Where a subscriber takes them.
#[derive(Debug)]
pub(crate) struct Mailbox {
    arrived: mpsc::Receiver<Delivery>,
    waiting_bytes: Arc<AtomicUsize>,
}

fn size_bytes(delivery: &Delivery) -> usize {
    delivery.payload.len() + delivery.headers.size_bytes() + delivery.route.as_str().len()
}

impl Slot {
    /// Puts a message there, or drops it where there is no room. Says whether there was; nobody misses a message that nobody would
    /// take any more.
    pub(crate) fn put(&self, delivery: Delivery) -> bool {
        let size_bytes = size_bytes(&delivery);
        let before = self.waiting_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        let room = before == 0 || before.saturating_add(size_bytes) <= MOST_WAITING_BYTES;
        if room {
            match self.deliveries.try_send(delivery) {
                Ok(()) | Err(TrySendError::Closed(_)) => return true,
                Err(TrySendError::Full(_)) => {}
            }
        }
        self.waiting_bytes.fetch_sub(size_bytes, Ordering::Relaxed);
        false
    }
}

impl Mailbox {
    pub(crate) async fn next(&mut self) -> Option<Delivery> {
        let delivery = self.arrived.recv().await?;
        self.waiting_bytes.fetch_sub(size_bytes(&delivery), Ordering::Relaxed);
        Some(delivery)
    }

    pub(crate) async fn next_many(&mut self, buffer: &mut Vec<Delivery>, limit: usize) -> usize {
        let held = buffer.len();
        let number = self.arrived.recv_many(buffer, limit).await;
        let taken = buffer[held..].iter().map(size_bytes).sum();
        self.waiting_bytes.fetch_sub(taken, Ordering::Relaxed);
        number
    }

    pub(crate) fn waiting(&self) -> usize {
        self.arrived.len()
    }
}
