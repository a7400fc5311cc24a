//! One call: find the server, send the request, and do what the machine in [`retry`](crate::retry) decides.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Outgoing, RequestError};
use dormouse_protocol::deadline::time_left_headers;
use dormouse_protocol::limits::{ENVELOPE_BYTES, MAX_QUERY_BYTES};
use dormouse_protocol::{Executed, Op, Prefix, Route, SessionId, Subject, encode};
use dormouse_runtime::{Env, Tasks};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, IndeterminateCause};
use crate::exchange::{ReplyDecoder, exchange, whole};
use crate::gets::GetScheduler;
use crate::location::{CachedServer, Locations};
use crate::request_ids::{HeldId, IdUse, RequestIds};
use crate::retry::{AttemptCause, AttemptError, RetryPolicy, RetryState, RetryStep, RetryTarget};
use crate::sets::SetScheduler;

/// State shared by all clones and handles of a client.
pub(crate) struct ClientShared {
    pub(crate) bus: Arc<dyn Bus>,
    // Set only if this client made the connection: the connection ends with the client.
    pub(crate) bus_tasks: Option<Tasks>,
    pub(crate) prefix: Prefix,
    pub(crate) deadline: Duration,
    pub(crate) env: Env,
    pub(crate) locations: Locations,
    pub(crate) tasks: Tasks,
    pub(crate) session: SessionId,
    pub(crate) request_ids: RequestIds,
    pub(crate) set_scheduler: SetScheduler,
    pub(crate) get_scheduler: GetScheduler,
}

/// The content of a call's request.
pub(crate) trait RequestBody: Sync {
    /// The bytes of the next attempt, sent to `route`. They equal the bytes of the previous attempt, unless
    /// that attempt was certainly not executed.
    fn next_attempt(&self, route: &Route) -> Bytes;

    /// The attempt has failed, and another may follow. If it has `reached` a server, a copy of it may exist
    /// anywhere. If the outcome of this attempt or an earlier one is unknown, `cause` says why.
    fn failed(&self, reached: bool, cause: Option<&IndeterminateCause>);
}

/// The same bytes in each attempt.
pub(crate) struct StaticBody(pub(crate) Bytes);

impl RequestBody for StaticBody {
    fn next_attempt(&self, _: &Route) -> Bytes {
        self.0.clone()
    }

    fn failed(&self, _: bool, _: Option<&IndeterminateCause>) {}
}

impl Drop for ClientShared {
    fn drop(&mut self) {
        self.tasks.stop().request();
    }
}

impl ClientShared {
    /// How many bytes of items a request may hold now. A reconnect may change it at any time.
    pub(crate) fn budget_bytes(&self) -> usize {
        self.bus.max_payload().saturating_sub(ENVELOPE_BYTES)
    }

    /// The same for a request that names keys or seqs.
    pub(crate) fn query_budget_bytes(&self) -> usize {
        self.budget_bytes().min(MAX_QUERY_BYTES - ENVELOPE_BYTES)
    }

    /// The id of a new change of `subject`, which keeps it until it has ended, and the time that is left of
    /// `deadline` then.
    ///
    /// # Errors
    /// [`Error::Deadline`] if earlier changes of the subject are unresolved until the deadline; and
    /// [`Error::Closed`].
    pub(crate) async fn request_id(
        &self,
        subject: &Subject,
        kind: IdUse,
        deadline: Duration,
    ) -> Result<(HeldId, Duration), Error> {
        let started = self.env.boot();
        let id = tokio::select! {
            biased;
            id = self.request_ids.next(subject, kind) => id,
            () = self.tasks.stop().requested() => return Err(Error::Closed),
            () = tokio::time::sleep(deadline) => return Err(Error::Deadline { deadline, last: None }),
        };
        Ok((id, deadline.saturating_sub(self.env.boot().saturating_sub(started))))
    }

    /// Sends `op` to the server of `subject`, and retries while that is safe and the deadline allows.
    pub(crate) async fn call<R: DeserializeOwned>(
        &self,
        subject: &Subject,
        op: Op,
        request: &(impl Serialize + ?Sized),
        deadline: Duration,
    ) -> Result<R, Error> {
        // The requests of the protocol are maps of plain fields, which always encode.
        let content = StaticBody(encode(request).expect("a request encodes"));
        self.call_with(subject, op, &content, deadline, whole).await
    }

    /// As [`call`](Self::call), for a request whose content may change as long as it was certainly not
    /// executed, or for a reply that is not decoded completely.
    pub(crate) async fn call_with<R>(
        &self,
        subject: &Subject,
        op: Op,
        content: &impl RequestBody,
        deadline: Duration,
        read: ReplyDecoder<R>,
    ) -> Result<R, Error> {
        let started = self.env.boot();
        let elapsed = || self.env.boot().saturating_sub(started);
        let mut attempts = RetryState::new(RetryPolicy::of(op), deadline);
        let mut target = RetryTarget::Known;
        loop {
            let mut asked = None;
            // A closed client returns `Closed` only before a request is sent.
            if self.tasks.stop().is_requested() {
                return Err(attempts.final_error(Error::Closed));
            }
            attempts.attempt_deadline(elapsed())?;
            let failure = match self.server(subject, target, deadline.saturating_sub(elapsed())).await {
                Err(failure) => failure,
                Ok(server) => {
                    let route = self.prefix.server(&server.name, op, subject);
                    let payload = content.next_attempt(&route);
                    // The look-up may have used up the remaining time.
                    let now = elapsed();
                    let headers = time_left_headers(deadline.saturating_sub(now));
                    let message = Outgoing { route, headers, payload };
                    let answer = exchange(&*self.bus, message, attempts.attempt_deadline(now)?, read);
                    match unless_gone(&server, answer).await {
                        Ok(reply) => return Ok(reply),
                        Err(failure) => {
                            if failure.moved() {
                                self.locations.forget(subject, &server);
                            }
                            asked = Some(server);
                            failure
                        }
                    }
                }
            };
            tracing::debug!(%subject, %op, ?failure, "attempt failed");
            let reached = failure.reached_server();
            match attempts.next(failure, elapsed(), || self.env.random_u64()) {
                RetryStep::Fail(error) => return Err(error),
                RetryStep::Retry { pause, target: next } => {
                    content.failed(reached, attempts.indeterminate_cause());
                    if !pause.is_zero() && pause_unless_gone(pause, asked).await {
                        target = RetryTarget::Fresh;
                        continue;
                    }
                    target = next;
                }
            }
        }
    }

    async fn server(
        &self,
        subject: &Subject,
        target: RetryTarget,
        deadline: Duration,
    ) -> Result<Arc<CachedServer>, AttemptError> {
        match target {
            RetryTarget::Hinted(name) => return Ok(self.locations.learn(subject, name)),
            RetryTarget::Known => {
                if let Some(server) = self.locations.known(subject) {
                    return Ok(server);
                }
            }
            RetryTarget::Fresh => {}
        }
        self.locations.ask(subject, deadline).await.map_err(AttemptError::LookUp)
    }

    /// Sends a request to the coordinator, and retries as far as `kind` allows.
    pub(crate) async fn ask_coordinator<R: DeserializeOwned>(
        &self,
        route: Route,
        request: &impl Serialize,
        kind: CoordinatorCall,
    ) -> Result<R, Error> {
        // As in `call`: always encodes.
        let payload = encode(request).expect("a request encodes");
        let started = self.env.boot();
        let elapsed = || self.env.boot().saturating_sub(started);
        let mut attempts = RetryState::new(kind.retry_policy(), self.deadline);
        let mut unanswered = None;
        loop {
            let message = Outgoing::new(route.clone(), payload.clone());
            let attempt_deadline = attempts
                .attempt_deadline(elapsed())
                .map_err(|error| kind.into_indeterminate(error, unanswered.clone()))?;
            let cause = match exchange(&*self.bus, message, attempt_deadline, whole).await {
                Ok(reply) => return Ok(reply),
                Err(cause) => cause,
            };
            if let AttemptCause::Request(error) = &cause
                && error.executed() != Executed::No
            {
                unanswered = Some(error.clone());
            }
            let failure = match kind {
                CoordinatorCall::NonIdempotentOrder => AttemptError::Server(cause),
                CoordinatorCall::Query | CoordinatorCall::Order => AttemptError::LookUp(cause),
            };
            match attempts.next(failure, elapsed(), || self.env.random_u64()) {
                RetryStep::Fail(error) => return Err(kind.into_indeterminate(error, unanswered)),
                RetryStep::Retry { pause, .. } => tokio::time::sleep(pause).await,
            }
        }
    }
}

/// How a request to the coordinator may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CoordinatorCall {
    /// It changes nothing.
    Query,
    /// It changes something, and a repeat has no further effect.
    Order,
    /// It changes something each time it is executed.
    NonIdempotentOrder,
}

impl CoordinatorCall {
    const fn retry_policy(self) -> RetryPolicy {
        match self {
            Self::Query | Self::Order => RetryPolicy::Idempotent,
            Self::NonIdempotentOrder => RetryPolicy::Never,
        }
    }

    /// If an attempt of an order got no reply, the order may have been executed.
    fn into_indeterminate(self, error: Error, unanswered: Option<RequestError>) -> Error {
        match (self, error, unanswered) {
            (Self::Order, Error::Deadline { .. }, Some(unanswered)) => {
                Error::Indeterminate { cause: IndeterminateCause::Unanswered(unanswered) }
            }
            (_, error, _) => error,
        }
    }
}

/// Pauses before the next attempt, but only until the server of the last attempt is announced as gone: the
/// subject then moves to another server. Returns whether that happened.
async fn pause_unless_gone(pause: Duration, asked: Option<Arc<CachedServer>>) -> bool {
    let gone = async {
        match &asked {
            Some(server) => server.gone.requested().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = gone => true,
        () = tokio::time::sleep(pause) => false,
    }
}

/// Waits for the reply of `server`, at most until it is announced as gone.
async fn unless_gone<R>(
    server: &CachedServer,
    answer: impl Future<Output = Result<R, AttemptCause>>,
) -> Result<R, AttemptError> {
    tokio::select! {
        // If a reply and the announcement arrive together, the reply counts.
        biased;
        answer = answer => answer.map_err(AttemptError::Server),
        () = server.gone.requested() => Err(AttemptError::Gone(server.name.clone())),
    }
}
