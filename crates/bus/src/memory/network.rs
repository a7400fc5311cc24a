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
