//! How one call is made: find the server, ask it, and do what the machine in [`retry`](crate::retry) decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Outgoing, RequestError};
use dormouse_protocol::limits::ENVELOPE_BYTES;
use dormouse_protocol::{Happened, Op, Prefix, RequestId, Route, SessionId, Subject, encode};
use dormouse_runtime::{Env, Tasks};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, IndeterminateCause};
use crate::exchange::{Read, exchange, whole};
use crate::gets::Lanes;
use crate::location::{Locations, Server};
use crate::retry::{Failure, Next, Refusal, Repeat, Target, Tries};
use crate::sets::Writers;

/// What all clones and handles of a client share.
pub(crate) struct Inner {
    pub(crate) bus: Arc<dyn Bus>,
    // Only if the connection was made by this client: it ends with it.
    pub(crate) bus_tasks: Option<Tasks>,
    pub(crate) prefix: Prefix,
    pub(crate) deadline: Duration,
    pub(crate) env: Env,
    pub(crate) locations: Locations,
    pub(crate) tasks: Tasks,
    pub(crate) session: SessionId,
    pub(crate) counter: AtomicU64,
    pub(crate) writers: Writers,
    pub(crate) lanes: Lanes,
}

/// What a call sends.
pub(crate) trait Content: Sync {
    /// The bytes of the try that is about to be sent to `route`. The same as of the try before, unless that one is known
    /// not to have been carried out.
    fn next_try(&self, route: &Route) -> Bytes;

    /// The try has failed and there may be another; `doubt` says why it is not known what became of this one or an
    /// earlier one, if it is not.
    fn failed(&self, doubt: Option<&IndeterminateCause>);
}

/// The same bytes each time.
pub(crate) struct Fixed(pub(crate) Bytes);

impl Content for Fixed {
    fn next_try(&self, _: &Route) -> Bytes {
        self.0.clone()
    }

    fn failed(&self, _: Option<&IndeterminateCause>) {}
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.stop().give();
    }
}

impl Inner {
    /// How many bytes of items a request may hold now. A reconnect may change it at any time.
    pub(crate) fn budget_bytes(&self) -> usize {
        self.bus.max_payload().saturating_sub(ENVELOPE_BYTES)
    }

    /// Names the next changing request.
    pub(crate) fn next_request(&self) -> RequestId {
        RequestId { session: self.session, counter: self.counter.fetch_add(1, Ordering::Relaxed) }
    }

    /// Asks the server of `subject` for `op`, as often as it takes and is safe.
    pub(crate) async fn call<R: DeserializeOwned>(
        &self,
        subject: &Subject,
        op: Op,
        request: &(impl Serialize + ?Sized),
        deadline: Duration,
    ) -> Result<R, Error> {
        // The requests of the protocol are maps of plain fields, which always encode.
        let content = Fixed(encode(request).expect("a request encodes"));
        self.call_with(subject, op, &content, deadline, whole).await
    }

    /// As [`call`](Self::call), for a request that may change as long as it was certainly not carried out, or a reply
    /// that is not read whole.
    pub(crate) async fn call_with<R>(
        &self,
        subject: &Subject,
        op: Op,
        content: &impl Content,
        deadline: Duration,
        read: Read<R>,
    ) -> Result<R, Error> {
        let started = self.env.boot();
        let elapsed = || self.env.boot().saturating_sub(started);
        let mut tries = Tries::new(Repeat::of(op), deadline);
        let mut target = Target::Known;
        loop {
            let mut asked = None;
            // Only before a request is sent does a closed client mean that nothing happens.
            if self.tasks.stop().is_given() {
                return Err(tries.given_up(Error::Closed));
            }
            tries.try_deadline(elapsed())?;
            let failure = match self.server(subject, target, deadline.saturating_sub(elapsed())).await {
                Err(failure) => failure,
                Ok(server) => {
                    let route = self.prefix.server(&server.name, op, subject);
                    let payload = content.next_try(&route);
                    let message = Outgoing::new(route, payload);
                    // The look-up may have taken all the time there was.
                    let answer = exchange(&*self.bus, message, tries.try_deadline(elapsed())?, read);
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
            tracing::debug!(%subject, %op, ?failure, "a try failed");
            match tries.next(failure, elapsed(), || self.env.random_u64()) {
                Next::Fail(error) => return Err(error),
                Next::Retry { pause, target: next } => {
                    content.failed(tries.doubt());
                    if !pause.is_zero() && pause_unless_gone(pause, asked).await {
                        target = Target::Fresh;
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
        target: Target,
        deadline: Duration,
    ) -> Result<Arc<Server>, Failure> {
        match target {
            Target::Hinted(name) => return Ok(self.locations.learn(subject, name)),
            Target::Known => {
                if let Some(server) = self.locations.known(subject) {
                    return Ok(server);
                }
            }
            Target::Fresh => {}
        }
        self.locations.ask(subject, deadline).await.map_err(Failure::LookUp)
    }

    /// Asks the coordinator, as often as it takes and `asking` allows.
    pub(crate) async fn ask_coordinator<R: DeserializeOwned>(
        &self,
        route: Route,
        request: &impl Serialize,
        asking: Asking,
    ) -> Result<R, Error> {
        // As in `call`.
        let payload = encode(request).expect("a request encodes");
        let started = self.env.boot();
        let elapsed = || self.env.boot().saturating_sub(started);
        let mut tries = Tries::new(asking.repeat(), self.deadline);
        let mut unanswered = None;
        loop {
            let message = Outgoing::new(route.clone(), payload.clone());
            let try_deadline =
                tries.try_deadline(elapsed()).map_err(|error| asking.in_doubt(error, unanswered.clone()))?;
            let refusal = match exchange(&*self.bus, message, try_deadline, whole).await {
                Ok(reply) => return Ok(reply),
                Err(refusal) => refusal,
            };
            if let Refusal::Request(error) = &refusal
                && error.happened() != Happened::No
            {
                unanswered = Some(error.clone());
            }
            let failure = match asking {
                Asking::OrderOnce => Failure::Server(refusal),
                Asking::Question | Asking::Order => Failure::LookUp(refusal),
            };
            match tries.next(failure, elapsed(), || self.env.random_u64()) {
                Next::Fail(error) => return Err(asking.in_doubt(error, unanswered)),
                Next::Retry { pause, .. } => tokio::time::sleep(pause).await,
            }
        }
    }
}

/// What repeating a request to the coordinator means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asking {
    /// It changes nothing.
    Question,
    /// It changes something, and means the same however often it is said.
    Order,
    /// It changes something each time it is said.
    OrderOnce,
}

impl Asking {
    const fn repeat(self) -> Repeat {
        match self {
            Self::Question | Self::Order => Repeat::Freely,
            Self::OrderOnce => Repeat::Never,
        }
    }

    /// An order that was given up after one of its tries got no answer may have been heard.
    fn in_doubt(self, error: Error, unanswered: Option<RequestError>) -> Error {
        match (self, error, unanswered) {
            (Self::Order, Error::Deadline { .. }, Some(unanswered)) => {
                Error::Indeterminate { cause: IndeterminateCause::Unanswered(unanswered) }
            }
            (_, error, _) => error,
        }
    }
}

/// Pauses before another try, but only until the server that failed the last one is announced as gone: then there is
/// somebody else to ask. Whether that was so.
async fn pause_unless_gone(pause: Duration, asked: Option<Arc<Server>>) -> bool {
    let gone = async {
        match &asked {
            Some(server) => server.gone.given().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = gone => true,
        () = tokio::time::sleep(pause) => false,
    }
}

/// Waits for the answer of `server`, but no longer than until it is announced as gone.
async fn unless_gone<R>(
    server: &Server,
    answer: impl Future<Output = Result<R, Refusal>>,
) -> Result<R, Failure> {
    tokio::select! {
        // An answer that came with the announcement is still an answer.
        biased;
        answer = answer => answer.map_err(Failure::Server),
        () = server.gone.given() => Err(Failure::Gone(server.name.clone())),
    }
}
