//! The client: one connection, one session, one cache of locations.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::Bus;
use dormouse_bus::nats::NatsOptions;
use dormouse_protocol::fleet::{LocateReply, LocateRequest};
use dormouse_protocol::{Prefix, ServerName, Subject};
use dormouse_runtime::Tasks;

use crate::builder::{ClientBuilder, ConnectError};
use crate::call::{Asking, Inner};
use crate::error::Error;
use crate::kv::Kv;
use crate::stream::Stream;
use crate::subject::Handle;

/// How long [`Client::close`] waits for the client's own tasks.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// The connection of an application to a Dormouse fleet. Cloning is cheap and shares the connection, the session and
/// the cache of locations.
///
/// Dropping the last clone, handle and watch ends the client's tasks and, if the client made the connection, the
/// connection.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

impl Client {
    /// Connects to the fleet on a NATS system, with the defaults for everything else: `nats://host:4222`, or several
    /// of them separated by commas.
    ///
    /// Cancelling the call leaves no connection.
    ///
    /// # Errors
    /// [`ConnectError`] when the address makes no sense or no connection comes about.
    pub async fn connect(url: &str) -> Result<Self, ConnectError> {
        let urls = url.split(',').map(|url| url.trim().parse()).collect::<Result<_, _>>()?;
        Self::builder().connect(NatsOptions::new(urls)).await
    }

    /// Sets up a client in other ways than [`connect`](Self::connect).
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Uses a connection that is there already, with the defaults for everything else.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::Closed`] when the bus is closed.
    pub async fn over(bus: Arc<dyn Bus>) -> Result<Self, Error> {
        Self::builder().over(bus).await
    }

    /// The stream at `subject`. Nothing is sent: a stream exists from its first message on.
    ///
    /// # Errors
    /// [`Error::InvalidSubject`] when the text is not a subject.
    pub fn stream(&self, subject: &str) -> Result<Stream, Error> {
        Ok(Stream { handle: self.handle(subject)? })
    }

    /// The key-value store at `subject`. Nothing is sent: a store exists from its first entry on.
    ///
    /// # Errors
    /// [`Error::InvalidSubject`] when the text is not a subject.
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

    /// Which server serves `subject`, asked of the coordinator afresh. If nobody does yet, the coordinator decides now.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::Deadline`] when the coordinator does not answer or knows no live server;
    /// [`Error::PermissionDenied`].
    pub async fn locate(&self, subject: &Subject) -> Result<ServerName, Error> {
        let route = self.inner.prefix.locate(subject);
        let reply: LocateReply =
            self.inner.ask_coordinator(route, &LocateRequest::default(), Asking::Question).await?;
        Ok(reply.server)
    }

    /// The connection underneath.
    #[must_use]
    pub fn bus(&self) -> &Arc<dyn Bus> {
        &self.inner.bus
    }

    /// The first tokens of the fleet's routes.
    #[must_use]
    pub fn prefix(&self) -> &Prefix {
        &self.inner.prefix
    }

    /// Ends the client for all its clones: feeds and pages end, sets that still wait fail with
    /// [`Error::Closed`](crate::Error::Closed), and the connection is closed if the client made it.
    /// Calls in flight fail or go on until their deadline.
    ///
    /// Cancelling the call leaves the client half closed; it can be called again.
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
        tracing::warn!(%unfinished, "some tasks of the client did not end");
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
