//! The acknowledgement of a set.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use dormouse_bus::RequestError;
use dormouse_protocol::data::SetResult;
use tokio::sync::oneshot;

use super::writer::Outcome;
use crate::error::{Error, IndeterminateCause};

/// The acknowledgement of one set, to be awaited: where the message is, or why it is not.
///
/// The set is under way already, in the order of the calls; awaiting it is not what sends it. **Dropping this does not take
/// the set back**: it is carried out or not, and nobody hears of it.
///
/// ```no_run
/// # async fn example(stream: dormouse_client::Stream) -> Result<(), dormouse_client::Error> {
/// let first = stream.publish("first");
/// let second = stream.publish("second"); // goes with the first, or after it
/// assert!(first.await?.seq < second.await?.seq);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a set whose acknowledgement is not awaited may fail unnoticed"]
pub struct AckFuture {
    outcome: Waiting,
    /// An expectation that does not hold is about the key that was to be created.
    creates: bool,
}

#[derive(Debug)]
enum Waiting {
    For(oneshot::Receiver<Outcome>),
    Refused(Option<Error>),
}

impl AckFuture {
    pub(crate) const fn new(outcome: oneshot::Receiver<Outcome>) -> Self {
        Self { outcome: Waiting::For(outcome), creates: false }
    }

    /// Of a set that was not even queued.
    pub(crate) const fn refused(error: Error) -> Self {
        Self { outcome: Waiting::Refused(Some(error)), creates: false }
    }

    pub(crate) const fn of_create(mut self) -> Self {
        self.creates = true;
        self
    }
}

/// What has become of sets whose writer ended without a word, which it does when its runtime is shut down.
pub(crate) fn unheard() -> Error {
    Error::Indeterminate { cause: IndeterminateCause::Unanswered(RequestError::Closed { sent: true }) }
}

impl Future for AckFuture {
    type Output = Result<SetResult, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.outcome {
            Waiting::Refused(error) => Err(error.take().unwrap_or(Error::NotSent)),
            Waiting::For(outcome) => {
                std::task::ready!(Pin::new(outcome).poll(cx)).unwrap_or_else(|_| Err(unheard()))
            }
        };
        // One set, one result: the flight has counted them.
        let result = outcome.and_then(|mut results| results.pop().unwrap_or(Err(Error::NotSent)));
        Poll::Ready(match result {
            Err(Error::WrongLast { actual }) if self.creates => Err(Error::KeyExists { actual }),
            result => result,
        })
    }
}
