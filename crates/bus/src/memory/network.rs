//! An optional network between the connections of a [`MemoryBroker`](super::MemoryBroker): it loses, repeats and delays
//! messages.

use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::Route;

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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dormouse_protocol::RoutePattern;
    use dormouse_runtime::{Env, Lock, SeededEntropy, Tasks, VirtualClock};

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
