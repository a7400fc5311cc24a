//! Records the requests of clients, the replies to them, and the events of servers, for the checker.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_bus::{
    Bus, BusEvent, Outgoing, PublishError, Reply, RequestError, RoundTripError, SubscribeError,
    SubscribeOptions, Subscription, service_error,
};
use dormouse_checker::{
    CallOutcome, History, Op as RecordedOp, OpResult, ReceivedEvent, Rules, ServerFault, Verdict,
};
use dormouse_protocol::{ErrorReply, Executed, Op, Prefix, RoutePattern, ServerName, Subject, decode};
use dormouse_runtime::{Env, Lock};
use tokio::sync::broadcast;

/// The recorded history. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Recorder {
    env: Env,
    history: Arc<Lock<History>>,
}

impl Recorder {
    /// Creates an empty history, which is judged by `rules`. Its times are those of `env`.
    #[must_use]
    pub fn new(env: Env, rules: Rules) -> Self {
        let history = History { rules, ..History::default() };
        Self { env, history: Arc::new(Lock::new(history)) }
    }

    /// Returns the time of the record.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.env.boot()
    }

    /// Locks the history.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock()
    }

    /// Records a fault of a server.
    pub fn record_fault(&self, fault: ServerFault) {
        self.history().faults.push(fault);
    }

    /// Records the announced events of a subscription until the bus is closed.
    ///
    /// Cancelling the call ends the record; the event in progress is recorded or not.
    pub async fn listen(self, mut events: Subscription) {
        while let Some(delivery) = events.next().await {
            let at = self.now();
            let subject = Prefix::default().parse_events(delivery.route.as_str());
            if let (Ok(subject), Ok(event)) = (subject, decode(&delivery.payload)) {
                self.history().subjects.entry(subject).or_default().events.push(ReceivedEvent { at, event });
            }
        }
    }

    /// Judges the history so far.
    #[must_use]
    pub fn judge(&self) -> Verdict {
        dormouse_checker::check(&self.history())
    }
}

/// A request of a client to a server.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// The number of the client.
    pub client: u32,
    /// The server.
    pub server: ServerName,
    /// The subject.
    pub subject: Subject,
    /// The operation.
    pub op: Op,
    /// The request.
    pub payload: Bytes,
    /// Whether the history has it. The history has no chunks of values.
    pub is_recorded: bool,
}

/// Observes the requests of a [`RecordedBus`].
pub trait CallObserver: Send + Sync + 'static {
    /// The client sends this request.
    fn sent(&self, request: &RecordedRequest);

    /// The request has ended. Returns the outcome to record.
    fn ended(&self, request: &RecordedRequest, outcome: CallOutcome) -> CallOutcome;
}

/// A bus that records every operation on a subject.
#[derive(Clone)]
pub struct RecordedBus {
    inner: Arc<dyn Bus>,
    client: u32,
    recorder: Recorder,
    observer: Option<Arc<dyn CallObserver>>,
}

impl RecordedBus {
    /// Records the requests of `client` over this bus.
    #[must_use]
    pub fn new(inner: Arc<dyn Bus>, client: u32, recorder: Recorder) -> Self {
        Self { inner, client, recorder, observer: None }
    }

    /// The same bus with an observer of its requests.
    #[must_use]
    pub fn observed_by(self, observer: Arc<dyn CallObserver>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Parses a message, if it is an operation on a subject.
    fn parse_request(&self, message: &Outgoing) -> Option<(RecordedRequest, Option<RecordedOp>)> {
        let prefix = Prefix::default();
        let rest = message.route.as_str().strip_prefix(prefix.as_str())?.strip_prefix(".server.")?;
        let server = ServerName::new(rest.split('.').next()?).ok()?;
        let route = prefix.parse_server(&server, message.route.as_str()).ok()?;
        let op = RecordedOp::from_wire(route.op, &message.payload).ok().flatten();
        let request = RecordedRequest {
            client: self.client,
            server,
            subject: route.subject,
            op: route.op,
            payload: message.payload.clone(),
            is_recorded: op.is_some(),
        };
        Some((request, op))
    }
}

/// Converts the end of a request to an outcome.
fn outcome(op: Op, answer: &Result<Reply, RequestError>) -> CallOutcome {
    match answer {
        Ok(reply) => match service_error(reply) {
            Some(error) => CallOutcome::Refused(error),
            None => match OpResult::from_wire(op, &reply.payload) {
                Ok(Some(answer)) => CallOutcome::Answered(answer),
                Ok(None) | Err(_) => CallOutcome::Unknown,
            },
        },
        Err(error) if error.executed() == Executed::No => {
            CallOutcome::Refused(ErrorReply::unavailable(error.to_string()))
        }
        Err(_) => CallOutcome::Unknown,
    }
}

#[async_trait]
impl Bus for RecordedBus {
    async fn request(&self, message: Outgoing, deadline: Duration) -> Result<Reply, RequestError> {
        let Some((request, op)) = self.parse_request(&message) else {
            return self.inner.request(message, deadline).await;
        };
        if let Some(observer) = &self.observer {
            observer.sent(&request);
        }
        let index = op.map(|op| {
            let now = self.recorder.now();
            let mut history = self.recorder.history();
            let recorded = history.subjects.entry(request.subject.clone()).or_default();
            recorded.invoked(self.client, Some(request.server.clone()), op, now)
        });
        let answer = self.inner.request(message, deadline).await;
        let mut outcome = outcome(request.op, &answer);
        if let Some(observer) = &self.observer {
            outcome = observer.ended(&request, outcome);
        }
        if let Some(index) = index {
            let now = self.recorder.now();
            if let Some(recorded) = self.recorder.history().subjects.get_mut(&request.subject) {
                recorded.returned(index, now, outcome);
            }
        }
        answer
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

    async fn round_trip(&self, deadline: Duration) -> Result<(), RoundTripError> {
        self.inner.round_trip(deadline).await
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
