//! One request of sets in flight, and the results of its callers. A pure machine.

use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::RequestError;
use dormouse_protocol::data::{SetItem, SetOutcome, SetReply, SetRequest, SetResult};
use dormouse_protocol::{Level, RequestId, Route, encode};

use super::queue::{Batching, QueuePosition, QueuedSet};
use crate::error::{Error, IndeterminateCause, MalformedCause};

/// Whether a server may have executed the request.
#[derive(Debug)]
enum SendState {
    /// Certainly not: no server has received it.
    Unsent,
    /// A server has received it on this route, and each attempt was refused. It stays as it is: a copy of it
    /// may still be granted.
    Refused(Route),
    /// It is in flight to this route, for the `first` time or after no server has received it.
    InFlight { route: Route, first: bool },
    /// The outcome of an earlier attempt is unknown.
    Indeterminate(IndeterminateCause),
}

/// An entry and the ticket of its caller, which may be gone by now.
struct BatchEntry<T> {
    position: QueuePosition,
    entry: QueuedSet<Option<T>>,
    asked: usize,
}

/// The result of one caller's sets.
pub(crate) type CallerResult<T> = (T, Result<Vec<Result<SetResult, Error>>, Error>);

/// The follow-up of a reply.
pub(crate) struct SetGroupOutcome<T> {
    /// The results, by caller.
    pub(crate) outcomes: Vec<CallerResult<T>>,
    /// The entries to send again: their request was rejected, and another entry may be the cause.
    pub(crate) retry: Vec<(QueuePosition, QueuedSet<T>)>,
}

/// One request of sets in flight.
pub(crate) struct SetGroup<T> {
    members: Vec<BatchEntry<T>>,
    state: SendState,
    encoded: Option<Bytes>,
}

impl<T> SetGroup<T> {
    /// `entries` form one request.
    pub(crate) fn new(entries: Vec<(QueuePosition, QueuedSet<T>)>) -> Self {
        let members = entries.into_iter().map(|(position, entry)| {
            let QueuedSet { sets, batching, level, deadline, expires_at, size_bytes, ticket } = entry;
            let asked = sets.len();
            let ticket = Some(ticket);
            BatchEntry {
                position,
                entry: QueuedSet { sets, batching, level, deadline, expires_at, size_bytes, ticket },
                asked,
            }
        });
        Self { members: members.collect(), state: SendState::Unsent, encoded: None }
    }

    /// The size of all entries, in bytes.
    pub(crate) fn size_bytes(&self) -> usize {
        self.members.iter().map(|member| member.entry.size_bytes).sum()
    }

    /// When the last of the callers expires.
    pub(crate) fn last_expiry(&self) -> Duration {
        self.waiting().map(|member| member.entry.expires_at).max().unwrap_or_default()
    }

    /// When the first of the callers expires, if that is before the last: at the last expiry, the request
    /// itself ends.
    pub(crate) fn next_expiry(&self) -> Option<Duration> {
        let last = self.last_expiry();
        self.waiting().map(|member| member.entry.expires_at).min().filter(|first| *first < last)
    }

    /// The deadline and the level of the first caller.
    pub(crate) fn terms(&self) -> (Duration, Option<Level>) {
        self.members
            .first()
            .map_or_else(Default::default, |member| (member.entry.deadline, member.entry.level))
    }

    /// The set whose value is uploaded in chunks.
    pub(crate) fn large(&mut self) -> Option<SetItem> {
        let member = self.members.first_mut().filter(|member| member.entry.batching == Batching::Large)?;
        member.entry.sets.pop()
    }

    /// Whether no caller waits for the reply any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.waiting().next().is_none()
    }

    fn waiting(&self) -> impl Iterator<Item = &BatchEntry<T>> {
        self.members.iter().filter(|member| member.entry.ticket.is_some())
    }

    /// The bytes to send to `route` now, under `id`: the same bytes as before, unless no server has received
    /// them and a caller has left since.
    pub(crate) fn next_attempt(&mut self, route: &Route, id: RequestId) -> Bytes {
        if !matches!(self.state, SendState::Indeterminate(_)) {
            self.state = SendState::InFlight { route: route.clone(), first: self.is_unsent() };
        }
        let members = &mut self.members;
        self.encoded.get_or_insert_with(|| encode_sets(members, id)).clone()
    }

    const fn is_unsent(&self) -> bool {
        matches!(self.state, SendState::Unsent)
    }

    /// The attempt has failed: it has `reached` a server, or not. `cause` says why the outcome of this attempt
    /// or an earlier one is unknown, if it is.
    pub(crate) fn failed(&mut self, reached: bool, cause: Option<IndeterminateCause>) {
        let state = std::mem::replace(&mut self.state, SendState::Unsent);
        self.state = match (cause, state) {
            (Some(cause), _) => SendState::Indeterminate(cause),
            (None, SendState::InFlight { first: true, .. }) if !reached => SendState::Unsent,
            (None, SendState::InFlight { route, .. }) => SendState::Refused(route),
            (None, state) => state,
        };
    }

    /// The results of the expired callers. Sets that no server has received are withdrawn; others may still be
    /// executed with the rest of their request.
    pub(crate) fn expire(&mut self, now: Duration) -> Vec<CallerResult<T>> {
        let mut outcomes = Vec::new();
        for BatchEntry { entry, .. } in &mut self.members {
            if entry.expires_at > now {
                continue;
            }
            let Some(ticket) = entry.ticket.take() else { continue };
            let deadline = entry.deadline;
            let error = match &self.state {
                SendState::Unsent => Error::Deadline { deadline, last: None },
                SendState::InFlight { route, .. } | SendState::Refused(route) => {
                    let unanswered = RequestError::Deadline { route: route.clone(), deadline };
                    Error::Indeterminate { cause: IndeterminateCause::Unanswered(unanswered) }
                }
                SendState::Indeterminate(cause) => Error::Indeterminate { cause: cause.clone() },
            };
            outcomes.push((ticket, Err(error)));
        }
        if self.is_unsent() && !outcomes.is_empty() {
            self.members.retain(|member| member.entry.ticket.is_some());
            self.encoded = None;
        }
        outcomes
    }

    /// The results of all callers after the end of the request.
    pub(crate) fn resolve(self, answer: Result<SetReply, Error>) -> SetGroupOutcome<T> {
        match answer {
            Ok(reply) => SetGroupOutcome { outcomes: self.answered(reply), retry: Vec::new() },
            Err(error) if self.members.len() > 1 && error.may_be_of_one_item() => {
                let again = self.members.into_iter().filter_map(|member| {
                    let QueuedSet { sets, batching, level, deadline, expires_at, size_bytes, ticket } =
                        member.entry;
                    let ticket = ticket?;
                    Some((
                        member.position,
                        QueuedSet { sets, batching, level, deadline, expires_at, size_bytes, ticket },
                    ))
                });
                SetGroupOutcome { outcomes: Vec::new(), retry: again.collect() }
            }
            Err(error) => {
                let outcomes = self.members.into_iter().filter_map(|member| {
                    let error = error.to_caller(member.entry.deadline);
                    Some((member.entry.ticket?, Err(error)))
                });
                SetGroupOutcome { outcomes: outcomes.collect(), retry: Vec::new() }
            }
        }
    }

    fn answered(self, reply: SetReply) -> Vec<CallerResult<T>> {
        let asked = self.members.iter().map(|member| member.asked).sum();
        let got = reply.results.len();
        let wrong = Error::Indeterminate {
            cause: IndeterminateCause::Malformed(MalformedCause::WrongCount { asked, got }),
        };
        let mut results = reply.results.into_iter().map(|outcome| match outcome {
            SetOutcome::Ok(result) => Ok(result),
            SetOutcome::Error(error) => Err(Error::from_reply(error)),
        });
        let outcomes = self.members.into_iter().filter_map(|member| {
            let own: Vec<_> = results.by_ref().take(member.asked).collect();
            let outcome = if asked == got { Ok(own) } else { Err(wrong.clone()) };
            Some((member.entry.ticket?, outcome))
        });
        outcomes.collect()
    }
}

fn encode_sets<T>(members: &mut [BatchEntry<T>], request: RequestId) -> Bytes {
    let (level, atomic) = members
        .first()
        .map_or((None, false), |member| (member.entry.level, member.entry.batching == Batching::Atomic));
    let sets = members.iter_mut().flat_map(|member| std::mem::take(&mut member.entry.sets)).collect();
    let mut request = SetRequest { request: Some(request), level, atomic, sets, ..SetRequest::default() };
    // The requests of the protocol are maps of plain fields, which always encode.
    let encoded = encode(&request).expect("a request encodes");
    let mut sets = request.sets.drain(..);
    for member in members {
        member.entry.sets = sets.by_ref().take(member.asked).collect();
    }
    encoded
}
