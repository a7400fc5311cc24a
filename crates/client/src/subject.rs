//! The common part of streams and key-value stores: a subject, and the calls to its server.

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

use crate::call::ClientShared;
use crate::error::{Error, IndeterminateCause, MalformedCause};
use crate::pages::{MessagePages, Pages};
use crate::range::SeqRange;
use crate::sets::{AckFuture, Batching, QueuedSet, SetsOutcome, sender_gone};

/// The size of one set's field names and numbers, and the framing of one header: upper bounds.
const SET_OVERHEAD_BYTES: usize = 192;
const HEADER_OVERHEAD_BYTES: usize = 12;
const KEY_OVERHEAD_BYTES: usize = 5;

/// If a message is replaced while its value is fetched separately, the client follows so many replacements.
/// Then it returns the message without its value.
pub(crate) const REPLACEMENTS_FOLLOWED: u32 = 8;

/// A subject and the settings of its calls.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) inner: Arc<ClientShared>,
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

    /// Queues one set of any size before it returns.
    pub(crate) fn set(&self, item: SetItem) -> AckFuture {
        let batching =
            if item.value.is_none() || self.fits(&item) { Batching::Shared } else { Batching::Large };
        match self.inner.queue(&self.subject, self.entry(vec![item], batching)) {
            Ok(outcome) => AckFuture::new(outcome),
            Err(error) => AckFuture::rejected(error),
        }
    }

    /// Queues a batch of sets before it returns.
    pub(crate) fn set_together(
        &self,
        sets: Vec<SetItem>,
        batching: Batching,
    ) -> impl Future<Output = SetsOutcome> + Send + use<> {
        let queued = self.inner.queue(&self.subject, self.entry(sets, batching));
        async { queued?.await.unwrap_or_else(|_| Err(sender_gone())) }
    }

    fn entry(&self, sets: Vec<SetItem>, batching: Batching) -> QueuedSet<()> {
        let size_bytes = sets.iter().map(set_size).sum();
        let expires_at = Duration::MAX; // Set when it is queued.
        QueuedSet {
            sets,
            batching,
            level: self.level,
            deadline: self.deadline,
            expires_at,
            size_bytes,
            ticket: (),
        }
    }

    /// Writes a message that fits in a request, independently of queued sets.
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

    /// Writes many messages in as few requests as possible, one request after the other, in order.
    pub(crate) async fn set_all(&self, items: Vec<SetItem>) -> Vec<Result<SetResult, Error>> {
        let mut results = Vec::with_capacity(items.len());
        let mut items = items.into_iter().peekable();
        // The parts of a request that was too large, to be sent before the rest of `items`.
        let mut cut_off: Vec<Vec<SetItem>> = Vec::new();
        loop {
            let mut sets = cut_off.pop().unwrap_or_else(|| fill(&mut items, self.budget(), set_size));
            let asked = sets.len();
            if asked == 0 {
                return results;
            }
            match self.set_together(sets.clone(), Batching::Alone).await {
                Ok(outcomes) => results.extend(outcomes),
                // The server's size limit is smaller than the announced one.
                Err(Error::TooLarge { .. }) if asked > 1 => {
                    let second_half = sets.split_off(asked / 2);
                    cut_off.extend([second_half, sets]);
                }
                // A value that is too large for a message is uploaded in chunks; a rejected set fails alone.
                Err(Error::TooLarge { .. }) if sets.iter().any(|item| !self.fits(item)) => {
                    results.push(self.set(sets.pop().unwrap_or_default()).await);
                }
                Err(error @ Error::TooLarge { .. }) => results.push(Err(error)),
                // Any other error would fail the rest, too, or would let later sets overtake an indeterminate
                // one.
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

    /// The messages of those `keys` that exist, in the requested order.
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
                    // The server's size limit is smaller than the announced one.
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

    /// The message with its value. An omitted value is fetched; if no reply can carry it, it stays omitted.
    /// `None` if the message was removed meanwhile.
    pub(crate) async fn complete(&self, message: Message) -> Result<Option<Message>, Error> {
        if !message.value_omitted {
            return Ok(Some(message));
        }
        let found = self.fetch(&GetRequest::seq(message.seq)).await;
        // A value that is too large must not hide the messages after it.
        if matches!(found, Err(Error::TooLarge { .. })) { Ok(Some(message)) } else { found }
    }

    /// Like [`complete`](Self::complete); but if another message has replaced it under its key, that message.
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

/// The calls that streams and key-value stores have in common.
macro_rules! common_calls {
    ($name:ident) => {
        impl $name {
            /// The subject.
            #[must_use]
            pub const fn subject(&self) -> &Subject {
                &self.handle.subject
            }

            /// The same handle with another deadline for each call, all attempts and pauses included.
            #[must_use]
            pub const fn with_deadline(mut self, deadline: Duration) -> Self {
                self.handle.deadline = deadline;
                self
            }

            /// The same handle with at least this durability level for each change; a stronger level of the
            /// subject stays. A server that does not support the level rejects the change with `unsupported`.
            #[must_use]
            pub const fn with_level(mut self, level: Level) -> Self {
                self.handle.level = Some(level);
                self
            }

            /// The subject's properties without its messages: position, number and size of its messages,
            /// configuration, level, server.
            ///
            /// Cancelling the call has no side effects.
            ///
            /// # Errors
            /// The errors of every call.
            pub async fn info(&self) -> Result<InfoReply, Error> {
                self.handle.info().await
            }

            /// Replaces the whole configuration; a field that is absent in `config` gets its default. Returns
            /// the position after the change.
            ///
            /// If the call is cancelled, the configuration is either the old one or the new one.
            ///
            /// # Errors
            /// [`Error::Service`] with `bad_request` for a limit of 0, and with `too_large` for too much
            /// metadata; [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the
            /// errors of every call.
            pub async fn configure(&self, config: SubjectConfig) -> Result<Position, Error> {
                self.handle.configure(config).await
            }

            /// The changes after the position `after`, one page per call. With the position of the first page
            /// of a full read (see [`Pages::position`](crate::Pages::position)), it returns the changes
            /// during and since that read: the result of the read and these changes together give the current
            /// state.
            ///
            /// Cancelling the call has no side effects.
            ///
            /// # Errors
            /// The errors of every call.
            pub async fn changes(&self, after: Position) -> Result<crate::Changes, Error> {
                self.handle.changes(after).await
            }

            /// Waits until all writes so far are in the bucket. Returns the position that is in the bucket.
            ///
            /// If the call is cancelled, the server continues; objects that it uploads stay in the bucket.
            ///
            /// # Errors
            /// The errors of every call.
            pub async fn flush(&self) -> Result<Position, Error> {
                self.handle.flush().await
            }

            /// Destroys the subject with all its messages. Returns its last position; if the subject is used
            /// again, its positions continue from there.
            ///
            /// It is executed once, however often it is sent. A concurrent change, of this client or another,
            /// that arrives after it may end in [`Error::Indeterminate`] without being executed. If that
            /// matters, await the change first.
            ///
            /// If the call is cancelled, the subject may or may not be destroyed.
            ///
            /// # Errors
            /// [`Error::Indeterminate`] if the outcome of the request is unknown; otherwise the errors of
            /// every call.
            pub async fn destroy(&self) -> Result<Position, Error> {
                self.handle.destroy().await
            }
        }
    };
}
pub(crate) use common_calls;

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

/// The size of a key in a list, in bytes.
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

    /// A request takes items up to the size limit, and at least one.
    #[test]
    fn request_fill_respects_size_limit_and_is_never_empty() {
        let mut sizes = vec![50_usize, 40, 20, 500, 1].into_iter().peekable();
        let mut requests = Vec::new();
        while sizes.peek().is_some() {
            requests.push(fill(&mut sizes, 100, |size| *size));
        }
        assert_eq!(requests, [vec![50, 40], vec![20], vec![500], vec![1]]);
    }

    /// The estimated size of a set is at least its encoded size.
    #[test]
    fn set_size_estimate_covers_encoded_size() {
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
