//! Removal of many messages of a stream at once.

use std::future::IntoFuture;

use dormouse_protocol::Seq;
use dormouse_protocol::data::DeleteAllRequest;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::error::Error;
use crate::subject::Handle;

/// A purge of a stream, executed when it is awaited. Made by [`Stream::purge`](crate::Stream::purge), with
/// the names of async-nats; [`delete_up_to`](crate::Stream::delete_up_to) and
/// [`keep_last`](crate::Stream::keep_last) do the same.
#[derive(Debug)]
#[must_use = "a purge is executed when it is awaited"]
pub struct Purge {
    handle: Handle,
    request: DeleteAllRequest,
    /// The purge cannot match any message.
    nothing: bool,
}

impl Purge {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle, request: DeleteAllRequest::default(), nothing: false }
    }

    /// Keeps the newest `messages`. Replaces an earlier [`sequence`](Self::sequence).
    pub fn keep(mut self, messages: u64) -> Self {
        self.request = DeleteAllRequest { keep_last: Some(messages), ..DeleteAllRequest::default() };
        self.nothing = false;
        self
    }

    /// Removes only the messages before `seq`; the message at `seq` stays. Replaces an earlier
    /// [`keep`](Self::keep).
    pub fn sequence(mut self, seq: Seq) -> Self {
        let last = seq.get().saturating_sub(1);
        self.request = DeleteAllRequest { end_seq: Some(Seq::new(last)), ..DeleteAllRequest::default() };
        self.nothing = last == 0;
        self
    }
}

impl IntoFuture for Purge {
    type Output = Result<u64, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        async move { if self.nothing { Ok(0) } else { self.handle.delete_all(self.request).await } }.boxed()
    }
}
