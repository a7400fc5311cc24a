//! The acknowledgement of a set.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use dormouse_bus::RequestError;
use dormouse_protocol::data::SetResult;
use tokio::sync::oneshot;

use super::scheduler::SetsOutcome;
use crate::error::{Error, IndeterminateCause};

/// The acknowledgement of one set, to be awaited: the id of the message, or the error.
///
/// The set is already queued, in call order; it is sent without an await. **Dropping this does not cancel the
/// set**: the set may or may not be executed, and its outcome is lost.
///
/// ```no_run
/// # async fn example(stream: dormouse_client::Stream) -> Result<(), dormouse_client::Error> {
/// let first = stream.publish("first");
/// let second = stream.publish("second"); // sent with the first, or after it
/// assert!(first.await?.seq < second.await?.seq);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a set whose acknowledgement is not awaited may fail unnoticed"]
pub struct AckFuture {
    outcome: AckState,
    /// The set creates a key: a failed expectation means that the key exists.
    creates: bool,
}

#[derive(Debug)]
enum AckState {
    For(oneshot::Receiver<SetsOutcome>),
    Rejected(Option<Error>),
}

impl AckFuture {
    pub(crate) const fn new(outcome: oneshot::Receiver<SetsOutcome>) -> Self {
        Self { outcome: AckState::For(outcome), creates: false }
    }

    /// Of a set that was not queued.
    pub(crate) const fn rejected(error: Error) -> Self {
        Self { outcome: AckState::Rejected(Some(error)), creates: false }
    }

    pub(crate) const fn of_create(mut self) -> Self {
        self.creates = true;
        self
    }
}

/// The outcome of sets whose sender task ended without a result, which happens when its runtime shuts down.
pub(crate) fn sender_gone() -> Error {
    Error::Indeterminate { cause: IndeterminateCause::Unanswered(RequestError::Closed { sent: true }) }
}

impl Future for AckFuture {
    type Output = Result<SetResult, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.outcome {
            AckState::Rejected(error) => Err(error.take().unwrap_or(Error::NotSent)),
            AckState::For(outcome) => {
                std::task::ready!(Pin::new(outcome).poll(cx)).unwrap_or_else(|_| Err(sender_gone()))
            }
        };
        // One set, one result: the group has checked the number.
        let result = outcome.and_then(|mut results| results.pop().unwrap_or(Err(Error::NotSent)));
        Poll::Ready(match result {
            Err(Error::WrongLast { actual }) if self.creates => Err(Error::KeyExists { actual }),
            result => result,
        })
    }
}
