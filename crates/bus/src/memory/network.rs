//! What lies between the connections of a [`MemoryBroker`](super::MemoryBroker), where it is not nothing: a network that
//! loses, repeats, delays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::Route;
use dormouse_runtime::Env;
use tokio::sync::Notify;

use super::broker::{Broker, Parcel};

/// A message on its way from one connection to another.
#[derive(Debug, Clone, Copy)]
pub struct Passage<'m> {
    /// The name of the connection that sent it.
    pub from: &'m str,
    /// The name of the connection that is to get it.
    pub to: &'m str,
    /// Where it was sent to.
    pub route: &'m Route,
    /// It answers a request.
    pub is_answer: bool,
    /// The content.
    pub payload: &'m Bytes,
}

/// Decides what becomes of messages. Asked once per message and receiver, in the order in which they are sent; so one
/// that draws from a seed does the same to the same messages.
pub trait Network: Send + Sync + 'static {
    /// After how long each copy of the message arrives. None is a message that is lost; two are one that comes twice; one
    /// without delay arrives in the sender's own step.
    fn fates(&self, passage: Passage<'_>) -> Vec<Duration>;
}

/// Copies on their way, by when they arrive and, among those of one moment, by when they were sent.
type Queue = BTreeMap<(Duration, u64), Parcel>;

/// What keeps messages until they arrive.
pub(super) struct Carrier {
    env: Env,
    queue: Mutex<(Queue, u64)>,
    posted: Notify,
}

impl Carrier {
    pub(super) fn new(env: Env) -> Self {
        Self { env, queue: Mutex::default(), posted: Notify::new() }
    }

    fn queue(&self) -> MutexGuard<'_, (Queue, u64)> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn post(&self, parcels: Vec<(Duration, Parcel)>) {
        let now = self.env.boot();
        {
            let mut held = self.queue();
            let (queue, number) = &mut *held;
            for (delay, parcel) in parcels {
                *number += 1;
                queue.insert((now + delay, *number), parcel);
            }
        }
        self.posted.notify_one();
    }

    fn due(&self, now: Duration) -> Option<Parcel> {
        let mut held = self.queue();
        let first = held.0.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    fn next_due(&self) -> Option<Duration> {
        self.queue().0.first_key_value().map(|((due, _), _)| *due)
    }
}

/// Brings messages to their receivers when their time has come. Never ends.
pub(super) async fn deliver(carrier: Arc<Carrier>, broker: Arc<Mutex<Broker>>) {
    loop {
        while let Some(parcel) = carrier.due(carrier.env.boot()) {
            broker.lock().unwrap_or_else(PoisonError::into_inner).arrive(parcel);
        }
        let posted = carrier.posted.notified();
        match carrier.next_due() {
            None => posted.await,
            Some(due) => {
                let wait = due.saturating_sub(carrier.env.boot());
                // That it ran out is the other way to go on.
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

    /// Does to messages and answers what it is told, in milliseconds.
    struct Told {
        messages: Vec<u64>,
        answers: Vec<u64>,
    }

    impl Network for Told {
        fn fates(&self, passage: Passage<'_>) -> Vec<Duration> {
            let told = if passage.is_answer { &self.answers } else { &self.messages };
            told.iter().map(|delay| Duration::from_millis(*delay)).collect()
        }
    }

    /// A request is made and answered over a network. How often it was heard, when its answer came or why not.
    async fn exchange(messages: &[u64], answers: &[u64]) -> (u64, Result<Duration, RequestError>) {
        let clock = Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000)));
        let env = Env::simulated(clock, Arc::new(SeededEntropy::new(1)));
        let tasks = Tasks::new();
        let network = Told { messages: messages.to_vec(), answers: answers.to_vec() };
        let broker = MemoryBroker::over(Arc::new(network), env.clone(), &tasks);
        let server = broker.connect(MemoryOptions::named("server"));
        let options = SubscribeOptions::default();
        let mut requests = server.subscribe(RoutePattern::new("a"), options).await.unwrap();
        let (heard, count) = (Arc::new(Mutex::new(0)), tasks.clone());
        let counted = Arc::clone(&heard);
        count.spawn("server", async move {
            while let Some(request) = requests.next().await {
                *counted.lock().unwrap() += 1;
                let answer = Outgoing::new(request.reply_to.unwrap(), Bytes::from("b"));
                server.publish(answer).await.unwrap();
            }
        });
        let client = broker.connect(MemoryOptions::named("client"));
        let asked =
            client.request(Outgoing::new(Route::new("a"), Bytes::new()), Duration::from_secs(1)).await;
        let took = env.boot();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let heard = *heard.lock().unwrap();
        (heard, asked.map(|_| took))
    }

    #[tokio::test(start_paused = true)]
    async fn messages_come_as_often_and_as_late_as_the_network_has_it() {
        assert_eq!(exchange(&[0], &[0]).await, (1, Ok(Duration::ZERO)));
        assert_eq!(exchange(&[30], &[50]).await, (1, Ok(Duration::from_millis(80))));
        assert_eq!(exchange(&[30, 10], &[50]).await, (2, Ok(Duration::from_millis(60))));
        let lost = exchange(&[], &[0]).await;
        assert!(matches!(lost, (0, Err(RequestError::Deadline { .. }))), "{lost:?}");
        let unheard = exchange(&[0], &[]).await;
        assert!(matches!(unheard, (1, Err(RequestError::Deadline { .. }))), "{unheard:?}");
        let late = exchange(&[0], &[2_000]).await;
        assert!(matches!(late, (1, Err(RequestError::Deadline { .. }))), "{late:?}");
    }
}
