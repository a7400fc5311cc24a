//! Whether and how a call is retried after a failed attempt: a pure machine without clock, randomness or I/O.
//!
//! | failure | a read | a change with a request id | a change without |
//! |---|---|---|---|
//! | the look-up | back off, look up again | the same: nothing was sent | the same |
//! | no responders, `not_owner` | ask the coordinator, or follow the hint | the same: nothing was executed | the same |
//! | `unavailable`, `overloaded` | back off, retry | the same: nothing was executed | the same |
//! | no reply in time | ask the coordinator, retry | the same | indeterminate |
//! | the server is announced as gone | ask the coordinator, retry | the same | indeterminate |
//! | `forgotten` | | fail at once | |
//! | `indeterminate` | | back off, ask the coordinator, retry | indeterminate |
//! | no time is left | deadline exceeded | the same; indeterminate after an attempt with unknown outcome | the same: nothing was sent |
//!
//! A server executes a request with an id at most once and sends the same reply to a repeat. So a repeat is
//! safe and returns the lost reply. Every change of a subject has an id. An order to the coordinator that is
//! not idempotent has none: it is never repeated after an unknown outcome, so its only attempt waits until
//! the call's deadline. Other requests give each attempt a part of it.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use dormouse_bus::RequestError;
use dormouse_protocol::codec::DecodeError;
use dormouse_protocol::{ErrorCode, ErrorReply, Executed, Op, RetryAdvice, ServerName};

use crate::error::{Error, IndeterminateCause, MalformedCause};

/// The shortest time that an attempt of a read waits for its reply. It doubles after each unanswered attempt,
/// since opening a dormant subject may take longer.
pub(crate) const FIRST_TRY: Duration = Duration::from_secs(1);

/// The same for a change, which must reach the bucket: a slow change is not sent twice.
pub(crate) const FIRST_TRY_OF_CHANGE: Duration = Duration::from_secs(2);

/// The first pause before another attempt. Jitter is added.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The longest pause before another attempt. A failover without an announcement is detected at most this
/// late.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How many hints of servers the client follows in a row. It bounds a loop of servers that name each other.
const HINTS_FOLLOWED: u32 = 2;

/// How a call may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryPolicy {
    /// A read: repeated freely, and a slow attempt is replaced by another.
    Idempotent,
    /// Repeated freely, but expected to take long: each attempt waits until the call's deadline.
    LongRead,
    /// A change with a request id: executed once, however often it is sent.
    ByRequestId,
    /// Never repeated after an unknown outcome.
    Never,
}

impl RetryPolicy {
    pub(crate) const fn of(op: Op) -> Self {
        match op {
            Op::Flush => Self::LongRead,
            // All of these are idempotent.
            Op::UploadBegin | Op::UploadChunk | Op::UploadFinish | Op::UploadCancel => Self::Idempotent,
            op if op.changes() => Self::ByRequestId,
            _ => Self::Idempotent,
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, Clone)]
pub(crate) enum AttemptCause {
    /// No reply came.
    Request(RequestError),
    /// The reply is an error.
    Reply(Box<ErrorReply>),
    /// The reply is malformed.
    Malformed(Arc<DecodeError>),
}

impl AttemptCause {
    /// The shortest pause that the reply requests.
    fn retry_after(&self) -> Duration {
        match self {
            Self::Reply(reply) => Duration::from_millis(reply.retry_after_ms.unwrap_or(0)),
            Self::Request(_) | Self::Malformed(_) => Duration::ZERO,
        }
    }

    fn into_error(self) -> Error {
        match self {
            Self::Request(error) => Error::from_request(error),
            Self::Reply(reply) => Error::from_reply(*reply),
            Self::Malformed(error) => Error::Malformed { cause: MalformedCause::Decode(error) },
        }
    }
}

/// Which step of an attempt failed.
#[derive(Debug, Clone)]
pub(crate) enum AttemptError {
    /// The look-up at the coordinator failed. Nothing was sent to any server.
    LookUp(AttemptCause),
    /// The server did not execute it, as far as is known.
    Server(AttemptCause),
    /// The server was announced as gone before it replied.
    Gone(ServerName),
}

impl AttemptError {
    /// The shortest pause that the reply requests.
    fn retry_after(&self) -> Duration {
        match self {
            Self::LookUp(cause) | Self::Server(cause) => cause.retry_after(),
            Self::Gone(_) => Duration::ZERO,
        }
    }

    /// Whether a server may have received the request.
    pub(crate) fn reached_server(&self) -> bool {
        match self {
            Self::LookUp(_) => false,
            Self::Server(AttemptCause::Request(error)) => error.executed() != Executed::No,
            Self::Gone(_) | Self::Server(AttemptCause::Reply(_) | AttemptCause::Malformed(_)) => true,
        }
    }

    /// Whether the subject has probably moved to another server.
    pub(crate) fn moved(&self) -> bool {
        match self {
            Self::LookUp(_) => false,
            Self::Gone(_) => true,
            Self::Server(AttemptCause::Request(error)) => {
                matches!(error, RequestError::NoResponders(_) | RequestError::Deadline { .. })
            }
            Self::Server(AttemptCause::Reply(reply)) => reply.retry() == RetryAdvice::AskCoordinator,
            Self::Server(AttemptCause::Malformed(_)) => false,
        }
    }
}

/// The server of the next attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RetryTarget {
    /// The cached one.
    Known,
    /// The one from a new look-up at the coordinator.
    Fresh,
    /// This one.
    Hinted(ServerName),
}

/// The next step of a call after a failed attempt.
#[derive(Debug)]
pub(crate) enum RetryStep {
    /// Retry after a pause.
    Retry {
        /// How long to wait before.
        pause: Duration,
        /// The server to send to.
        target: RetryTarget,
    },
    /// Give up.
    Fail(Error),
}

/// A [`RetryStep`] before the deadline is checked.
enum RetryDecision {
    Fail(Error),
    Again { pause: Duration, target: RetryTarget, why: Error },
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct RetryState {
    policy: RetryPolicy,
    deadline: Duration,
    unanswered: u32,
    /// Why the outcome of an earlier attempt is unknown. Only a reply to the request itself resolves it.
    unknown_cause: Option<IndeterminateCause>,
    /// Why the last attempt failed.
    last: Option<Error>,
    hints: u32,
    relocated: bool,
    // Most calls need no pause, and a seed costs a system call: generated on first use.
    backoff: Option<ExponentialBackoff>,
}

impl RetryState {
    pub(crate) const fn new(policy: RetryPolicy, deadline: Duration) -> Self {
        Self {
            policy,
            deadline,
            unanswered: 0,
            unknown_cause: None,
            last: None,
            hints: 0,
            relocated: false,
            backoff: None,
        }
    }

    /// How long an attempt that starts now may wait for its reply.
    ///
    /// # Errors
    /// [`Error::Deadline`] if no time is left: a request sent now could be executed without the caller's
    /// knowledge. [`Error::Indeterminate`] if the outcome of an earlier attempt is unknown.
    pub(crate) fn attempt_deadline(&self, elapsed: Duration) -> Result<Duration, Error> {
        let remaining = self.deadline.saturating_sub(elapsed);
        if remaining.is_zero() {
            return Err(self.out_of_time(None));
        }
        let doubled = |first: Duration| remaining.min(first.saturating_mul(1 << self.unanswered.min(16)));
        Ok(match self.policy {
            RetryPolicy::Idempotent => doubled(FIRST_TRY),
            RetryPolicy::ByRequestId => doubled(FIRST_TRY_OF_CHANGE),
            RetryPolicy::LongRead | RetryPolicy::Never => remaining,
        })
    }

    /// Decides after a failed attempt. `seed` is called at most once per call.
    pub(crate) fn next(
        &mut self,
        failure: AttemptError,
        elapsed: Duration,
        seed: impl FnOnce() -> u64,
    ) -> RetryStep {
        let at_least = failure.retry_after();
        match self.decide(failure, seed) {
            RetryDecision::Fail(error) => RetryStep::Fail(error),
            RetryDecision::Again { pause, target, why } => {
                let remaining = self.deadline.saturating_sub(elapsed);
                if remaining.is_zero() {
                    return RetryStep::Fail(self.out_of_time(Some(why)));
                }
                self.last = Some(why);
                RetryStep::Retry { pause: fit(pause, at_least, remaining), target }
            }
        }
    }

    /// The error of a call that has no time left; `last` is the error of its last attempt.
    fn out_of_time(&self, last: Option<Error>) -> Error {
        match &self.unknown_cause {
            Some(cause) => Error::Indeterminate { cause: cause.clone() },
            None => {
                let last = last.or_else(|| self.last.clone()).map(Box::new);
                Error::Deadline { deadline: self.deadline, last }
            }
        }
    }

    /// Why the outcome of the attempts so far is unknown, if it is.
    pub(crate) const fn indeterminate_cause(&self) -> Option<&IndeterminateCause> {
        self.unknown_cause.as_ref()
    }

    /// The error of a call that ends with `error`: an earlier attempt may have been executed all the same.
    pub(crate) fn final_error(&self, error: Error) -> Error {
        match &self.unknown_cause {
            Some(cause) => Error::Indeterminate { cause: cause.clone() },
            None => error,
        }
    }

    fn decide(&mut self, failure: AttemptError, seed: impl FnOnce() -> u64) -> RetryDecision {
        match failure {
            AttemptError::LookUp(cause) => self.after_look_up(cause, seed),
            AttemptError::Gone(server) => self.after_gone(server),
            AttemptError::Server(AttemptCause::Request(error)) => self.after_request(error, seed),
            AttemptError::Server(AttemptCause::Reply(reply)) => self.after_reply(*reply, seed),
            AttemptError::Server(AttemptCause::Malformed(error)) => RetryDecision::Fail(match self.policy {
                RetryPolicy::Never | RetryPolicy::ByRequestId => Error::Indeterminate {
                    cause: IndeterminateCause::Malformed(MalformedCause::Decode(error)),
                },
                RetryPolicy::Idempotent | RetryPolicy::LongRead => {
                    AttemptCause::Malformed(error).into_error()
                }
            }),
        }
    }

    fn after_look_up(&mut self, cause: AttemptCause, seed: impl FnOnce() -> u64) -> RetryDecision {
        let again = match &cause {
            // A look-up is no change, so it does not matter whether the coordinator received it.
            AttemptCause::Request(error) => matches!(
                error,
                RequestError::NoResponders(_) | RequestError::Deadline { .. } | RequestError::Disconnected
            ),
            AttemptCause::Reply(reply) => reply.retry() != RetryAdvice::Never,
            AttemptCause::Malformed(_) => false,
        };
        let pause = cause.retry_after();
        let why = match cause {
            // Regardless of the outcome of the look-up, the call itself was not sent.
            AttemptCause::Reply(reply) if reply.executed() != Executed::No => Error::Coordinator(reply),
            other => other.into_error(),
        };
        if !again {
            return RetryDecision::Fail(self.final_error(why));
        }
        RetryDecision::Again { pause: self.pause(pause, seed), target: RetryTarget::Fresh, why }
    }

    fn after_gone(&mut self, server: ServerName) -> RetryDecision {
        if self.policy == RetryPolicy::ByRequestId {
            self.unknown_cause = Some(IndeterminateCause::ServerGone(server.clone()));
        }
        match self.policy {
            RetryPolicy::Never => {
                RetryDecision::Fail(Error::Indeterminate { cause: IndeterminateCause::ServerGone(server) })
            }
            RetryPolicy::Idempotent | RetryPolicy::LongRead | RetryPolicy::ByRequestId => {
                RetryDecision::Again {
                    pause: Duration::ZERO,
                    target: RetryTarget::Fresh,
                    why: Error::from_reply(ErrorReply::unavailable(format!("server {server} is gone"))),
                }
            }
        }
    }

    fn after_request(&mut self, error: RequestError, seed: impl FnOnce() -> u64) -> RetryDecision {
        if error.executed() != Executed::No {
            return match self.policy {
                RetryPolicy::Never => {
                    RetryDecision::Fail(Error::Indeterminate { cause: IndeterminateCause::Unanswered(error) })
                }
                RetryPolicy::Idempotent | RetryPolicy::LongRead | RetryPolicy::ByRequestId => {
                    self.unanswered += 1;
                    if let RequestError::Closed { .. } = error {
                        let cause = IndeterminateCause::Unanswered(error);
                        return RetryDecision::Fail(match self.policy {
                            RetryPolicy::ByRequestId => Error::Indeterminate { cause },
                            _ => Error::Closed,
                        });
                    }
                    if self.policy == RetryPolicy::ByRequestId {
                        self.unknown_cause = Some(IndeterminateCause::Unanswered(error.clone()));
                    }
                    // The wait for the reply was the pause.
                    RetryDecision::Again {
                        pause: Duration::ZERO,
                        target: RetryTarget::Fresh,
                        why: Error::from_request(error),
                    }
                }
            };
        }
        match error {
            RequestError::NoResponders(_) => {
                let pause = self.relocation_pause(seed);
                RetryDecision::Again { pause, target: RetryTarget::Fresh, why: Error::from_request(error) }
            }
            RequestError::Disconnected => {
                let pause = self.pause(Duration::ZERO, seed);
                RetryDecision::Again { pause, target: RetryTarget::Known, why: Error::from_request(error) }
            }
            fatal => RetryDecision::Fail(self.final_error(Error::from_request(fatal))),
        }
    }

    fn after_reply(&mut self, reply: ErrorReply, seed: impl FnOnce() -> u64) -> RetryDecision {
        let (pause, target) = match (&reply.code, reply.retry()) {
            // The previous owner cannot know the outcome; the current owner may.
            (ErrorCode::Indeterminate, _) if self.policy == RetryPolicy::ByRequestId => {
                self.unknown_cause = Some(IndeterminateCause::Reported(Box::new(reply.clone())));
                (self.pause(Duration::ZERO, seed), RetryTarget::Fresh)
            }
            // No other server remembers it either.
            (ErrorCode::Forgotten, _) => return RetryDecision::Fail(Error::from_reply(reply)),
            // The server did not find the request in the dedup window and then rejected it for its content;
            // or it would have rejected it at any time.
            (
                ErrorCode::WrongLast
                | ErrorCode::KeyExists
                | ErrorCode::LimitExceeded
                | ErrorCode::BadRequest
                | ErrorCode::TooLarge
                | ErrorCode::UnknownUpload
                | ErrorCode::Unsupported
                | ErrorCode::UnsupportedVersion,
                _,
            ) => return RetryDecision::Fail(Error::from_reply(reply)),
            (_, RetryAdvice::Never) => {
                return RetryDecision::Fail(self.final_error(Error::from_reply(reply)));
            }
            (ErrorCode::NotOwner, _) => match &reply.owner {
                Some(owner) if self.hints < HINTS_FOLLOWED => {
                    self.hints += 1;
                    (Duration::ZERO, RetryTarget::Hinted(owner.clone()))
                }
                _ => {
                    self.hints = 0;
                    (self.relocation_pause(seed), RetryTarget::Fresh)
                }
            },
            // The failure may affect this server or all of them: the coordinator knows first.
            (ErrorCode::Unavailable, _) | (_, RetryAdvice::AskCoordinator) => {
                (self.pause(Duration::ZERO, seed), RetryTarget::Fresh)
            }
            (_, RetryAdvice::SameServer | RetryAdvice::AfterBackoff) => {
                let retry_after = Duration::from_millis(reply.retry_after_ms.unwrap_or(0));
                (self.pause(retry_after, seed), RetryTarget::Known)
            }
        };
        RetryDecision::Again { pause, target, why: Error::from_reply(reply) }
    }

    /// The first relocation needs no pause, since it is the usual way to learn that a subject has moved.
    fn relocation_pause(&mut self, seed: impl FnOnce() -> u64) -> Duration {
        if std::mem::replace(&mut self.relocated, true) {
            self.pause(Duration::ZERO, seed)
        } else {
            Duration::ZERO
        }
    }

    fn pause(&mut self, at_least: Duration, seed: impl FnOnce() -> u64) -> Duration {
        let backoff = self.backoff.get_or_insert_with(|| {
            ExponentialBuilder::new()
                .with_min_delay(FIRST_PAUSE)
                .with_max_delay(LONGEST_PAUSE)
                .without_max_times()
                .with_jitter()
                .with_jitter_seed(seed())
                .build()
        });
        backoff.next().unwrap_or(LONGEST_PAUSE).max(at_least)
    }
}

/// The pause within the `remaining` time. Its own length gives way to one more attempt; what the server asks for,
/// `at_least`, does not: then the call waits for its deadline, or for an announcement that the subject moves.
fn fit(pause: Duration, at_least: Duration, remaining: Duration) -> Duration {
    if pause < remaining {
        return pause;
    }
    let half = remaining / 2;
    if half < FIRST_PAUSE || at_least > half { remaining } else { half }
}

#[cfg(test)]
mod tests;
