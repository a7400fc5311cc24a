//! The messages that the [network](super::Network) delays.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use dormouse_runtime::{Env, Lock};
use tokio::sync::Notify;

use super::broker::{Broker, DelayedMessage};

/// Delayed copies, ordered by arrival time, and by send order for the same time.
type DelayedQueue = BTreeMap<(Duration, u64), DelayedMessage>;

/// Keeps delayed messages until they arrive.
pub(super) struct DelayQueue {
    env: Env,
    queue: Lock<(DelayedQueue, u64)>,
    posted: Notify,
}

impl DelayQueue {
    pub(super) fn new(env: Env) -> Self {
        Self { env, queue: Lock::default(), posted: Notify::new() }
    }

    fn queue(&self) -> MutexGuard<'_, (DelayedQueue, u64)> {
        self.queue.lock()
    }

    pub(super) fn post(&self, messages: Vec<(Duration, DelayedMessage)>) {
        let now = self.env.boot();
        {
            let mut held = self.queue();
            let (queue, number) = &mut *held;
            for (delay, message) in messages {
                *number += 1;
                queue.insert((now + delay, *number), message);
            }
        }
        self.posted.notify_one();
    }

    fn due(&self, now: Duration) -> Option<DelayedMessage> {
        let mut held = self.queue();
        let first = held.0.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    fn next_due(&self) -> Option<Duration> {
        self.queue().0.first_key_value().map(|((due, _), _)| *due)
    }
}

/// Delivers messages when their delay has passed. Never ends.
pub(super) async fn deliver(queue: Arc<DelayQueue>, broker: Arc<Lock<Broker>>) {
    loop {
        while let Some(message) = queue.due(queue.env.boot()) {
            broker.lock().arrive(message);
        }
        let posted = queue.posted.notified();
        match queue.next_due() {
            None => posted.await,
            Some(due) => {
                let wait = due.saturating_sub(queue.env.boot());
                // A timeout is fine: then the message is due.
                let _ = tokio::time::timeout(wait, posted).await;
            }
        }
    }
}
