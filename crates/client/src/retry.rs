//! Whether and how a call goes on after a try has failed: a pure machine without clock, chance or I/O.
//!
//! | what failed | a read | a change with a request id | a change without |
//! |---|---|---|---|
//! | the look-up | back off, ask again | the same: nothing was sent | the same |
//! | nobody answers, `not_owner` | ask the coordinator, or follow the hint | the same: nothing happened | the same |
//! | `unavailable`, `overloaded` | back off, try again | the same: nothing happened | the same |
//! | no answer in time | ask the coordinator, try again | the same | indeterminate |
//! | the server is gone meanwhile | ask the coordinator, try again | the same | indeterminate |
//! | `indeterminate` | | back off, ask the coordinator, try again | indeterminate |
//! | no time is left | the deadline has passed | the same; indeterminate after a try whose outcome is not known | the same: nothing was sent |
//!
//! A server carries a request with an id out at most once and answers its repeat as it answered it the first time, so a
//! repeat does no harm and brings the answer that was lost. Every change of a subject has an id. An order to the
//! coordinator that means something else each time it is said has none: it is never repeated after an unknown outcome, so
//! its only try waits until the call's deadline; the others give each try a part of it.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use dormouse_bus::RequestError;
use dormouse_protocol::codec::DecodeError;
use dormouse_protocol::{ErrorCode, ErrorReply, Happened, Op, Retry, ServerName};

use crate::error::{Error, IndeterminateCause, MalformedCause};

/// The shortest time a try of a read waits for its answer; doubled each time no answer came, since a sleeping
/// subject may take longer to wake up than this.
pub(crate) const FIRST_TRY: Duration = Duration::from_secs(1);

/// The same of a change, which has to reach the bucket: what is only slow is not to be sent twice.
pub(crate) const FIRST_TRY_OF_CHANGE: Duration = Duration::from_secs(2);

/// The first pause before another try. Jitter comes on top.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The longest pause before another try: a failover of which no announcement is heard is noticed this late at worst.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How many times in a row the hint of a server is followed. Servers that name each other must not keep us running
/// in a circle.
const HINTS_FOLLOWED: u32 = 2;

/// How a call may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// A read: repeated freely, and a try that is slow is given up for another.
    Freely,
    /// Repeated freely, but expected to take long: each try waits until the call's deadline.
    Patiently,
    /// A change that carries a request id: it is carried out once however often it is sent.
    ById,
    /// Never after an outcome that is not known.
    Never,
}

impl Repeat {
    pub(crate) const fn of(op: Op) -> Self {
        match op {
            Op::Flush => Self::Patiently,
            // Each means the same however often it is said.
            Op::UploadBegin | Op::UploadChunk | Op::UploadFinish | Op::UploadCancel => Self::Freely,
            op if op.changes() => Self::ById,
            _ => Self::Freely,
        }
    }
}

/// Why a party did not do what it was asked.
#[derive(Debug, Clone)]
pub(crate) enum Refusal {
    /// No answer came.
    Request(RequestError),
    /// The answer is an error.
    Reply(Box<ErrorReply>),
    /// The answer cannot be understood.
    Malformed(Arc<DecodeError>),
}

impl Refusal {
    /// How long the party asked us to stay away.
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

/// How a try failed.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// The coordinator did not tell which server to ask. Nothing was sent to any.
    LookUp(Refusal),
    /// The server did not do it, as far as is known.
    Server(Refusal),
    /// The server was announced as gone before it answered.
    Gone(ServerName),
}

impl Failure {
    /// Whether the server that was asked is probably no longer the right one.
    pub(crate) fn moved(&self) -> bool {
        match self {
            Self::LookUp(_) => false,
            Self::Gone(_) => true,
            Self::Server(Refusal::Request(error)) => {
                matches!(error, RequestError::NoResponders(_) | RequestError::Deadline { .. })
            }
            Self::Server(Refusal::Reply(reply)) => reply.retry() == Retry::AskCoordinator,
            Self::Server(Refusal::Malformed(_)) => false,
        }
    }
}

/// Which server the next try asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The one that is believed to serve the subject.
    Known,
    /// The one that the coordinator names when asked again.
    Fresh,
    /// This one.
    Hinted(ServerName),
}

/// What a call does after a try has failed.
#[derive(Debug)]
pub(crate) enum Next {
    /// Try again after a pause.
    Retry {
        /// How long to wait before.
        pause: Duration,
        /// Whom to ask.
        target: Target,
    },
    /// Give up.
    Fail(Error),
}

/// A [`Next`] before the deadline has been looked at.
enum Decision {
    Fail(Error),
    Again { pause: Duration, target: Target, why: Error },
}

/// The tries of one call.
#[derive(Debug)]
pub(crate) struct Tries {
    repeat: Repeat,
    deadline: Duration,
    unanswered: u32,
    /// Why it is not known what became of an earlier try. Nothing but an answer to the request itself settles that.
    doubt: Option<IndeterminateCause>,
    hints: u32,
    relocated: bool,
    // Most calls need no pause, and a seed costs a system call: drawn when first needed.
    backoff: Option<ExponentialBackoff>,
}

impl Tries {
    pub(crate) const fn new(repeat: Repeat, deadline: Duration) -> Self {
        Self { repeat, deadline, unanswered: 0, doubt: None, hints: 0, relocated: false, backoff: None }
    }

    /// How long a try that starts now may wait for its answer.
    ///
    /// # Errors
    /// [`Error::Deadline`] when no time is left: what is sent then may be carried out and nobody hears of it.
    /// [`Error::Indeterminate`] when that has happened already.
    pub(crate) fn try_deadline(&self, elapsed: Duration) -> Result<Duration, Error> {
        let remaining = self.deadline.saturating_sub(elapsed);
        if remaining.is_zero() {
            return Err(self.out_of_time(None));
        }
        let doubled = |first: Duration| remaining.min(first.saturating_mul(1 << self.unanswered.min(16)));
        Ok(match self.repeat {
            Repeat::Freely => doubled(FIRST_TRY),
            Repeat::ById => doubled(FIRST_TRY_OF_CHANGE),
            Repeat::Patiently | Repeat::Never => remaining,
        })
    }

    /// Decides after a try that failed. `seed` is asked for at most once per call.
    pub(crate) fn next(&mut self, failure: Failure, elapsed: Duration, seed: impl FnOnce() -> u64) -> Next {
        match self.decide(failure, seed) {
            Decision::Fail(error) => Next::Fail(error),
            Decision::Again { pause, target, why } => {
                if elapsed.saturating_add(pause) >= self.deadline {
                    Next::Fail(self.out_of_time(Some(why)))
                } else {
                    Next::Retry { pause, target }
                }
            }
        }
    }

    /// What a call comes to that has no time left; `last` is how its last try failed.
    fn out_of_time(&self, last: Option<Error>) -> Error {
        match &self.doubt {
            Some(cause) => Error::Indeterminate { cause: cause.clone() },
            None => Error::Deadline { deadline: self.deadline, last: last.map(Box::new) },
        }
    }

    /// Why it is not known what became of the tries so far, if it is not.
    pub(crate) const fn doubt(&self) -> Option<&IndeterminateCause> {
        self.doubt.as_ref()
    }

    /// What a call comes to that is given up with `error`: an earlier try may have been carried out all the same.
    pub(crate) fn given_up(&self, error: Error) -> Error {
        match &self.doubt {
            Some(cause) => Error::Indeterminate { cause: cause.clone() },
            None => error,
        }
    }

    fn decide(&mut self, failure: Failure, seed: impl FnOnce() -> u64) -> Decision {
        match failure {
            Failure::LookUp(refusal) => self.after_look_up(refusal, seed),
            Failure::Gone(server) => self.after_gone(server),
            Failure::Server(Refusal::Request(error)) => self.after_request(error, seed),
            Failure::Server(Refusal::Reply(reply)) => self.after_reply(*reply, seed),
            Failure::Server(Refusal::Malformed(error)) => Decision::Fail(match self.repeat {
                Repeat::Never | Repeat::ById => Error::Indeterminate {
                    cause: IndeterminateCause::Malformed(MalformedCause::Decode(error)),
                },
                Repeat::Freely | Repeat::Patiently => Refusal::Malformed(error).into_error(),
            }),
        }
    }

    fn after_look_up(&mut self, refusal: Refusal, seed: impl FnOnce() -> u64) -> Decision {
        let again = match &refusal {
            // Asking is no change, so it does not matter whether the coordinator heard us.
            Refusal::Request(error) => matches!(
                error,
                RequestError::NoResponders(_) | RequestError::Deadline { .. } | RequestError::Disconnected
            ),
            Refusal::Reply(reply) => reply.retry() != Retry::Never,
            Refusal::Malformed(_) => false,
        };
        let pause = refusal.retry_after();
        let why = match refusal {
            // Whatever became of the question, the call itself was not sent.
            Refusal::Reply(reply) if reply.happened() != Happened::No => Error::Coordinator(reply),
            other => other.into_error(),
        };
        if !again {
            return Decision::Fail(self.given_up(why));
        }
        Decision::Again { pause: self.pause(pause, seed), target: Target::Fresh, why }
    }

    fn after_gone(&mut self, server: ServerName) -> Decision {
        if self.repeat == Repeat::ById {
            self.doubt = Some(IndeterminateCause::ServerGone(server.clone()));
        }
        match self.repeat {
            Repeat::Never => {
                Decision::Fail(Error::Indeterminate { cause: IndeterminateCause::ServerGone(server) })
            }
            Repeat::Freely | Repeat::Patiently | Repeat::ById => Decision::Again {
                pause: Duration::ZERO,
                target: Target::Fresh,
                why: Error::from_reply(ErrorReply::unavailable(format!("the server {server} is gone"))),
            },
        }
    }

    fn after_request(&mut self, error: RequestError, seed: impl FnOnce() -> u64) -> Decision {
        if error.happened() != Happened::No {
            return match self.repeat {
                Repeat::Never => {
                    Decision::Fail(Error::Indeterminate { cause: IndeterminateCause::Unanswered(error) })
                }
                Repeat::Freely | Repeat::Patiently | Repeat::ById => {
                    self.unanswered += 1;
                    if let RequestError::Closed { .. } = error {
                        let cause = IndeterminateCause::Unanswered(error);
                        return Decision::Fail(match self.repeat {
                            Repeat::ById => Error::Indeterminate { cause },
                            _ => Error::Closed,
                        });
                    }
                    if self.repeat == Repeat::ById {
                        self.doubt = Some(IndeterminateCause::Unanswered(error.clone()));
                    }
                    // The wait for the answer was the pause.
                    Decision::Again {
                        pause: Duration::ZERO,
                        target: Target::Fresh,
                        why: Error::from_request(error),
                    }
                }
            };
        }
        match error {
            RequestError::NoResponders(_) => {
                let pause = self.relocation_pause(seed);
                Decision::Again { pause, target: Target::Fresh, why: Error::from_request(error) }
            }
            RequestError::Disconnected => {
                let pause = self.pause(Duration::ZERO, seed);
                Decision::Again { pause, target: Target::Known, why: Error::from_request(error) }
            }
            fatal => Decision::Fail(self.given_up(Error::from_request(fatal))),
        }
    }

    fn after_reply(&mut self, reply: ErrorReply, seed: impl FnOnce() -> u64) -> Decision {
        let (pause, target) = match (&reply.code, reply.retry()) {
            // The one that had it cannot know; the one that has the subject now may.
            (ErrorCode::Indeterminate, _) if self.repeat == Repeat::ById => {
                self.doubt = Some(IndeterminateCause::Reported(Box::new(reply.clone())));
                (self.pause(Duration::ZERO, seed), Target::Fresh)
            }
            // The request was looked for among those that were carried out, and then refused for what it is; or it would
            // have been refused whenever it came.
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
            ) => return Decision::Fail(Error::from_reply(reply)),
            (_, Retry::Never) => return Decision::Fail(self.given_up(Error::from_reply(reply))),
            (ErrorCode::NotOwner, _) => match &reply.owner {
                Some(owner) if self.hints < HINTS_FOLLOWED => {
                    self.hints += 1;
                    (Duration::ZERO, Target::Hinted(owner.clone()))
                }
                _ => {
                    self.hints = 0;
                    (self.relocation_pause(seed), Target::Fresh)
                }
            },
            // Nobody can say whether it is this server or all of them: the coordinator knows first.
            (ErrorCode::Unavailable, _) | (_, Retry::AskCoordinator) => {
                (self.pause(Duration::ZERO, seed), Target::Fresh)
            }
            (_, Retry::SameServer | Retry::AfterBackoff) => {
                let retry_after = Duration::from_millis(reply.retry_after_ms.unwrap_or(0));
                (self.pause(retry_after, seed), Target::Known)
            }
        };
        Decision::Again { pause, target, why: Error::from_reply(reply) }
    }

    /// The first change of place is free, since it is the usual way to learn that a subject has moved.
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

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
