//! One request of gets on its way, and what those who asked are told. A pure machine.

use std::time::Duration;

use dormouse_protocol::Message;
use dormouse_protocol::data::{GetReply, GetRequest};

use super::lane::{Get, Place, Wanted};
use crate::error::{Error, MalformedCause};

/// What one caller is told.
#[derive(Debug)]
pub(super) enum Told {
    /// What became of the get.
    Outcome(Result<Option<Message>, Error>),
    /// Only a request of its own tells.
    AskAlone,
}

/// What is left to do after an answer.
#[derive(Debug)]
pub(super) struct Settled<T> {
    /// Who is told what.
    pub(super) told: Vec<(T, Told)>,
    /// What the answer did not speak of, to be asked for again.
    pub(super) rest: Vec<(Place, Get<T>)>,
}

/// One request of gets that ask alike.
#[derive(Debug)]
pub(super) struct Flight<T> {
    gets: Vec<(Place, Get<T>)>,
}

impl<T> Flight<T> {
    /// `gets` go together.
    pub(super) const fn new(gets: Vec<(Place, Get<T>)>) -> Self {
        Self { gets }
    }

    /// When the last of the callers has waited long enough.
    pub(super) fn last_expiry(&self) -> Duration {
        self.gets.iter().map(|(_, get)| get.expires_at).max().unwrap_or_default()
    }

    /// What is sent. One get goes as it would have gone at once.
    pub(super) fn request(&self) -> GetRequest {
        let mut seqs = Vec::new();
        let mut keys = Vec::new();
        for (_, get) in &self.gets {
            match &get.wanted {
                Wanted::Seq(seq) => seqs.push(*seq),
                Wanted::Key(key) => keys.push(key.clone()),
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

    /// Tells each what the end of the request means for him.
    pub(super) fn settle(self, answer: Result<GetReply, Error>) -> Settled<T> {
        let is_shared = self.gets.len() > 1;
        match answer {
            Ok(reply) if is_shared => self.answered(reply),
            Ok(reply) => {
                let mut messages = reply.messages.into_iter();
                self.tell(|_| Told::Outcome(Ok(messages.next())))
            }
            // Also what a server says that knows no requests of several seqs.
            Err(error) if is_shared && error.may_be_of_one_item() => self.tell(|_| Told::AskAlone),
            Err(error) => self.fail(&error),
        }
    }

    fn answered(mut self, reply: GetReply) -> Settled<T> {
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
        // Nobody can say which of them are right when one is not.
        if messages.next().is_some() {
            return self.fail(&Error::Malformed { cause: MalformedCause::NotAsked });
        }
        let rest = self.gets.split_off(answered);
        let mut found = found.into_iter();
        Settled { rest, ..self.tell(|_| message_told(found.next().flatten())) }
    }

    fn fail(self, error: &Error) -> Settled<T> {
        self.tell(|get| Told::Outcome(Err(error.to_caller(get.deadline))))
    }

    /// Tells each something, in order.
    fn tell(self, mut what: impl FnMut(&Get<T>) -> Told) -> Settled<T> {
        let told = self.gets.into_iter().map(|(_, get)| {
            let told = what(&get);
            (get.ticket, told)
        });
        Settled { told: told.collect(), rest: Vec::new() }
    }
}

/// A value that a shared answer leaves out may still fit one of its own.
fn message_told(found: Option<Message>) -> Told {
    match found {
        Some(message) if message.value_omitted => Told::AskAlone,
        found => Told::Outcome(Ok(found)),
    }
}
