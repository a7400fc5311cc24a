//! One request of gets in flight, and the results of its callers. A pure machine.

use std::time::Duration;

use dormouse_protocol::Message;
use dormouse_protocol::data::{GetReply, GetRequest};

use super::queue::{GetPosition, GetTarget, PendingGet};
use crate::error::{Error, MalformedCause};

/// The result of one caller.
#[derive(Debug)]
pub(super) enum GetOutcome {
    /// The outcome of the get.
    Outcome(Result<Option<Message>, Error>),
    /// The get must be sent again in a request of its own.
    SendAlone,
}

/// The follow-up of a reply.
#[derive(Debug)]
pub(super) struct GetGroupOutcome<T> {
    /// The results, by caller.
    pub(super) outcomes: Vec<(T, GetOutcome)>,
    /// The gets that the reply did not answer, to be sent again.
    pub(super) rest: Vec<(GetPosition, PendingGet<T>)>,
}

/// One request of gets with the same kind of target.
#[derive(Debug)]
pub(super) struct GetGroup<T> {
    gets: Vec<(GetPosition, PendingGet<T>)>,
}

impl<T> GetGroup<T> {
    /// `gets` form one request.
    pub(super) const fn new(gets: Vec<(GetPosition, PendingGet<T>)>) -> Self {
        Self { gets }
    }

    /// When the last of the callers expires.
    pub(super) fn last_expiry(&self) -> Duration {
        self.gets.iter().map(|(_, get)| get.expires_at).max().unwrap_or_default()
    }

    /// The request to send. A single get is sent in the same form as one that is sent at once.
    pub(super) fn request(&self) -> GetRequest {
        let mut seqs = Vec::new();
        let mut keys = Vec::new();
        for (_, get) in &self.gets {
            match &get.wanted {
                GetTarget::Seq(seq) => seqs.push(*seq),
                GetTarget::Key(key) => keys.push(key.clone()),
            }
        }
        match (seqs.as_slice(), keys.as_mut_slice()) {
            ([seq], []) => GetRequest::seq(*seq),
            ([], [key]) => GetRequest::key(std::mem::take(key)),
            _ => GetRequest {
                seqs: (!seqs.is_empty()).then_some(seqs),
                keys: (!keys.is_empty()).then_some(keys),
                ..GetRequest::default()
            },
        }
    }

    /// The results of all callers after the end of the request.
    pub(super) fn resolve(self, answer: Result<GetReply, Error>) -> GetGroupOutcome<T> {
        let is_shared = self.gets.len() > 1;
        match answer {
            Ok(reply) if is_shared => self.answered(reply),
            Ok(reply) => {
                let mut messages = reply.messages.into_iter();
                self.with_outcomes(|_| GetOutcome::Outcome(Ok(messages.next())))
            }
            // A server that does not support requests of several seqs returns such an error, too.
            Err(error) if is_shared && error.may_be_of_one_item() => {
                self.with_outcomes(|_| GetOutcome::SendAlone)
            }
            Err(error) => self.fail(&error),
        }
    }

    fn answered(mut self, reply: GetReply) -> GetGroupOutcome<T> {
        let asked = self.gets.len();
        let answered = usize::try_from(reply.answered).unwrap_or(usize::MAX);
        if answered == 0 || answered > asked {
            let cause = MalformedCause::WrongCount { asked, got: answered };
            return self.fail(&Error::Malformed { cause });
        }
        let mut messages = reply.messages.into_iter().peekable();
        let found: Vec<_> = self.gets[..answered]
            .iter()
            .map(|(_, get)| messages.next_if(|message| get.wanted.is(message)))
            .collect();
        // If one message is wrong, the client cannot tell which ones are right.
        if messages.next().is_some() {
            return self.fail(&Error::Malformed { cause: MalformedCause::UnexpectedMessage });
        }
        let rest = self.gets.split_off(answered);
        let mut found = found.into_iter();
        GetGroupOutcome { rest, ..self.with_outcomes(|_| message_outcome(found.next().flatten())) }
    }

    fn fail(self, error: &Error) -> GetGroupOutcome<T> {
        self.with_outcomes(|get| GetOutcome::Outcome(Err(error.to_caller(get.deadline))))
    }

    /// Gives each caller a result, in order.
    fn with_outcomes(self, mut outcome_of: impl FnMut(&PendingGet<T>) -> GetOutcome) -> GetGroupOutcome<T> {
        let outcomes = self.gets.into_iter().map(|(_, get)| {
            let outcome = outcome_of(&get);
            (get.ticket, outcome)
        });
        GetGroupOutcome { outcomes: outcomes.collect(), rest: Vec::new() }
    }
}

/// A value that a shared reply omits may still fit in a reply of its own.
fn message_outcome(found: Option<Message>) -> GetOutcome {
    match found {
        Some(message) if message.value_omitted => GetOutcome::SendAlone,
        found => GetOutcome::Outcome(Ok(found)),
    }
}
