//! Records the requests of clients and the replies to them, for the checker.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_bus::{
    Bus, BusEvent, Outgoing, PublishError, Reply, RequestError, SubscribeError, SubscribeOptions,
    Subscription, service_error,
};
use dormouse_checker::{CallOutcome, History, Op, OpResult, ReceivedEvent, Rules, ServerFault, Verdict};
use dormouse_protocol::{Executed, Prefix, RoutePattern, ServerName, Subject, decode};
use dormouse_runtime::{Env, Lock};
use tokio::sync::broadcast;

/// The recorded history. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Recorder {
    env: Env,
    servers: Arc<[ServerName]>,
    history: Arc<Lock<History>>,
}

impl Recorder {
    /// Creates an empty history. It records the requests to servers of these names.
    #[must_use]
    pub fn new(env: Env, servers: &[ServerName], rules: Rules) -> Self {
        let history = History { rules, ..History::default() };
        Self { env, servers: servers.into(), history: Arc::new(Lock::new(history)) }
    }

    /// Returns the time of the record.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.env.boot()
    }

    /// Records a fault of a server.
    pub fn record_fault(&self, fault: ServerFault) {
        self.lock().faults.push(fault);
    }

    /// Records all announced events, until the bus is closed.
    pub async fn listen(self, mut events: Subscription) {
        while let Some(delivery) = events.next().await {
            let at = self.now();
            let subject = Prefix::default().parse_events(delivery.route.as_str());
            if let (Ok(subject), Ok(event)) = (subject, decode(&delivery.payload)) {
                self.lock().subjects.entry(subject).or_default().events.push(ReceivedEvent { at, event });
            }
        }
    }

    /// Judges the history so far.
    #[must_use]
    pub fn judge(&self) -> Verdict {
        dormouse_checker::check(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock()
    }

    /// Returns the server, subject and operation of a message, if it is an operation on a subject.
    fn parse_request(&self, message: &Outgoing) -> Option<(ServerName, Subject, dormouse_protocol::Op, Op)> {
        self.servers.iter().find_map(|server| {
            let route = Prefix::default().parse_server(server, message.route.as_str()).ok()?;
            let op = Op::from_wire(route.op, &message.payload).ok()??;
            Some((server.clone(), route.subject, route.op, op))
        })
    }
}

/// A bus that records every operation on a subject.
#[derive(Clone)]
pub struct RecordedBus {
    inner: Arc<dyn Bus>,
    client: u32,
    recorder: Recorder,
}

impl RecordedBus {
    /// Records the requests of `client` over this bus.
    #[must_use]
    pub fn new(inner: Arc<dyn Bus>, client: u32, recorder: Recorder) -> Self {
        Self { inner, client, recorder }
    }
}

#[async_trait]
impl Bus for RecordedBus {
    async fn request(&self, message: Outgoing, deadline: Duration) -> Result<Reply, RequestError> {
        let Some((server, subject, name, op)) = self.recorder.parse_request(&message) else {
            return self.inner.request(message, deadline).await;
        };
        let begin = self.recorder.now();
        let index = self.recorder.lock().subjects.entry(subject.clone()).or_default().invoked(
            self.client,
            Some(server),
            op,
            begin,
        );
        let replied = self.inner.request(message, deadline).await;
        let outcome = match &replied {
            Ok(reply) => match service_error(reply) {
                Some(error) => CallOutcome::Refused(error),
                None => match OpResult::from_wire(name, &reply.payload) {
                    Ok(Some(answer)) => CallOutcome::Answered(answer),
                    Ok(None) | Err(_) => CallOutcome::Unknown,
                },
            },
            Err(error) if error.executed() == Executed::No => {
                CallOutcome::Refused(dormouse_protocol::ErrorReply::unavailable(error.to_string()))
            }
            Err(_) => CallOutcome::Unknown,
        };
        let at = self.recorder.now();
        if let Some(recorded) = self.recorder.lock().subjects.get_mut(&subject) {
            recorded.returned(index, at, outcome);
        }
        replied
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        self.inner.publish(message).await
    }

    async fn subscribe(
        &self,
        pattern: RoutePattern,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError> {
        self.inner.subscribe(pattern, options).await
    }

    fn events(&self) -> broadcast::Receiver<BusEvent> {
        self.inner.events()
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }

    fn max_payload(&self) -> usize {
        self.inner.max_payload()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
