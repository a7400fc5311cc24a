//! The common part of streams and key-value stores: a subject, and the calls to its server.

use std::sync::Arc;
use std::time::Duration;

use dormouse_protocol::data::{
    ConfigureReply, ConfigureRequest, DeleteAllReply, DeleteAllRequest, DeleteReply, DeleteRequest,
    DestroyReply, DestroyRequest, FlushReply, FlushRequest, GetReply, GetRequest, InfoReply, InfoRequest,
    SetItem, SetOutcome, SetReply, SetRequest, SetResult,
};
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{ErrorReply, Level, Message, Op, Position, RequestId, Subject};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call::ClientShared;
use crate::error::{Error, IndeterminateCause, MalformedCause};
use crate::request_ids::{HeldId, IdUse};
use crate::sizes::{delete_size, fill, key_size};

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

    /// Writes a message that fits in a request, independently of queued sets.
    pub(crate) async fn set_one(&self, item: SetItem) -> Result<SetResult, Error> {
        let (id, left) = self.next_id(IdUse::Shared).await?;
        self.set_by(Op::Set, item, &id, left).await
    }

    /// Writes the message `item`, whose value was uploaded.
    pub(crate) async fn commit(&self, item: SetItem, id: &HeldId) -> Result<SetResult, Error> {
        self.set_by(Op::UploadCommit, item, id, self.deadline).await
    }

    /// The id of a new change, and the time that is left then.
    pub(crate) async fn next_id(&self, kind: IdUse) -> Result<(HeldId, Duration), Error> {
        self.inner.request_id(&self.subject, kind, self.deadline).await
    }

    /// Sends the change that `request` makes from its id.
    async fn change<R: DeserializeOwned, Q: Serialize>(
        &self,
        op: Op,
        kind: IdUse,
        request: impl FnOnce(Option<RequestId>) -> Q,
    ) -> Result<R, Error> {
        let (id, left) = self.next_id(kind).await?;
        self.call_change(op, &request(Some(id.id())), left).await
    }

    async fn call_change<R: DeserializeOwned>(
        &self,
        op: Op,
        request: &impl Serialize,
        left: Duration,
    ) -> Result<R, Error> {
        let reply = self.inner.call(&self.subject, op, request, left).await;
        reply.map_err(|error| error.to_caller(self.deadline))
    }

    async fn set_by(&self, op: Op, item: SetItem, id: &HeldId, left: Duration) -> Result<SetResult, Error> {
        let request = SetRequest {
            request: Some(id.id()),
            level: self.level,
            sets: vec![item],
            ..SetRequest::default()
        };
        let reply: SetReply = self.call_change(op, &request, left).await?;
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
            let mut wanted = fill(&mut keys, self.inner.query_budget_bytes(), |key| key_size(key));
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

    /// One request, because a deletion is atomic. What does not fit one request is not sent.
    pub(crate) async fn delete(&self, request: DeleteRequest) -> Result<DeleteReply, Error> {
        let (size_bytes, limit_bytes) = (delete_size(&request), self.inner.query_budget_bytes());
        if size_bytes > limit_bytes {
            let reply = ErrorReply::too_large("max_request_bytes", size_bytes, limit_bytes);
            return Err(Error::from_reply(reply));
        }
        let level = self.level;
        self.change(Op::Delete, IdUse::Shared, |id| DeleteRequest { request: id, level, ..request }).await
    }

    pub(crate) async fn delete_all(&self, request: DeleteAllRequest) -> Result<u64, Error> {
        let level = self.level;
        let reply: DeleteAllReply = self
            .change(Op::DeleteAll, IdUse::Shared, |id| DeleteAllRequest { request: id, level, ..request })
            .await?;
        Ok(reply.count)
    }

    pub(crate) async fn info(&self) -> Result<InfoReply, Error> {
        self.call(Op::Info, &InfoRequest::default()).await
    }

    pub(crate) async fn configure(&self, config: SubjectConfig) -> Result<Position, Error> {
        let reply: ConfigureReply = self
            .change(Op::Configure, IdUse::Shared, |id| ConfigureRequest {
                request: id,
                config,
                ..ConfigureRequest::default()
            })
            .await?;
        Ok(reply.position)
    }

    pub(crate) async fn flush(&self) -> Result<Position, Error> {
        let reply: FlushReply = self.call(Op::Flush, &FlushRequest::default()).await?;
        Ok(reply.position)
    }

    pub(crate) async fn destroy(&self) -> Result<Position, Error> {
        let reply: DestroyReply = self
            .change(Op::Destroy, IdUse::Alone, |id| DestroyRequest {
                request: id,
                ..DestroyRequest::default()
            })
            .await?;
        Ok(reply.position)
    }
}
