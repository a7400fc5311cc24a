//! The client: one connection, one session, one location cache.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::Bus;
use dormouse_protocol::fleet::{LocateReply, LocateRequest};
use dormouse_protocol::{Prefix, ServerName, Subject};
use dormouse_runtime::Tasks;

use crate::call::{ClientShared, CoordinatorCall};
use crate::error::Error;
use crate::kv::Kv;
use crate::stream::Stream;
use crate::subject::Handle;

/// How long [`Client::close`] waits for the client's own tasks.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// The connection of an application to a Dormouse fleet. A clone is cheap and shares the connection, the
/// session and the location cache.
///
/// When the last clone, handle and feed is dropped, the client's tasks end. The connection ends too if the
/// client made it.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<ClientShared>,
}

impl Client {
    /// A handle on the stream at `subject`. Sends nothing: a stream exists from its first message on.
    ///
    /// # Errors
    /// [`Error::InvalidSubject`] if the text is not a subject.
    pub fn stream(&self, subject: &str) -> Result<Stream, Error> {
        Ok(Stream { handle: self.handle(subject)? })
    }

    /// A handle on the key-value store at `subject`. Sends nothing: a store exists from its first entry on.
    ///
    /// # Errors
    /// [`Error::InvalidSubject`] if the text is not a subject.
    pub fn kv(&self, subject: &str) -> Result<Kv, Error> {
        Ok(Kv { handle: self.handle(subject)? })
    }

    fn handle(&self, subject: &str) -> Result<Handle, Error> {
        Ok(Handle {
            inner: Arc::clone(&self.inner),
            subject: Subject::new(subject)?,
            deadline: self.inner.deadline,
            level: None,
        })
    }

    /// Asks the coordinator which server serves `subject`, without the cache. If the subject has no server
    /// yet, the coordinator assigns one.
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// [`Error::Deadline`] if the coordinator does not reply or knows no live server;
    /// [`Error::PermissionDenied`].
    pub async fn locate(&self, subject: &Subject) -> Result<ServerName, Error> {
        let route = self.inner.prefix.locate(subject);
        let reply: LocateReply =
            self.inner.ask_coordinator(route, &LocateRequest::default(), CoordinatorCall::Query).await?;
        Ok(reply.server)
    }

    /// The underlying connection.
    #[must_use]
    pub fn bus(&self) -> &Arc<dyn Bus> {
        &self.inner.bus
    }

    /// The prefix of the fleet's routes: their first tokens.
    #[must_use]
    pub fn prefix(&self) -> &Prefix {
        &self.inner.prefix
    }

    /// Closes the client for all its clones: feeds and pages end, queued sets fail with
    /// [`Error::Closed`](crate::Error::Closed), and the connection is closed if the client made it. Calls in
    /// flight fail or continue until their deadline.
    ///
    /// If the call is cancelled, the client is partly closed; `close` can be called again.
    pub async fn close(&self) {
        finish(&self.inner.tasks).await;
        if let Some(bus_tasks) = &self.inner.bus_tasks {
            self.inner.bus.close().await;
            finish(bus_tasks).await;
        }
    }
}

async fn finish(tasks: &Tasks) {
    if let Err(unfinished) = tasks.finish(CLOSE_DEADLINE).await {
        tracing::warn!(%unfinished, "client tasks not finished");
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("prefix", &self.inner.prefix)
            .field("session", &self.inner.session)
            .finish_non_exhaustive()
    }
}
