//! An optional network between the connections of a [`MemoryBroker`](super::MemoryBroker): it loses, repeats and delays
//! messages.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::Route;
use dormouse_runtime::{Env, Lock};
use tokio::sync::Notify;

use super::broker::{Broker, DelayedMessage};

/// A message from one connection to another.
#[derive(Debug, Clone, Copy)]
pub struct MessageInfo<'m> {
    /// The name of the connection that sent it.
    pub from: &'m str,
    /// The name of the receiving connection.
    pub to: &'m str,
    /// The route of the message.
    pub route: &'m Route,
    /// It is a reply to a request.
    pub is_reply: bool,
    /// The content.
    pub payload: &'m Bytes,
}

/// Decides about the delivery of messages. It is called once per message and receiver, in the order of sending. So an
/// implementation with a seeded RNG decides the same for the same messages.
pub trait Network: Send + Sync + 'static {
    /// The delay of each copy of the message. With no delay in the list the message is lost;
    /// with two it arrives twice. With a delay of zero it arrives in the sender's own step.
    fn delivery_delays(&self, message: MessageInfo<'_>) -> Vec<Duration>;
}

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

#[cfg(test)]
mod tests {
    use dormouse_protocol::RoutePattern;
    use dormouse_runtime::{SeededEntropy, Tasks, VirtualClock};

    use super::*;
    use crate::memory::{MemoryBroker, MemoryOptions};
    use crate::{Bus, Outgoing, RequestError, SubscribeOptions};

    /// Delays messages and replies by a script, in milliseconds.
    struct ScriptedNetwork {
        messages: Vec<u64>,
        answers: Vec<u64>,
    }

    impl Network for ScriptedNetwork {
        fn delivery_delays(&self, message: MessageInfo<'_>) -> Vec<Duration> {
            let delays = if message.is_reply { &self.answers } else { &self.messages };
            delays.iter().map(|delay| Duration::from_millis(*delay)).collect()
        }
    }

    /// Sends a request over a network. Returns how often it was received, and when its reply arrived or why not.
    async fn exchange(messages: &[u64], answers: &[u64]) -> (u64, Result<Duration, RequestError>) {
        let clock = Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000)));
        let env = Env::simulated(clock, Arc::new(SeededEntropy::new(1)));
        let tasks = Tasks::new();
        let network = ScriptedNetwork { messages: messages.to_vec(), answers: answers.to_vec() };
        let broker = MemoryBroker::with_network(Arc::new(network), env.clone(), &tasks);
        let server = broker.connect(MemoryOptions::named("server"));
        let options = SubscribeOptions::default();
        let mut requests = server.subscribe(RoutePattern::new("a"), options).await.unwrap();
        let (received, count) = (Arc::new(Lock::new(0)), tasks.clone());
        let counted = Arc::clone(&received);
        count.spawn("server", async move {
            while let Some(request) = requests.next().await {
                *counted.lock() += 1;
                let answer = Outgoing::new(request.reply_to.unwrap(), Bytes::from("b"));
                server.publish(answer).await.unwrap();
            }
        });
        let client = broker.connect(MemoryOptions::named("client"));
        let outcome =
            client.request(Outgoing::new(Route::new("a"), Bytes::new()), Duration::from_secs(1)).await;
        let took = env.boot();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let received = *received.lock();
        (received, outcome.map(|_| took))
    }

    /// The memory broker delays, drops and duplicates messages and replies as the network decides.
    #[tokio::test(start_paused = true)]
    async fn network_delays_drops_and_duplicates_as_scripted() {
        assert_eq!(exchange(&[0], &[0]).await, (1, Ok(Duration::ZERO)));
        assert_eq!(exchange(&[30], &[50]).await, (1, Ok(Duration::from_millis(80))));
        assert_eq!(exchange(&[30, 10], &[50]).await, (2, Ok(Duration::from_millis(60))));
        let lost = exchange(&[], &[0]).await;
        assert!(matches!(lost, (0, Err(RequestError::Deadline { .. }))), "{lost:?}");
        let unanswered = exchange(&[0], &[]).await;
        assert!(matches!(unanswered, (1, Err(RequestError::Deadline { .. }))), "{unanswered:?}");
        let late = exchange(&[0], &[2_000]).await;
        assert!(matches!(late, (1, Err(RequestError::Deadline { .. }))), "{late:?}");
    }
}
