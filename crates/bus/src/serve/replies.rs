//! The queue of the replies of one endpoint, and the task that sends them.
//!
//! Replies leave in turns of their users, so the replies to one user's flood delay a reply to another by at most one turn.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dormouse_runtime::Lock;
use dormouse_runtime::fair_queue::FairQueue;
use tokio::sync::Notify;

use super::EndpointStats;
use crate::{Bus, Outgoing, PublishError};

/// Maximum number of replies that the sending task takes at a time.
const REPLIES_PER_WAKE_UP: usize = 256;

/// Bytes of replies in one turn of a user.
const TURN_BYTES: u64 = 64 * 1_024;

/// The least that a reply counts in its turn, in bytes.
const LEAST_COST: u64 = 256;

/// A queued reply, with what its request holds until the reply is sent.
pub(super) struct QueuedReply {
    pub(super) outgoing: Outgoing,
    pub(super) held: Option<Box<dyn Any + Send + Sync>>,
}

/// The queued replies of one endpoint.
pub(super) struct ReplyQueue {
    capacity: usize,
    limit_bytes: usize,
    /// Bytes of the queued replies, and of the one that is being sent.
    bytes: AtomicUsize,
    inner: Lock<Inner>,
    changed: Notify,
}

struct Inner {
    replies: FairQueue<u32, QueuedReply>,
    /// No reply is queued any more: there is no responder, or the bus is closed.
    closed: bool,
}

impl ReplyQueue {
    pub(super) fn new(capacity: usize, limit_bytes: usize) -> Arc<Self> {
        let inner = Inner { replies: FairQueue::new(TURN_BYTES), closed: false };
        Arc::new(Self {
            capacity: capacity.max(1),
            limit_bytes,
            bytes: AtomicUsize::new(0),
            inner: Lock::new(inner),
            changed: Notify::new(),
        })
    }

    /// Whether one more reply of this size fits. One reply alone always fits.
    pub(super) fn has_room_for(&self, size_bytes: usize) -> bool {
        let held = self.bytes.load(Ordering::Relaxed);
        held == 0 || held.saturating_add(size_bytes) <= self.limit_bytes
    }

    /// Queues a reply to `user`. Returns false, and drops the reply, if the queue is full or closed.
    pub(super) fn push(&self, user: u32, reply: QueuedReply) -> bool {
        let size_bytes = reply.outgoing.payload.len();
        let mut inner = self.inner.lock();
        if inner.closed || inner.replies.len() >= self.capacity {
            return false;
        }
        self.bytes.fetch_add(size_bytes, Ordering::Relaxed);
        inner.replies.push(user, (size_bytes as u64).max(LEAST_COST), reply);
        drop(inner);
        self.changed.notify_one();
        true
    }

    /// Takes no further reply. Queued replies are still sent.
    pub(super) fn close(&self) {
        self.inner.lock().closed = true;
        self.changed.notify_one();
    }

    /// Moves the next replies into `buffer`; false if the queue is empty and closed.
    async fn take(&self, buffer: &mut Vec<QueuedReply>) -> bool {
        loop {
            {
                let mut inner = self.inner.lock();
                let next = std::iter::from_fn(|| inner.replies.pop()).take(REPLIES_PER_WAKE_UP);
                buffer.extend(next.map(|(_, reply)| reply));
                if !buffer.is_empty() {
                    return true;
                }
                if inner.closed {
                    return false;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Sends replies until the queue is closed and empty, or the bus is closed.
    pub(super) async fn send(&self, bus: &dyn Bus, stats: &EndpointStats) {
        let mut replies = Vec::with_capacity(REPLIES_PER_WAKE_UP);
        while self.take(&mut replies).await {
            for QueuedReply { outgoing, held } in replies.drain(..) {
                let size_bytes = outgoing.payload.len();
                let sent = bus.publish(outgoing).await;
                self.bytes.fetch_sub(size_bytes, Ordering::Relaxed);
                drop(held);
                match sent {
                    Ok(()) => {}
                    Err(PublishError::Closed) => return self.close(),
                    // This happens only if the maximum payload has shrunk since the reply was queued.
                    Err(PublishError::TooLarge { .. } | PublishError::Invalid { .. }) => {
                        stats.count_dropped();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use dormouse_protocol::Route;

    use super::*;

    fn reply(route: &str, size_bytes: usize) -> QueuedReply {
        let outgoing = Outgoing::new(Route::new(route), vec![0; size_bytes].into());
        QueuedReply { outgoing, held: None }
    }

    /// A reply to one user waits for at most one turn of the replies to another.
    #[tokio::test]
    async fn reply_queue_sends_to_users_in_turn() {
        let queue = ReplyQueue::new(2_000, usize::MAX);
        for _ in 0..1_000 {
            assert!(queue.push(1, reply("greedy", 1_024)));
        }
        assert!(queue.push(2, reply("polite", 10)));
        let mut sent = Vec::new();
        assert!(queue.take(&mut sent).await);
        let position = sent.iter().position(|reply| reply.outgoing.route.as_str() == "polite");
        assert_eq!(position, Some(64), "64 KiB, at 1 KiB a reply");
    }

    /// What a request holds is dropped with its reply, also if the queue has no room for the reply.
    #[tokio::test]
    async fn reply_queue_drops_what_request_holds_with_reply() {
        let queue = ReplyQueue::new(1, usize::MAX);
        let (first, second) = (Arc::new(()), Arc::new(()));
        let watched: [Weak<()>; 2] = [Arc::downgrade(&first), Arc::downgrade(&second)];
        let is_held = || watched.each_ref().map(|held| held.strong_count() > 0);
        assert!(queue.push(1, QueuedReply { held: Some(Box::new(first)), ..reply("a", 1) }));
        assert!(!queue.push(1, QueuedReply { held: Some(Box::new(second)), ..reply("a", 1) }));
        assert_eq!(is_held(), [true, false]);
        let mut sent = Vec::new();
        queue.close();
        assert!(queue.take(&mut sent).await);
        assert_eq!(is_held(), [true, false]);
        drop(sent);
        assert!(!queue.take(&mut Vec::new()).await);
        assert_eq!(is_held(), [false, false]);
    }
}
