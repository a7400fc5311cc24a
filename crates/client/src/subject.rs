//! What streams and key-value stores have in common: a subject, how to ask its server, and its care.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::data::{
    ConfigureReply, ConfigureRequest, DeleteAllReply, DeleteAllRequest, DeleteReply, DeleteRequest,
    DestroyReply, DestroyRequest, FlushReply, FlushRequest, GetReply, GetRequest, InfoReply, InfoRequest,
    SetItem, SetOutcome, SetReply, SetRequest, SetResult,
};
use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Level, Message, Op, Position, Subject};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call::Inner;
use crate::error::{Error, IndeterminateCause, MalformedCause};
use crate::pages::{MessagePages, Pages};
use crate::range::SeqRange;
use crate::sets::{AckFuture, Company, Entry, Outcome, unheard};

/// Field names and numbers of one set, and the framing of one header; generous.
const SET_OVERHEAD_BYTES: usize = 192;
const HEADER_OVERHEAD_BYTES: usize = 12;
const KEY_OVERHEAD_BYTES: usize = 5;

/// How often a message whose value is fetched on its own may be replaced meanwhile before it is taken without.
pub(crate) const REPLACEMENTS_FOLLOWED: u32 = 8;

/// A subject and how to deal with it.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) inner: Arc<Inner>,
    pub(crate) subject: Subject,
    pub(crate) deadline: Duration,
    pub(crate) level: Option<Level>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("subject", &self.subject)
            .field("deadline", &self.deadline)
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

impl Handle {
    pub(crate) async fn call<R: DeserializeOwned>(
        &self,
        op: Op,
        request: &impl Serialize,
    ) -> Result<R, Error> {
        self.inner.call(&self.subject, op, request, self.deadline).await
    }

    /// Queues one set, before it returns, be its value as large as it may.
    pub(crate) fn set(&self, item: SetItem) -> AckFuture {
        let company = if item.value.is_none() || self.fits(&item) { Company::Shared } else { Company::Large };
        match self.inner.queue(&self.subject, self.entry(vec![item], company)) {
            Ok(outcome) => AckFuture::new(outcome),
            Err(error) => AckFuture::refused(error),
        }
    }

    /// Queues sets that go together, before it returns.
    pub(crate) fn set_together(
        &self,
        sets: Vec<SetItem>,
        company: Company,
    ) -> impl Future<Output = Outcome> + Send + use<> {
        let queued = self.inner.queue(&self.subject, self.entry(sets, company));
        async { queued?.await.unwrap_or_else(|_| Err(unheard())) }
    }

    fn entry(&self, sets: Vec<SetItem>, company: Company) -> Entry<()> {
        let size_bytes = sets.iter().map(set_size).sum();
        let expires_at = Duration::MAX; // Counted from when it is queued.
        Entry {
            sets,
            company,
            level: self.level,
            deadline: self.deadline,
            expires_at,
            size_bytes,
            ticket: (),
        }
    }

    /// Writes a message that fits, beside everything that is queued.
    pub(crate) async fn set_one(&self, item: SetItem) -> Result<SetResult, Error> {
        self.set_by(Op::Set, &self.set_request(vec![item])).await
    }

    pub(crate) fn set_request(&self, sets: Vec<SetItem>) -> SetRequest {
        SetRequest {
            request: Some(self.inner.next_request()),
            level: self.level,
            sets,
            ..SetRequest::default()
        }
    }

    /// Writes the one message of `request`, whose value was uploaded.
    pub(crate) async fn commit(&self, request: &SetRequest) -> Result<SetResult, Error> {
        self.set_by(Op::UploadCommit, request).await
    }

    async fn set_by(&self, op: Op, request: &SetRequest) -> Result<SetResult, Error> {
        let reply: SetReply = self.call(op, request).await?;
        let got = reply.results.len();
        match <[SetOutcome; 1]>::try_from(reply.results) {
            Ok([SetOutcome::Ok(result)]) => Ok(result),
            Ok([SetOutcome::Error(error)]) => Err(Error::from_reply(error)),
            Err(_) => {
                let cause = MalformedCause::WrongCount { asked: 1, got };
                Err(Error::Indeterminate { cause: IndeterminateCause::Malformed(cause) })
            }
        }
    }

    /// Writes many messages in as few requests as they fit in, one after the other, in order.
    pub(crate) async fn set_all(&self, items: Vec<SetItem>) -> Vec<Result<SetResult, Error>> {
        let mut results = Vec::with_capacity(items.len());
        let mut items = items.into_iter().peekable();
        // What was cut off a request that was too large, to be sent before all that is still in `items`.
        let mut cut_off: Vec<Vec<SetItem>> = Vec::new();
        loop {
            let mut sets = cut_off.pop().unwrap_or_else(|| fill(&mut items, self.budget(), set_size));
            let asked = sets.len();
            if asked == 0 {
                return results;
            }
            match self.set_together(sets.clone(), Company::Alone).await {
                Ok(outcomes) => results.extend(outcomes),
                // Less fits in a request than was told.
                Err(Error::TooLarge { .. }) if asked > 1 => {
                    let second_half = sets.split_off(asked / 2);
                    cut_off.extend([second_half, sets]);
                }
                // What is too large for a message goes up piece by piece; what is refused fails alone, as every set does.
                Err(Error::TooLarge { .. }) if sets.iter().any(|item| !self.fits(item)) => {
                    results.push(self.set(sets.pop().unwrap_or_default()).await);
                }
                Err(error @ Error::TooLarge { .. }) => results.push(Err(error)),
                // Anything else would fail the rest as well, or let later sets overtake one whose fate is open.
                Err(error) => {
                    results.extend(std::iter::repeat_n(Err(error), asked));
                    let rest = cut_off.iter().map(Vec::len).sum::<usize>() + items.len();
                    results.extend((0..rest).map(|_| Err(Error::NotSent)));
                    return results;
                }
            }
        }
    }

    /// How many bytes of items a request may hold now. A reconnect may change it at any time.
    fn budget(&self) -> usize {
        self.inner.budget_bytes()
    }

    pub(crate) async fn get(&self, request: GetRequest) -> Result<Option<Message>, Error> {
        let mut replaced = 0;
        loop {
            let Some(message) = self.fetch(&request).await? else { return Ok(None) };
            if !message.value_omitted {
                return Ok(Some(message));
            }
            match self.whole(message).await {
                Err(Error::WrongLast { .. }) if replaced < REPLACEMENTS_FOLLOWED => replaced += 1,
                whole => return whole.map(Some),
            }
        }
    }

    /// The messages under `keys`, as far as they exist, in the order asked for.
    pub(crate) async fn get_many(&self, keys: Vec<String>) -> Result<Vec<Message>, Error> {
        let mut messages = Vec::new();
        let mut keys = keys.into_iter().peekable();
        while keys.peek().is_some() {
            let mut wanted = fill(&mut keys, self.budget(), |key| key_size(key));
            let mut at_once = wanted.len();
            while !wanted.is_empty() {
                at_once = at_once.min(wanted.len());
                let request = GetRequest { keys: Some(wanted[..at_once].to_vec()), ..GetRequest::default() };
                let reply: GetReply = match self.call(Op::Get, &request).await {
                    // Less fits in a request than was told.
                    Err(Error::TooLarge { .. }) if at_once > 1 => {
                        at_once /= 2;
                        continue;
                    }
                    reply => reply?,
                };
                let answered = usize::try_from(reply.answered).unwrap_or(usize::MAX).min(at_once);
                if answered == 0 {
                    return Err(Error::Malformed { cause: MalformedCause::StuckCursor });
                }
                for message in reply.messages {
                    messages.extend(self.complete_or_newer(message).await?);
                }
                wanted.drain(..answered);
            }
        }
        Ok(messages)
    }

    /// The message with its value, fetched if it was left out, and still without it if no answer carries it. `None`
    /// when the message has gone meanwhile.
    pub(crate) async fn complete(&self, message: Message) -> Result<Option<Message>, Error> {
        if !message.value_omitted {
            return Ok(Some(message));
        }
        let found = self.fetch(&GetRequest::seq(message.seq)).await;
        // The value is no reason to lose sight of all that follows.
        if matches!(found, Err(Error::TooLarge { .. })) { Ok(Some(message)) } else { found }
    }

    /// As [`complete`](Self::complete), but where another message has taken the key meanwhile, that one.
    pub(crate) async fn complete_or_newer(&self, message: Message) -> Result<Option<Message>, Error> {
        let key = if message.value_omitted { message.key.clone() } else { None };
        let Some(key) = key else { return self.complete(message).await };
        let mut newest = message;
        for _ in 0..REPLACEMENTS_FOLLOWED {
            if let Some(complete) = self.complete(newest.clone()).await? {
                return Ok(Some(complete));
            }
            match self.fetch(&GetRequest::key(key.clone())).await? {
                Some(newer) => newest = newer,
                None => return Ok(None),
            }
        }
        Ok(Some(newest))
    }

    pub(crate) fn messages(&self, range: SeqRange, key_prefix: Option<String>) -> Pages<Message> {
        Pages::read(&self.inner.tasks, MessagePages::new(self.clone(), range, key_prefix))
    }

    pub(crate) async fn delete(&self, request: DeleteRequest) -> Result<DeleteReply, Error> {
        let request =
            DeleteRequest { request: Some(self.inner.next_request()), level: self.level, ..request };
        self.call(Op::Delete, &request).await
    }

    pub(crate) async fn delete_all(&self, request: DeleteAllRequest) -> Result<u64, Error> {
        let request =
            DeleteAllRequest { request: Some(self.inner.next_request()), level: self.level, ..request };
        let reply: DeleteAllReply = self.call(Op::DeleteAll, &request).await?;
        Ok(reply.count)
    }

    pub(crate) async fn info(&self) -> Result<InfoReply, Error> {
        self.call(Op::Info, &InfoRequest::default()).await
    }

    pub(crate) async fn configure(&self, config: SubjectConfig) -> Result<Position, Error> {
        let request = ConfigureRequest {
            request: Some(self.inner.next_request()),
            config,
            ..ConfigureRequest::default()
        };
        let reply: ConfigureReply = self.call(Op::Configure, &request).await?;
        Ok(reply.position)
    }

    pub(crate) async fn flush(&self) -> Result<Position, Error> {
        let reply: FlushReply = self.call(Op::Flush, &FlushRequest::default()).await?;
        Ok(reply.position)
    }

    pub(crate) async fn destroy(&self) -> Result<Position, Error> {
        let request =
            DestroyRequest { request: Some(self.inner.next_request()), ..DestroyRequest::default() };
        let reply: DestroyReply = self.call(Op::Destroy, &request).await?;
        Ok(reply.position)
    }
}

/// The calls that streams and key-value stores offer alike.
macro_rules! care {
    ($name:ident) => {
        impl $name {
            /// The subject.
            #[must_use]
            pub const fn subject(&self) -> &Subject {
                &self.handle.subject
            }

            /// The same with another deadline for each call: tries and pauses together.
            #[must_use]
            pub const fn with_deadline(mut self, deadline: Duration) -> Self {
                self.handle.deadline = deadline;
                self
            }

            /// The same with at least this durability level for each change, where the subject's own is weaker. A server
            /// that does not offer the level refuses the change with `unsupported`.
            #[must_use]
            pub const fn with_level(mut self, level: Level) -> Self {
                self.handle.level = Some(level);
                self
            }

            /// Everything there is to know about the subject but its messages: position, number and size of its
            /// messages, configuration, level, server.
            ///
            /// Cancelling the call leaves nothing behind.
            ///
            /// # Errors
            /// As every call.
            pub async fn info(&self) -> Result<InfoReply, Error> {
                self.handle.info().await
            }

            /// Replaces the whole configuration; what is absent in `config` gets its default. Returns the position after
            /// the change.
            ///
            /// Cancelling the call leaves the old configuration or the new one.
            ///
            /// # Errors
            /// [`Error::Service`] with `bad_request` for a limit of 0 and `too_large` for too much metadata;
            /// [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
            pub async fn configure(&self, config: SubjectConfig) -> Result<Position, Error> {
                self.handle.configure(config).await
            }

            /// What has changed since `after`, a page at a time. With the position of the first page of a reading (see
            /// [`Pages::position`](crate::Pages::position)) it tells what happened during that reading and since: the
            /// reading, and then the changes, give the state.
            ///
            /// Cancelling the call leaves nothing behind.
            ///
            /// # Errors
            /// As every call.
            pub async fn changes(&self, after: Position) -> Result<crate::Changes, Error> {
                self.handle.changes(after).await
            }

            /// Puts everything so far in the bucket. Returns the position that is there.
            ///
            /// Cancelling the call leaves the server at work; what it puts in the bucket stays.
            ///
            /// # Errors
            /// As every call.
            pub async fn flush(&self) -> Result<Position, Error> {
                self.handle.flush().await
            }

            /// Removes the subject for good, with all its messages. Returns the position where it ended; if it is ever
            /// used again, it goes on from there.
            ///
            /// It happens once, however often it has to be sent. A change that is under way at the same time, of this client
            /// or another, and arrives after it may end in [`Error::Indeterminate`] without having been carried out: where
            /// that matters, await it first.
            ///
            /// Cancelling the call leaves the subject destroyed or not.
            ///
            /// # Errors
            /// [`Error::Indeterminate`] when the fate of the request is unknown; else as every call.
            pub async fn destroy(&self) -> Result<Position, Error> {
                self.handle.destroy().await
            }
        }
    };
}
pub(crate) use care;

/// Takes as many items as fit in one request, and at least one.
fn fill<T>(
    items: &mut std::iter::Peekable<std::vec::IntoIter<T>>,
    budget: usize,
    size: impl Fn(&T) -> usize,
) -> Vec<T> {
    let mut taken: Vec<T> = items.next().into_iter().collect();
    let mut used: usize = taken.iter().map(&size).sum();
    while taken.len() < MAX_ITEMS_PER_REQUEST
        && let Some(next) = items.next_if(|next| used + size(next) <= budget)
    {
        used += size(&next);
        taken.push(next);
    }
    taken
}

/// Bytes of a key in a list.
pub(crate) const fn key_size(key: &str) -> usize {
    key.len() + KEY_OVERHEAD_BYTES
}

pub(crate) fn set_size(item: &SetItem) -> usize {
    item.key.as_ref().map_or(0, String::len)
        + item.value.as_ref().map_or(0, bytes::Bytes::len)
        + item.headers.size_bytes()
        + item.headers.0.len() * HEADER_OVERHEAD_BYTES
        + SET_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_filled_but_never_empty() {
        let mut sizes = vec![50_usize, 40, 20, 500, 1].into_iter().peekable();
        let mut requests = Vec::new();
        while sizes.peek().is_some() {
            requests.push(fill(&mut sizes, 100, |size| *size));
        }
        assert_eq!(requests, [vec![50, 40], vec![20], vec![500], vec![1]]);
    }

    #[test]
    fn the_size_of_a_set_is_never_underestimated() {
        let item = crate::NewMessage::new(vec![0; 300])
            .header("n", "v")
            .header("name", "x".repeat(300))
            .seq(dormouse_protocol::Seq::new(u64::MAX))
            .timestamp(dormouse_protocol::Timestamp::from_micros(u64::MAX))
            .expect_key(Some(dormouse_protocol::MessageId {
                term: dormouse_protocol::Term::new(u64::MAX),
                seq: dormouse_protocol::Seq::new(u64::MAX),
            }))
            .into_item(Some("k".repeat(300)));
        let estimated = set_size(&item);
        assert!(dormouse_protocol::encode(&item).unwrap().len() <= estimated);
    }
}
