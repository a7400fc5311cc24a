//! One request of sets on its way, and what those who asked for them are told. A pure machine.

use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::RequestError;
use dormouse_protocol::data::{SetItem, SetOutcome, SetReply, SetRequest, SetResult};
use dormouse_protocol::{Level, RequestId, Route, encode};

use super::queue::{Company, Entry, Place};
use crate::error::{Error, IndeterminateCause, MalformedCause};

/// Whether a server may have carried the request out.
#[derive(Debug)]
enum State {
    /// Certainly not: it was not sent, or each try was refused before anything was done.
    NotDone,
    /// It is on its way there.
    OnItsWay(Route),
    /// That is not known of an earlier try.
    InDoubt(IndeterminateCause),
}

/// An entry and its caller, who may have gone by now.
struct Member<T> {
    place: Place,
    entry: Entry<Option<T>>,
    asked: usize,
}

/// What each caller is told of his sets.
pub(crate) type Told<T> = (T, Result<Vec<Result<SetResult, Error>>, Error>);

/// What is left to do after an answer.
pub(crate) struct Settled<T> {
    /// Who is told what.
    pub(crate) told: Vec<Told<T>>,
    /// What goes again, since it was refused for what others may be to blame for.
    pub(crate) again: Vec<(Place, Entry<T>)>,
}

/// One request of sets on its way.
pub(crate) struct Flight<T> {
    members: Vec<Member<T>>,
    state: State,
    encoded: Option<Bytes>,
}

impl<T> Flight<T> {
    /// `entries` go together.
    pub(crate) fn new(entries: Vec<(Place, Entry<T>)>) -> Self {
        let members = entries.into_iter().map(|(place, entry)| {
            let Entry { sets, company, level, deadline, expires_at, size_bytes, ticket } = entry;
            let asked = sets.len();
            let ticket = Some(ticket);
            Member {
                place,
                entry: Entry { sets, company, level, deadline, expires_at, size_bytes, ticket },
                asked,
            }
        });
        Self { members: members.collect(), state: State::NotDone, encoded: None }
    }

    /// Bytes of everything in it.
    pub(crate) fn size_bytes(&self) -> usize {
        self.members.iter().map(|member| member.entry.size_bytes).sum()
    }

    /// When the last of the callers has waited long enough.
    pub(crate) fn last_expiry(&self) -> Duration {
        self.waiting().map(|member| member.entry.expires_at).max().unwrap_or_default()
    }

    /// When the first of the callers has, if it is before the last: for the last one the request itself ends.
    pub(crate) fn next_expiry(&self) -> Option<Duration> {
        let last = self.last_expiry();
        self.waiting().map(|member| member.entry.expires_at).min().filter(|first| *first < last)
    }

    /// How long the first caller waits, and for which level.
    pub(crate) fn terms(&self) -> (Duration, Option<Level>) {
        self.members
            .first()
            .map_or_else(Default::default, |member| (member.entry.deadline, member.entry.level))
    }

    /// The set whose value goes up piece by piece.
    pub(crate) fn large(&mut self) -> Option<SetItem> {
        let member = self.members.first_mut().filter(|member| member.entry.company == Company::Large)?;
        member.entry.sets.pop()
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.waiting().next().is_none()
    }

    fn waiting(&self) -> impl Iterator<Item = &Member<T>> {
        self.members.iter().filter(|member| member.entry.ticket.is_some())
    }

    /// What is sent to `route` now. It is the same bytes under the same id as before, unless they were certainly not
    /// carried out and somebody has left since.
    pub(crate) fn next_try(&mut self, route: &Route, id: impl FnOnce() -> RequestId) -> Bytes {
        if matches!(self.state, State::NotDone) {
            self.state = State::OnItsWay(route.clone());
        }
        let members = &mut self.members;
        self.encoded.get_or_insert_with(|| encode_sets(members, id())).clone()
    }

    /// The try has failed; `doubt` says why it is not known what became of this one or an earlier one.
    pub(crate) fn failed(&mut self, doubt: Option<IndeterminateCause>) {
        self.state = doubt.map_or(State::NotDone, State::InDoubt);
    }

    /// Tells those who have waited long enough. What was certainly not carried out is withdrawn with them.
    pub(crate) fn expire(&mut self, now: Duration) -> Vec<Told<T>> {
        let mut told = Vec::new();
        for Member { entry, .. } in &mut self.members {
            if entry.expires_at > now {
                continue;
            }
            let Some(ticket) = entry.ticket.take() else { continue };
            let deadline = entry.deadline;
            let error = match &self.state {
                State::NotDone => Error::Deadline { deadline, last: None },
                State::OnItsWay(route) => {
                    let unanswered = RequestError::Deadline { route: route.clone(), deadline };
                    Error::Indeterminate { cause: IndeterminateCause::Unanswered(unanswered) }
                }
                State::InDoubt(cause) => Error::Indeterminate { cause: cause.clone() },
            };
            told.push((ticket, Err(error)));
        }
        if matches!(self.state, State::NotDone) && !told.is_empty() {
            self.members.retain(|member| member.entry.ticket.is_some());
            self.encoded = None;
        }
        told
    }

    /// Tells each what the end of the request means for him.
    pub(crate) fn settle(self, answer: Result<SetReply, Error>) -> Settled<T> {
        match answer {
            Ok(reply) => Settled { told: self.answered(reply), again: Vec::new() },
            Err(error) if self.members.len() > 1 && error.may_be_of_one_item() => {
                let again = self.members.into_iter().filter_map(|member| {
                    let Entry { sets, company, level, deadline, expires_at, size_bytes, ticket } =
                        member.entry;
                    let ticket = ticket?;
                    Some((
                        member.place,
                        Entry { sets, company, level, deadline, expires_at, size_bytes, ticket },
                    ))
                });
                Settled { told: Vec::new(), again: again.collect() }
            }
            Err(error) => {
                let told = self.members.into_iter().filter_map(|member| {
                    let error = error.to_caller(member.entry.deadline);
                    Some((member.entry.ticket?, Err(error)))
                });
                Settled { told: told.collect(), again: Vec::new() }
            }
        }
    }

    fn answered(self, reply: SetReply) -> Vec<Told<T>> {
        let asked = self.members.iter().map(|member| member.asked).sum();
        let got = reply.results.len();
        let wrong = Error::Indeterminate {
            cause: IndeterminateCause::Malformed(MalformedCause::WrongCount { asked, got }),
        };
        let mut results = reply.results.into_iter().map(|outcome| match outcome {
            SetOutcome::Ok(result) => Ok(result),
            SetOutcome::Error(error) => Err(Error::from_reply(error)),
        });
        let told = self.members.into_iter().filter_map(|member| {
            let own: Vec<_> = results.by_ref().take(member.asked).collect();
            let outcome = if asked == got { Ok(own) } else { Err(wrong.clone()) };
            Some((member.entry.ticket?, outcome))
        });
        told.collect()
    }
}

fn encode_sets<T>(members: &mut [Member<T>], request: RequestId) -> Bytes {
    let (level, atomic) = members
        .first()
        .map_or((None, false), |member| (member.entry.level, member.entry.company == Company::Atomic));
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
